//! One live connection of the pool: the task that gives each queued message a stream of its own,
//! and the QUIC connection beneath, which is replaced when its peer never returns stream credit.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use quinn::ConnectionError;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::address::{Address, canonical};
use crate::byte_stream::{ByteStream, Ends, Hold, Reader};
use crate::config::Load;
use crate::connection::Traffic;
use crate::dial::Dialer;
use crate::farewell::{self, NO_ERROR};
use crate::flight::{Flight, Kind, Landing};
use crate::keep_alive::keep_alive;
use crate::liveness::{News, Pulse, Vigil};
use crate::outbox::Outbox;
use crate::scope::Scope;
use crate::sender::{Sender, Turn};
use crate::settings::{RECEIVE_WINDOW, send_window};
use crate::stream::Stream;
use crate::trail::Trail;
use crate::{Config, Error};

/// A receiver reads what its transport has acknowledged a little later, and what it has not read
/// when we close is lost: nothing is closed this soon after its last message.
const CLOSE_GRACE: Duration = Duration::from_millis(50);
/// The least time to wait for credit from a peer known to return none: its transport may be late
/// by the delayed acknowledgement of RFC 9000, section 13.2.1.
const LEAST_PATIENCE: Duration = Duration::from_millis(5);
/// Replaced connections of one peer that linger at once; the next one waits for a place. One on
/// which users had streams is closed after the last of them, if there is none then.
const MAX_RETIRED: usize = 64;
/// Packets filled in a row, of messages to a node of the field, before anything else is looked at:
/// that costs as much as filling one.
const PACKETS_AT_ONCE: usize = 16;
/// How long credit may take that comes at all, from a peer that has given none back so far.
pub(crate) const ROUND_TRIPS_FOR_CREDIT: u32 = 3;

/// A handle to a pooled connection. Handles do not keep the connection open: the pool does.
#[derive(Clone, Debug)]
pub struct PooledConnection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    outbox: Arc<Outbox>,
    /// What carries the messages now; nothing once the connection has ended, so that a forgotten
    /// handle does not keep a socket open.
    carrier: Mutex<Option<Carrier>>,
    remote: SocketAddr,
    opened_at: SystemTime,
    /// In seconds since the epoch, which is all that is told of it.
    last_used: AtomicU64,
    /// Whether it has been sent to at a time that `last_used` does not tell yet.
    was_sent_to: AtomicBool,
    user_streams: AtomicUsize,
    has_delivered: AtomicBool,
    pulse: Pulse,
    context: Arc<Context>,
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

/// Why a QUIC connection no longer carries messages.
enum End {
    Lost(Error),
    /// Everything went out, or the time to linger is over.
    Drained,
    /// No stream credit comes back.
    Exhausted,
    /// There never was any.
    Barren,
    /// The peer is dead, or was: another connection to it takes this one's place.
    Superseded(quinn::Connection),
}

impl PooledConnection {
    pub(crate) fn new(
        carrier: quinn::Connection,
        outbox: Arc<Outbox>,
        context: Arc<Context>,
    ) -> Self {
        Self(Arc::new(Inner {
            outbox,
            remote: canonical(carrier.remote_address()),
            carrier: Mutex::new(Some(carrier.into())),
            opened_at: SystemTime::now(),
            last_used: AtomicU64::new(now_seconds()),
            was_sent_to: AtomicBool::new(false),
            user_streams: AtomicUsize::new(0),
            has_delivered: AtomicBool::new(false),
            pulse: Pulse::new(&context.config),
            context,
        }))
    }

