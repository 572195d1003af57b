//! What the node does to the streams of a connection: one good way, and the bad ways of the field.

use std::num::NonZeroU64;
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, join3, select};
use quinn::{
    Connection, ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt,
    WriteError,
};
use tokio::time::Instant;

use crate::message::Message;
use crate::tally::Tally;

/// The code of mode `reset`.
const RESET_CODE: VarInt = VarInt::from_u32(7);
/// The code and the reason of mode `close_after`.
const ENOUGH_CODE: VarInt = VarInt::from_u32(9);
const ENOUGH_REASON: &[u8] = b"enough";
/// The code for a message beyond [`LONGEST_MESSAGE`].
const TOO_LONG_CODE: VarInt = VarInt::from_u32(8);
/// Bytes of a message, so that no sender occupies a stream for good.
const LONGEST_MESSAGE: usize = 64 * 1024 * 1024;
/// The largest read of mode `slow`: small against its windows, so that credit goes back evenly.
const SLOW_READ_BYTES: u64 = 1024;
/// A read of mode `slow` takes a tenth of a second at most, so that a very slow one is even, too.
const SLOW_READS_PER_SECOND: u64 = 10;
/// What mode `slow` may catch up on: more than a timer's granularity, less than a reader notices.
const SLOW_CATCH_UP: Duration = Duration::from_millis(20);

/// How the streams of a connection are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reads each stream to its end, then finishes its own half.
    Count,
    /// Sends back what comes, then finishes.
    Echo,
    /// Reads everything and never lets go of a stream, so no credit returns.
    Hoard,
    /// Accepts connections and no stream.
    SilentStreams,
    /// Resets and stops every stream.
    Reset,
    /// `Count`, and closes the connection after so many whole streams.
    CloseAfter(NonZeroU64),
    /// `Count` at so many bytes per second over all of the connection.
    Slow(NonZeroU64),
    /// Refuses connections.
    Refuse,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |digits: &str| digits.parse().map_err(|_| ());
        match text.split_once(':') {
            None => plain_mode(text).ok_or(()),
            Some(("close_after", digits)) => number(digits).map(Self::CloseAfter),
            Some(("slow", digits)) => number(digits).map(Self::Slow),
            Some(_) => Err(()),
        }
    }
}

fn plain_mode(text: &str) -> Option<Mode> {
    match text {
        "count" => Some(Mode::Count),
        "echo" => Some(Mode::Echo),
        "hoard" => Some(Mode::Hoard),
        "silent_streams" => Some(Mode::SilentStreams),
        "reset" => Some(Mode::Reset),
        "refuse" => Some(Mode::Refuse),
        _ => None,
    }
}

/// Serves a connection to its end, and says why it ended.
pub(crate) async fn serve(
    connection: &Connection,
    mode: Mode,
    tally: &Arc<Tally>,
) -> ConnectionError {
    if mode == Mode::SilentStreams {
        return connection.closed().await;
    }
    let service = Arc::new(Service {
        connection: connection.clone(),
        mode,
        tally: Arc::clone(tally),
        whole: AtomicU64::new(0),
        pace: Pace::default(),
    });
    // Ends with the connection, as all that follows does.
    tokio::spawn(Arc::clone(&service).accept_uni());
    service.accept_bi().await;
    connection.closed().await
}

/// One connection being served.
struct Service {
    connection: Connection,
    mode: Mode,
    tally: Arc<Tally>,
    /// Streams read to their end.
    whole: AtomicU64,
    pace: Pace,
}

/// What one read brought.
enum Step {
    Chunk(Bytes),
    /// The end, with everything before it.
    Whole,
    /// An end before the end.
    Broken,
}

impl Service {
    async fn accept_bi(self: Arc<Self>) {
        let mut accepted = 0;
        while let Ok((send, recv)) = self.connection.accept_bi().await {
            accepted += 1;
            self.tally.count(|counters| {
                counters.streams += 1;
                counters.max_streams_per_connection =
                    counters.max_streams_per_connection.max(accepted);
            });
            tokio::spawn(Arc::clone(&self).serve_bi(send, recv));
        }
    }

    async fn accept_uni(self: Arc<Self>) {
        while let Ok(recv) = self.connection.accept_uni().await {
            self.tally.count(|counters| counters.uni_streams += 1);
            tokio::spawn(Arc::clone(&self).serve_uni(recv));
        }
    }

    async fn serve_bi(self: Arc<Self>, send: SendStream, recv: RecvStream) {
        match self.mode {
            Mode::Echo => self.echo(send, recv).await,
            Mode::Hoard => self.hoard(send, recv).await,
            Mode::Reset => reset(send, recv),
            _ => self.read_then_finish(send, recv).await,
        }
    }

    async fn serve_uni(self: Arc<Self>, mut recv: RecvStream) {
        match self.mode {
            Mode::Reset => stop(&mut recv, RESET_CODE),
            _ => self.read(&mut recv).await,
        }
    }

