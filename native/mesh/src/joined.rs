//! The application protocol `macula-mesh/1`, spoken between two of ours: many messages share a
//! stream, and the receiver cuts them exactly. docs/protocol.md gives it byte by byte.
//!
//! Messages travel on unidirectional streams, so that a stream costs the peer no answer. The first
//! byte of a stream is its kind; then come messages, each led by its length as a variable-length
//! integer (RFC 9000, section 16); then FIN. Streams of the kind [`ORDERED`] are delivered one
//! after the other in the order in which they were opened: together they are one ordered stream,
//! in pieces that are acknowledged one by one. Streams of the kind [`ALONE`] carry one large
//! message, which neither waits for others nor holds them up.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quinn::{Chunk, ReadError, RecvStream, VarInt};
use quinn_proto::coding::Codec;
use tokio::sync::mpsc;

use crate::Error;
use crate::batch::put_prefix;
use crate::byte_stream::Received;
use crate::connection::Connection;
use crate::parts::Parts;

/// The protocol's name (RFC 7301), preferred to that of older nodes.
pub const MESH_ALPN: &[u8] = b"macula-mesh/1";

/// The kind of a stream with messages in the connection's order.
const ORDERED: u8 = 0;
/// The kind of a stream with one message out of all order.
const ALONE: u8 = 1;

/// The least that a receiver grants of unidirectional streams: half of them for either kind.
pub(crate) const STREAMS: u32 = 8;
/// Streams of one kind that a sender has under way at once: so that neither kind waits for the
/// credit of the other, and that what waits meanwhile is joined.
pub(crate) const STREAMS_PER_KIND: usize = 4;
/// Streams that a receiver reads at once to learn what they are, or their large message: as many as
/// our own sender has under way.
const MOST_OPENING: usize = 2 * STREAMS_PER_KIND;
/// Payload bytes from which on a message travels alone.
pub(crate) const LARGE_BYTES: usize = 128 * 1024;
/// Payload bytes of one ordered stream at most: a piece that is acknowledged at once.
pub(crate) const PIECE_BYTES: usize = 512 * 1024;
/// Bytes from which on a message or a batch is handed to the stack as it is. Smaller ones are
/// copied into common buffers: quinn's send buffer is slow with many small chunks.
const COPY_BELOW_BYTES: usize = 2 * 1024;
/// Bytes of a common buffer.
const BUFFER_BYTES: usize = 16 * 1024;

/// The code of a connection whose peer has broken the protocol: a stream of no known kind.
const UNKNOWN_KIND: u64 = 0x4d01;
/// The same: a message beyond the size limit.
const TOO_LONG: u64 = 0x4d02;
/// The same: a stream that ends within a message, or a large one with more behind it.
const MALFORMED: u64 = 0x4d03;

/// Puts messages into the chunks of one stream.
pub(crate) struct Encoder {
    /// Whole chunks, and what is becoming one.
    chunks: Vec<Bytes>,
    buffer: BytesMut,
}

impl Encoder {
    /// `is_alone`: it will be one large message.
    pub(crate) fn new(is_alone: bool) -> Self {
        let mut buffer = BytesMut::new();
        buffer.put_u8(if is_alone { ALONE } else { ORDERED });
        Self { chunks: Vec::new(), buffer }
    }

    /// Adds one message.
    pub(crate) fn add(&mut self, message: Bytes) {
        put_prefix(&mut self.buffer, message.len());
        self.push(message);
    }

    /// Adds messages that are led by their lengths already.
    pub(crate) fn add_batch(&mut self, messages: Bytes) {
        self.push(messages);
    }

    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.cut();
        self.chunks
    }

    /// What is small is copied: quinn's send buffer is slow with many small chunks.
    fn push(&mut self, data: Bytes) {
        let is_copied = data.len() < COPY_BELOW_BYTES;
        if is_copied {
            self.buffer.extend_from_slice(&data);
        }
        if !is_copied || self.buffer.len() >= BUFFER_BYTES {
            self.cut();
        }
        if !is_copied {
            self.chunks.push(data);
        }
    }

    fn cut(&mut self) {
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.split().freeze());
        }
    }
}

/// How a peer has broken the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    UnknownKind,
    TooLong(u64),
    Malformed,
}

/// Cuts the bytes of one stream into messages. Pure data.
#[derive(Debug)]
pub(crate) struct Cutter {
    max_bytes: usize,
    parts: Parts,
    /// The length of the message that has begun.
    expected: Option<usize>,
}

