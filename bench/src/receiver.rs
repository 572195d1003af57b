//! The receiver: a quinn server that checks and counts what arrives. It is the same for the
//! ceiling, the core crate and the bridge, so that the receiver is not what differs between them.
//!
//! - Unidirectional streams carry messages as docs/protocol.md has them for `macula-mesh/1`.
//! - Bidirectional ones carry a message each (`--bidi messages`), or plain bytes in which messages
//!   follow each other (`--bidi blocks`), or bring such bytes when asked (`--bidi source`).

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::sleep;

use crate::args::Args;
use crate::ceiling;
use crate::lines::{Lines, say};
use crate::quic;
use crate::work::{Checker, Framing, Tally, Work};

/// Chunks taken from quinn in one go.
const CHUNKS: usize = 64;
/// How often to look whether everything is there, and how long without an arrival is too long.
const LOOK: Duration = Duration::from_millis(1);
const STALLED: Duration = Duration::from_secs(5);

/// What a bidirectional stream is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bidi {
    Messages,
    Blocks,
    Source,
}

impl std::str::FromStr for Bidi {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "messages" => Ok(Self::Messages),
            "blocks" => Ok(Self::Blocks),
            "source" => Ok(Self::Source),
            _ => Err(()),
        }
    }
}

struct Receiver {
    work: Arc<Work>,
    bidi: Bidi,
    // A std mutex: nothing awaits inside, and there is one thread.
    tally: Mutex<Tally>,
    connections: AtomicU64,
    /// Blocks brought.
    brought: AtomicU64,
}

/// Serves until the driver says `quit`; answers `await N` when that many messages are there, or
/// when none has come for too long, and `account` with the connections that have come and the
/// blocks that were brought.
pub(crate) async fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let receiver = Arc::new(Receiver {
        work: Work::new(args.get("size")?)?,
        bidi: args.get_or("bidi", Bidi::Messages)?,
        tally: Mutex::default(),
        connections: AtomicU64::new(0),
        brought: AtomicU64::new(0),
    });
    let endpoint = quic::server(&args.get::<String>("alpn")?)?;
    say(&format!("ready port={}", endpoint.local_addr()?.port()))?;
    let serving = receiver.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let receiver = serving.clone();
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    receiver.serve(connection).await;
                }
            });
        }
    });
    let mut lines = Lines::read();
    while let Some(line) = lines.next().await {
        match line.split_once(' ') {
            Some(("await", count)) => say(&receiver.report(count.parse()?).await)?,
            _ if line == "account" => say(&receiver.account())?,
            _ => break,
        }
    }
    Ok(())
}

impl Receiver {
    async fn report(&self, expected: u64) -> String {
        let mut seen = (0, Instant::now());
        loop {
            let messages = lock(&self.tally).messages;
            if messages > seen.0 {
                seen = (messages, Instant::now());
            }
            if messages >= expected || seen.1.elapsed() > STALLED {
                break;
            }
            sleep(LOOK).await;
        }
        report(&self.tally, &self.work)
    }

    fn account(&self) -> String {
        let [connections, messages] =
            [&self.connections, &self.brought].map(|count| count.load(Ordering::Relaxed));
        format!("account connections={connections} messages={messages}")
    }

    async fn serve(self: Arc<Self>, connection: Connection) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let uni = self.clone().accept_uni(connection.clone());
        tokio::spawn(uni);
        self.accept_bi(connection).await;
    }

    async fn read(&self, stream: &mut RecvStream, framing: Framing) {
        read(stream, Checker::new(self.work.clone(), framing), &self.tally).await;
    }

    async fn accept_uni(self: Arc<Self>, connection: Connection) {
        while let Ok(mut stream) = connection.accept_uni().await {
            let receiver = self.clone();
            tokio::spawn(async move {
                // The kind of the stream is of no interest here: either is led messages.
                if let Ok(Some(_kind)) = stream.read_chunk(1, true).await {
                    receiver.read(&mut stream, Framing::Led).await;
                }
            });
        }
    }

    async fn accept_bi(self: Arc<Self>, connection: Connection) {
        while let Ok((send, mut recv)) = connection.accept_bi().await {
            let receiver = self.clone();
            tokio::spawn(async move {
                match receiver.bidi {
                    Bidi::Source => receiver.bring(send, recv).await,
                    // Our half ends at once, so that the credit returns as soon as it can.
                    Bidi::Messages | Bidi::Blocks => {
                        drop(send);
                        receiver.read(&mut recv, Framing::Bare).await;
                    }
                }
            });
        }
    }

    /// Sends blocks for as many seconds as are asked for, then FIN.
    async fn bring(&self, send: SendStream, mut recv: RecvStream) {
        let Ok(request) = recv.read_to_end(CHUNKS).await else { return };
        let seconds = String::from_utf8(request).ok().and_then(|text| text.parse().ok());
        let Some(seconds) = seconds else { return };
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        // What cannot be written the reader misses.
        let brought = ceiling::write_blocks(send, &self.work, until).await.unwrap_or_default();
        self.brought.fetch_add(brought, Ordering::Relaxed);
    }
}

/// Reads a stream to its end.
pub(crate) async fn read(stream: &mut RecvStream, mut checker: Checker, tally: &Mutex<Tally>) {
    let mut arrived = 0;
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    let ended = loop {
        match stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => {
                let mut tally = lock(tally);
                tally.note_time();
                arrived += count;
                for chunk in chunks.iter().take(count) {
                    checker.push(chunk, &mut tally);
                }
            }
            ended => break ended.is_ok(),
        }
    };
    let mut tally = lock(tally);
    // A receiver in the field takes each chunk for a message.
    tally.cut += u64::from(arrived > 1);
    // What a reset or a lost connection cuts off is missed in the account.
    tally.wrong += u64::from(ended && !checker.is_between_messages());
}

/// What has arrived so far, as the driver reads it.
pub(crate) fn report(tally: &Mutex<Tally>, work: &Work) -> String {
    let tally = lock(tally);
    format!(
        "got messages={} wrong={} uneven={} cut={} rate={:.3}",
        tally.messages,
        tally.wrong,
        tally.uneven(work.round()),
        tally.cut,
        tally.rate()
    )
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
