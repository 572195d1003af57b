//! The lines on standard input, and their answers: one Erlang term each, for `erl_parse`.

use std::sync::Arc;
use std::time::Duration;

use crate::fate::Direction;
use crate::faults::Faults;
use crate::relay::{Counters, Relay};

/// A line that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `set up|down|both NAME=VALUE ...`: changes faults; others stay as they are.
    Set(Vec<Direction>, Vec<String>),
    /// `clear`: no faults.
    Clear,
    /// `rebind`: every client gets another port towards the server.
    Rebind,
    /// `at MS COMMAND`: one of the above, so much later.
    At(Duration, Box<Command>),
    /// `stats`: what has become of the packets.
    Stats,
    /// `quit`: ends the relay.
    Quit,
}

impl Command {
    /// Reads one line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        Self::read(&words)
    }

    fn read(words: &[&str]) -> Option<Self> {
        match words {
            ["set", way, faults @ ..] => set(way, faults),
            ["clear"] => Some(Self::Clear),
            ["rebind"] => Some(Self::Rebind),
            ["at", time, later @ ..] => {
                let time = Duration::from_millis(time.parse::<u32>().ok()?.into());
                let later = Self::read(later).filter(Self::is_fault)?;
                Some(Self::At(time, Box::new(later)))
            }
            ["stats"] => Some(Self::Stats),
            ["quit"] => Some(Self::Quit),
            _ => None,
        }
    }

    fn is_fault(&self) -> bool {
        matches!(self, Self::Set(..) | Self::Clear | Self::Rebind)
    }
}

fn set(way: &str, faults: &[&str]) -> Option<Command> {
    let directions = match way {
        "up" => vec![Direction::Up],
        "down" => vec![Direction::Down],
        "both" => vec![Direction::Up, Direction::Down],
        _ => return None,
    };
    // Whether they make sense does not depend on what is set already.
    Faults::default().with(faults.iter().copied())?;
    Some(Command::Set(directions, faults.iter().map(|word| (*word).to_owned()).collect()))
}

/// Carries out a command and words its answer. Within a runtime; what comes later is not its
/// business.
pub(crate) fn answer(command: &Command, relay: &Arc<Relay>) -> String {
    match command {
        Command::Set(directions, words) => {
            let mut state = relay.lock();
            for direction in directions {
                let way = state.way(*direction);
                let faults = way.faults.clone().with(words.iter().map(String::as_str));
                way.faults = faults.unwrap_or_default();
            }
        }
        Command::Clear => {
            let mut state = relay.lock();
            state.up.faults = Faults::default();
            state.down.faults = Faults::default();
        }
        Command::Rebind => {
            return match relay.rebind() {
                Ok(count) => format!("{{rebound,{count}}}."),
                Err(_) => "{error,no_socket}.".to_owned(),
            };
        }
        Command::Stats => return stats(relay),
        Command::At(..) | Command::Quit => {}
    }
    "ok.".to_owned()
}

fn stats(relay: &Relay) -> String {
    let state = relay.lock();
    format!(
        "{{stats,#{{up=>#{{{}}},down=>#{{{}}},queued=>{},flows=>{},rebinds=>{}}}}}.",
        counters(&state.up.counters),
        counters(&state.down.counters),
        state.queued(),
        state.flows.len(),
        state.rebinds,
    )
}

fn counters(counters: &Counters) -> String {
    let fields = [
        ("received", counters.received),
        ("sent", counters.sent),
        ("lost", counters.lost),
        ("duplicated", counters.duplicated),
        ("reordered", counters.reordered),
        ("corrupted", counters.corrupted),
        ("too_long", counters.too_long),
        ("blacked_out", counters.blacked_out),
        ("overflowed", counters.overflowed),
        ("unsent", counters.unsent),
    ];
    fields.map(|(name, value)| format!("{name}=>{value}")).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_sense_are_understood() {
        let up = Command::Set(vec![Direction::Up], vec!["loss=1".to_owned()]);
        assert_eq!(Command::parse("set up loss=1"), Some(up.clone()));
        let later = Command::At(Duration::from_millis(5), Box::new(up));
        assert_eq!(Command::parse("at 5 set up loss=1"), Some(later));
        assert_eq!(Command::parse("rebind"), Some(Command::Rebind));
    }

    #[test]
    fn lines_without_are_not() {
        for line in
            ["", "set", "set left loss=1", "set up loss", "at 5", "at 5 stats", "at x clear"]
        {
            assert_eq!(Command::parse(line), None, "{line}");
        }
    }
}
