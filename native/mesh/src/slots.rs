//! The slots behind a pool: finds the one of a node, or opens one, whose task dials. Under one
//! lock, which nobody holds for longer than it takes to look.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::backoff::Backoff;
use crate::clock;
use crate::config::Load;
use crate::entry::Entry;
use crate::mesh::{Event, NodeId, Target};
use crate::message::{Message, Undelivered};
use crate::outbox::Outbox;
use crate::pool::{Pool, Slot};
use crate::pooled::{Context, PooledConnection};
use crate::resident::{Handles, Resident};
use crate::tenancy::{Pending, Tenancy};
use crate::whereabouts::Whereabouts;
use crate::{Config, Error};

/// How often a message looks for another slot when the one that it found closes under it.
const SEND_ATTEMPTS: usize = 3;
/// What tasks may take when the time to linger is over, to tell what became of each message, before
/// they are stopped.
const LAST_ACCOUNTS: Duration = Duration::from_millis(250);

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
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    is_closed: bool,
    has_dialled: bool,
    /// One owner more than there are dials that are not over.
    pending: Arc<()>,
}

/// The outcome of a dial, once there is one.
pub(crate) type Outcome<T> = Option<Result<<T as Handles>::Stream, Error>>;

/// A slot that is being dialled: its queue is there already.
pub(crate) struct Dial<T: Handles> {
    pub(crate) outbox: Arc<Outbox>,
    outcome: Arc<watch::Sender<Outcome<T>>>,
    /// Ends a delay before the dial: somebody waits for it now.
    urgent: Arc<Notify>,
}

/// Begins the dial of a slot that was opened, when it is dropped: with no lock held, and once the
/// message that the slot was opened for is in its queue. Else the slot might be there and evicted
/// before that.
pub(crate) struct Start<T: Handles>(Option<Begun<T>>);

struct Begun<T: Handles> {
    tenancy: Tenancy<T>,
    outcome: Arc<watch::Sender<Outcome<T>>>,
    /// Its task counts already: the pool is not closed before it has ended.
    _token: TaskTrackerToken,
}

/// Why a slot is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Somebody waits for the connection, or for a message to arrive by it.
    Asked,
    /// There is a message of so many bytes for the node.
    Message(usize),
    /// There is what a lost connection left.
    Remains,
}

/// What a request for a connection found.
pub(crate) enum Claim<T: Handles> {
    Ready(T::Stream),
    /// A connection that has rested for long.
    Doubtful(PooledConnection),
    Pending(watch::Receiver<Outcome<T>>),
}

/// Where a message goes.
struct Found<T: Handles> {
    outbox: Arc<Outbox>,
    /// The connection, when its peer is silent: a caller may know where that is by now.
    silent: Option<PooledConnection>,
    /// The dial that is to begin.
    start: Option<Start<T>>,
}

impl<T: Handles> From<Arc<Outbox>> for Found<T> {
    fn from(outbox: Arc<Outbox>) -> Self {
        Self { outbox, silent: None, start: None }
    }
}

impl<T: Handles> Drop for Start<T> {
    fn drop(&mut self) {
        if let Some(Begun { tenancy, outcome, _token }) = self.0.take() {
            let context = tenancy.shared.context.clone();
            context.scope.tasks.spawn(tenancy.run(outcome));
        }
    }
}

impl<T: Handles> Slots<T> {
    fn new(config: &Config) -> Self {
        Self {
            pool: Pool::new(config.max_connections()),
            backoff: config.dial_backoff(),
            hits: 0,
            misses: 0,
            is_closed: false,
            has_dialled: false,
            pending: Arc::default(),
        }
    }
}

impl<T: Handles> Dial<T> {
    /// Tells who waits; what is queued still goes out if the dial succeeds.
    pub(crate) fn give_up(&self, reason: Error) {
        self.outbox.drain(reason.clone());
        self.outcome.send_replace(Some(Err(reason)));
    }
}

impl<T: Handles> Shared<T> {
    pub(crate) fn new(context: Context, observer: Arc<dyn Fn(Event) + Send + Sync>) -> Arc<Self> {
        let slots = Mutex::new(Slots::new(&context.config));
        Arc::new(Self { slots, context: Arc::new(context), observer })
    }

