//! One live connection of the pool, as callers hold it and as the pool does. What carries its
//! messages is beneath it, in `carrier.rs`.

mod carrier;
mod last_use;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::ConnectionError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub(crate) use self::carrier::ROUND_TRIPS_FOR_CREDIT;
pub(crate) use self::last_use::LastUse;
use crate::address::canonical;
use crate::byte_stream::{ByteStream, Ends, Hold, Holder, Reader};
use crate::clock;
use crate::config::Load;
use crate::connection::Traffic;
use crate::dial::Dialer;
use crate::farewell::{self, NO_ERROR};
use crate::mesh::Target;
use crate::outbox::Outbox;
use crate::pulse::Pulse;
use crate::scope::Scope;
use crate::stream::Stream;
use crate::whereabouts::{Fresh, Whereabouts};
use crate::{Config, Error};

/// A handle to a pooled connection. Handles do not keep the connection open: the pool does.
#[derive(Clone, Debug)]
pub struct PooledConnection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outbox: Arc<Outbox>,
    route: Mutex<Route>,
    whereabouts: Arc<Whereabouts>,
    opened_at: SystemTime,
    last_use: LastUse,
    user_streams: AtomicUsize,
    has_delivered: AtomicBool,
    pulse: Pulse,
    context: Arc<Context>,
}

/// What carries the messages, and where to.
#[derive(Debug)]
struct Route {
    /// Nothing once the connection has ended, so that a forgotten handle does not keep a socket open.
    carrier: Option<Carrier>,
    /// Where the carrier leads, or the last one did.
    remote: SocketAddr,
}

/// One QUIC connection in the life of a pooled one.
#[derive(Debug)]
struct Carrier {
    connection: quinn::Connection,
    /// Nothing before the first stream of a user: most connections never have one.
    users: Option<Users>,
}

/// The users' streams on one carrier.
#[derive(Debug, Default)]
struct Users {
    streams: TaskTracker,
    /// Cancelled when another carrier has taken its place.
    retired: CancellationToken,
    /// Why it was closed, unless they need not know.
    end: Arc<OnceLock<Error>>,
}

/// What all connections of a pool share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) dialer: Dialer,
    pub(crate) scope: Scope,
    pub(crate) config: Config,
}

/// Figures of a live connection.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Where the peer is.
    pub remote: SocketAddr,
    /// When the connection entered the pool.
    pub opened_at: SystemTime,
    /// Whether messages or streams of it are in progress.
    pub busy: bool,
    /// Messages queued or in flight.
    pub outstanding: Load,
    /// Streams opened by [`PooledConnection::open_stream`] and not yet closed.
    pub user_streams: usize,
    /// The path's round-trip time.
    pub rtt: Duration,
    /// The path's largest UDP payload, in bytes.
    pub mtu: u16,
    /// Packets lost on the way.
    pub lost_packets: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
}

impl PooledConnection {
    pub(crate) fn new(
        carrier: quinn::Connection,
        outbox: Arc<Outbox>,
        whereabouts: Arc<Whereabouts>,
        context: Arc<Context>,
    ) -> Self {
        Self(Arc::new(Inner {
            outbox,
            route: Mutex::new(Route::by(carrier)),
            whereabouts,
            opened_at: clock::now(),
            last_use: LastUse::new(),
            user_streams: AtomicUsize::new(0),
            has_delivered: AtomicBool::new(false),
            pulse: Pulse::new(&context.config),
            context,
        }))
    }

    /// The peer's address, even after the connection has ended.
    pub fn remote_address(&self) -> SocketAddr {
        self.lock().remote
    }

    /// Where we are; `None` when the connection has ended.
    pub fn local_address(&self) -> Option<SocketAddr> {
        let carrier = self.carrier()?;
        self.0.context.dialer.local_address(&carrier)
    }

    /// The connection's counters; `None` when it has ended.
    pub fn traffic(&self) -> Option<Traffic> {
        Some(Traffic::of(&self.carrier()?, self.0.outbox.outstanding().bytes))
    }

