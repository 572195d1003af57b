//! The lines on standard input, and their answers: one Erlang term each, for `erl_parse`.

use std::fmt::Display;
use std::time::Duration;

use quinn::VarInt;

use crate::behaviour::Mode;
use crate::node::Node;
use crate::tally::{Counters, FIELDS, Field};

/// A line that makes sense.
pub(crate) enum Command {
    /// `stats`: the counters.
    Stats,
    /// `mode MODE`: how connections accepted from now on are served.
    SetMode(Mode),
    /// `close CODE`: closes all connections with that application error code.
    Close(VarInt),
    /// `reset_stats`: counts from zero; the connections that are open remain counted as open.
    ResetStats,
    /// `wait FIELD N MS`: the counters, once that one is at least N or the time is over.
    Wait(Field, u64, Duration),
    /// `missing N`: the first indices below N that never came.
    Missing(u64),
    /// `last_payload`: the beginning of the message that was whole last, header included.
    LastPayload,
    /// `client_certificate`: what the newest connection presented.
    ClientCertificate,
    /// `quit`: closes everything and exits.
    Quit,
}

impl Command {
    /// Reads one line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["stats"] => Some(Self::Stats),
            ["mode", mode] => mode.parse().ok().map(Self::SetMode),
            ["close", code] => close(code),
            ["reset_stats"] => Some(Self::ResetStats),
            ["wait", name, number, time] => wait(name, number, time),
            ["missing", number] => number.parse().ok().map(Self::Missing),
            ["last_payload"] => Some(Self::LastPayload),
            ["client_certificate"] => Some(Self::ClientCertificate),
            ["quit"] => Some(Self::Quit),
            _ => None,
        }
    }
}

fn close(code: &str) -> Option<Command> {
    let code = code.parse::<u64>().ok()?;
    VarInt::from_u64(code).ok().map(Command::Close)
}

fn wait(name: &str, number: &str, milliseconds: &str) -> Option<Command> {
    let field = FIELDS.into_iter().find(|field| field.0 == name)?;
    let milliseconds = milliseconds.parse::<u32>().ok()?;
    let time = Duration::from_millis(milliseconds.into());
    Some(Command::Wait(field, number.parse().ok()?, time))
}

/// Carries out a command, `None` being one that is unknown, and words its answer.
pub(crate) fn answer(command: Option<&Command>, node: &Node) -> String {
    let Some(command) = command else {
        return "{error,unknown_command}.".to_owned();
    };
    match command {
        Command::Stats => counters("stats", &node.tally.counters()),
        Command::SetMode(mode) => {
            node.set_mode(*mode);
            "ok.".to_owned()
        }
        Command::Close(code) => format!("{{closed,{}}}.", node.close_all(*code)),
        Command::ResetStats => {
            node.tally.reset();
            "ok.".to_owned()
        }
        Command::Wait(field, number, time) => {
            let reached = node.tally.wait(*field, *number, *time);
            let tag = if reached { "stats" } else { "timeout" };
            counters(tag, &node.tally.counters())
        }
        Command::Missing(end) => format!("{{missing,[{}]}}.", commas(node.tally.missing(*end))),
        Command::LastPayload => binary("payload", node.tally.last_message()),
        Command::ClientCertificate => binary("certificate", node.certificate()),
        Command::Quit => "ok.".to_owned(),
    }
}

fn counters(tag: &str, counters: &Counters) -> String {
    let fields = FIELDS.map(|(name, read)| format!("{name}=>{}", read(counters)));
    let codes = counters.close_codes.iter();
    let codes = codes.map(|(code, count)| format!("{code}=>{count}"));
    let (fields, codes) = (fields.join(","), commas(codes));
    format!("{{{tag},#{{{fields},close_codes=>#{{{codes}}}}}}}.")
}

fn binary(tag: &str, bytes: Option<Vec<u8>>) -> String {
    bytes.map_or("none.".to_owned(), |bytes| format!("{{{tag},<<{}>>}}.", commas(bytes)))
}

fn commas(items: impl IntoIterator<Item = impl Display>) -> String {
    let words: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    words.join(",")
}
