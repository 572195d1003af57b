//! Counters of a pool and a snapshot of them. Every figure is counted where the thing happens;
//! none is estimated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Error;
use crate::config::Load;

/// A counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        // Relaxed: a figure for people, which orders nothing.
        self.0.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by cause, an [`Error::name`] for the most part.
#[derive(Debug, Default)]
pub(crate) struct Causes(Mutex<BTreeMap<&'static str, u64>>);

impl Causes {
    pub(crate) fn add(&self, cause: &Error, count: usize) {
        if count == 0 {
            return;
        }
        self.increase(cause.name(), count);
    }

    /// Counts something that is no error of a caller's.
    pub(crate) fn count(&self, cause: &'static str) {
        self.increase(cause, 1);
    }

    fn increase(&self, cause: &'static str, count: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(cause).or_default() += u64::try_from(count).unwrap_or(u64::MAX);
    }

    pub(crate) fn values(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The counters of one pool.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) dials: Counter,
    pub(crate) dial_failures: Causes,
    pub(crate) connections: Counter,
    pub(crate) renewals: Counter,
    pub(crate) probes: Counter,
    pub(crate) suspicions: Counter,
    pub(crate) recoveries: Counter,
    pub(crate) evictions: Counter,
    pub(crate) removals: Counter,
    pub(crate) closes: Causes,
    pub(crate) delivered: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) dropped: Causes,
    pub(crate) unconfirmed: Counter,
    pub(crate) redelivered: Counter,
    pub(crate) panics: Counter,
}

/// The figures of a pool at one moment. Counts are since the pool was opened; every message that
/// was accepted is delivered, dropped, unconfirmed or outstanding, and while it is booked from one
/// to another perhaps two of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections in the pool.
    pub size: usize,
    /// How many it may hold.
    pub limit: usize,
    /// Dials under way, or waiting for their turn or for the end of a back-off.
    pub dialing: usize,
    /// Nodes whose last dial has failed, as far as they are remembered.
    pub failing: usize,
    /// Tasks of this pool on the runtime.
    pub tasks: usize,
    /// Messages accepted and neither acknowledged nor given up, and their bytes.
    pub outstanding: Load,
    /// Bytes that users have written to streams and that were not handed to the stack yet.
    pub stream_bytes: usize,
    /// Requests for a connection that found one in the pool.
    pub hits: u64,
    /// Requests for a connection that had to wait for a dial, or were refused one.
    pub misses: u64,
    /// Dials begun.
    pub dials: u64,
    /// Dials failed, by [`Error::name`].
    pub dial_failures: BTreeMap<&'static str, u64>,
    /// Dials that gave a connection.
    pub connections: u64,
    /// Connections replaced because their peer returned no stream credit.
    pub renewals: u64,
    /// Peers that were asked whether they are still there.
    pub probes: u64,
    /// Those that did not answer in time.
    pub suspicions: u64,
    /// Those of the latter that answered after all, before another connection was made.
    pub recoveries: u64,
    /// Connections that made place for another one.
    pub evictions: u64,
    /// Connections and dials removed by request.
    pub removals: u64,
    /// Connections that ended, by [`Error::name`].
    pub closes: BTreeMap<&'static str, u64>,
    /// Messages accepted, whether by the pool or on its streams.
    pub accepted: u64,
    /// Their payload bytes.
    pub accepted_bytes: u64,
    /// Messages that the peer's transport has acknowledged whole.
    pub delivered: u64,
    /// Their payload bytes.
    pub delivered_bytes: u64,
    /// Messages of which nothing was sent, by [`Error::name`]; those refused at the door too.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Messages of which something was sent and whose arrival is not known.
    pub unconfirmed: u64,
    /// Times that a message was sent again, because its connection was lost before the peer had
    /// acknowledged it.
    pub redelivered: u64,
    /// Tasks that panicked.
    pub panics: u64,
    /// The receive buffer of the UDP socket, in bytes; 0 before the first dial.
    pub udp_receive_buffer_bytes: usize,
    /// The send buffer of the UDP socket, in bytes; 0 before the first dial.
    pub udp_send_buffer_bytes: usize,
}

impl Stats {
    /// Counts a message that was not taken, unless another pool may take it.
    pub(crate) fn refused(&self, cause: &Error) {
        if *cause != Error::PoolClosed {
            self.dropped.add(cause, 1);
        }
    }

    /// These counters; the rest is left to who knows it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            dials: self.dials.value(),
            dial_failures: self.dial_failures.values(),
            connections: self.connections.value(),
            renewals: self.renewals.value(),
            probes: self.probes.value(),
            suspicions: self.suspicions.value(),
            recoveries: self.recoveries.value(),
            evictions: self.evictions.value(),
            removals: self.removals.value(),
            closes: self.closes.values(),
            delivered: self.delivered.value(),
            delivered_bytes: self.delivered_bytes.value(),
            dropped: self.dropped.values(),
            unconfirmed: self.unconfirmed.value(),
            redelivered: self.redelivered.value(),
            panics: self.panics.value(),
            ..Snapshot::default()
        }
    }
}
