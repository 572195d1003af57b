//! The command line.

use std::time::Duration;

/// A checked command line.
#[derive(Clone, Debug)]
pub struct Args {
    /// What is done on streams that the other end has opened.
    pub mode: Mode,
    /// Silence after which a connection ends.
    pub idle_timeout: Duration,
    /// The path of the certificate, PEM.
    pub cert: String,
    /// The path of its key, PEM.
    pub key: String,
}

/// What is done on streams that the other end has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Frames are counted.
    Count,
    /// The same, and everything is sent back.
    Echo,
    /// Each chunk is one message.
    Chunks,
}

impl Args {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// A complaint for people.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut mode, mut idle_timeout) = (Mode::Count, Duration::from_secs(60));
        let (mut cert, mut key) = (None, None);
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option}: value missing"))?;
            let bad = || format!("{option}: bad value {value}");
            match option.as_str() {
                "--mode" => mode = parse_mode(&value).ok_or_else(bad)?,
                "--idle-timeout-ms" => {
                    idle_timeout = Duration::from_millis(value.parse().map_err(|_| bad())?);
                }
                "--cert" => cert = Some(value),
                "--key" => key = Some(value),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        let cert = cert.ok_or("--cert is missing")?;
        let key = key.ok_or("--key is missing")?;
        Ok(Self { mode, idle_timeout, cert, key })
    }

    /// Whether a chunk is a message.
    pub fn has_old_habit(&self) -> bool {
        self.mode == Mode::Chunks
    }

    /// Whether what comes is sent back.
    pub fn is_echo(&self) -> bool {
        self.mode == Mode::Echo
    }
}

fn parse_mode(name: &str) -> Option<Mode> {
    match name {
        "count" => Some(Mode::Count),
        "echo" => Some(Mode::Echo),
        "chunks" => Some(Mode::Chunks),
        _ => None,
    }
}
