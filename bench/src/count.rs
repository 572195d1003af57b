//! Work to be counted rather than timed: so many calls or messages, under callgrind. What is the
//! same in two runs of different length, beginning and end, goes out of their difference.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use mesh::{Address, Config, Sent, Target};
use tokio::time::sleep;

use crate::args::Args;
use crate::ceiling::{JOIN_BYTES, ORDERED};
use crate::core;
use crate::quic;
use crate::work::{Work, put_length};

/// How often to look whether everything is acknowledged.
const LOOK: Duration = Duration::from_millis(1);
const NODE: [u8; 32] = [7; 32];

/// `--what` so many `--times`.
pub(crate) async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let times: usize = args.get("times")?;
    let work = Work::new(args.get("size")?)?;
    let port: u16 = args.get("to")?;
    match args.get::<String>("what")?.as_str() {
        "checkout" => checkout(port, times).await,
        "send" => send(port, times, &work).await,
        "joined" => joined(port, times, &work).await,
        other => Err(format!("--what cannot be {other}").into()),
    }
}

/// Finds a pooled connection.
async fn checkout(port: u16, times: usize) -> Result<(), Box<dyn Error>> {
    let pool = core::open(Config::default())?;
    pool.connect(&NODE, target(port)?).await?;
    for _ in 0..times {
        black_box(pool.checkout(&NODE).ok_or("pooled")?);
    }
    Ok(())
}

/// Sends messages on a pooled stream, to the last acknowledgement.
async fn send(port: u16, times: usize, work: &Arc<Work>) -> Result<(), Box<dyn Error>> {
    let pool = core::open(Config::default())?;
    let stream = pool.connect(&NODE, target(port)?).await?;
    for message in work.messages.iter().cycle().take(times) {
        if let Sent::Waiting(accepted) = stream.send(message.clone().into())? {
            accepted.await??;
        }
    }
    while pool.stats().outstanding.messages > 0 {
        sleep(LOOK).await;
    }
    Ok(())
}

/// The ceiling's way of the same.
async fn joined(port: u16, times: usize, work: &Arc<Work>) -> Result<(), Box<dyn Error>> {
    let endpoint = quic::client("macula-mesh/1", None)?;
    let connection = quic::connect(&endpoint, port).await?;
    let mut send = connection.open_uni().await?;
    let mut buffer = BytesMut::with_capacity(JOIN_BYTES + work.size);
    buffer.put_u8(ORDERED);
    for message in work.messages.iter().cycle().take(times) {
        put_length(&mut buffer, message.len());
        buffer.put_slice(message);
        if buffer.len() >= JOIN_BYTES {
            send.write_chunk(buffer.split().freeze()).await?;
            buffer.reserve(JOIN_BYTES + work.size);
        }
    }
    send.write_chunk(buffer.freeze()).await?;
    send.finish()?;
    send.stopped().await?;
    Ok(())
}

fn target(port: u16) -> Result<Target, Box<dyn Error>> {
    let address = Address::new("127.0.0.1", port).ok_or("no address")?;
    Ok(Target { address, given: Box::default() })
}
