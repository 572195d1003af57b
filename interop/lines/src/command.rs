//! The lines on standard input, and their answers: one Erlang term each (interop/README.md).

use std::io::{self, BufRead, Write};
use std::time::Duration;

use crate::frame::frame;
use crate::tally::{Counter, Tally};

/// Between two writes that are to leave in two packets.
const PAUSE: Duration = Duration::from_millis(1);

/// Why a command failed, for people.
pub type Outcome<T = ()> = Result<T, String>;

/// Streams to be sent: for each its writes, FIN after the last.
#[derive(Debug)]
pub struct Batch {
    /// The writes of each stream.
    pub streams: Vec<Vec<Vec<u8>>>,
    /// How long to wait between two writes of one stream.
    pub pause: Duration,
}

/// A stack, as the lines command it. All are for the newest connection, or the newest stream.
pub trait Node {
    /// Dials a port of loopback.
    fn connect(&self, port: u16) -> Outcome;
    /// Sends, and waits until the other end has finished each stream.
    fn send(&self, batch: Batch) -> Outcome;
    /// Opens a stream, and sends this on it.
    fn open(&self, data: Vec<u8>) -> Outcome;
    /// RESET_STREAM.
    fn reset(&self, code: u64) -> Outcome;
    /// STOP_SENDING.
    fn stop(&self, code: u64) -> Outcome;
    /// CONNECTION_CLOSE.
    fn close(&self, code: u64) -> Outcome;

    /// New keys.
    fn key_update(&self) -> Outcome {
        Err("not offered".to_owned())
    }

    /// Moves to another port, and tells which.
    fn rebind(&self) -> Outcome<u16> {
        Err("not offered".to_owned())
    }

    /// Asks for a sign of life.
    fn ping(&self) -> Outcome {
        Ok(())
    }
}

/// Says where this peer listens, then answers one line at a time until `quit` or the end.
///
/// # Errors
/// Standard input or output is gone.
pub fn run(port: u16, node: &impl Node, tally: &Tally) -> io::Result<()> {
    say(&format!("{{ready,{port}}}"))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "quit" {
            break;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = answer(&words, node, tally).unwrap_or_else(|why| format!("{{error,{why:?}}}"));
        say(&answer)?;
    }
    Ok(())
}

fn answer(words: &[&str], node: &impl Node, tally: &Tally) -> Outcome<String> {
    match *words {
        ["stats"] => Ok(tally.term("stats")),
        ["wait", name, least, time] => {
            let counter = Counter::named(name).ok_or("no such counter")?;
            let time = Duration::from_millis(number(time)?);
            let is_reached = tally.wait(counter, number(least)?, time);
            Ok(tally.term(if is_reached { "stats" } else { "timeout" }))
        }
        ["connect", port] => {
            node.connect(u16::try_from(number(port)?).map_err(|_| "no such port")?)?;
            Ok("connected".to_owned())
        }
        ["streams", count, size] => {
            let (count, size) = (number(count)?, size_of(size)?);
            let streams = (0..count).map(|index| vec![frame(index, size)]).collect();
            sent(count, node.send(Batch { streams, pause: Duration::ZERO }))
        }
        ["messages", count, size, length] => {
            let (count, size) = (number(count)?, size_of(size)?);
            let length = usize::try_from(number(length)?).map_err(|_| "too long")?;
            let joined: Vec<u8> = (0..count).flat_map(|index| frame(index, size)).collect();
            let writes = joined.chunks(length).map(<[u8]>::to_vec).collect();
            sent(count, node.send(Batch { streams: vec![writes], pause: Duration::ZERO }))
        }
        ["split", size] => {
            let streams = splits(size_of(size)?);
            let count = u64::try_from(2 * streams.len()).unwrap_or(u64::MAX);
            sent(count, node.send(Batch { streams, pause: PAUSE }))
        }
        ["open", size] => done(node.open(frame(0, size_of(size)?))),
        ["reset", code] => done(node.reset(number(code)?)),
        ["stop", code] => done(node.stop(number(code)?)),
        ["close", code] => done(node.close(number(code)?)),
        ["key_update"] => done(node.key_update()),
        ["ping"] => done(node.ping()),
        ["rebind"] => Ok(format!("{{port,{}}}", node.rebind()?)),
        _ => Err("unknown command".to_owned()),
    }
}

/// Two frames a stream, cut at each of their bytes in turn.
fn splits(size: u32) -> Vec<Vec<Vec<u8>>> {
    let cuts = 1..2 * frame(0, size).len();
    (0..)
        .step_by(2)
        .zip(cuts)
        .map(|(index, cut)| {
            let mut first = [frame(index, size), frame(index + 1, size)].concat();
            let second = first.split_off(cut);
            vec![first, second]
        })
        .collect()
}

fn number(word: &str) -> Outcome<u64> {
    word.parse().map_err(|_| format!("no number: {word}"))
}

fn size_of(word: &str) -> Outcome<u32> {
    word.parse().map_err(|_| format!("no size: {word}"))
}

fn sent(count: u64, outcome: Outcome) -> Outcome<String> {
    outcome.map(|()| format!("{{sent,{count}}}"))
}

fn done(outcome: Outcome) -> Outcome<String> {
    outcome.map(|()| "ok".to_owned())
}

/// Prints one term and flushes it: standard output is this program's interface.
fn say(term: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{term}.")?;
    output.flush()
}
