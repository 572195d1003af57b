//! The streams that callers hold: the pooled one, which carries whole messages and is really a
//! handle to its connection's queue, and those of plain bytes that a caller opened himself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::VarInt;
use tokio::pin;
use tokio::time::sleep;

use crate::Error;
use crate::connection::{Connection, Lease};
use crate::outbox::{Next, Outbox, Sent};

/// The code of a stream that we give up (RESET_STREAM, RFC 9000, section 19.4); nodes in the
/// field give it no meaning.
const GIVEN_UP: VarInt = VarInt::from_u32(0);

/// A handle to a stream. The stream of a caller's own is finished when its last handle is gone.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Messages(MessageStream),
    Bytes(ByteStream),
}

impl Stream {
    /// The handle that the pool gives out: each send is one whole message.
    pub(crate) fn messages(connection: Connection) -> Self {
        let is_open = AtomicBool::new(true);
        Self(Arc::new(Kind::Messages(MessageStream {
            connection,
            is_open,
        })))
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

    /// Closes the stream. A caller's own one still sends what is queued, then FIN; the pooled one
    /// leaves its connection and what it has queued alone.
    pub fn close(&self) {
        match &*self.0 {
            Kind::Messages(stream) => stream.is_open.store(false, Ordering::Release),
            Kind::Bytes(stream) => stream.outbox.drain(Error::StreamClosed),
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
            Kind::Bytes(stream) => stream.connection.remote_address(),
        }
    }

    fn outbox(&self) -> Result<&Outbox, Error> {
        match &*self.0 {
            Kind::Messages(stream) if stream.is_open.load(Ordering::Acquire) => {
                Ok(stream.connection.outbox())
            }
            Kind::Messages(_) => Err(Error::StreamClosed),
            Kind::Bytes(stream) => Ok(&stream.outbox),
        }
    }
}

impl From<ByteStream> for Stream {
    fn from(stream: ByteStream) -> Self {
        Self(Arc::new(Kind::Bytes(stream)))
    }
}

#[derive(Debug)]
struct MessageStream {
    connection: Connection,
    is_open: AtomicBool,
}

/// A stream of plain bytes; its task writes what the outbox holds.
#[derive(Debug)]
pub(crate) struct ByteStream {
    connection: Connection,
    outbox: Arc<Outbox>,
    /// Unread: what the peer sends stays within its flow-control window.
    _incoming: quinn::RecvStream,
}

impl ByteStream {
    pub(crate) fn start(
        connection: Connection,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> Self {
        let context = connection.context();
        let outbox = Arc::new(context.stream_outbox());
        let writer = Writer {
            outbox: outbox.clone(),
            stream: Outgoing::new(send),
            linger: context.config.linger(),
            _lease: connection.lease(),
        };
        context.tasks.spawn(writer.run());
        Self {
            connection,
            outbox,
            _incoming: recv,
        }
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        self.outbox.drain(Error::StreamClosed);
    }
}

struct Writer {
    outbox: Arc<Outbox>,
    stream: Outgoing,
    linger: Duration,
    _lease: Lease,
}

impl Writer {
    /// Writes until the outbox is drained, then finishes the stream; resets it when lingering
    /// takes too long.
    async fn run(mut self) {
        let outbox = self.outbox.clone();
        let linger_over = async {
            outbox.draining().await;
            sleep(self.linger).await;
        };
        let written = write_all(&mut self.stream, &self.outbox);
        pin!(linger_over);
        let outcome = tokio::select! {
            outcome = written => outcome,
            () = linger_over => Err(Error::StreamClosed),
        };
        outbox.close(outcome.err().unwrap_or(Error::StreamClosed));
    }
}

async fn write_all(stream: &mut Outgoing, outbox: &Outbox) -> Result<(), Error> {
    while outbox.next().await == Next::Message {
        let Some(data) = outbox.take() else { break };
        let bytes = data.len();
        stream.write(data).await?;
        outbox.settle(bytes);
    }
    stream.finish().await
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
        Self {
            stream,
            is_finished: false,
        }
    }

    /// Hands all of `data` to the stack; waits while flow control does.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        Ok(self.stream.write_chunk(data).await?)
    }

    /// Sends FIN and waits until the peer has acknowledged everything.
    pub(crate) async fn finish(&mut self) -> Result<(), Error> {
        // An error here is told again, and better, by what follows.
        self.stream.finish().ok();
        self.is_finished = true;
        match self.stream.stopped().await? {
            None => Ok(()),
            Some(code) => Err(Error::Stopped(code.into_inner())),
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.is_finished {
            // A stream that is closed already needs no reset.
            self.stream.reset(GIVEN_UP).ok();
        }
    }
}
