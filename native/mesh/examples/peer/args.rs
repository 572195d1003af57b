//! The command line: every option, its default and its check.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::behaviour::Mode;

/// What is printed below a complaint.
pub(crate) const USAGE: &str = "usage: peer [--mode MODE] [--address IP] [--port P] \
[--bidi-streams N] [--idle-timeout-ms MS] [--keep-alive-ms MS] [--alpn NAME] \
[--cert PEM --key PEM] [--corrupt-signature] [--require-client-cert]
MODE: count | echo | hoard | silent_streams | reset | close_after:N | \
slow:BYTES_PER_SECOND | refuse";

/// What nodes in the field grant, as v0.20.5 of macula does.
const FIELD_BIDI_STREAMS: u32 = 100;
/// What nodes in the field set.
const FIELD_IDLE_TIMEOUT_MS: u32 = 60_000;
/// What nodes in the field set.
const FIELD_KEEP_ALIVE_MS: u32 = 20_000;
/// The ALPN name that every node in the field understands.
const FIELD_ALPN: &str = "macula";
/// RFC 7301, section 3.1: a protocol name is 1 to 255 bytes.
const LONGEST_ALPN: usize = 255;

/// A checked command line.
pub(crate) struct Args {
    pub(crate) mode: Mode,
    pub(crate) address: IpAddr,
    /// 0: any free port.
    pub(crate) port: u16,
    pub(crate) bidi_streams: u32,
    /// 0: none.
    pub(crate) idle_timeout_ms: u32,
    /// Zero: none.
    pub(crate) keep_alive: Duration,
    pub(crate) alpn: String,
    /// Paths of the certificate chain and of its key; a self-signed certificate without them.
    /// The key need not be the certificate's: then this is an impostor.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// Whether the handshake is signed with nonsense.
    pub(crate) corrupt_signature: bool,
    pub(crate) require_client_cert: bool,
    /// Where the index of each message is appended as it comes, for who outlives this process.
    pub(crate) log: Option<PathBuf>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            mode: Mode::Count,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            bidi_streams: FIELD_BIDI_STREAMS,
            idle_timeout_ms: FIELD_IDLE_TIMEOUT_MS,
            keep_alive: milliseconds(FIELD_KEEP_ALIVE_MS),
            alpn: FIELD_ALPN.to_owned(),
            identity: None,
            corrupt_signature: false,
            require_client_cert: false,
            log: None,
        }
    }
}

impl Args {
    /// Reads the words after the program's name.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        let (mut cert, mut key) = (None, None);
        while let Some(option) = words.next() {
            let option = option.as_str();
            match option {
                "--mode" => args.mode = value(option, &mut words)?,
                "--address" => args.address = value(option, &mut words)?,
                "--port" => args.port = value(option, &mut words)?,
                "--bidi-streams" => args.bidi_streams = value(option, &mut words)?,
                "--idle-timeout-ms" => args.idle_timeout_ms = value(option, &mut words)?,
                "--keep-alive-ms" => args.keep_alive = milliseconds(value(option, &mut words)?),
                "--alpn" => args.alpn = value(option, &mut words)?,
                "--cert" => cert = Some(value(option, &mut words)?),
                "--key" => key = Some(value(option, &mut words)?),
                "--corrupt-signature" => args.corrupt_signature = true,
                "--require-client-cert" => args.require_client_cert = true,
                "--log" => args.log = Some(value(option, &mut words)?),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        args.identity = both(cert, key)?;
        if args.alpn.is_empty() || args.alpn.len() > LONGEST_ALPN {
            return Err(format!("--alpn: not 1 to {LONGEST_ALPN} bytes"));
        }
        Ok(args)
    }
}

fn value<T: FromStr>(option: &str, words: &mut impl Iterator<Item = String>) -> Result<T, String> {
    let word = words.next().ok_or_else(|| format!("{option}: value missing"))?;
    word.parse().map_err(|_| format!("{option}: bad value {word}"))
}

fn both<T>(cert: Option<T>, key: Option<T>) -> Result<Option<(T, T)>, String> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        _ => Err("--cert and --key go together".to_owned()),
    }
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}
