//! The pool of real connections: who asks for a peer gets the connection that is there, joins the
//! dial under way, or begins one. Each slot has one task, which dials, serves and cleans up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::address::{Address, Resolver};
use crate::backoff::Backoff;
use crate::config::{BadOption, Load};
use crate::delivery::Delivery;
use crate::dial::Dialer;
use crate::endpoint::Endpoint;
use crate::entry::{Entry, Payload};
use crate::joined::MESH_ALPN;
use crate::message::{Message, Undelivered};
use crate::outbox::Outbox;
use crate::pool::{Pool, Slot};
use crate::pooled::{Context, PooledConnection, now_seconds};
use crate::resident::{Handles, Info, Resident};
use crate::scope::Scope;
use crate::settings::Settings;
use crate::stats::Snapshot;
use crate::tenancy::{Pending, Tenancy};
use crate::tls::{ALPN, Identity};
use crate::verify::Verification;
use crate::{Config, Error};

/// Who a peer is: any bytes; 32 in practice. Shared by all that is kept of one connection.
pub type NodeId = Arc<[u8]>;

/// How often a message looks for another slot when the one that it found closes under it.
const SEND_ATTEMPTS: usize = 3;

/// Where a peer is to be found.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub address: Address,
    /// The address in the caller's own form, which [`Info`] gives back; this crate never looks
    /// inside.
    pub given: Box<[u8]>,
}

/// What the pool tells its owner unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first dial has begun, and no dial of this pool verifies who answers.
    Unverified,
    /// The UDP socket has died, and all connections with it; the next dial binds another.
    SocketLost,
}

/// A bounded pool of connections by node id. Dropping it closes it.
pub struct Mesh<T: Handles>(Arc<Shared<T>>);

pub(crate) struct Shared<T: Handles> {
    slots: Mutex<Slots<T>>,
    pub(crate) context: Arc<Context>,
    observer: Arc<dyn Fn(Event) + Send + Sync>,
}

pub(crate) struct Slots<T: Handles> {
    pub(crate) pool: Pool<NodeId, Dial<T>, Resident<T>>,
    pub(crate) backoff: Backoff,
    /// Requests for a connection that found one, and those that had to wait for a dial. Here, since
    /// whoever counts one has locked the pool.
    hits: u64,
    misses: u64,
    is_closed: bool,
    has_dialled: bool,
    /// One owner more than there are dials that are not over.
    pending: Arc<()>,
}

/// The outcome of a dial, once there is one.
pub(crate) type Outcome<T> = Option<Result<<T as Handles>::Stream, Error>>;

/// A slot that is being dialled: its queue is there already.
pub(crate) struct Dial<T: Handles> {
    outbox: Arc<Outbox>,
    outcome: Arc<watch::Sender<Outcome<T>>>,
    /// Ends a delay before the dial: somebody waits for it now.
    urgent: Arc<Notify>,
}

/// Why a slot is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// Somebody waits for the connection, or for a message to arrive by it.
    Asked,
    /// There is a message of so many bytes for the node.
    Message(usize),
    /// There is what a lost connection left.
    Remains,
}

/// What a request for a connection found.
enum Claim<T: Handles> {
    Ready(T::Stream),
    /// A connection that has rested for long.
    Doubtful(PooledConnection),
    Pending(watch::Receiver<Outcome<T>>),
}

impl<T: Handles> Mesh<T> {
    /// An empty pool whose tasks run on `runtime`. `observer` must not block.
    ///
    /// # Errors
    /// [`Error::Unverified`] when the roots of `verification` are of no use.
    pub fn new(
        config: Config,
        identity: Option<Identity>,
        verification: Verification,
        runtime: Handle,
        observer: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let slots = Slots {
            pool: Pool::new(config.max_connections()),
            backoff: config.dial_backoff(),
            hits: 0,
            misses: 0,
            is_closed: false,
            has_dialled: false,
            pending: Arc::default(),
        };
        let observer: Arc<dyn Fn(Event) + Send + Sync> = Arc::new(observer);
        let endpoint = || {
            let witness = observer.clone();
            let on_loss = move || witness(Event::SocketLost);
            Arc::new(Endpoint::new(config.udp_buffer_bytes(), on_loss))
        };
        let more_endpoints = (1..config.endpoints()).map(|_| endpoint()).collect();
        let settings = Settings {
            transport: config.transport(),
            identity,
            verification,
            alpn: vec![MESH_ALPN.to_vec(), ALPN.to_vec()],
            ..Settings::default()
        };
        let context = Context {
            dialer: Dialer::new(
                endpoint(),
                Resolver::new(),
                settings,
                config.max_concurrent_dials(),
                config.connect_timeout(),
            )?
            .with_more_endpoints(more_endpoints),
            scope: Scope::new(&config, runtime),
            config,
        };
        Ok(Self(Arc::new(Shared {
            slots: Mutex::new(slots),
            context: Arc::new(context),
            observer,
        })))
    }

