//! Memory of batches that have been sent, for those to come. A thread that sends sets it aside,
//! and the one that drives the stack gives it back; an allocator between them returns it to the
//! system, which clears each page for whoever is next. A few buffers are kept instead. Those used
//! last go first, for the processor still has them in its cache.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of those that are kept: room for a batch that was not quite full, and the largest
/// message that joins it.
pub(crate) const BYTES: usize = 24 * 1024;
/// Buffers that are kept at most, 3 MiB for all pools together: what a sender that has waited fills
/// before it waits again.
const MOST: usize = 128;

static SHELF: Shelf = Shelf::new();

struct Shelf(Mutex<Vec<Vec<u8>>>);

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
        Self(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Vec<u8> {
        let kept = self.lock().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(BYTES))
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.lock();
        if kept.len() < MOST {
            kept.push(buffer);
        }
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_buffer_is_kept_when_the_last_of_its_bytes_is_dropped_and_no_more_than_a_few_are() {
        static SHELF: Shelf = Shelf::new();
        let sent = |buffer| Bytes::from_owner(Spare { buffer, shelf: &SHELF });
        let mut buffer = SHELF.take();
        buffer.extend_from_slice(b"message");
        let place = buffer.as_ptr();
        let whole = sent(buffer);
        let part = whole.slice(3..);
        drop(whole);
        assert_eq!(SHELF.lock().len(), 0);
        drop(part);
        let buffer = SHELF.take();
        assert_eq!((buffer.as_ptr(), buffer.len()), (place, 0));
        drop(sent(Vec::with_capacity(BYTES + 1)));
        assert_eq!(SHELF.lock().len(), 0);
        let many: Vec<_> = (0..=MOST).map(|_| sent(SHELF.take())).collect();
        drop(many);
        assert_eq!(SHELF.lock().len(), MOST);
    }
}
