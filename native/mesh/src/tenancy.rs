//! One slot's time in the pool: its task, which dials, serves and cleans up.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, sleep_until};

use crate::Error;
use crate::entry::Entry;
use crate::mesh::NodeId;
use crate::message::Undelivered;
use crate::outbox::{Outbox, Remains};
use crate::pool::Ticket;
use crate::pooled::{Context, PooledConnection};
use crate::resident::{Handles, Resident};
use crate::scope::Scope;
use crate::slots::{Outcome, Shared};
use crate::stream::Usage;
use crate::whereabouts::Whereabouts;

/// One slot's time in the pool, from its dial to its end. However its task ends, by return,
/// cancellation or panic, dropping this leaves nothing behind.
pub(crate) struct Tenancy<T: Handles> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) node: NodeId,
    pub(crate) ticket: Ticket,
    pub(crate) whereabouts: Arc<Whereabouts>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) connection: Option<PooledConnection>,
    /// Whether it was begun for what a lost connection left.
    pub(crate) is_retry: bool,
    /// Nothing once the dial is over. In a box, for it is short compared with what follows.
    pub(crate) pending: Option<Box<Pending>>,
    /// Why it ended.
    pub(crate) end: Error,
}

/// What there is of a dial before it is over.
pub(crate) struct Pending {
    /// Until when it waits, after one that has failed.
    pub(crate) not_before: Option<Instant>,
    /// Ends that wait: somebody waits for it now.
    pub(crate) urgent: Arc<Notify>,
    /// Its place among those that there may be, also when its slot has been removed.
    pub(crate) _place: Arc<()>,
}

impl<T: Handles> Tenancy<T> {
    #[expect(clippy::manual_async_fn, reason = "an async function would keep its arguments twice")]
    pub(crate) fn run(
        mut self,
        outcome: Arc<watch::Sender<Outcome<T>>>,
    ) -> impl Future<Output = ()> + Send {
        async move {
            let context = self.shared.context.clone();
            let dialled = self.dial_if_wanted().await;
            self.pending = None;
            let (carrier, failures) = match dialled {
                Ok(dialled) => dialled,
                Err(error) => {
                    self.end = error.clone();
                    // The slot goes before its waiters hear of it: who asks again dials anew.
                    drop(self);
                    report(&outcome, Err(error));
                    return;
                }
            };
            context.scope.stats.connections.add(1);
            let connection = self.connect(carrier);
            if let Some(stream) = self.move_in(connection.clone()) {
                report(&outcome, Ok(stream));
            }
            drop(outcome);
            self.end = connection.serve(&self.node).await;
            if matches!(self.end, Error::Dead | Error::NoCredit) {
                // It was dialled in vain, too.
                self.note_failure(if connection.has_delivered() { 0 } else { failures });
            }
            context.scope.stats.closes.add(&self.end, 1);
        }
    }

    /// As [`Tenancy::dial`], once it is due, unless nobody wants it any more.
    async fn dial_if_wanted(&self) -> Result<(quinn::Connection, u32), Error> {
        let Scope { stats, linger, .. } = &self.shared.context.scope;
        let mut abandoned = pin!(self.abandoned(*linger));
        tokio::select! {
            biased;
            // Before it has begun.
            reason = &mut abandoned => return Err(reason),
            () = self.due() => {}
        }
        let dialled = tokio::select! {
            // It has to begin, or would be counted as failed and not as begun.
            biased;
            dialled = self.dial() => dialled,
            reason = &mut abandoned => Err(reason),
        };
        dialled.inspect_err(|error| stats.dial_failures.add(error, 1))
    }

    /// Resolves when the dial may begin.
    async fn due(&self) {
        if let Some(Pending { not_before: Some(not_before), urgent, .. }) = self.pending.as_deref()
        {
            tokio::select! {
                () = sleep_until((*not_before).into()) => {}
                () = urgent.notified() => {}
            }
        }
    }

    /// A connection, and how many dials in a row had failed before.
    async fn dial(&self) -> Result<(quinn::Connection, u32), Error> {
        let Context { scope, dialer, .. } = &*self.shared.context;
        scope.stats.dials.add(1);
        match dialer.dial(&self.whereabouts.address(), &self.node).await {
            Ok(carrier) => Ok((carrier, self.shared.lock().backoff.succeeded(&self.node))),
            Err(error) => {
                self.note_failure(0);
                Err(error)
            }
        }
    }

