//! When a pooled connection was last asked for or sent to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

use crate::clock;

/// In seconds since the epoch, which is all that is told of it.
#[derive(Debug)]
pub(crate) struct LastUse {
    second: AtomicU64,
    /// Whether it has been sent to at a time that `second` does not tell yet.
    was_sent_to: AtomicBool,
}

impl LastUse {
    /// It begins with a use.
    pub(super) fn new() -> Self {
        Self { second: AtomicU64::new(this_second()), was_sent_to: AtomicBool::new(false) }
    }

    /// It was asked for, in this second.
    pub(super) fn note(&self, second: u64) {
        // To write what is there already would take the line from another core.
        if self.second.load(Ordering::Relaxed) != second {
            self.second.store(second, Ordering::Relaxed);
        }
    }

    /// It was sent to. A look at a clock costs more than the rest, so the connection's task takes it.
    pub(super) fn note_sending(&self) {
        // As above.
        if !self.was_sent_to.load(Ordering::Relaxed) {
            self.was_sent_to.store(true, Ordering::Relaxed);
        }
    }

    /// It was sent to since this was called last, if at all: now, as far as anybody knows.
    pub(crate) fn date_sending(&self) {
        if self.was_sent_to.load(Ordering::Relaxed) {
            self.was_sent_to.store(false, Ordering::Relaxed);
            self.note(this_second());
        }
    }

    pub(super) fn second(&self) -> u64 {
        self.date_sending();
        self.second.load(Ordering::Relaxed)
    }
}

fn this_second() -> u64 {
    clock::seconds_at(Instant::now().into_std())
}