    /// The stream of a live pooled connection, which thereby is used. `None`: there is none, or
    /// its peer has to be asked first whether it is still there.
    pub fn checkout(&self, node: &[u8]) -> Option<T::Stream> {
        // Before the lock, as little as looks at clocks take.
        let (now, second) = (Instant::now(), now_seconds());
        let mut slots = self.0.lock();
        let Slot::Ready(resident) = slots.pool.lookup(node) else {
            return None;
        };
        if !resident.is_alive() || resident.connection.is_doubtful(now.into()) {
            return None;
        }
        let stream = resident.checkout(second);
        slots.hits += 1;
        Some(stream)
    }

    /// The stream of a connection to `node`, dialled at `target` if there is none. The request
    /// is made now, the future only waits for its outcome: dropping it disturbs nobody.
    ///
    /// # Errors
    /// Why there is no connection.
    pub fn connect(
        &self,
        node: &[u8],
        target: Target,
    ) -> impl Future<Output = Result<T::Stream, Error>> + Send + use<T> {
        let shared = self.0.clone();
        let (mut claim, node) = (shared.claim(node, target.clone(), false), NodeId::from(node));
        async move {
            let mut pending = loop {
                match claim? {
                    Claim::Ready(stream) => return Ok(stream),
                    Claim::Pending(pending) => break pending,
                    Claim::Doubtful(connection) => {
                        connection.settled().await;
                        // Dialled in vain just now.
                        if connection.outbox().refusal() == Some(Error::Dead) {
                            return Err(Error::Dead);
                        }
                        claim = shared.claim(&node, target.clone(), true);
                    }
                }
            };
            let outcome = pending.wait_for(Option::is_some).await.map_err(|_| Error::Cancelled)?;
            outcome.clone().unwrap_or(Err(Error::Cancelled))
        }
    }

