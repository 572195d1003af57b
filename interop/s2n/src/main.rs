//! A peer on s2n-quic. `node.rs` has its connections and streams.

mod node;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use lines::{Args, Tally};
use tokio::runtime::Builder;

use node::S2n;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("s2n-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1))?;
    let tally = Arc::new(Tally::default());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let node = S2n::new(&runtime, args, tally.clone());
    let port = node.listen()?;
    lines::run(port, &node, &tally)?;
    node.leave();
    Ok(())
}
