//! The streams that callers hold: the pooled one, which carries whole messages and is really a
//! handle to its connection's queue, and those of plain bytes that a caller opened or accepted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::Error;
use crate::byte_stream::ByteStream;
use crate::outbox::{Outbox, Sent};
use crate::pooled::PooledConnection;

/// A handle to a stream. A stream of plain bytes is finished when its last handle is gone.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Messages(MessageStream),
    Bytes(ByteStream),
}

#[derive(Debug)]
struct MessageStream {
    connection: PooledConnection,
    is_open: AtomicBool,
}

impl Stream {
    /// The handle that the pool gives out: each send is one whole message.
    pub(crate) fn messages(connection: PooledConnection) -> Self {
        let is_open = AtomicBool::new(true);
        Self(Arc::new(Kind::Messages(MessageStream { connection, is_open })))
    }

    /// The stream as one of plain bytes, if it is one.
    pub fn bytes(&self) -> Option<&ByteStream> {
        match &*self.0 {
            Kind::Messages(_) => None,
            Kind::Bytes(stream) => Some(stream),
        }
    }

    /// Queues `data`; above the watermark it waits for room (see [`Sent`]).
    ///
    /// # Errors
    /// Why the stream or its connection is gone, or [`Error::MessageTooLarge`].
    pub fn send(&self, data: Bytes) -> Result<Sent, Error> {
        self.outbox()?.send(data)
    }

    /// Queues `data` if there is room for it.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::PoolQueueFull`] when there is none, else as
    /// [`Stream::send`].
    pub fn try_send(&self, data: Bytes) -> Result<(), Error> {
        self.outbox()?.try_send(data)
    }

    /// Closes the stream. One of plain bytes still sends what is queued, then FIN; the pooled one
    /// leaves its connection and what it has queued alone.
    pub fn close(&self) {
        match &*self.0 {
            Kind::Messages(stream) => stream.is_open.store(false, Ordering::Release),
            Kind::Bytes(stream) => stream.finish(),
        }
    }

    /// Whether data can still be sent.
    pub fn is_open(&self) -> bool {
        self.outbox().is_ok_and(|outbox| outbox.refusal().is_none())
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        match &*self.0 {
            Kind::Messages(stream) => stream.connection.remote_address(),
            Kind::Bytes(stream) => stream.remote_address(),
        }
    }

    fn outbox(&self) -> Result<&Outbox, Error> {
        match &*self.0 {
            Kind::Messages(stream) if stream.is_open.load(Ordering::Acquire) => {
                Ok(stream.connection.outbox())
            }
            Kind::Messages(_) => Err(Error::StreamClosed),
            Kind::Bytes(stream) => stream.outbox().ok_or(Error::StreamClosed),
        }
    }
}

impl From<ByteStream> for Stream {
    fn from(stream: ByteStream) -> Self {
        Self(Arc::new(Kind::Bytes(stream)))
    }
}