impl Cutter {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, parts: Parts::default(), expected: None }
    }

    pub(crate) fn push(&mut self, data: Bytes) {
        self.parts.push(data);
    }

    /// The next whole message, in parts to be joined.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Bytes>>, Breach> {
        let expected = match self.expected {
            Some(expected) => expected,
            None => match self.length()? {
                Some(length) => *self.expected.insert(length),
                None => return Ok(None),
            },
        };
        if self.parts.held() < expected {
            return Ok(None);
        }
        self.expected = None;
        Ok(Some(self.parts.take(expected)))
    }

    /// Whether a message has begun and not ended.
    pub(crate) fn is_within_message(&self) -> bool {
        self.parts.held() > 0 || self.expected.is_some()
    }

    /// The length that leads a message, once all of it has arrived.
    fn length(&mut self) -> Result<Option<usize>, Breach> {
        let Some(first) = self.parts.bytes().next() else {
            return Ok(None);
        };
        // The two most significant bits tell how long the integer is (RFC 9000, section 16).
        let size = 1_usize << (first >> 6);
        if self.parts.held() < size {
            return Ok(None);
        }
        let encoded = self.parts.take(size).concat();
        let length = VarInt::decode(&mut encoded.as_slice()).map_err(|_| Breach::Malformed)?;
        match usize::try_from(length.into_inner()) {
            Ok(length) if length <= self.max_bytes => Ok(Some(length)),
            _ => Err(Breach::TooLong(length.into_inner())),
        }
    }
}

/// Everything that a peer sends on message streams, as one sequence of messages.
pub struct MessageReader {
    arrivals: mpsc::Receiver<RecvStream>,
    has_ended: bool,
    /// Streams whose kind is not known yet, or large messages on their way.
    opening: FuturesUnordered<BoxFuture<'static, Opened>>,
    /// Ordered streams, by when they were opened; `None` while the kind is not known.
    ordered: BTreeMap<u64, Option<RecvStream>>,
    arrived: u64,
    current: Cutter,
    offset: u64,
    connection: Connection,
    max_bytes: usize,
}

/// What became of a stream that had arrived.
enum Opened {
    /// The one of that number is ordered.
    Ordered(u64, RecvStream),
    /// The one of that number is to bring one large message.
    Large(u64, RecvStream),
    /// A large message is there.
    Message(Vec<Bytes>),
    /// The one of that number was reset or lost: nothing comes of it.
    Nothing(u64),
    Breach(Breach),
}

impl MessageReader {
    pub(crate) fn new(
        arrivals: mpsc::Receiver<RecvStream>,
        connection: Connection,
        max_bytes: usize,
    ) -> Self {
        Self {
            arrivals,
            has_ended: false,
            opening: FuturesUnordered::new(),
            ordered: BTreeMap::new(),
            arrived: 0,
            current: Cutter::new(max_bytes),
            offset: 0,
            connection,
            max_bytes,
        }
    }

    /// The next message, or how the connection ended. Cancelled while it waits, it loses nothing.
    pub(crate) async fn receive(&mut self) -> Received {
        loop {
            match self.current.next() {
                Ok(Some(parts)) => return self.deliver(parts),
                Ok(None) => {}
                Err(breach) => return self.close(breach),
            }
            if self.is_over() {
                return Received::Lost(self.connection.ended().await);
            }
            let max_bytes = self.max_bytes;
            let current = self.ordered.first_entry().and_then(|first| {
                // Behind a stream whose kind is not known, nothing is known to be next.
                first.get().is_some().then(|| first.into_mut())
            });
            tokio::select! {
                biased;
                Some(opened) = self.opening.next() => {
                    if let Some(received) = self.note(opened) {
                        return received;
                    }
                }
                // The others wait: each may bring a long message.
                arrival = self.arrivals.recv(), if !self.has_ended && self.opening.len() < MOST_OPENING
                    => match arrival {
                    Some(stream) => {
                        self.arrived += 1;
                        self.ordered.insert(self.arrived, None);
                        self.opening.push(Box::pin(open(self.arrived, stream)));
                    }
                    None => self.has_ended = true,
                },
                read = read_current(current) => match read {
                    Ok(Some(chunk)) => self.current.push(chunk.bytes),
                    Ok(None) if self.current.is_within_message() => {
                        return self.close(Breach::Malformed);
                    }
                    Ok(None) => drop(self.ordered.pop_first()),
                    // Given up by the peer, or the connection is over: what is not finished is lost
                    // with it, and what is whole behind it goes on.
                    Err(_) => {
                        self.ordered.pop_first();
                        self.current = Cutter::new(max_bytes);
                    }
                },
            }
        }
    }

    /// Whether nothing more can come: the connection is over, and all streams of it are read.
    fn is_over(&self) -> bool {
        self.has_ended && self.opening.is_empty() && self.ordered.is_empty()
    }

    fn note(&mut self, opened: Opened) -> Option<Received> {
        match opened {
            Opened::Ordered(number, stream) => {
                self.ordered.insert(number, Some(stream));
                None
            }
            Opened::Large(number, stream) => {
                // What is behind it need not wait until it is whole.
                self.ordered.remove(&number);
                self.opening.push(Box::pin(read_large(number, stream, self.max_bytes)));
                None
            }
            Opened::Message(parts) => Some(self.deliver(parts)),
            Opened::Nothing(number) => {
                self.ordered.remove(&number);
                None
            }
            Opened::Breach(breach) => Some(self.close(breach)),
        }
    }