    /// `before`: failures in a row that a dial which succeeded in vain has had forgotten.
    fn note_failure(&self, before: u32) {
        let tried = self.whereabouts.tried();
        self.shared.lock().backoff.failed(&self.node, &tried, Instant::now(), before);
    }

    /// Resolves when nobody wants the dial any more: its slot was removed, and no message waits
    /// for it, or waits too long.
    async fn abandoned(&self, linger: Duration) -> Error {
        self.outbox.draining().await;
        if !self.outbox.is_idle() {
            sleep(linger).await;
        }
        self.outbox.refusal().unwrap_or(Error::Cancelled)
    }

    fn connect(&mut self, carrier: quinn::Connection) -> PooledConnection {
        let (outbox, whereabouts) = (self.outbox.clone(), self.whereabouts.clone());
        let context = self.shared.context.clone();
        let connection = PooledConnection::new(carrier, outbox, whereabouts, context);
        self.connection.insert(connection).clone()
    }

    /// Makes the connection the most recently used; does nothing when it has left the pool.
    fn usage(&self) -> Usage {
        let (shared, node, ticket) = (Arc::downgrade(&self.shared), self.node.clone(), self.ticket);
        let latest = self.shared.lock().pool.latest();
        Arc::new(move || {
            if !latest.is(ticket)
                && let Some(shared) = shared.upgrade()
            {
                shared.lock().pool.touch(&node, ticket);
            }
        })
    }

    /// Makes the slot ready. `None`: it was removed during the dial, and its outbox only drains.
    fn move_in(&self, connection: PooledConnection) -> Option<T::Stream> {
        let resident = Resident::<T>::new(connection, self.usage());
        let stream = resident.stream_handle();
        let admitted = self.shared.lock().pool.admit(&self.node, self.ticket, resident);
        if let Some((_, victim)) = admitted.ok()? {
            self.shared.evict(&victim);
        }
        Some(stream)
    }
}

impl<T: Handles> Drop for Tenancy<T> {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.end();
        }
        let mut slots = self.shared.lock();
        slots.pool.leave(&self.node, self.ticket);
        let refusal = self.outbox.refusal();
        let cause = match &refusal {
            // The task was stopped because of it.
            Some(reason) if self.end == Error::Cancelled => reason,
            _ => &self.end,
        };
        let Remains { queued, taken, line, mut reservation } = self.outbox.end(cause.clone());
        let is_wanted = refusal != Some(Error::Removed) && queued.iter().any(Entry::is_wanted);
        // A peer that closes each connection before it has taken anything gets one retry.
        let deserves_another = |connection: &PooledConnection| {
            cause.is_loss() && (connection.has_delivered() || !self.is_retry)
        };
        // Whom the pool has parted with, or its user, is not dialled anew for what was left.
        let target = refusal.is_none().then(|| self.whereabouts.after(&self.end));
        // Under the same lock: who removes the node finds this slot, or the one after it.
        let heir = if is_wanted && self.connection.as_ref().is_some_and(deserves_another) {
            self.shared.heir(&mut slots, &self.node, target)
        } else {
            None
        };
        let (heir, _start) = heir.unzip();
        // Locked before the pool is not any more, and before anybody is told: whoever sends again
        // comes behind what was accepted before.
        let heir = heir.as_ref().map(Outbox::as_heir);
        drop(slots);
        let left = match heir {
            Some(heir) => self.outbox.bequeath(heir, queued, &mut reservation),
            None => queued,
        };
        let stats = &self.shared.context.scope.stats;
        line.close(cause, |count| stats.dropped.add(cause, count));
        stats.unconfirmed.add(taken);
        let undelivered = match self.connection {
            Some(_) => Undelivered::NotSent,
            None => Undelivered::NotConnected,
        };
        self.shared.give_up(left, |message| message.fail(undelivered(cause.clone())), cause);
        drop(reservation);
        if let Some(connection) = &self.connection {
            connection.give_up();
        }
    }
}

/// Tells everyone who waits, unless they have been told otherwise.
fn report<S>(outcome: &watch::Sender<Option<S>>, result: S) {
    outcome.send_if_modified(|current| {
        let is_first = current.is_none();
        if is_first {
            *current = Some(result);
        }
        is_first
    });
}
