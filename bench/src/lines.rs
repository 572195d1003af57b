//! How the driver (`bench/run`) talks to a program of the benchmark: a line in, a line out.

use std::io::{self, BufRead, Write};
use std::thread;

use tokio::sync::mpsc;

/// Lines read ahead of their answers; the driver waits for each answer.
const LINES_AHEAD: usize = 8;

/// The lines of standard input, read by a thread of its own.
pub(crate) struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub(crate) fn read() -> Self {
        let (sender, lines) = mpsc::channel(LINES_AHEAD);
        thread::spawn(move || {
            for line in io::stdin().lock().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }

    /// The next line; nothing once the driver is gone.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }

    /// Waits for this very line.
    pub(crate) async fn expect(&mut self, line: &str) -> Result<(), String> {
        match self.next().await {
            Some(there) if there == line => Ok(()),
            other => Err(format!("expected the line {line}, got {other:?}")),
        }
    }
}

/// Prints a line.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