    /// Queues a message for `node`, which is dialled if there is no connection; `target` is only
    /// asked for then. Never waits. A message that is refused is counted by cause, unless the
    /// pool is closed.
    ///
    /// # Errors
    /// Why the message was not taken.
    pub fn send(
        &self,
        node: &[u8],
        message: Payload<'_>,
        target: impl FnOnce() -> Option<Target>,
    ) -> Result<(), Error> {
        let give = |outbox: &Outbox| outbox.push(message.clone());
        let bytes = message.len();
        match self.0.place(node, target, bytes, Occasion::Message(bytes), give) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.0.refused(&refusal)),
        }
    }

    /// Queues a message for `node`, behind others if there is no room, whose sender waits for what
    /// becomes of it. `target` is only asked for if there is no connection. Never waits. A message
    /// that is refused is counted as by [`Mesh::send`].
    ///
    /// # Errors
    /// Why the message was not taken.
    pub fn deliver(
        &self,
        node: &[u8],
        message: Payload<'_>,
        target: impl FnOnce() -> Option<Target>,
    ) -> Result<Delivery, Undelivered> {
        let bytes = message.len();
        let (message, confirmation) = Message::confirmed(message.into_bytes());
        let mut message = Some(message);
        let give = |outbox: &Outbox| match message.take().map(|message| outbox.deliver(message)) {
            Some(Err((error, back))) => {
                message = Some(back);
                Err(error)
            }
            _ => Ok(()),
        };
        match self.0.place(node, target, bytes, Occasion::Asked, give) {
            Ok(outbox) => {
                let stats = self.0.context.scope.stats.clone();
                Ok(Delivery::new(outbox, confirmation, stats))
            }
            Err(refusal) => {
                self.0.refused(&refusal);
                Err(refusal)
            }
        }
    }

    /// Runs a task that waits for the outcome of [`Mesh::connect`] or [`Mesh::deliver`] and passes
    /// it on: closing the pool ends such waiting, and is over when the last of these tasks is.
    pub fn attend(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.context.scope.tasks.attend(task);
    }

    /// Takes `node` out of the pool: what is queued for it still goes out, bounded by the linger
    /// time, then its connection closes. `false`: it was not there.
    pub fn remove(&self, node: &[u8]) -> bool {
        let slot = {
            let mut slots = self.0.lock();
            let slot = slots.pool.remove(node);
            // Locked: a slot that ends now must know that its messages are to go nowhere else.
            match &slot {
                Slot::Ready(resident) => resident.connection.outbox().drain(Error::Removed),
                Slot::Dialing(dial) => dial.outbox.drain(Error::Removed),
                Slot::Vacant => return false,
            }
            slot
        };
        let Context { scope, .. } = &*self.0.context;
        scope.stats.removals.add(1);
        if let Slot::Dialing(dial) = slot {
            // As many as wait are to be woken: nothing for a caller's thread.
            scope.tasks.detach(async move { dial.give_up(Error::Removed) });
        }
        true
    }

    /// What is known of the connection to `node`. This is no use of it.
    pub fn info(&self, node: &[u8]) -> Option<Info<T>> {
        let card = self.0.lock().pool.peek(node)?.card();
        card.info()
    }

    /// What is known of each connection, the most recently used first.
    pub fn list(&self) -> Vec<(NodeId, Info<T>)> {
        // Others wait for the lock: no more than is needed is looked at, and nothing is made.
        let cards: Vec<_> = {
            let slots = self.0.lock();
            slots.pool.iter().map(|(node, resident)| (node.clone(), resident.card())).collect()
        };
        cards.into_iter().filter_map(|(node, card)| Some((node, card.info()?))).collect()
    }

    /// How many connections are in the pool.
    pub fn size(&self) -> usize {
        self.0.lock().pool.ready()
    }

    /// Sets how many connections the pool may keep; those that are too many go.
    ///
    /// # Errors
    /// [`BadOption`] when `limit` is out of the bounds of the option `max_mesh_connections`.
    pub fn set_limit(&self, limit: u64) -> Result<(), BadOption> {
        let mut config = Config::default();
        config.set("max_mesh_connections", limit)?;
        self.0.lock().pool.set_limit(config.max_connections());
        loop {
            // Locked for each anew: they may be very many, and others wait.
            let victim = self.0.lock().pool.part_with_one();
            let Some((_, victim)) = victim else { return Ok(()) };
            self.0.evict(&victim);
        }
    }

    /// The pool's figures.
    pub fn stats(&self) -> Snapshot {
        let context = &self.0.context;
        let (size, dialing, limit, failing, hits, misses) = {
            let slots = self.0.lock();
            let Slots { pool, backoff, hits, misses, .. } = &*slots;
            (pool.ready(), pool.dialing(), pool.limit(), backoff.failing(), *hits, *misses)
        };
        let granted = context.dialer.granted();
        let accepted = context.scope.budget.accepted();
        // Before what has become of messages: that is counted before they cease to be outstanding.
        let outstanding = context.scope.budget.used();
        Snapshot {
            size,
            dialing,
            limit: limit.get(),
            failing,
            hits,
            misses,
            tasks: context.scope.tasks.count(),
            outstanding,
            stream_bytes: context.scope.stream_budget.used().bytes,
            accepted: accepted.messages,
            accepted_bytes: accepted.bytes,
            udp_receive_buffer_bytes: granted.receive_bytes,
            udp_send_buffer_bytes: granted.send_bytes,
            ..context.scope.stats.snapshot()
        }
    }

    /// Closes the pool: queued messages go out, bounded by the linger time, then every
    /// connection closes. Resolves when nothing of the pool is left.
    pub fn close(&self) -> impl Future<Output = ()> + Send + use<T> {
        self.0.clone().close()
    }
}

impl<T: Handles> Drop for Mesh<T> {
    fn drop(&mut self) {
        self.0.context.scope.tasks.detach(self.0.clone().close());
    }
}

