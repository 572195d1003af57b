//! The core crate without Erlang: the crate `mesh` as a Rust program uses it, each caller a task on
//! the runtime that the pool runs on, which has as many threads as the library's own by default.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::{Address, Config, Mesh, Plain, Sent, Stream, Target, Verification};
use tokio::runtime::Handle;
use tokio::task::{JoinSet, yield_now};

use crate::args::Args;
use crate::lines::{Lines, say};
use crate::work::Work;

/// A caller lets others run after so many messages; each round has at least as many bytes.
const TURN: usize = 64;

/// Sends to `--peers` pooled connections for `--seconds`, a caller for each.
pub(crate) async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let work = Work::new(args.get("size")?)?;
    let address = Address::new("127.0.0.1", args.get("to")?).ok_or("no address")?;
    let pool = open(Config::default())?;
    let mut streams = Vec::new();
    for node in 0..args.get_or("peers", 1_u32)? {
        let target = Target { address: address.clone(), given: Box::default() };
        streams.push(pool.connect(&node.to_be_bytes(), target).await?);
    }
    let mut lines = Lines::read();
    say("ready")?;
    lines.expect("go").await?;
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(args.get("seconds")?);
    let mut tasks = JoinSet::new();
    for stream in streams {
        tasks.spawn(send(stream, work.clone(), until));
    }
    let mut sent = 0;
    while let Some(outcome) = tasks.join_next().await {
        sent += outcome??;
    }
    say(&format!("sent messages={sent} seconds={:.6}", begin.elapsed().as_secs_f64()))?;
    lines.expect("quit").await?;
    Ok(())
}

/// A pool with these options, on this runtime.
pub(crate) fn open(config: Config) -> Result<Mesh<Plain>, mesh::Error> {
    Mesh::new(config, None, Verification::None, Handle::current(), |_| {})
}

async fn send(stream: Stream, work: Arc<Work>, until: Instant) -> Result<u64, mesh::Error> {
    let mut sent = 0;
    while Instant::now() < until {
        for turn in work.messages.chunks(TURN) {
            for message in turn {
                if let Sent::Waiting(accepted) = stream.send(message.clone().into())? {
                    accepted.await.map_err(|_| mesh::Error::Cancelled)??;
                }
                sent += 1;
            }
            yield_now().await;
        }
    }
    Ok(sent)
}