    /// The peer's address, even after the connection has ended.
    pub fn remote_address(&self) -> SocketAddr {
        self.0.remote
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
            remote: self.0.remote,
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
        let ends = Ends { local, remote: self.0.remote };
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
        // To write what is there already would take the line from another core.
        if self.0.last_used.load(Ordering::Relaxed) != now {
            self.0.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// It was sent to. A look at a clock costs more than the rest, so the task that sends takes it.
    pub(crate) fn note_sending(&self) {
        // As above.
        if !self.0.was_sent_to.load(Ordering::Relaxed) {
            self.0.was_sent_to.store(true, Ordering::Relaxed);
        }
    }

    /// Counts a message for which there was no room, as its sender is told.
    pub(crate) fn note_refusal(&self, error: &Error) {
        if matches!(error, Error::QueueFull | Error::PoolQueueFull | Error::MessageTooLarge) {
            self.0.context.scope.stats.refused(error);
        }
    }

    fn date_sending(&self) {
        if self.0.was_sent_to.load(Ordering::Relaxed) {
            self.0.was_sent_to.store(false, Ordering::Relaxed);
            self.note_use(now_seconds());
        }
    }

    /// When it was last asked for or sent to, to the second.
    pub(crate) fn last_used(&self) -> SystemTime {
        self.date_sending();
        UNIX_EPOCH + Duration::from_secs(self.0.last_used.load(Ordering::Relaxed))
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.outbox
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
    fn place(&self) -> Option<(quinn::Connection, CancellationToken, TaskTrackerToken)> {
        let mut carrier = self.lock();
        let Carrier { connection, users } = carrier.as_mut()?;
        let Users { streams, retired } = users.get_or_insert_default();
        // Locked: whoever replaces the carrier counts it.
        Some((connection.clone(), retired.clone(), streams.token()))
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
    fn lease(&self, place: TaskTrackerToken) -> Lease {
        self.0.user_streams.fetch_add(1, Ordering::Relaxed);
        Lease { connection: self.clone(), _place: place }
    }

    /// Why the connection takes nothing more.
    fn refusal(&self) -> Error {
        self.0.outbox.refusal().unwrap_or(Error::Cancelled)
    }

    /// Carries messages until the connection is over, and tells why it is.
    pub(crate) async fn serve(&self, address: &Address, node: &[u8]) -> Error {
        let mut patience = self.0.context.config.stream_credit_timeout();
        let mut places = None;
        // One for all carriers: the time to linger does not begin anew with each.
        let mut linger_over = pin!(self.linger_over());
        while let Some(carrier) = self.carrier() {
            match self.carry(&carrier, patience, address, node, linger_over.as_mut()).await {
                End::Lost(error) => return error,
                End::Superseded(fresh) => {
                    drop(self.replace_by(fresh));
                    continue;
                }
                End::Drained => break,
                End::Barren => return Error::NoCredit,
                End::Exhausted => {}
            }
            let stats = &self.0.context.scope.stats;
            stats.dials.add(1);
            // In a box, for in most connections' lives it never comes to it.
            let dialled = tokio::select! {
                biased;
                dialled = Box::pin(self.0.context.dialer.dial(address, node)) => Some(dialled),
                () = &mut linger_over => None,
            };
            match dialled {
                Some(Ok(fresh)) => {
                    stats.connections.add(1);
                    stats.renewals.add(1);
                    patience = LEAST_PATIENCE.max(carrier.rtt() * ROUND_TRIPS_FOR_CREDIT);
                    let former = self.replace_by(fresh);
                    let places =
                        places.get_or_insert_with(|| Arc::new(Semaphore::new(MAX_RETIRED)));
                    tokio::select! {
                        biased;
                        () = Box::pin(self.retire(former, places)) => {}
                        () = &mut linger_over => break,
                    }
                }
                Some(Err(error)) => {
                    stats.dial_failures.add(&error, 1);
                    return Error::NoCredit;
                }
                None => {
                    stats.dial_failures.add(&self.refusal(), 1);
                    break;
                }
            }
        }
        self.refusal()
    }

    /// Gives the messages another carrier, and returns the former one.
    fn replace_by(&self, fresh: quinn::Connection) -> Option<Carrier> {
        let former = self.lock().replace(fresh.into());
        if let Some(Carrier { users: Some(users), .. }) = &former {
            users.streams.close();
            users.retired.cancel();
        }
        former
    }

    /// Ends the connection; the peer is told if it still listens.
    pub(crate) fn end(&self) {
        // Closing what is lost already would put our reason over the peer's, and whoever waits on
        // one of its streams would be told that nobody knows why.
        let carrier = self.lock().take().map(|carrier| carrier.connection);
        if let Some(carrier) = carrier.filter(|carrier| carrier.close_reason().is_none()) {
            farewell::close(&carrier, NO_ERROR);
        }
    }

    /// Lets a replaced connection linger, so that its peer can read what it has acknowledged; as
    /// long as users have streams on it, it stays, unless the pooled connection ends before.
    async fn retire(&self, carrier: Option<Carrier>, places: &Arc<Semaphore>) {
        let Some(Carrier { connection, users }) = carrier else { return };
        let users = users.filter(|users| !users.streams.is_empty());
        let place = match &users {
            None => places.clone().acquire_owned().await.ok(),
            // They may stay for long, and messages do not wait for them.
            Some(_) => None,
        };
        let places = places.clone();
        let linger = self.0.context.scope.linger.max(CLOSE_GRACE);
        let pooled = self.clone();
        self.0.context.scope.tasks.spawn(async move {
            let lingering = async {
                if let Some(users) = users {
                    users.streams.wait().await;
                }
                if let Some(_place) = place.or_else(|| places.try_acquire_owned().ok()) {
                    sleep(linger).await;
                }
            };
            tokio::select! {
                _ = connection.closed() => {}
                () = lingering => {}
                () = pooled.linger_over() => {}
                () = pooled.tend(&connection) => {}
            }
            farewell::close(&connection, NO_ERROR);
        });
    }

    /// Sends what is queued over `carrier`: to a node of the field each message on a stream of its
    /// own, to one of ours many on one.
    async fn carry(
        &self,
        carrier: &quinn::Connection,
        patience: Duration,
        address: &Address,
        node: &[u8],
        mut linger_over: Pin<&mut impl Future<Output = ()>>,
    ) -> End {
        let Inner { outbox, pulse, context, has_delivered, .. } = &*self.0;
        carrier.set_send_window(send_window(carrier.rtt()));
        let mut vigil = Vigil::new(carrier, outbox, pulse, context, address, node);
        let mut sender = Sender::new(carrier, outbox, context, has_delivered, patience);
        let mut last_landing: Option<Instant> = None;
        // In boxes: even an empty set has room for one of what it holds.
        let mut flights = FuturesUnordered::new();
        let mut trail = Trail::new();
        let mut is_drained = false;
        let mut packets = 0;
        let mut lost = pin!(carrier.closed());
        let mut tending = pin!(self.tend(carrier));
        let (error, fresh) = loop {
            // Not in the select below, whose outcome each idle connection would keep a place for.
            while packets > 0 {
                let first = if sender.goes_on().await { sender.follow() } else { None };
                packets = if first.is_some() { packets - 1 } else { 0 };
                send_off(first, &mut sender, &mut trail, &mut flights);
            }
            if is_drained && sender.is_resting() && self.is_idle() {
                self.grace(last_landing).await;
                return End::Drained;
            }
            self.date_sending();
            tokio::select! {
                biased;
                error = &mut lost => break (error.into(), None),
                () = &mut linger_over => {
                    // Before the flights are dropped: a closed connection finishes no stream.
                    farewell::close(carrier, NO_ERROR);
                    return End::Drained;
                }
                Some(landing) = flights.next() => {
                    sender.land(vec![landing]);
                    last_landing = Some(Instant::now());
                }
                landings = trail.landed() => {
                    sender.land(landings);
                    last_landing = Some(Instant::now());
                }
                // Before the turn, which must not use what may be dead.
                news = vigil.next() => if let News::Dead(fresh) = news {
                    farewell::close(carrier, NO_ERROR);
                    break (Error::Dead, fresh);
                },
                turn = sender.turn(is_drained), if !vigil.holds() && sender.may_fly() => match turn {
                    Ok(Turn::Send(flight)) if flight.kind == Kind::Single => {
                        packets = PACKETS_AT_ONCE - 1;
                        send_off(Some(flight), &mut sender, &mut trail, &mut flights);
                    }
                    Ok(Turn::Send(flight)) => flights.push(flight.fly().boxed()),
                    Ok(Turn::Nothing) => {}
                    Ok(Turn::Drained) => is_drained = true,
                    Ok(Turn::NoCredit) if sender.is_exhausted() => {
                        // A user who has a stream has had credit.
                        let has_users = self.0.user_streams.load(Ordering::Relaxed) > 0;
                        let is_barren = sender.is_barren() && !has_users;
                        return if is_barren { End::Barren } else { End::Exhausted };
                    }
                    Ok(Turn::NoCredit) => {}
                    Err(error) => break (error, None),
                },
                () = &mut tending => {}
            }
        };
        // The outcome of each flight is known now: acknowledged before, or never.
        let mut landings = trail.end();
        while let Some(landing) = flights.next().await {
            landings.push(landing);
        }
        if error == Error::Dead {
            // We closed it, and know why.
            landings.iter_mut().for_each(Landing::ascribe_to_death);
        }
        sender.land(landings);
        sender.end();
        fresh.map_or(End::Lost(error), End::Superseded)
    }

    async fn grace(&self, last_landing: Option<Instant>) {
        if let Some(last) = last_landing {
            sleep(CLOSE_GRACE.saturating_sub(last.elapsed())).await;
        }
    }

    async fn linger_over(&self) {
        self.0.outbox.draining().await;
        // In a box, for it comes once.
        Box::pin(sleep(self.0.context.scope.linger)).await;
    }

    /// What a connection needs beside its messages. Never resolves.
    async fn tend(&self, carrier: &quinn::Connection) {
        let own = self.0.context.config.keep_alive_interval();
        tokio::join!(keep_alive(carrier, own, RECEIVE_WINDOW), turn_away_strays(carrier));
    }

    fn carrier(&self) -> Option<quinn::Connection> {
        self.lock().as_ref().map(|carrier| carrier.connection.clone())
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Option<Carrier>> {
        self.0.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a message off to a node of the field, and those that share its packet.
fn send_off(
    mut next: Option<Flight>,
    sender: &mut Sender<'_>,
    trail: &mut Trail,
    flights: &mut FuturesUnordered<BoxFuture<'static, Landing>>,
) {
    while let Some(flight) = next {
        flights.extend(trail.send_off(flight).map(|left| left.fly().boxed()));
        next = sender.follow();
    }
}

/// Has the peer told that nobody reads the streams that it opens. Unread, each would be memory that
/// it pins here.
async fn turn_away_strays(carrier: &quinn::Connection) {
    while let Ok(mut stray) = carrier.accept_uni().await {
        // One that has ended already needs no answer.
        stray.stop(NO_ERROR).ok();
    }
    std::future::pending().await
}

impl From<quinn::Connection> for Carrier {
    fn from(connection: quinn::Connection) -> Self {
        Self { connection, users: None }
    }
}

/// A stream of a user that keeps its connection from being idle, and its carrier from being closed.
#[derive(Debug)]
struct Lease {
    connection: PooledConnection,
    _place: TaskTrackerToken,
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

/// Seconds since the epoch.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
