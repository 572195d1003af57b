//! The ceiling: what quinn itself does when nothing stands between it and the program. One thread
//! for everything, no queue, no bounds, no counting of acknowledgements.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::{JoinSet, yield_now};

use crate::args::Args;
use crate::lines::{Lines, say};
use crate::quic;
use crate::receiver;
use crate::work::{Checker, Framing, Work, put_length};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The kind of an ordered stream (docs/protocol.md).
pub(crate) const ORDERED: u8 = 0;
/// Messages are joined into buffers of so many bytes; from here on they are handed over as they
/// are: the fewer chunks quinn holds, the faster.
pub(crate) const JOIN_BYTES: usize = 32 * 1024;

/// Of so many streams, one tells that the receiver has answered.
const MARK_EVERY: u64 = 25;
/// What a packet holds besides messages: its header and tag (RFC 9000, section 17.3.1; RFC 9001,
/// section 5.3), and an ACK frame.
const PACKET_BYTES: usize = 96;
/// What comes with a message: the heads of a STREAM and a STOP_SENDING frame (RFC 9000, sections
/// 19.8 and 19.5), streams having numbers below 2^30.
const FRAME_BYTES: usize = 13;

/// A sender of streams lets quinn send after so many.
const TURN: u64 = 32;

/// Sends to `--peers` connections for `--seconds`, each by a task of its own.
pub(crate) async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let work = Work::new(args.get("size")?)?;
    let way: String = args.get("way")?;
    let join: usize = args.get_or("join", JOIN_BYTES)?;
    let turn: u64 = args.get_or("turn", TURN)?;
    let port = args.get("to")?;
    let endpoint = quic::client(&args.get::<String>("alpn")?, args.find("window")?)?;
    let mut connections = Vec::new();
    for _ in 0..args.get_or("peers", 1)? {
        connections.push(quic::connect(&endpoint, port).await?);
    }
    let mut lines = Lines::read();
    say("ready")?;
    lines.expect("go").await?;
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(args.get("seconds")?);
    let mut tasks = JoinSet::new();
    for connection in connections.clone() {
        let (work, way) = (work.clone(), way.clone());
        tasks.spawn(async move {
            match way.as_str() {
                "joined" => write_joined(connection, &work, until, join).await,
                "streams" => write_streams(connection, &work, until, turn).await,
                "packets" => write_packets(connection, &work, until).await,
                "blocks" => {
                    let (send, _) = connection.open_bi().await?;
                    write_blocks(send, &work, until).await
                }
                other => Err(format!("--way cannot be {other}").into()),
            }
        });
    }
    let mut sent = 0;
    while let Some(outcome) = tasks.join_next().await {
        sent += outcome?.map_err(|error| error as Box<dyn Error>)?;
    }
    say(&format!("sent messages={sent} seconds={:.6}", begin.elapsed().as_secs_f64()))?;
    lines.expect("quit").await?;
    Ok(())
}

/// Asks for `--seconds` of blocks and reads them, on one stream.
pub(crate) async fn read(args: &Args) -> Result<(), Box<dyn Error>> {
    let work = Work::new(args.get("size")?)?;
    let endpoint = quic::client(&args.get::<String>("alpn")?, None)?;
    let connection = quic::connect(&endpoint, args.get("to")?).await?;
    let mut lines = Lines::read();
    say("ready")?;
    lines.expect("go").await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(args.get::<String>("seconds")?.as_bytes()).await?;
    send.finish()?;
    let tally = Mutex::default();
    receiver::read(&mut recv, Checker::new(work.clone(), Framing::Bare), &tally).await;
    say(&receiver::report(&tally, &work))?;
    lines.expect("quit").await?;
    Ok(())
}

