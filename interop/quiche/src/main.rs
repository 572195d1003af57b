//! A peer on quiche. `node.rs` has its sockets and takes the commands, `link.rs` one connection and
//! its streams.

mod link;
mod node;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use lines::{Args, Tally};

use node::Quiche;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quiche-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1))?;
    let tally = Arc::new(Tally::default());
    let (node, port) = Quiche::start(args, tally.clone())?;
    lines::run(port, &node, &tally)?;
    node.leave();
    Ok(())
}
