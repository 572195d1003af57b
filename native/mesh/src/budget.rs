//! What the outboxes of a pool, or the streams of a connection, may hold together.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::Load;

/// What all outboxes of a pool may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Load,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: Load) -> Self {
        Self { limit, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    pub(crate) fn used(&self) -> Load {
        Load {
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Reserves room, unless there is none. Two senders may both see the last
    /// room as taken for a moment; the bound itself is never exceeded.
    pub(crate) fn reserve(&self, load: Load) -> bool {
        let used = self.force(load);
        let fits = used.messages <= self.limit.messages && used.bytes <= self.limit.bytes;
        if !fits {
            self.release(load);
        }
        fits
    }

    /// Takes the room, and tells how much is used then.
    pub(crate) fn force(&self, load: Load) -> Load {
        Load {
            messages: self.messages.fetch_add(load.messages, Ordering::Relaxed) + load.messages,
            bytes: self.bytes.fetch_add(load.bytes, Ordering::Relaxed) + load.bytes,
        }
    }

    pub(crate) fn release(&self, load: Load) {
        self.messages.fetch_sub(load.messages, Ordering::Relaxed);
        self.bytes.fetch_sub(load.bytes, Ordering::Relaxed);
    }
}
