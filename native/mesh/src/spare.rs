//! Memory of batches that have been sent, for those to come. A thread that sends sets it aside,
//! and the one that drives the stack gives it back; an allocator between them returns it to the
//! system, which clears each page for whoever is next. A few buffers are kept instead. Those used
//! last go first, for the processor still has them in its cache.
//!
//! None is kept for long without use: scattered over a heap that was large once, a few small blocks
//! keep libc from giving the system back what is free between them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

/// The size of those that are kept: room for a batch that was not quite full, and the largest
/// message that joins it.
pub(crate) const BYTES: usize = 24 * 1024;
/// Buffers that are kept at most, 3 MiB for all pools together: what a sender that has waited fills
/// before it waits again.
const MOST: usize = 128;
/// How long one is kept without use, at least; twice as long at most.
const UNUSED: Duration = Duration::from_secs(1);

static SHELF: Shelf = Shelf::new();

struct Shelf(Mutex<State>);

struct State {
    /// Those used last are at the end.
    kept: Vec<Vec<u8>>,
    /// The fewest that were there since the last clearing: so many nobody has missed.
    fewest: usize,
    /// Whether a task clears it, as long as something is there.
    is_tended: bool,
}

/// The task that clears the shelf. Nothing is kept when it ends, be it with its runtime.
struct Tending(&'static Shelf);

/// Bytes whose buffer is kept for others, once they are dropped.
pub(crate) struct Spare {
    buffer: Vec<u8>,
    shelf: &'static Shelf,
}

/// An empty buffer with room for [`BYTES`].
pub(crate) fn take() -> Vec<u8> {
    SHELF.take()
}

impl Shelf {
    const fn new() -> Self {
        Self(Mutex::new(State { kept: Vec::new(), fewest: 0, is_tended: false }))
    }

    fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        let kept = state.kept.pop();
        state.fewest = state.fewest.min(state.kept.len());
        drop(state);
        kept.unwrap_or_else(|| Vec::with_capacity(BYTES))
    }

    /// Only threads of the runtime give back: elsewhere nobody would clear the shelf.
    fn put(&'static self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut state = self.lock();
        if state.kept.len() >= MOST {
            return;
        }
        if state.is_tended {
            state.kept.push(buffer);
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        state.kept.push(buffer);
        state.is_tended = true;
        drop(state);
        // A runtime that is being shut down drops the task at once.
        runtime.spawn(Tending(self).run());
    }

    /// Gives up what nobody has used since the last time; returns how many are left.
    fn clear(&self) -> usize {
        let mut state = self.lock();
        let fewest = state.fewest.min(state.kept.len());
        let unused: Vec<_> = state.kept.drain(..fewest).collect();
        let left = state.kept.len();
        state.fewest = left;
        drop(state);
        drop(unused);
        left
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tending {
    /// Clears the shelf until nothing is there.
    async fn run(self) {
        loop {
            sleep(UNUSED).await;
            if self.0.clear() == 0 {
                return;
            }
        }
    }
}

impl Drop for Tending {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_tended = false;
        state.fewest = 0;
        let unused = std::mem::take(&mut state.kept);
        drop(state);
        drop(unused);
    }
}

impl Spare {
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Self { buffer, shelf: &SHELF }
    }
}

impl AsRef<[u8]> for Spare {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Others were made for one large message, or for what stayed small.
        if self.buffer.capacity() == BYTES {
            self.shelf.put(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use bytes::Bytes;
    use tokio::runtime::Builder;

    use super::*;

    fn kept(shelf: &Shelf) -> usize {
        shelf.lock().kept.len()
    }

    #[tokio::test]
    async fn a_buffer_is_kept_when_the_last_of_its_bytes_is_dropped_and_no_more_than_a_few_are() {
        static SHELF: Shelf = Shelf::new();
        let sent = |buffer| Bytes::from_owner(Spare { buffer, shelf: &SHELF });
        let mut buffer = SHELF.take();
        buffer.extend_from_slice(b"message");
        let place = buffer.as_ptr();
        let whole = sent(buffer);
        let part = whole.slice(3..);
        drop(whole);
        assert_eq!(kept(&SHELF), 0);
        drop(part);
        let buffer = SHELF.take();
        assert_eq!((buffer.as_ptr(), buffer.len()), (place, 0));
        drop(sent(Vec::with_capacity(BYTES + 1)));
        assert_eq!(kept(&SHELF), 0);
        let many: Vec<_> = (0..=MOST).map(|_| sent(SHELF.take())).collect();
        drop(many);
        assert_eq!(kept(&SHELF), MOST);
    }

    #[tokio::test]
    async fn what_nobody_has_used_for_a_while_is_given_back() {
        static SHELF: Shelf = Shelf::new();
        let busy = || {
            let taken: Vec<_> = (0..3).map(|_| SHELF.take()).collect();
            taken.into_iter().for_each(|buffer| SHELF.put(buffer));
        };
        (0..5).for_each(|_| SHELF.put(Vec::with_capacity(BYTES)));
        // They have come since the last time.
        assert_eq!(SHELF.clear(), 5);
        busy();
        assert_eq!(SHELF.clear(), 3);
        busy();
        assert_eq!(SHELF.clear(), 3);
        assert_eq!(SHELF.clear(), 0);
    }

    #[test]
    fn the_shelf_is_tended_as_long_as_something_is_there_and_its_runtime() {
        static SHELF: Shelf = Shelf::new();
        let state = || (kept(&SHELF), SHELF.lock().is_tended);
        for has_patience in [true, false, true] {
            let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                SHELF.put(Vec::with_capacity(BYTES));
                assert_eq!(state(), (1, true));
                while has_patience && SHELF.lock().is_tended {
                    tokio::task::yield_now().await;
                }
            });
            drop(runtime);
            assert_eq!(state(), (0, false));
        }
    }

    #[test]
    fn what_is_given_back_while_the_runtime_is_shut_down_is_not_kept() {
        static SHELF: Shelf = Shelf::new();
        let late = Spare { buffer: SHELF.take(), shelf: &SHELF };
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            tokio::spawn(async move {
                let _late = late;
                std::future::pending::<()>().await;
            });
        });
        drop(runtime);
        assert_eq!((kept(&SHELF), SHELF.lock().is_tended), (0, false));
    }

    #[test]
    fn nothing_is_kept_where_nobody_would_clear_it() {
        static SHELF: Shelf = Shelf::new();
        SHELF.put(Vec::with_capacity(BYTES));
        assert_eq!(kept(&SHELF), 0);
    }
}
