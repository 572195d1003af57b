//! A slot that is ready: its connection, its stream, and the handles by which callers know them.

use std::sync::Arc;
use std::time::SystemTime;

use crate::pool;
use crate::pooled::{Figures, PooledConnection};
use crate::stream::{Stream, Usage};

/// What callers hold in place of this crate's connections and streams: the NIF's are resources
/// of the VM. A slot makes each once, so that all callers get the same.
pub trait Handles: Send + Sync + 'static {
    /// A caller's handle to a connection.
    type Connection: Clone + Send + Sync + 'static;
    /// A caller's handle to a stream.
    type Stream: Clone + Send + Sync + 'static;

    /// Makes a connection's handle.
    fn connection(connection: PooledConnection) -> Self::Connection;
    /// Makes a stream's handle.
    fn stream(stream: Stream) -> Self::Stream;
}

/// This crate's own connections and streams as handles.
#[derive(Debug)]
pub struct Plain;

impl Handles for Plain {
    type Connection = PooledConnection;
    type Stream = Stream;

    fn connection(connection: PooledConnection) -> PooledConnection {
        connection
    }

    fn stream(stream: Stream) -> Stream {
        stream
    }
}

/// What the pool knows of a connection.
#[derive(Clone, Debug)]
pub struct Info<T: Handles> {
    /// The connection.
    pub connection: T::Connection,
    /// Its pooled stream.
    pub stream: T::Stream,
    /// [`crate::Target::given`] of the dial that made it.
    pub given: Box<[u8]>,
    /// When it was last asked for or sent to.
    pub last_used: SystemTime,
    /// Its figures.
    pub figures: Figures,
}

/// A slot that is ready.
pub(crate) struct Resident<T: Handles> {
    pub(crate) connection: PooledConnection,
    stream: Stream,
    /// Its stream handle is of `stream`.
    card: Arc<Card<T>>,
    /// Notes that a stream of the connection was used.
    usage: Usage,
}

impl<T: Handles> Resident<T> {
    pub(crate) fn new(connection: PooledConnection, usage: Usage) -> Self {
        let stream = Stream::messages(connection.clone(), usage.clone());
        let connection_handle = T::connection(connection.clone());
        let card = Card::new(&connection, connection_handle, &stream);
        Self { connection, stream, card, usage }
    }

    /// Uses the connection; its stream is made anew if somebody has closed it.
    /// `now`: seconds since the epoch.
    pub(crate) fn checkout(&mut self, now: u64) -> T::Stream {
        if !self.stream.is_open() {
            self.stream = Stream::messages(self.connection.clone(), self.usage.clone());
            let handle = self.card.connection_handle.clone();
            self.card = Card::new(&self.connection, handle, &self.stream);
        }
        self.connection.note_use(now);
        self.stream_handle()
    }

    pub(crate) fn stream_handle(&self) -> T::Stream {
        self.card.stream_handle.clone()
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.connection.outbox().is_open()
    }

    /// All of [`Info`] but the figures, for which a connection's own lock is needed.
    pub(crate) fn card(&self) -> Arc<Card<T>> {
        self.card.clone()
    }
}

/// What is told of a slot.
pub(crate) struct Card<T: Handles> {
    connection: PooledConnection,
    connection_handle: T::Connection,
    stream_handle: T::Stream,
}

impl<T: Handles> Card<T> {
    fn new(
        connection: &PooledConnection,
        connection_handle: T::Connection,
        stream: &Stream,
    ) -> Arc<Self> {
        let (connection, stream_handle) = (connection.clone(), T::stream(stream.clone()));
        Arc::new(Self { connection, connection_handle, stream_handle })
    }

    /// `None`: the connection takes nothing more, or has ended.
    pub(crate) fn info(&self) -> Option<Info<T>> {
        if !self.connection.outbox().is_open() {
            return None;
        }
        Some(Info {
            figures: self.connection.info()?,
            connection: self.connection_handle.clone(),
            stream: self.stream_handle.clone(),
            given: self.connection.whereabouts().given(),
            last_used: self.connection.last_used(),
        })
    }
}

impl<T: Handles> pool::Occupant for Resident<T> {
    fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }
}
