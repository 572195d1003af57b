//! So many streams at once, and a way to wait until all have ended.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Room for streams of ours.
#[derive(Debug, Default)]
pub struct Room {
    under_way: Mutex<usize>,
    changed: Condvar,
}

impl Room {
    /// One more stream, as soon as there is room for it; `false`: there was none in time.
    pub fn enter(&self, most: usize, time: Duration) -> bool {
        let (mut under_way, is_there) = self.wait(most, time);
        *under_way += usize::from(is_there);
        is_there
    }

    /// One of them has ended.
    pub fn leave(&self) {
        let mut under_way = self.lock();
        *under_way = under_way.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Whether all end in time.
    pub fn wait_until_empty(&self, time: Duration) -> bool {
        self.wait(1, time).1
    }

    /// Waits until fewer than `most` are under way.
    fn wait(&self, most: usize, time: Duration) -> (MutexGuard<'_, usize>, bool) {
        let is_full = |under_way: &mut usize| *under_way >= most;
        let waited = self.changed.wait_timeout_while(self.lock(), time, is_full);
        let (under_way, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_there = *under_way < most;
        (under_way, is_there)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
