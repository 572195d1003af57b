//! A peer on MsQuic: what nodes in the field run. `node.rs` has its connections and streams, and
//! all unsafe code.

mod node;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use lines::{Args, Tally};

use node::{MsQuic, Stack};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msquic-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1))?;
    let tally = Arc::new(Tally::default());
    // Dropped in this order: MsQuic waits for all of its handles.
    let stack = Stack::new(&args)?;
    let node = MsQuic::new(&stack, args, tally.clone());
    let listener = node.listen()?;
    lines::run(listener.port()?, &node, &tally)?;
    node.leave();
    Ok(())
}
