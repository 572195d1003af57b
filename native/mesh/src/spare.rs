//! Memory of batches that have been sent, for those to come. It is set aside by a thread that
//! sends, given back by the one that drives the stack, and the allocator between them gives it back
//! to the system, which clears each page for whoever is next. A few buffers are kept instead, and
//! those used last, which the processor still has in its cache, go first.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of those that are kept.
pub(crate) const BYTES: usize = 24 * 1024;
/// Buffers that are kept at most, 1.5 MiB for all pools together: what a sender fills after it has
/// waited for room.
const MOST: usize = 64;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer with room for [`BYTES`].
pub(crate) fn take() -> Vec<u8> {
    let kept = kept().pop();
    kept.unwrap_or_else(|| Vec::with_capacity(BYTES))
}

/// Bytes whose buffer is kept for others, once they are dropped.
pub(crate) struct Spare(Vec<u8>);

impl Spare {
    pub(crate) fn new(buffer: Vec<u8>) -> Self {
        Self(buffer)
    }
}

impl AsRef<[u8]> for Spare {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if self.0.capacity() == BYTES {
            let mut kept = kept();
            if kept.len() < MOST {
                self.0.clear();
                kept.push(std::mem::take(&mut self.0));
            }
        }
    }
}

/// A std mutex, because nothing awaits inside.
fn kept() -> MutexGuard<'static, Vec<Vec<u8>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}