    fn deliver(&mut self, parts: Vec<Bytes>) -> Received {
        let offset = self.offset;
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        self.offset += u64::try_from(bytes).unwrap_or(u64::MAX);
        Received::Data { parts, offset }
    }

    fn close(&mut self, breach: Breach) -> Received {
        let (code, received) = match breach {
            Breach::UnknownKind => (UNKNOWN_KIND, Received::Lost(Error::Cancelled)),
            Breach::TooLong(bytes) => (TOO_LONG, Received::TooLong(bytes)),
            Breach::Malformed => (MALFORMED, Received::Lost(Error::Cancelled)),
        };
        self.connection.close(code);
        received
    }
}

impl std::fmt::Debug for MessageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageReader").field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// Reads the current ordered stream; waits when there is none yet.
async fn read_current(
    current: Option<&mut Option<RecvStream>>,
) -> Result<Option<Chunk>, ReadError> {
    let Some(Some(stream)) = current else {
        return std::future::pending().await;
    };
    stream.read_chunk(usize::MAX, true).await
}

/// Reads the kind of a stream.
async fn open(number: u64, mut stream: RecvStream) -> Opened {
    let kind = match stream.read_chunk(1, true).await {
        Ok(Some(chunk)) => chunk.bytes.first().copied(),
        Ok(None) => return Opened::Breach(Breach::Malformed),
        Err(_) => return Opened::Nothing(number),
    };
    match kind {
        Some(ORDERED) => Opened::Ordered(number, stream),
        Some(ALONE) => Opened::Large(number, stream),
        _ => Opened::Breach(Breach::UnknownKind),
    }
}

/// Reads the one message of a stream.
async fn read_large(number: u64, mut stream: RecvStream, max_bytes: usize) -> Opened {
    let mut cutter = Cutter::new(max_bytes);
    let mut message = None;
    loop {
        match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => cutter.push(chunk.bytes),
            // Only the end of the stream was still to come.
            Err(ReadError::ConnectionLost(_)) if message.is_some() => break,
            Ok(None) => break,
            Err(_) => return Opened::Nothing(number),
        }
        if message.is_none() {
            match cutter.next() {
                Ok(next) => message = next,
                Err(breach) => return Opened::Breach(breach),
            }
        }
        // Not left until the end: it may never come, and what comes instead is held.
        if message.is_some() && cutter.is_within_message() {
            break;
        }
    }
    match message {
        Some(parts) if !cutter.is_within_message() => Opened::Message(parts),
        _ => Opened::Breach(Breach::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(messages: Vec<Bytes>, is_alone: bool) -> Vec<Bytes> {
        let mut encoder = Encoder::new(is_alone);
        messages.into_iter().for_each(|message| encoder.add(message));
        encoder.finish()
    }

    fn cut(cutter: &mut Cutter) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| cutter.next().expect("no breach")).map(|p| p.concat()).collect()
    }

    #[test]
    fn a_message_is_led_by_its_length() {
        let messages = vec![Bytes::from_static(b""), Bytes::from_static(b"ab")];
        assert_eq!(encode(messages, false).concat(), [ORDERED, 0, 2, b'a', b'b']);
        let large = Bytes::from(vec![7; LARGE_BYTES]);
        let chunks = encode(vec![large.clone()], true);
        assert_eq!(chunks.first().map(|c| c.as_ref()), Some([ALONE, 0x80, 2, 0, 0].as_slice()));
        assert_eq!(chunks.last(), Some(&large));
    }

    #[test]
    fn a_message_beyond_the_limit_is_a_breach_before_it_has_arrived() {
        let mut cutter = Cutter::new(99);
        cutter.push(Bytes::from_static(&[0x40, 100]));
        assert_eq!(cutter.next(), Err(Breach::TooLong(100)));
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_the_stream_is_cut(
            sizes in prop::collection::vec(prop_oneof![0..80_usize, 2_000..2_100_usize], 1..40),
            cuts in prop::collection::vec(1..700_usize, 1..60),
        ) {
            let sent: Vec<Bytes> =
                sizes.iter().map(|size| Bytes::from(vec![1; *size])).collect();
            let mut stream = Bytes::from(encode(sent.clone(), false).concat()).slice(1..);
            let mut cutter = Cutter::new(10_000);
            let mut received = Vec::new();
            for cut_at in cuts.into_iter().cycle() {
                if stream.is_empty() {
                    break;
                }
                cutter.push(stream.split_to(cut_at.min(stream.len())));
                received.extend(cut(&mut cutter));
            }
            prop_assert_eq!(received, sent);
            prop_assert!(!cutter.is_within_message());
        }
    }
}
