//! What the outboxes of a pool, or the streams of a connection, may hold together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{Load, size};

/// How often the counts are read for one figure.
const LOOKS: usize = 16;

/// What all outboxes of a pool may hold together, and what they do. Two counts serve for that and
/// for the pool's figures: a message that is accepted is added once. They grow, but for what finds
/// no room and is taken back at once.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Load,
    accepted: Count,
    settled: Count,
}

/// What is held of a budget for messages of an outbox that has been closed, until it is known what
/// becomes of them: whoever adds the pool's figures up meanwhile misses none. Dropped, it is given
/// back.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    load: Load,
}

/// Messages and their bytes. In one order for all threads: each changes one count before it looks
/// at the other, so of two that race for the last room one at least sees the other.
#[derive(Debug, Default)]
struct Count {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// A count at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: Load) -> Self {
        Self { limit, accepted: Count::default(), settled: Count::default() }
    }

    /// What has ever been accepted.
    pub(crate) fn accepted(&self) -> Total {
        self.accepted.total()
    }

    /// What is held now. Read one after the other, the counts tell too much when messages pass
    /// meanwhile; so they are read until none has, a few times at most.
    pub(crate) fn used(&self) -> Load {
        let mut settled = self.settled.total();
        let mut used = Load { messages: usize::MAX, bytes: usize::MAX };
        for _ in 0..LOOKS {
            let Load { messages, bytes } = self.accepted.total().beyond(settled);
            used = Load { messages: used.messages.min(messages), bytes: used.bytes.min(bytes) };
            let now = self.settled.total();
            if now == settled {
                break;
            }
            settled = now;
        }
        used
    }

    /// Whether more bytes than these are held: one look, which may tell too much as well.
    pub(crate) fn seems_beyond(&self, bytes: usize) -> bool {
        let settled = self.settled.bytes.load(Ordering::SeqCst);
        size(self.accepted.bytes.load(Ordering::SeqCst).saturating_sub(settled)) > bytes
    }

    /// Accepts a message, unless there is no room. Two senders may both see the last room as taken
    /// for a moment; the bound itself is never exceeded.
    pub(crate) fn try_accept(&self, load: Load) -> bool {
        self.try_accept_within(load, self.limit)
    }

    /// Accepts a message though the budget be used up, unless twice of it is. One is always accepted
    /// where there is nothing else.
    pub(crate) fn try_accept_beyond(&self, load: Load) -> bool {
        self.try_accept_within(load, self.limit_beyond(load))
    }

    /// Whether there is room for that at this moment.
    pub(crate) fn has_room_beyond(&self, load: Load) -> bool {
        (self.used() + load).is_within(self.limit_beyond(load))
    }

    fn limit_beyond(&self, load: Load) -> Load {
        let Load { messages, bytes } = self.limit;
        let bytes = bytes.saturating_mul(2).max(load.bytes);
        Load { messages: messages.saturating_mul(2), bytes }
    }

    /// Accepts a message in any case.
    pub(crate) fn accept(&self, load: Load) {
        self.accepted.add(load);
    }

    fn try_accept_within(&self, load: Load, limit: Load) -> bool {
        let fits = self.accepted.add(load).beyond(self.settled.total()).is_within(limit);
        if !fits {
            self.accepted.subtract(load);
        }
        fits
    }

    /// Is done with messages.
    pub(crate) fn settle(&self, load: Load) {
        self.settled.add(load);
    }
}

impl Reservation {
    pub(crate) fn of(budget: &Arc<Budget>, load: Load) -> Self {
        Self { budget: budget.clone(), load }
    }

    /// Leaves a part to the outbox that has taken the messages over.
    pub(crate) fn transfer(&mut self, load: Load) {
        self.load -= load;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.settle(self.load);
    }
}

impl Count {
    fn total(&self) -> Total {
        Total {
            messages: self.messages.load(Ordering::SeqCst),
            bytes: self.bytes.load(Ordering::SeqCst),
        }
    }

    fn add(&self, load: Load) -> Total {
        let more = Total::from(load);
        Total {
            messages: self.messages.fetch_add(more.messages, Ordering::SeqCst) + more.messages,
            bytes: self.bytes.fetch_add(more.bytes, Ordering::SeqCst) + more.bytes,
        }
    }

    /// Takes away what has been added.
    fn subtract(&self, load: Load) -> Total {
        let less = Total::from(load);
        Total {
            messages: self.messages.fetch_sub(less.messages, Ordering::SeqCst) - less.messages,
            bytes: self.bytes.fetch_sub(less.bytes, Ordering::SeqCst) - less.bytes,
        }
    }
}

impl Total {
    /// How much more this is than an earlier total; nothing in the moment in which it is less.
    fn beyond(self, earlier: Self) -> Load {
        Load {
            messages: size(self.messages.saturating_sub(earlier.messages)),
            bytes: size(self.bytes.saturating_sub(earlier.bytes)),
        }
    }
}

impl From<Load> for Total {
    fn from(load: Load) -> Self {
        let wide = |count| u64::try_from(count).unwrap_or(u64::MAX);
        Self { messages: wide(load.messages), bytes: wide(load.bytes) }
    }
}