    /// Figures of the connection; `None` when it has ended.
    pub fn info(&self) -> Option<Figures> {
        let carrier = self.carrier()?;
        let stats = carrier.stats();
        Some(Figures {
            remote: self.remote_address(),
            opened_at: self.0.opened_at,
            busy: !self.is_idle(),
            outstanding: self.0.outbox.outstanding(),
            user_streams: self.0.user_streams.load(Ordering::Relaxed),
            rtt: stats.path.rtt,
            mtu: stats.path.current_mtu,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        })
    }

    /// Opens a bidirectional stream of plain bytes; waits for stream credit.
    ///
    /// # Errors
    /// Why the connection is gone, or takes no more streams.
    pub async fn open_stream(&self) -> Result<Stream, Error> {
        let (carrier, lease, (send, recv)) = loop {
            let (carrier, retired, place) = self.place().ok_or_else(|| self.refusal())?;
            let mut replaced = pin!(self.replaced(&retired));
            tokio::select! {
                biased;
                replaced = &mut replaced => replaced?,
                opened = carrier.open_bi() => match opened {
                    Ok(opened) => break (carrier, self.lease(place), opened),
                    // By us: another carrier comes in its place, or none.
                    Err(ConnectionError::LocallyClosed) => replaced.await?,
                    Err(lost) => return Err(lost.into()),
                }
            }
        };
        let id = send.id().into();
        let reader = Reader::stream(recv, self.0.context.config.queue_limits().bytes);
        let Context { scope, dialer, .. } = &*self.0.context;
        let local = dialer.local_address(&carrier).ok_or(Error::Cancelled)?;
        let ends = Ends { local, remote: canonical(carrier.remote_address()) };
        let budget = scope.stream_budget.clone();
        let hold: Option<Hold> = Some(Arc::new(lease));
        let stream = ByteStream::start(scope, budget, ends, Some(send), Some(reader), id, hold);
        Ok(stream.into())
    }

    /// Closes the connection, and with it its place in the pool: what is queued still goes out,
    /// bounded by the linger time.
    pub fn close(&self) {
        self.0.outbox.drain(Error::StreamClosed);
    }

    /// It was asked for, this many seconds after the epoch.
    pub(crate) fn note_use(&self, now: u64) {
        self.0.last_use.note(now);
    }

    /// It was sent to.
    pub(crate) fn note_sending(&self) {
        self.0.last_use.note_sending();
    }

    /// Counts a message for which there was no room, as its sender is told.
    pub(crate) fn note_refusal(&self, error: &Error) {
        if matches!(error, Error::QueueFull | Error::PoolQueueFull | Error::MessageTooLarge) {
            self.0.context.scope.stats.refused(error);
        }
    }

    /// When it was last asked for or sent to, to the second.
    pub(crate) fn last_used(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.last_use.second())
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    pub(crate) fn whereabouts(&self) -> &Whereabouts {
        &self.0.whereabouts
    }

    /// A caller says that the peer, which was silent, is at `target`.
    pub(crate) fn suggest(&self, target: Target) {
        self.0.whereabouts.suggest(target);
        if !self.is_doubtful(Instant::now()) {
            // It was heard of meanwhile, by which whatever was said before is forgotten.
            self.0.whereabouts.confirm();
        }
    }