impl<T: Handles> Dial<T> {
    /// Tells who waits; what is queued still goes out if the dial succeeds.
    fn give_up(&self, reason: Error) {
        self.outbox.drain(reason.clone());
        self.outcome.send_replace(Some(Err(reason)));
    }
}

impl<T: Handles> Shared<T> {
    /// `was_asked`: a peer has just been asked whether it is there.
    fn claim(
        self: &Arc<Self>,
        node: &[u8],
        target: Target,
        was_asked: bool,
    ) -> Result<Claim<T>, Error> {
        let now = Instant::now();
        let mut slots = self.lock();
        match slots.pool.lookup(node) {
            Slot::Ready(resident) if resident.is_alive() => {
                if resident.connection.is_doubtful(now.into()) && !was_asked {
                    return Ok(Claim::Doubtful(resident.connection.clone()));
                }
                let stream = resident.checkout(now_seconds());
                slots.hits += 1;
                return Ok(Claim::Ready(stream));
            }
            Slot::Dialing(dial) => {
                dial.urgent.notify_one();
                let outcome = dial.outcome.subscribe();
                slots.misses += 1;
                return Ok(Claim::Pending(outcome));
            }
            Slot::Ready(_) | Slot::Vacant => {}
        }
        slots.misses += 1;
        let dial = self.begin(&mut slots, node.into(), target, Occasion::Asked)?;
        Ok(Claim::Pending(dial.outcome.subscribe()))
    }

    /// Gives the queue of messages to `node` a message of so many bytes, by `give`, and returns the
    /// queue that has taken it.
    fn place(
        self: &Arc<Self>,
        node: &[u8],
        target: impl FnOnce() -> Option<Target>,
        bytes: usize,
        occasion: Occasion,
        mut give: impl FnMut(&Outbox) -> Result<(), Error>,
    ) -> Result<Arc<Outbox>, Undelivered> {
        if bytes > self.context.config.queue_limits().bytes {
            // No queue would take it: nobody is dialled for that.
            return Err(Undelivered::NotSent(Error::MessageTooLarge));
        }
        let mut target = Some(target);
        let mut refusal = Undelivered::NotSent(Error::Cancelled);
        // A slot that was found may close before it has taken the message; the next look finds
        // its successor, or makes one.
        for _ in 0..SEND_ATTEMPTS {
            let may_dial = target.is_some();
            let outbox = self.outbox(&mut self.lock(), node, &mut target, occasion);
            let Some(outbox) = outbox.map_err(Undelivered::NotConnected)? else {
                return Err(refusal);
            };
            refusal = match give(&outbox) {
                Ok(()) => return Ok(outbox),
                Err(error @ (Error::QueueFull | Error::PoolQueueFull | Error::MessageTooLarge)) => {
                    return Err(Undelivered::NotSent(error));
                }
                // The dial that was begun for it has failed already.
                Err(error) if may_dial && target.is_none() => Undelivered::NotConnected(error),
                Err(error) => Undelivered::NotSent(error),
            };
        }
        Err(refusal)
    }

    /// Counts a message that was not taken, and tells why.
    fn refused(&self, refusal: &Undelivered) -> Error {
        self.context.scope.stats.refused(refusal.cause());
        refusal.cause().clone()
    }

    /// The queue of messages to `node`, with a dial behind it if there is no connection. `None`:
    /// the target has been used up, and what it led to has gone again.
    fn outbox(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: &[u8],
        target: &mut Option<impl FnOnce() -> Option<Target>>,
        occasion: Occasion,
    ) -> Result<Option<Arc<Outbox>>, Error> {
        match slots.pool.lookup(node) {
            Slot::Ready(resident) if resident.is_alive() => {
                resident.connection.note_sending();
                return Ok(Some(resident.connection.shared_outbox()));
            }
            Slot::Dialing(dial) => {
                if occasion == Occasion::Asked {
                    dial.urgent.notify_one();
                }
                return Ok(Some(dial.outbox.clone()));
            }
            Slot::Ready(_) | Slot::Vacant => {}
        }
        let Some(target) = target.take() else {
            return Ok(None);
        };
        let target = target().ok_or(Error::BadAddress)?;
        let dial = self.begin(slots, node.into(), target, occasion)?;
        Ok(Some(dial.outbox))
    }

