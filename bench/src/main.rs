//! The programs of the benchmark that are Rust, one command each. `bench/run` starts them, tells
//! them when to begin, and puts what they say together.

#![allow(clippy::disallowed_methods, reason = "a program of its own, which may block its thread")]

mod args;
mod ceiling;
mod core;
mod count;
mod dial;
mod evict;
mod lines;
mod quic;
mod receiver;
mod work;

use std::error::Error;
use std::process::ExitCode;
use std::thread::available_parallelism;

use tokio::runtime::{Builder, Runtime};

use args::Args;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).map_err(Into::into).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    match args.command.as_str() {
        "receive" => one_thread()?.block_on(receiver::run(args)),
        "ceiling" => one_thread()?.block_on(ceiling::run(args)),
        "read" => one_thread()?.block_on(ceiling::read(args)),
        "core" => workers()?.block_on(core::run(args)),
        "dial-ceiling" => one_thread()?.block_on(dial::ceiling(args)),
        "dial-core" => workers()?.block_on(dial::core(args)),
        "count" => one_thread()?.block_on(count::run(args)),
        "evict" => evict::run(),
        other => Err(format!("no command: {other}").into()),
    }
}

/// quinn's tasks and the program's own on one thread: no wake-up crosses threads.
fn one_thread() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The library's runtime, with its default of one thread for two cores.
fn workers() -> std::io::Result<Runtime> {
    let workers = available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}