    /// Whether the peer has been silent when it should not have been, as far as the connection's task
    /// has noticed.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.pulse.is_silent()
    }

    pub(crate) fn shared_outbox(&self) -> Arc<Outbox> {
        self.0.outbox.clone()
    }

    /// Whether any message has arrived by this connection.
    pub(crate) fn has_delivered(&self) -> bool {
        self.0.has_delivered.load(Ordering::Relaxed)
    }

    /// Whether the peer has to be asked, before the connection is used, if it is still there.
    pub(crate) fn is_doubtful(&self, now: Instant) -> bool {
        self.0.pulse.is_doubtful(now)
    }

    /// Has the peer asked; resolves when it is there, or the connection is over.
    pub(crate) async fn settled(&self) {
        self.0.pulse.settled(|| self.0.outbox.refusal().is_some()).await;
    }

    /// Tells those who wait for the peer that the outbox is closed.
    pub(crate) fn give_up(&self) {
        self.0.pulse.end();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.0.user_streams.load(Ordering::Relaxed) == 0 && self.0.outbox.is_idle()
    }

    /// The carrier, what tells that another one has taken its place, and what keeps it meanwhile.
    fn place(&self) -> Option<(quinn::Connection, CancellationToken, Place)> {
        let mut route = self.lock();
        let Carrier { connection, users } = route.carrier.as_mut()?;
        let Users { streams, retired, end } = users.get_or_insert_default();
        // Locked: whoever replaces the carrier counts it.
        let turn = self.0.pulse.turn();
        let place = Place { end: end.clone(), turn, _token: streams.token() };
        Some((connection.clone(), retired.clone(), place))
    }

    /// Resolves when another carrier has taken the place of the one that `retired` is about, or in
    /// an error when none will.
    async fn replaced(&self, retired: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = self.0.outbox.draining() => Err(self.refusal()),
            () = retired.cancelled() => Ok(()),
        }
    }

    /// Counts a stream of a user for as long as the lease lives.
    fn lease(&self, place: Place) -> Lease {
        self.0.user_streams.fetch_add(1, Ordering::Relaxed);
        Lease { connection: self.clone(), place }
    }

    /// Why the connection takes nothing more.
    fn refusal(&self) -> Error {
        self.0.outbox.refusal().unwrap_or(Error::Cancelled)
    }

    /// Gives the messages another carrier, and returns the former one.
    fn replace_by(&self, fresh: Fresh) -> Option<Carrier> {
        self.0.whereabouts.moved(fresh.target);
        let former = {
            let mut route = self.lock();
            self.0.pulse.next_turn();
            std::mem::replace(&mut *route, Route::by(fresh.connection)).carrier
        };
        if let Some(Carrier { users: Some(users), .. }) = &former {
            users.streams.close();
            users.retired.cancel();
        }
        former
    }

    /// The carrier is about to be closed because its peer is dead: whoever has streams on it is told.
    fn note_death(&self) {
        if let Some(Carrier { users: Some(users), .. }) = &self.lock().carrier {
            users.end.set(Error::Dead).ok();
        }
    }

    /// Ends the connection; the peer is told if it still listens.
    pub(crate) fn end(&self) {
        // Closing what is lost already would put our reason over the peer's, and whoever waits on
        // one of its streams would be told that nobody knows why.
        let carrier = self.lock().carrier.take().map(|carrier| carrier.connection);
        if let Some(carrier) = carrier.filter(|carrier| carrier.close_reason().is_none()) {
            farewell::close(&carrier, NO_ERROR);
        }
    }

    fn carrier(&self) -> Option<quinn::Connection> {
        self.lock().carrier.as_ref().map(|carrier| carrier.connection.clone())
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Route> {
        self.0.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Route {
    fn by(connection: quinn::Connection) -> Self {
        let remote = canonical(connection.remote_address());
        Self { carrier: Some(Carrier { connection, users: None }), remote }
    }
}

/// A stream of a user that keeps its connection from being idle, and its carrier from being closed.
#[derive(Debug)]
struct Lease {
    connection: PooledConnection,
    place: Place,
}

/// A stream's place on a carrier.
#[derive(Debug)]
struct Place {
    end: Arc<OnceLock<Error>>,
    /// Which of the carriers it is on.
    turn: u32,
    _token: TaskTrackerToken,
}

impl Holder for Lease {
    fn begin_writing(&self) {
        self.connection.0.pulse.begin_writing(self.place.turn);
    }

    fn end_writing(&self) {
        self.connection.0.pulse.end_writing(self.place.turn);
    }

    fn cause(&self, error: Error) -> Error {
        match (error, self.place.end.get()) {
            (Error::Cancelled, Some(end)) => end.clone(),
            (error, _) => error,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Inner { user_streams, outbox, .. } = &*self.connection.0;
        if user_streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            // The task may be waiting for just that.
            outbox.nudge();
        }
    }
}
