//! A stream of plain bytes that a caller opened or accepted: the task that writes what its outbox
//! holds, and the half from which one reader reads.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::{ReadError, VarInt};
use tokio::sync::watch;

use crate::Error;
use crate::budget::Budget;
use crate::config::Load;
use crate::entry::Entry;
use crate::farewell::NO_ERROR;
use crate::frames::{Frames, Packet, TooLong};
use crate::joined::MessageReader;
use crate::outbox::{Next, Outbox};
use crate::scope::Scope;
use crate::unfinished::Room;

/// Chunks taken from the stack in one go, to be joined into one delivery.
const CHUNKS_PER_READ: usize = 64;

/// Bytes handed to the stack in one go.
const WRITE_BYTES: usize = 64 * 1024;

/// The bit of a stream's number that says that only its opener sends (RFC 9000, section 2.1).
const UNIDIRECTIONAL: u64 = 0x2;

/// The addresses between which a stream runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// How the sending half of a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendEnd {
    /// Everything and FIN were acknowledged.
    Finished,
    /// We gave it up (RESET_STREAM).
    Reset,
    /// The peer did not want it, with this code (STOP_SENDING).
    Stopped(u64),
    /// The connection ended first.
    Lost(Error),
}

/// What a reader got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes, in parts to be joined; the offset of the first in the stream.
    Data {
        /// The parts.
        parts: Vec<Bytes>,
        /// Where the first byte is in the stream.
        offset: u64,
    },
    /// The peer has finished its half.
    Finished,
    /// The peer gave its half up, with this code (RESET_STREAM).
    Reset(u64),
    /// A frame of this many bytes, more than allowed; the peer was told to stop.
    TooLong(u64),
    /// The connection ended first.
    Lost(Error),
}

/// What is held until both halves of a stream have ended.
pub(crate) type Hold = Arc<dyn Holder>;

/// What a stream has to do with the connection that it is held for.
pub(crate) trait Holder: std::fmt::Debug + Send + Sync {
    /// Bytes are about to be handed to the stack.
    fn begin_writing(&self);
    /// No more are.
    fn end_writing(&self);
    /// Why the connection has ended, of which the stack says no more than `error`.
    fn cause(&self, error: Error) -> Error;
}

/// Bytes of a stream are being handed to the stack.
struct Writing<'a>(&'a dyn Holder);

impl<'a> Writing<'a> {
    fn begin(holder: &'a dyn Holder) -> Self {
        holder.begin_writing();
        Self(holder)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.end_writing();
    }
}

/// A stream of plain bytes. Dropping it finishes what is queued and tells the peer to stop.
#[derive(Debug)]
pub struct ByteStream {
    id: u64,
    ends: Ends,
    /// Nothing on a stream that only the peer may send on.
    outbox: Option<Arc<Outbox>>,
    /// The code to reset the sending half with, once that is wanted.
    reset: watch::Sender<Option<VarInt>>,
    end: watch::Receiver<Option<SendEnd>>,
    reader: Mutex<Option<Reader>>,
}

impl ByteStream {
    /// Starts the writing task in `scope`, its queue within `budget`.
    pub(crate) fn start(
        scope: &Scope,
        budget: Arc<Budget>,
        ends: Ends,
        send: Option<quinn::SendStream>,
        mut reader: Option<Reader>,
        id: u64,
        hold: Option<Hold>,
    ) -> Self {
        if let Some(Reader::Stream(reader)) = &mut reader {
            reader.hold.clone_from(&hold);
        }
        let (reset, resets) = watch::channel(None);
        let (ended, end) = watch::channel(None);
        let outbox = send.map(|send| {
            let outbox = Arc::new(scope.stream_outbox(budget));
            let stream = Outgoing::new(send);
            let writer = Writer { outbox: outbox.clone(), stream, resets, ended, hold };
            scope.tasks.spawn(writer.run());
            outbox
        });
        Self { id, ends, outbox, reset, end, reader: Mutex::new(reader) }
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        self.ends.remote
    }

    /// Where we are.
    pub fn local_address(&self) -> SocketAddr {
        self.ends.local
    }

    /// Whether only one side sends on it (RFC 9000, section 2.1).
    pub fn is_unidirectional(&self) -> bool {
        self.id & UNIDIRECTIONAL != 0
    }

    /// The reading half, once: whoever takes it reads, and stops the peer by dropping it.
    pub fn take_reader(&self) -> Option<Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the sending half up: what is queued is lost.
    pub fn reset(&self, code: u64) {
        let code = VarInt::from_u64(code).unwrap_or(NO_ERROR);
        self.reset.send_replace(Some(code));
    }

    /// Sends what is queued, then FIN.
    pub fn finish(&self) {
        if let Some(outbox) = &self.outbox {
            outbox.drain(Error::StreamClosed);
        }
    }

