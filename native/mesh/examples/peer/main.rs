//! A node in the field, as a process of its own: a plain QUIC server that tests and benchmarks
//! dial.
//!
//! It shares no code with the pool under test, so that what it counts is evidence and not an echo.
//! It is driven by lines on standard input and answers each with one Erlang term (`command.rs`):
//!
//! ```text
//! $ cargo run --release --example peer -- --mode count
//! {ready,40123}.
//! wait messages 10000 5000
//! {stats,#{connections_opened=>1,...}}.
//! ```
//!
//! The main thread answers, a second one reads standard input, and the runtime serves the network;
//! so neither a slow reader of the answers nor a `wait` ever holds up the data path.

mod args;
mod behaviour;
mod command;
mod indices;
mod message;
mod node;
mod signer;
mod tally;
mod tls;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use tokio::runtime::{Builder, Runtime};

use args::Args;
use command::Command;
use node::{Node, Profiles};

/// The exit code for a command line that makes no sense, as shells use it.
const USAGE_ERROR: u8 = 2;
/// Lines read ahead of their answers. Drivers wait for each answer, so a few would do.
const LINES_AHEAD: usize = 64;
/// The application error code of a peer that leaves in order: 0, as QUIC libraries in the field
/// send.
const GOODBYE_CODE: VarInt = VarInt::from_u32(0);
/// How long an exit may take to tell the other ends: several round trips on loopback.
const GOODBYE_TIME: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("peer: {problem}\n{}", args::USAGE);
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let log = args.log.as_ref().map(|path| File::options().append(true).create(true).open(path));
    let node = Arc::new(Node::new(args.mode, log.transpose()?));
    let profiles = Profiles::new(args)?;
    let endpoint = {
        let _context = runtime.enter();
        node::bind(args, &profiles)?
    };
    let serving = Arc::clone(&node).serve(endpoint.clone(), profiles);
    runtime.spawn(serving);
    say(&format!("{{ready,{}}}.", endpoint.local_addr()?.port()))?;
    answer_lines(&node)?;
    say_goodbye(&runtime, endpoint);
    Ok(())
}

/// Answers one line at a time until `quit` or the end of standard input.
fn answer_lines(node: &Arc<Node>) -> io::Result<()> {
    let (sender, lines) = sync_channel(LINES_AHEAD);
    let reading = Arc::clone(node);
    // Never joined: a thread that blocks on standard input ends with the process.
    thread::spawn(move || read_lines(&reading, &sender));
    answer_each(node, &lines)
}

fn read_lines(node: &Node, lines: &SyncSender<String>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if lines.send(line).is_err() {
            break;
        }
    }
    // Whoever drives us is gone: no `wait` may keep this process alive.
    node.tally.abandon_waits();
}

fn answer_each(node: &Node, lines: &Receiver<String>) -> io::Result<()> {
    for line in lines {
        let command = Command::parse(&line);
        say(&command::answer(command.as_ref(), node))?;
        if matches!(command, Some(Command::Quit)) {
            break;
        }
    }
    Ok(())
}

/// Prints one line and flushes it: standard output is this program's interface.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

/// Closes every connection and gives the packets that say so a bounded time to leave.
fn say_goodbye(runtime: &Runtime, endpoint: Endpoint) {
    let (done, idle) = sync_channel(1);
    endpoint.close(GOODBYE_CODE, b"");
    runtime.spawn(async move {
        endpoint.wait_idle().await;
        // Nobody listens any more once the time is up.
        done.send(()).ok();
    });
    // Idle or out of time: either way we leave.
    idle.recv_timeout(GOODBYE_TIME).ok();
}
