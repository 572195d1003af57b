//! A client that means harm, as a process of its own: it does one bounded thing to a listener on
//! loopback, says what became of it, and holds on to what it has until its standard input ends.
//!
//! ```text
//! $ cargo run --release --example attacker -- --port 4433 --connections 4 unread
//! {attacked,#{connected=>4,failed=>0,closed=>0,done=>412}}.
//! ```
//!
//! `floods.rs` has the attacks; what no QUIC library would send by itself, `wire.rs` writes into
//! the packets just before they are encrypted, and `initial.rs` makes all by itself.

mod args;
mod floods;
mod initial;
#[path = "../peer/signer.rs"]
mod signer;
mod tls;
mod wire;

use std::error::Error;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use tokio::runtime::Builder;

use args::Args;
use floods::Held;

/// The exit code for a command line that makes no sense, as shells use it.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("attacker: {problem}\n{}", args::USAGE);
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attacker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let outcome = floods::attack(&runtime, args)?;
    thread::spawn(move || {
        let held = outcome.recv().unwrap_or_default();
        // Whoever does not listen any more ends us soon.
        say(&held).ok();
        // What it holds, it holds until the program ends.
        loop {
            thread::park();
        }
    });
    // Whoever drives us ends us by closing our input, also in the middle of the attack.
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Prints one term: standard output is this program's interface.
fn say(held: &Held) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{{attacked,{}}}.", held.outcome())?;
    output.flush()
}