    /// Resolves when the sending half has ended; a stream without one has ended at once.
    pub fn sending_ended(&self) -> impl Future<Output = SendEnd> + Send + use<> {
        let mut end = self.outbox.is_some().then(|| self.end.clone());
        async move {
            let Some(end) = &mut end else {
                return SendEnd::Finished;
            };
            match end.wait_for(Option::is_some).await {
                Ok(end) => end.clone().unwrap_or(SendEnd::Reset),
                Err(_) => SendEnd::Lost(Error::Cancelled),
            }
        }
    }

    pub(crate) fn outbox(&self) -> Option<&Outbox> {
        self.outbox.as_deref()
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        self.finish();
    }
}

struct Writer {
    outbox: Arc<Outbox>,
    stream: Outgoing,
    resets: watch::Receiver<Option<VarInt>>,
    ended: watch::Sender<Option<SendEnd>>,
    hold: Option<Hold>,
}

impl Drop for Writer {
    /// However its task ends: who waits for room would wait for ever.
    fn drop(&mut self) {
        self.outbox.close(Error::Cancelled);
    }
}

impl Writer {
    /// Writes until the outbox is drained, then finishes the stream, however slowly the peer
    /// reads: it may take as long as the connection lasts.
    async fn run(mut self) {
        let outbox = self.outbox.clone();
        let reset = reset_code(&mut self.resets);
        let lost = self.stream.lost();
        let written = write_all(&mut self.stream, &self.outbox, self.hold.as_deref());
        let end = tokio::select! {
            biased;
            code = reset => Err(code),
            error = lost => Ok(Err(error)),
            written = written => Ok(written),
        };
        let (end, refusal) = match end {
            Ok(Ok(())) => (SendEnd::Finished, Error::StreamClosed),
            Ok(Err(error @ Error::Stopped(code))) => (SendEnd::Stopped(code), error),
            Ok(Err(error)) => {
                let error = cause(self.hold.as_ref(), error);
                (SendEnd::Lost(error.clone()), error)
            }
            Err(code) => {
                self.stream.reset(code);
                (SendEnd::Reset, Error::StreamClosed)
            }
        };
        outbox.close(refusal);
        self.ended.send_replace(Some(end));
    }
}

/// Resolves with the code when the stream is to be reset.
async fn reset_code(resets: &mut watch::Receiver<Option<VarInt>>) -> VarInt {
    let code = resets.wait_for(Option::is_some).await.ok().and_then(|code| *code);
    match code {
        Some(code) => code,
        // Nobody is left who could want it; what is queued still goes out.
        None => std::future::pending().await,
    }
}

async fn write_all(
    stream: &mut Outgoing,
    outbox: &Outbox,
    holder: Option<&dyn Holder>,
) -> Result<(), Error> {
    while outbox.next().await == Next::Message {
        let _writing = holder.map(Writing::begin);
        let (load, mut chunks) = chunks(outbox);
        stream.write_chunks(&mut chunks).await?;
        outbox.settle(load);
    }
    // FIN has to be acknowledged, too.
    let writing = holder.map(Writing::begin);
    stream.finish();
    drop(writing);
    stream.acknowledged().await
}

fn cause(hold: Option<&Hold>, error: Error) -> Error {
    match hold {
        Some(holder) => holder.cause(error),
        None => error,
    }
}

/// What is queued, up to a limit; small writes are joined, for quinn's send buffer is slow with
/// many small chunks.
fn chunks(outbox: &Outbox) -> (Load, Vec<Bytes>) {
    let mut load = Load::default();
    let mut chunks = Vec::new();
    let mut joined = BytesMut::new();
    for entry in outbox.take_piece(WRITE_BYTES, WRITE_BYTES) {
        load += entry.load();
        match entry {
            Entry::Batch(mut batch) => {
                while let Some(message) = batch.pop() {
                    joined.extend_from_slice(&message.data);
                }
            }
            Entry::Single(message) => {
                if !joined.is_empty() {
                    chunks.push(joined.split().freeze());
                }
                chunks.push(message.data);
            }
        }
    }
    if !joined.is_empty() {
        chunks.push(joined.freeze());
    }
    (load, chunks)
}

/// The sending half of a stream. Dropped before it is finished, it resets the stream, where quinn
/// would finish it: half a message must not look like a whole one.
#[derive(Debug)]
pub(crate) struct Outgoing {
    stream: quinn::SendStream,
    is_finished: bool,
}

