//! Packets on their way, in the order in which they are due; a bounded number of them.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::fate::Direction;
use crate::relay::Flow;

/// Packets on their way at once: some 100 MB of full ones. More are dropped, and counted.
const MOST_PACKETS: usize = 65_536;

/// A packet and where it goes.
pub(crate) struct Packet {
    pub(crate) flow: Arc<Flow>,
    pub(crate) direction: Direction,
    pub(crate) bytes: Vec<u8>,
}

/// The packets on their way.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    entered: u64,
}

struct Entry {
    due: Instant,
    /// Packets due at the same time leave as they came.
    number: u64,
    packet: Packet,
}

impl Queue {
    /// Takes a packet; `false`: there are too many.
    pub(crate) fn push(&mut self, due: Instant, packet: Packet) -> bool {
        let has_room = self.heap.len() < MOST_PACKETS;
        if has_room {
            self.entered += 1;
            self.heap.push(Reverse(Entry { due, number: self.entered, packet }));
        }
        has_room
    }

    /// The next packet if it is due, else when it will be.
    pub(crate) fn pop(&mut self, now: Instant) -> Result<Packet, Option<Instant>> {
        match self.heap.peek() {
            Some(Reverse(entry)) if entry.due > now => Err(Some(entry.due)),
            Some(_) => self.heap.pop().map(|Reverse(entry)| entry.packet).ok_or(None),
            None => Err(None),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}