    async fn read_then_finish(&self, send: SendStream, mut recv: RecvStream) {
        let stopped = pin!(send.stopped());
        let reading = pin!(self.read(&mut recv));
        match select(reading, stopped).await {
            Either::Left(((), stopped)) => {
                // Dropping finishes, or answers a STOP_SENDING with the reset that it asks for.
                drop(send);
                self.count_stop(&stopped.await);
            }
            Either::Right((stopped, reading)) => {
                self.count_stop(&stopped);
                reading.await;
            }
        }
    }

    async fn echo(&self, mut send: SendStream, mut recv: RecvStream) {
        let mut message = Message::default();
        let mut listened_to = true;
        while let Step::Chunk(bytes) = self.step(&mut recv, &mut message).await {
            if listened_to {
                listened_to = self.send_back(&mut send, bytes).await;
            }
        }
    }

    /// Sends one chunk; `false` when the other end does not want any more.
    async fn send_back(&self, send: &mut SendStream, bytes: Bytes) -> bool {
        let sent = send.write_chunk(bytes).await;
        if let Err(WriteError::Stopped(_)) = sent {
            self.tally.count(|counters| counters.stop_sending += 1);
        }
        sent.is_ok()
    }

    /// Reads all, and keeps both handles for as long as there is a connection.
    async fn hoard(&self, send: SendStream, mut recv: RecvStream) {
        let watch = async { self.count_stop(&send.stopped().await) };
        join3(self.read(&mut recv), watch, self.connection.closed()).await;
    }

    fn count_stop(&self, stopped: &Result<Option<VarInt>, StoppedError>) {
        if let Ok(Some(_)) = stopped {
            self.tally.count(|counters| counters.stop_sending += 1);
        }
    }

    async fn read(&self, recv: &mut RecvStream) {
        let mut message = Message::default();
        while let Step::Chunk(_) = self.step(recv, &mut message).await {}
    }

    /// Reads once, and tallies what comes of it.
    async fn step(&self, recv: &mut RecvStream, message: &mut Message) -> Step {
        match recv.read_chunk(self.read_bytes(), true).await {
            Ok(Some(chunk)) => self.take_chunk(recv, message, chunk.bytes).await,
            Ok(None) => {
                self.take_whole(std::mem::take(message));
                Step::Whole
            }
            Err(ReadError::Reset(_)) => {
                self.tally.count(|counters| counters.streams_reset += 1);
                Step::Broken
            }
            Err(_) => Step::Broken,
        }
    }

    async fn take_chunk(&self, recv: &mut RecvStream, message: &mut Message, bytes: Bytes) -> Step {
        message.push(&bytes);
        if message.length() > LONGEST_MESSAGE {
            stop(recv, TOO_LONG_CODE);
            self.tally.count(|counters| counters.corrupt += 1);
            return Step::Broken;
        }
        if let Mode::Slow(rate) = self.mode {
            tokio::time::sleep_until(self.pace.after(bytes.len(), rate)).await;
        }
        Step::Chunk(bytes)
    }

    /// Tallies a message, unless enough came before it.
    fn take_whole(&self, message: Message) {
        let Mode::CloseAfter(enough) = self.mode else {
            return self.tally.take(message);
        };
        // Streams are served side by side: the number decides, so that exactly `enough` count.
        let number = self.whole.fetch_add(1, Ordering::Relaxed) + 1;
        if number <= enough.get() {
            self.tally.take(message);
        }
        if number == enough.get() {
            self.connection.close(ENOUGH_CODE, ENOUGH_REASON);
        }
    }

    fn read_bytes(&self) -> usize {
        match self.mode {
            Mode::Slow(rate) => slow_read_bytes(rate),
            _ => usize::MAX,
        }
    }
}

fn reset(mut send: SendStream, mut recv: RecvStream) {
    // A stream that is closed already needs no reset.
    send.reset(RESET_CODE).ok();
    stop(&mut recv, RESET_CODE);
}

fn stop(recv: &mut RecvStream, code: VarInt) {
    // Nor does one that has been read to its end need a stop.
    recv.stop(code).ok();
}

/// When the streams of a slow connection, taken together, may read again.
#[derive(Default)]
struct Pace {
    // A std mutex: nothing awaits inside.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Reserves the time for `bytes` and says when it is over.
    fn after(&self, bytes: usize, bytes_per_second: NonZeroU64) -> Instant {
        let earliest = Instant::now() - SLOW_CATCH_UP;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.unwrap_or(earliest).max(earliest);
        let end = start + duration(bytes, bytes_per_second);
        *next = Some(end);
        end
    }
}

fn slow_read_bytes(bytes_per_second: NonZeroU64) -> usize {
    let bytes = bytes_per_second.get() / SLOW_READS_PER_SECOND;
    usize::try_from(bytes.clamp(1, SLOW_READ_BYTES)).unwrap_or(1)
}

fn duration(bytes: usize, bytes_per_second: NonZeroU64) -> Duration {
    const NANOSECONDS: u64 = 1_000_000_000;
    // SLOW_READ_BYTES at most: far from overflowing.
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    Duration::from_nanos(bytes.saturating_mul(NANOSECONDS) / bytes_per_second)
}