impl Outgoing {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, is_finished: false }
    }

    /// Hands all chunks to the stack; waits while flow control does.
    pub(crate) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), Error> {
        Ok(self.stream.write_all_chunks(chunks).await?)
    }

    /// Hands chunks to the stack as far as it takes them at once. `true`: it has taken all.
    pub(crate) fn try_write(&mut self, mut chunks: &mut [Bytes]) -> bool {
        while !chunks.iter().all(Bytes::is_empty) {
            // An error is told again by what follows.
            let Some(Ok(written)) = self.stream.write_chunks(chunks).now_or_never() else {
                return false;
            };
            chunks = std::mem::take(&mut chunks).get_mut(written.chunks..).unwrap_or_default();
        }
        true
    }

    /// Sends FIN behind all that was written.
    pub(crate) fn finish(&mut self) {
        // An error here is told again, and better, by what follows.
        self.stream.finish().ok();
        self.is_finished = true;
    }

    /// Resolves when the peer has acknowledged everything, FIN too.
    pub(crate) fn acknowledged(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await? {
                None => Ok(()),
                Some(code) => Err(Error::Stopped(code.into_inner())),
            }
        }
    }

    /// Resolves when the peer does not want the stream (STOP_SENDING) or the connection is gone,
    /// also while there is nothing to write.
    pub(crate) fn lost(&self) -> impl Future<Output = Error> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) => Error::Stopped(code.into_inner()),
                Err(error) => error.into(),
                // Everything has arrived, as whoever finishes the stream learns himself.
                Ok(None) => std::future::pending().await,
            }
        }
    }

    fn reset(&mut self, code: VarInt) {
        self.is_finished = true;
        // A stream that is closed already needs no reset.
        self.stream.reset(code).ok();
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.is_finished {
            self.reset(NO_ERROR);
        }
    }
}

/// From where a stream's data is read, by one reader. Dropped before its end, it tells the peer
/// to stop.
#[derive(Debug)]
pub enum Reader {
    /// A stream of plain bytes.
    Stream(StreamReader),
    /// All messages of a connection between two of ours.
    Messages(MessageReader),
}

impl Reader {
    /// With room for its own frames.
    pub(crate) fn stream(stream: quinn::RecvStream, max_frame_bytes: usize) -> Self {
        Self::stream_in(stream, max_frame_bytes, Room::new(max_frame_bytes))
    }

    /// With room that it shares.
    pub(crate) fn stream_in(
        stream: quinn::RecvStream,
        max_frame_bytes: usize,
        room: Arc<Room>,
    ) -> Self {
        let frames = Frames::new(Packet::Macula, max_frame_bytes, room);
        Self::Stream(StreamReader { stream, frames, offset: 0, end: None, hold: None })
    }

    /// Reads no more: the peer is told to stop, with this code.
    pub fn stop(self, code: u64) {
        if let Self::Stream(mut reader) = self {
            // A stream that has ended needs no stop.
            reader.stream.stop(VarInt::from_u64(code).unwrap_or(NO_ERROR)).ok();
        }
    }

    /// Sets how the bytes from here on are cut; messages are whole as they are.
    pub fn set_packet(&mut self, packet: Packet) {
        if let Self::Stream(reader) = self {
            reader.frames.set_packet(packet);
        }
    }

    /// The next delivery, or how the stream ended. Cancelled while it waits, it loses nothing.
    pub async fn receive(&mut self) -> Received {
        match self {
            Self::Stream(reader) => reader.receive().await,
            Self::Messages(reader) => reader.receive().await,
        }
    }
}

/// The receiving half of a stream of plain bytes.
#[derive(Debug)]
pub struct StreamReader {
    stream: quinn::RecvStream,
    frames: Frames,
    /// Where the next byte to be delivered is in the stream.
    offset: u64,
    /// How the stream ended, once it has; told when everything before it is delivered.
    end: Option<Received>,
    /// Nothing once it has ended.
    hold: Option<Hold>,
}

impl StreamReader {
    async fn receive(&mut self) -> Received {
        loop {
            match self.frames.next() {
                Ok(Some(parts)) => return self.deliver(parts),
                Ok(None) => {}
                Err(TooLong(bytes)) => {
                    // A stream that has ended needs no stop.
                    self.stream.stop(NO_ERROR).ok();
                    self.frames.rest();
                    self.end = Some(Received::TooLong(bytes));
                }
            }
            if let Some(end) = &self.end {
                self.hold = None;
                if self.frames.held() > 0 {
                    let parts = self.frames.rest();
                    return self.deliver(parts);
                }
                return end.clone();
            }
            let mut chunks: [Bytes; CHUNKS_PER_READ] = std::array::from_fn(|_| Bytes::new());
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => {
                    for chunk in chunks.into_iter().take(count) {
                        self.frames.push(chunk);
                    }
                }
                Ok(None) => self.end = Some(Received::Finished),
                Err(ReadError::Reset(code)) => {
                    self.frames.rest();
                    self.end = Some(Received::Reset(code.into_inner()));
                }
                Err(ReadError::ConnectionLost(error)) => {
                    self.end = Some(Received::Lost(cause(self.hold.as_ref(), error.into())));
                }
                Err(_) => self.end = Some(Received::Lost(Error::StreamClosed)),
            }
        }
    }

    fn deliver(&mut self, parts: Vec<Bytes>) -> Received {
        let offset = self.offset;
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        self.offset += u64::try_from(bytes).unwrap_or(u64::MAX);
        Received::Data { parts, offset }
    }
}