    /// The connection to `node`, or what there is of it. `was_asked`: the peer has just been asked
    /// whether it is there.
    pub(crate) fn claim(
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
                    resident.connection.suggest(target);
                    return Ok(Claim::Doubtful(resident.connection.clone()));
                }
                let stream = resident.checkout(clock::seconds_at(now));
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
        let (dial, start) = self.begin(&mut slots, node.into(), target, Occasion::Asked)?;
        drop(slots);
        drop(start);
        Ok(Claim::Pending(dial.outcome.subscribe()))
    }

    /// Gives the queue of messages to `node` a message of so many bytes, by `give`, and returns the
    /// queue that has taken it.
    pub(crate) fn place(
        self: &Arc<Self>,
        node: &[u8],
        target: impl Fn() -> Option<Target>,
        bytes: usize,
        occasion: Occasion,
        mut give: impl FnMut(&Outbox) -> Result<(), Error>,
    ) -> Result<Arc<Outbox>, Undelivered> {
        if bytes > self.context.config.queue_limits().bytes {
            // No queue would take it: nobody is dialled for that.
            return Err(match self.lock().is_closed {
                true => Undelivered::NotConnected(Error::PoolClosed),
                false => Undelivered::NotSent(Error::MessageTooLarge),
            });
        }
        let mut target = Some(&target);
        let mut refusal = Undelivered::NotSent(Error::Cancelled);
        // A slot that was found may close before it has taken the message; the next look finds
        // its successor, or makes one.
        for _ in 0..SEND_ATTEMPTS {
            let may_dial = target.is_some();
            let found = self.outbox(&mut self.lock(), node, &mut target, occasion);
            let found = found.map_err(Undelivered::NotConnected)?;
            let Some(Found { outbox, silent, start: _start }) = found else {
                return Err(refusal);
            };
            // Not under the lock: as long as the peer is silent, this is done for each message.
            if let Some(silent) = silent
                && let Some(target) = target.and_then(|target| target())
            {
                silent.suggest(target);
            }
            refusal = match give(&outbox) {
                Ok(()) => return Ok(outbox),
                Err(error @ (Error::QueueFull | Error::PoolQueueFull | Error::MessageTooLarge)) => {
                    return Err(Undelivered::NotSent(error));
                }
                // The slot that was opened for it has been removed already.
                Err(error) if may_dial && target.is_none() => Undelivered::NotConnected(error),
                Err(error) => Undelivered::NotSent(error),
            };
        }
        Err(refusal)
    }

    /// Counts a message that was not taken, and tells why.
    pub(crate) fn refused(&self, refusal: &Undelivered) -> Error {
        self.context.scope.stats.refused(refusal.cause());
        refusal.cause().clone()
    }

    /// The queue of messages to `node`, with a dial behind it if there is no connection. `None`:
    /// the target has been used up, and what it led to has gone again.
    fn outbox(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: &[u8],
        target: &mut Option<&impl Fn() -> Option<Target>>,
        occasion: Occasion,
    ) -> Result<Option<Found<T>>, Error> {
        match slots.pool.lookup(node) {
            Slot::Ready(resident) if resident.is_alive() => {
                let connection = &resident.connection;
                connection.note_sending();
                let silent = connection.is_silent().then(|| connection.clone());
                let outbox = connection.shared_outbox();
                return Ok(Some(Found { outbox, silent, start: None }));
            }
            Slot::Dialing(dial) => {
                if occasion == Occasion::Asked {
                    dial.urgent.notify_one();
                }
                return Ok(Some(dial.outbox.clone().into()));
            }
            Slot::Ready(_) | Slot::Vacant => {}
        }
        let Some(target) = target.take() else {
            return Ok(None);
        };
        let target = target().ok_or(Error::BadAddress)?;
        let (dial, start) = self.begin(slots, node.into(), target, occasion)?;
        Ok(Some(Found { outbox: dial.outbox, silent: None, start: Some(start) }))
    }

    /// Opens a slot for `node`.
    fn begin(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: NodeId,
        target: Target,
        occasion: Occasion,
    ) -> Result<(Dial<T>, Start<T>), Error> {
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
            whereabouts: Arc::new(Whereabouts::new(target)),
            outbox: dial.outbox.clone(),
            connection: None,
            is_retry: occasion == Occasion::Remains,
            pending: Some(Box::new(Pending {
                not_before,
                urgent: dial.urgent.clone(),
                _place: slots.pending.clone(),
            })),
            end: Error::Cancelled,
        };
        let _token = self.context.scope.tasks.token();
        let start = Start(Some(Begun { tenancy, outcome: dial.outcome.clone(), _token }));
        Ok((dial, start))
    }

    /// When a message may have `node` dialled; messages wait for that no longer than for a dial.
    fn delay(
        &self,
        slots: &Slots<T>,
        node: &[u8],
        target: &Target,
    ) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        match slots.backoff.until(node, &target.address, now) {
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

    /// The queue for messages of which nothing was sent when a slot of `node` ended, and the dial
    /// behind it if that is to begin. Without a target, it is only that of a slot which is there.
    pub(crate) fn heir(
        self: &Arc<Self>,
        slots: &mut Slots<T>,
        node: &[u8],
        target: Option<Target>,
    ) -> Option<(Arc<Outbox>, Option<Start<T>>)> {
        let target = target.map(|target| move || Some(target.clone()));
        let found = self.outbox(slots, node, &mut target.as_ref(), Occasion::Remains);
        found.ok().flatten().map(|found| (found.outbox, found.start))
    }

    /// Counts messages that are not sent, or not again, and ends them.
    pub(crate) fn give_up(&self, entries: VecDeque<Entry>, end: impl Fn(Message), cause: &Error) {
        // Those that were withdrawn have been counted then; the others cannot be any more.
        let left: Vec<_> = entries.into_iter().filter(Entry::give_up).collect();
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

    pub(crate) async fn close(self: Arc<Self>) {
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
        if timeout(self.context.scope.linger + LAST_ACCOUNTS, tasks.ended()).await.is_err() {
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
