//! A line between clients and a server that loses, repeats, delays, changes and cuts off packets,
//! as it is told to: the faults that this kernel cannot make.
//!
//! A UDP relay as a process of its own. It is driven by lines on standard input and answers each
//! with one Erlang term (`command.rs`). Which packets are struck follows from the seed:
//!
//! ```text
//! $ cargo run --release --example relay -- --server 127.0.0.1:4433 --seed 7
//! {ready,40124}.
//! set both loss=50 delay=20 jitter=5
//! ok.
//! at 1000 set up blackout=true
//! ok.
//! stats
//! {stats,#{up=>#{received=>12,...},...}}.
//! ```
//!
//! Chances are in thousandths, times in milliseconds, and `up` is from a client to the server.

mod command;
mod fate;
mod faults;
mod queue;
mod relay;

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use command::Command;
use relay::Relay;

/// The exit code for a command line that makes no sense, as shells use it.
const USAGE_ERROR: u8 = 2;
const USAGE: &str = "usage: relay --server IP:PORT [--port P] [--seed N]";
/// Commands that wait for their time, at most.
const MOST_PENDING: usize = 1_024;

struct Args {
    server: SocketAddr,
    port: u16,
    seed: u64,
}

fn main() -> ExitCode {
    let Some(args) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(USAGE_ERROR);
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Args> {
    let (mut server, mut port, mut seed) = (None, 0, 0);
    while let Some(option) = words.next() {
        match option.as_str() {
            "--server" => server = Some(value(&mut words)?),
            "--port" => port = value(&mut words)?,
            "--seed" => seed = value(&mut words)?,
            _ => return None,
        }
    }
    Some(Args { server: server?, port, seed })
}

fn value<T: FromStr>(words: &mut impl Iterator<Item = String>) -> Option<T> {
    words.next()?.parse().ok()
}

/// Answers lines until `quit` or the end of standard input; the runtime serves the network.
fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let context = runtime.enter();
    let relay = Relay::bind(args.seed, args.port, args.server)?;
    runtime.spawn(relay.clone().listen());
    runtime.spawn(relay.clone().deliver());
    say(&format!("{{ready,{}}}.", relay.port()?))?;
    let turns = Arc::new(Semaphore::new(MOST_PENDING));
    for line in io::stdin().lock().lines() {
        let command = Command::parse(&line?);
        say(&match &command {
            Some(Command::At(time, later)) => schedule(*time, later, &relay, &turns),
            Some(command) => command::answer(command, &relay),
            None => "{error,unknown_command}.".to_owned(),
        })?;
        if matches!(command, Some(Command::Quit)) {
            break;
        }
    }
    drop(context);
    runtime.shutdown_background();
    Ok(())
}

/// Has a command carried out when its time has come. Within a runtime.
fn schedule(time: Duration, later: &Command, relay: &Arc<Relay>, turns: &Arc<Semaphore>) -> String {
    let Ok(turn) = turns.clone().try_acquire_owned() else {
        return "{error,too_many}.".to_owned();
    };
    let (later, relay) = (later.clone(), relay.clone());
    tokio::spawn(async move {
        sleep(time).await;
        command::answer(&later, &relay);
        drop(turn);
    });
    "ok.".to_owned()
}

/// Prints one line and flushes it: standard output is this program's interface.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
