//! Dials: `--count` connections, `--at-once` of them under way at a time, with full handshakes;
//! then they stay open and idle until the driver has looked at what they cost.

use std::error::Error;
use std::time::Instant;

use mesh::{Address, Config, Target};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::core;
use crate::lines::{Lines, say};
use crate::quic;

/// By quinn itself, all from one socket.
pub(crate) async fn ceiling(args: &Args) -> Result<(), Box<dyn Error>> {
    let endpoint = quic::client(&args.get::<String>("alpn")?, None)?;
    let port = args.get("to")?;
    let dial = |_node: u32| {
        let connecting = quic::begin(&endpoint, port);
        async move { Ok(connecting?.await?) }
    };
    run(args, dial).await
}

/// By the core crate: a node id each.
pub(crate) async fn core(args: &Args) -> Result<(), Box<dyn Error>> {
    let address = Address::new("127.0.0.1", args.get("to")?).ok_or("no address")?;
    let mut config = Config::default();
    config.set("max_mesh_connections", args.get::<u64>("count")?)?;
    let pool = core::open(config)?;
    let dial = |node: u32| {
        let target = Target { address: address.clone(), given: Box::default() };
        let connecting = pool.connect(&node.to_be_bytes(), target);
        async move { Ok(connecting.await?) }
    };
    run(args, dial).await
}

async fn run<T, F>(args: &Args, dial: impl Fn(u32) -> F) -> Result<(), Box<dyn Error>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let count: u32 = args.get("count")?;
    let at_once: usize = args.get("at-once")?;
    let mut lines = Lines::read();
    say("ready")?;
    lines.expect("go").await?;
    let begin = Instant::now();
    let mut dials = JoinSet::new();
    let mut open = Vec::new();
    for node in 0..count {
        if dials.len() == at_once {
            open.extend(next(&mut dials).await?);
        }
        dials.spawn(dial(node));
    }
    while let Some(connection) = next(&mut dials).await? {
        open.push(connection);
    }
    let seconds = begin.elapsed().as_secs_f64();
    say(&format!("made connections={} seconds={seconds:.6}", open.len()))?;
    lines.expect("quit").await?;
    Ok(())
}

async fn next<T: 'static>(
    dials: &mut JoinSet<Result<T, Box<dyn Error + Send + Sync>>>,
) -> Result<Option<T>, Box<dyn Error>> {
    match dials.join_next().await {
        Some(outcome) => Ok(Some(outcome?.map_err(|error| error as Box<dyn Error>)?)),
        None => Ok(None),
    }
}