    /// Opens a slot for `node` and starts its task.
    fn begin(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: NodeId,
        target: Target,
        occasion: Occasion,
    ) -> Result<Dial<T>, Error> {
        if slots.is_closed {
            return Err(Error::PoolClosed);
        }
        if Arc::strong_count(&slots.pending) > self.context.config.max_pending_dials() {
            return Err(Error::TooManyDials);
        }
        if let Occasion::Message(bytes) = occasion
            && !self.context.scope.budget.has_room_beyond(Load { messages: 1, bytes })
        {
            // It would be refused, and have dialled for nothing.
            return Err(Error::PoolQueueFull);
        }
        let not_before = match occasion {
            Occasion::Asked => None,
            Occasion::Message(_) | Occasion::Remains => self.delay(slots, &node, &target)?,
        };
        if !std::mem::replace(&mut slots.has_dialled, true) && !self.context.dialer.verifies() {
            (self.observer)(Event::Unverified);
        }
        let (outcome, _) = watch::channel(None);
        let dial = Dial {
            outbox: Arc::new(self.context.scope.message_outbox()),
            outcome: Arc::new(outcome),
            urgent: Arc::default(),
        };
        let ticket = slots.pool.begin(node.clone(), dial.clone());
        let tenancy = Tenancy {
            shared: self.clone(),
            node,
            ticket,
            target,
            outbox: dial.outbox.clone(),
            connection: None,
            is_retry: occasion == Occasion::Remains,
            not_before,
            pending: Some(Pending { urgent: dial.urgent.clone(), _place: slots.pending.clone() }),
            end: Error::Cancelled,
        };
        self.context.scope.tasks.spawn(tenancy.run(dial.outcome.clone()));
        Ok(dial)
    }

    /// When a message may have `node` dialled; messages wait for that no longer than for a dial.
    fn delay(
        &self,
        slots: &Slots<T>,
        node: &[u8],
        target: &Target,
    ) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        match slots.backoff.until(node, &target.given, now) {
            Some(until) if until > now + self.context.config.connect_timeout() => {
                Err(Error::BackingOff)
            }
            until => Ok(until),
        }
    }

    pub(crate) fn evict(&self, victim: &Resident<T>) {
        self.context.scope.stats.evictions.add(1);
        victim.connection.outbox().drain(Error::Evicted);
    }

    /// The queue for messages of which nothing was sent when a slot of `node` ended. Without a
    /// target, it is only that of a slot which is there.
    pub(crate) fn heir(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: &[u8],
        target: Option<Target>,
    ) -> Option<Arc<Outbox>> {
        let mut target = target.map(|target| || Some(target));
        self.outbox(slots, node, &mut target, Occasion::Remains).ok().flatten()
    }

    /// Counts messages that are not sent, or not again, and ends them.
    pub(crate) fn give_up(&self, entries: VecDeque<Entry>, end: impl Fn(Message), cause: &Error) {
        // Those that were withdrawn have been counted then; the others cannot be any more.
        let left: Vec<_> = entries.into_iter().filter(Entry::set_off).collect();
        let messages = |were_sent: bool| -> usize {
            let of_kind = left.iter().filter(|entry| (entry.returns() > 0) == were_sent);
            of_kind.map(|entry| entry.load().messages).sum()
        };
        self.context.scope.stats.unconfirmed.add(messages(true));
        self.context.scope.stats.dropped.add(cause, messages(false));
        for entry in left {
            if let Entry::Single(message) = entry {
                end(message);
            }
        }
    }

    async fn close(self: Arc<Self>) {
        let (dialing, ready) = {
            let mut slots = self.lock();
            slots.is_closed = true;
            slots.pool.clear()
        };
        for dial in dialing {
            dial.give_up(Error::PoolClosed);
        }
        for resident in ready {
            resident.connection.outbox().drain(Error::PoolClosed);
        }
        let tasks = &self.context.scope.tasks;
        if timeout(self.context.scope.linger, tasks.ended()).await.is_err() {
            tasks.stop();
            tasks.ended().await;
        }
        self.context.dialer.close().await;
    }

    /// A std mutex, because nothing awaits inside.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Handles> Clone for Dial<T> {
    fn clone(&self) -> Self {
        let Self { outbox, outcome, urgent } = self;
        Self { outbox: outbox.clone(), outcome: outcome.clone(), urgent: urgent.clone() }
    }
}
