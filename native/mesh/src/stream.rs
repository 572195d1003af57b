//! The streams that callers hold: the pooled one, which carries whole messages and is really a
//! handle to its connection's queue, and those of plain bytes that a caller opened or accepted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;
use crate::byte_stream::ByteStream;
use crate::entry::Payload;
use crate::outbox::{Outbox, Sent};
use crate::pooled::PooledConnection;

/// A handle to a stream. A stream of plain bytes is finished when its last handle is gone.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Messages(MessageStream),
    Bytes(Box<ByteStream>),
}

/// Called at each use of a pooled stream.
pub(crate) type Usage = Arc<dyn Fn() + Send + Sync>;

struct MessageStream {
    connection: PooledConnection,
    usage: Usage,
    is_open: AtomicBool,
}

impl Stream {
    /// The handle that the pool gives out: each send is one whole message.
    pub(crate) fn messages(connection: PooledConnection, usage: Usage) -> Self {
        let is_open = AtomicBool::new(true);
        Self(Arc::new(Kind::Messages(MessageStream { connection, usage, is_open })))
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
    pub fn send(&self, data: Payload<'_>) -> Result<Sent, Error> {
        let sent = self.outbox()?.send(data).inspect_err(|error| self.note_refusal(error))?;
        self.note_use();
        Ok(sent)
    }

    /// A sender that waited has gone, and its turn was dropped: its message need not stay in line
    /// until somebody comes after it.
    pub fn note_gone(&self) {
        // Also after somebody has closed the handle.
        if let Some(outbox) = self.any_outbox() {
            outbox.note_gone();
        }
    }

    /// Queues `data` if there is room for it; without, its sender may still wait for that by
    /// [`Stream::send`].
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::PoolQueueFull`] when there is none, else as
    /// [`Stream::send`].
    pub fn try_send(&self, data: Payload<'_>) -> Result<(), Error> {
        self.offer(data).inspect_err(|error| {
            if *error == Error::MessageTooLarge {
                self.note_refusal(error);
            }
        })
    }

    /// Queues `data` if there is room for it; without, it is refused and counted as that.
    ///
    /// # Errors
    /// As [`Stream::try_send`].
    pub fn async_send(&self, data: Payload<'_>) -> Result<(), Error> {
        self.offer(data).inspect_err(|error| self.note_refusal(error))
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
    pub(crate) fn is_open(&self) -> bool {
        self.outbox().is_ok_and(Outbox::is_open)
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        match &*self.0 {
            Kind::Messages(stream) => stream.connection.remote_address(),
            Kind::Bytes(stream) => stream.remote_address(),
        }
    }

    /// Where we are; `None` once a pooled connection has ended.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &*self.0 {
            Kind::Messages(stream) => stream.connection.local_address(),
            Kind::Bytes(stream) => Some(stream.local_address()),
        }
    }

    fn offer(&self, data: Payload<'_>) -> Result<(), Error> {
        self.outbox()?.try_send(data)?;
        self.note_use();
        Ok(())
    }

    fn note_use(&self) {
        if let Kind::Messages(stream) = &*self.0 {
            stream.connection.note_sending();
            (stream.usage)();
        }
    }

    fn note_refusal(&self, error: &Error) {
        if let Kind::Messages(stream) = &*self.0 {
            stream.connection.note_refusal(error);
        }
    }

    fn outbox(&self) -> Result<&Outbox, Error> {
        match &*self.0 {
            Kind::Messages(stream) if !stream.is_open.load(Ordering::Acquire) => {
                Err(Error::StreamClosed)
            }
            _ => self.any_outbox().ok_or(Error::StreamClosed),
        }
    }

    /// Also that of a handle that is closed.
    fn any_outbox(&self) -> Option<&Outbox> {
        match &*self.0 {
            Kind::Messages(stream) => Some(stream.connection.outbox()),
            Kind::Bytes(stream) => stream.outbox(),
        }
    }
}

impl std::fmt::Debug for MessageStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MessageStream")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl From<ByteStream> for Stream {
    fn from(stream: ByteStream) -> Self {
        Self(Arc::new(Kind::Bytes(Box::new(stream))))
    }
}
