//! The command line: every option, its default and its check.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// What is printed below a complaint.
pub(crate) const USAGE: &str =
    "usage: attacker --port P [--from IP] [--connections N] [--count N] \
[--size BYTES] [--cert PEM --key PEM] [--corrupt-signature] ATTACK
ATTACK: knock | unis | hellos | resets | stops | repeats | gaps | sparse | crumbs | \
frames | unread | deaf | stray | retirements | \
farewells";

/// What is done to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// One message by somebody who may not be whom he says he is.
    Knock,
    /// As many streams for one's own use alone as one gets, each with a message.
    Unis,
    /// Handshakes that never finish.
    Hellos,
    /// Streams opened and given up at once.
    Resets,
    /// STOP_SENDING on each of many streams.
    Stops,
    /// STOP_SENDING again and again on one.
    Repeats,
    /// Single bytes with holes between them, on all streams at once.
    Gaps,
    /// The same, each in a packet of its own, among others without data.
    Sparse,
    /// Frames that arrive a byte at a time, each in a large packet of its own.
    Crumbs,
    /// Frames as long as is allowed, on all streams at once, whose last byte never comes.
    Frames,
    /// As much as flow control lets through, for somebody who does not read.
    Unread,
    /// Requests whose answers are not read.
    Deaf,
    /// Data on a stream that was never granted.
    Stray,
    /// A connection id given up again and again.
    Retirements,
    /// First datagrams that begin a connection and end it.
    Farewells,
}

/// A checked command line.
pub(crate) struct Args {
    pub(crate) port: u16,
    /// The address that the attack comes from.
    pub(crate) from: Ipv4Addr,
    pub(crate) attack: Attack,
    /// Connections at once.
    pub(crate) connections: usize,
    /// How often; of what, the attack says.
    pub(crate) count: u64,
    /// Bytes of a message.
    pub(crate) size: u32,
    /// Paths of a certificate chain and of a key, which need not belong together.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake is signed with nonsense.
    pub(crate) corrupt_signature: bool,
}

impl Args {
    /// Reads the words after the program's name.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut port, mut attack, mut cert, mut key) = (None, None, None, None);
        let (mut from, mut connections, mut count, mut size) = (Ipv4Addr::LOCALHOST, 1, 1, 8);
        let mut corrupt_signature = false;
        while let Some(word) = words.next() {
            let word = word.as_str();
            match word {
                "--port" => port = Some(value(word, &mut words)?),
                "--from" => from = value(word, &mut words)?,
                "--connections" => connections = value(word, &mut words)?,
                "--count" => count = value(word, &mut words)?,
                "--size" => size = value(word, &mut words)?,
                "--cert" => cert = Some(value(word, &mut words)?),
                "--key" => key = Some(value(word, &mut words)?),
                "--corrupt-signature" => corrupt_signature = true,
                _ => attack = Some(word.parse()?),
            }
        }
        Ok(Self {
            port: port.ok_or("--port is missing")?,
            from,
            attack: attack.ok_or("no attack")?,
            connections,
            count,
            size,
            identity: cert.zip(key),
            corrupt_signature,
        })
    }
}

impl FromStr for Attack {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "knock" => Ok(Self::Knock),
            "unis" => Ok(Self::Unis),
            "hellos" => Ok(Self::Hellos),
            "resets" => Ok(Self::Resets),
            "stops" => Ok(Self::Stops),
            "repeats" => Ok(Self::Repeats),
            "gaps" => Ok(Self::Gaps),
            "sparse" => Ok(Self::Sparse),
            "crumbs" => Ok(Self::Crumbs),
            "frames" => Ok(Self::Frames),
            "unread" => Ok(Self::Unread),
            "deaf" => Ok(Self::Deaf),
            "stray" => Ok(Self::Stray),
            "retirements" => Ok(Self::Retirements),
            "farewells" => Ok(Self::Farewells),
            _ => Err(format!("unknown word {word}")),
        }
    }
}

fn value<T: FromStr>(option: &str, words: &mut impl Iterator<Item = String>) -> Result<T, String> {
    let word = words.next().ok_or_else(|| format!("{option}: value missing"))?;
    word.parse().map_err(|_| format!("{option}: bad value {word}"))
}
