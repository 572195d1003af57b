//! The room that the unfinished frames of one connection have together. A frame is put together in
//! our memory, beyond flow control, and a peer may begin one on each of its streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for a connection's unfinished frames.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: usize,
    taken: AtomicUsize,
}

/// The place of one frame; given back by dropping it.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, taken: AtomicUsize::new(0) })
    }

    /// A place for a frame of so many bytes, if there is room. For one alone there always is: how
    /// long it may be is another limit's business.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        let more = |taken: usize| {
            let sum = taken.saturating_add(bytes);
            (taken == 0 || sum <= self.bytes).then_some(sum)
        };
        // Nothing else is ordered by the count.
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Place { room: self.clone(), bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_and_one_frame_alone_always_has_one() {
        let room = Room::new(100);
        let large = room.take(1_000).expect("the only one");
        assert!(room.take(1).is_none());
        drop(large);
        let first = room.take(60).expect("room");
        assert!(room.take(41).is_none());
        let _second = room.take(40).expect("room");
        drop(first);
        assert!(room.take(60).is_some());
    }
}