/// All messages on one stream, joined into buffers.
async fn write_joined(
    connection: Connection,
    work: &Arc<Work>,
    until: Instant,
    join: usize,
) -> Outcome<u64> {
    let mut send = connection.open_uni().await?;
    let mut sent = 0;
    let mut buffer = BytesMut::with_capacity(join + work.size);
    buffer.put_u8(ORDERED);
    while Instant::now() < until {
        for message in &work.messages {
            put_length(&mut buffer, message.len());
            if message.len() >= join {
                send.write_all_chunks(&mut [buffer.split().freeze(), message.clone()]).await?;
            } else {
                buffer.put_slice(message);
            }
            if buffer.len() >= join {
                send.write_chunk(buffer.split().freeze()).await?;
                buffer.reserve(join + work.size);
            }
            sent += 1;
        }
    }
    send.write_chunk(buffer.freeze()).await?;
    send.finish()?;
    Ok(sent)
}

/// Each message on a bidirectional stream of its own, whose answers are refused.
async fn write_streams(
    connection: Connection,
    work: &Arc<Work>,
    until: Instant,
    turn: u64,
) -> Outcome<u64> {
    let mut opener = Opener::new(connection);
    let mut sent: u64 = 0;
    while Instant::now() < until {
        for message in &work.messages {
            if sent.is_multiple_of(turn) {
                yield_now().await;
            }
            let mut send = opener.open().await?;
            send.write_chunk(message.clone()).await?;
            send.finish()?;
            sent += 1;
        }
    }
    Ok(sent)
}

/// The same, with each message whole in one packet, as the product promises nodes in the field:
/// quinn gets no more than one packet holds, and the next when that has left.
async fn write_packets(connection: Connection, work: &Arc<Work>, until: Instant) -> Outcome<u64> {
    let mut opener = Opener::new(connection.clone());
    let mut sent = 0;
    let mut frames = 0;
    let mut room = 0;
    while Instant::now() < until {
        for message in &work.messages {
            let bytes = message.len() + FRAME_BYTES;
            if bytes > room {
                while connection.stats().frame_tx.stream < frames {
                    yield_now().await;
                }
                let stats = connection.stats();
                frames = stats.frame_tx.stream;
                room = usize::from(stats.path.current_mtu) - PACKET_BYTES;
            }
            let mut send = opener.open().await?;
            send.write_chunk(message.clone()).await?;
            send.finish()?;
            room = room.saturating_sub(bytes);
            frames += 1;
            sent += 1;
        }
    }
    Ok(sent)
}

/// Opens streams, and gets the credit for them back without waiting for a delayed acknowledgement:
/// a receiver frees a stream when the end of its own half is acknowledged, which quinn would put
/// off by up to 25 ms (RFC 9000, section 13.2.1) while nothing else is to be sent.
struct Opener {
    connection: Connection,
    opened: u64,
    /// The receiver's halves of some streams, whose ends are waited for.
    marks: VecDeque<RecvStream>,
}

impl Opener {
    fn new(connection: Connection) -> Self {
        Self { connection, opened: 0, marks: VecDeque::new() }
    }

    async fn open(&mut self) -> Outcome<SendStream> {
        let connection = self.connection.clone();
        let (send, recv) = loop {
            tokio::select! {
                biased;
                opened = connection.open_bi() => break opened?,
                () = self.marked_end() => {
                    // A larger window is a frame to send, and the acknowledgement goes with it.
                    connection.set_receive_window(quic::LARGER_WINDOW);
                    connection.set_receive_window(quic::RECEIVE_WINDOW);
                }
            }
        };
        self.opened += 1;
        if self.opened.is_multiple_of(MARK_EVERY) {
            self.marks.push_back(recv);
        }
        Ok(send)
    }

    /// Resolves when a marked stream has ended.
    async fn marked_end(&mut self) {
        let Some(recv) = self.marks.front_mut() else { return std::future::pending().await };
        // However it ended.
        recv.read_chunk(1, true).await.ok();
        self.marks.pop_front();
    }
}

/// One block after the other on one stream.
pub(crate) async fn write_blocks(
    mut send: SendStream,
    work: &Arc<Work>,
    until: Instant,
) -> Outcome<u64> {
    let mut sent = 0;
    while Instant::now() < until {
        for block in &work.messages {
            send.write_chunk(Bytes::clone(block)).await?;
            sent += 1;
        }
    }
    send.finish()?;
    Ok(sent)
}
