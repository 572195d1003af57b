//! The messages that wait for one peer, in their order, and what they weigh. Small ones join a
//! batch as they come in: one copy each, and nothing to be allocated or freed. Plain data: who may
//! put in how much, and who waits for room, is decided in `outbox.rs`.

use std::collections::VecDeque;

use crate::batch::Batch;
use crate::config::Load;
use crate::entry::{Entry, Payload};
use crate::message::Message;

/// Bytes below which a message joins a batch that need not be copied otherwise.
const SMALL_BYTES: usize = 2 * 1024;
/// The same of one that has to be copied anyhow: into a batch, its memory is set aside and given
/// back together with that of others.
const SMALL_COPIED_BYTES: usize = 8 * 1024;
/// Entries for which there is room though none is queued. More would be memory that every
/// connection with a long queue once holds for as long as it is pooled, and that no bound counts.
const RESTING_ENTRIES: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Entry>,
    load: Load,
    /// At most how many have been withdrawn by their senders.
    withdrawn: usize,
}

/// What has left the queue.
#[derive(Debug)]
pub(crate) enum Departed<T> {
    /// To be sent.
    Wanted(T),
    /// Its sender had withdrawn it, and so much room is free.
    Withdrawn(Load),
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn load(&self) -> Load {
        self.load
    }

    pub(crate) fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    pub(crate) fn push_back(&mut self, entry: Entry) {
        self.load += entry.load();
        self.entries.push_back(entry);
    }

    pub(crate) fn push_front(&mut self, entry: Entry) {
        self.load += entry.load();
        self.entries.push_front(entry);
    }

    /// Moves so many of the last entries before all others, in their order.
    pub(crate) fn bring_forward(&mut self, entries: usize) {
        self.entries.rotate_right(entries);
    }

    /// Takes in a message of which nobody waits for what becomes of it.
    pub(crate) fn join(&mut self, message: Payload<'_>) {
        let bytes = message.len();
        let is_small = match message {
            Payload::Borrowed(_) => bytes < SMALL_COPIED_BYTES,
            Payload::Shared(_) => bytes < SMALL_BYTES,
        };
        if !is_small {
            return self.push_back(Entry::Single(Message::from(message.into_bytes())));
        }
        if let Some(Entry::Batch(batch)) = self.entries.back_mut()
            && batch.add(message.as_slice())
        {
            self.load += Load { messages: 1, bytes };
            return;
        }
        // Behind a large message there may be another soon: room for many would stay empty.
        let follows = matches!(self.entries.back(), Some(Entry::Batch(_)));
        self.push_back(Entry::Batch(Batch::of(message.as_slice(), follows)));
    }

    /// Takes the oldest entry out.
    pub(crate) fn pop(&mut self) -> Option<Departed<Entry>> {
        let entry = self.entries.pop_front()?;
        self.load -= entry.load();
        if entry.set_off() {
            return Some(Departed::Wanted(entry));
        }
        self.withdrawn = self.withdrawn.saturating_sub(1);
        Some(Departed::Withdrawn(entry.load()))
    }

    /// Takes the oldest message out, if need be from among others.
    pub(crate) fn pop_message(&mut self) -> Option<Departed<Message>> {
        loop {
            let Entry::Batch(batch) = self.entries.front_mut()? else {
                return match self.pop()? {
                    Departed::Wanted(Entry::Single(message)) => Some(Departed::Wanted(message)),
                    // The front is none.
                    Departed::Wanted(Entry::Batch(_)) => None,
                    Departed::Withdrawn(load) => Some(Departed::Withdrawn(load)),
                };
            };
            let message = batch.pop();
            if batch.load().messages == 0 {
                self.entries.pop_front();
            }
            if let Some(message) = message {
                self.load -= message.load();
                return Some(Departed::Wanted(message));
            }
        }
    }

    /// One was withdrawn. Once half of them are, they are taken out; returns how much that was.
    pub(crate) fn note_withdrawal(&mut self) -> Load {
        self.withdrawn += 1;
        if self.withdrawn * 2 < self.entries.len() {
            return Load::default();
        }
        let mut freed = Load::default();
        self.entries.retain(|entry| {
            let is_wanted = entry.is_wanted();
            if !is_wanted {
                freed += entry.load();
            }
            is_wanted
        });
        self.withdrawn = 0;
        self.load -= freed;
        freed
    }

    /// Nothing is queued: the room that many entries needed is given back.
    pub(crate) fn rest(&mut self) {
        if self.entries.capacity() > RESTING_ENTRIES {
            self.entries = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Takes all of them, and how much that is.
    pub(crate) fn take_all(&mut self) -> (VecDeque<Entry>, Load) {
        let Self { entries, load, .. } = std::mem::take(self);
        (entries, load)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Error;

    fn message(bytes: usize) -> Payload<'static> {
        Bytes::from(vec![0; bytes]).into()
    }

    fn load(messages: usize, bytes: usize) -> Load {
        Load { messages, bytes }
    }

    #[test]
    fn small_messages_join_a_batch_and_come_out_in_their_order() {
        let mut queue = Queue::default();
        [3, 0, 5].into_iter().for_each(|bytes| queue.join(message(bytes)));
        assert_eq!(queue.entries.len(), 1);
        for (bytes, left) in [(3, load(2, 5)), (0, load(1, 5)), (5, load(0, 0))] {
            let Some(Departed::Wanted(taken)) = queue.pop_message() else {
                unreachable!("it is there");
            };
            assert_eq!((taken.len(), queue.load()), (bytes, left));
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn a_small_message_behind_a_large_one_gets_no_room_for_many() {
        let mut queue = Queue::default();
        for _ in 0..10 {
            queue.join(message(SMALL_BYTES));
            queue.join(message(1));
        }
        let room = |entry: &Entry| match entry {
            Entry::Batch(batch) => batch.room(),
            Entry::Single(message) => message.len(),
        };
        let rooms: usize = queue.entries.iter().map(room).sum();
        assert!(rooms <= 10 * (SMALL_BYTES + 1_024), "{rooms}");
    }

    #[test]
    fn what_was_withdrawn_is_passed_over_or_taken_out_once_it_is_half() {
        let mut queue = Queue::default();
        let confirmations: Vec<_> = (0..4)
            .map(|_| {
                let (message, confirmation) = Message::confirmed(Bytes::from(vec![0; 10]));
                queue.push_back(Entry::Single(message));
                confirmation
            })
            .collect();
        assert!(confirmations[0].withdraw(Error::SendTimeout).is_some());
        assert_eq!(queue.note_withdrawal(), Load::default());
        assert!(matches!(queue.pop(), Some(Departed::Withdrawn(freed)) if freed == load(1, 10)));
        assert!(confirmations[2].withdraw(Error::SendTimeout).is_some());
        assert_eq!(queue.note_withdrawal(), Load::default());
        assert!(confirmations[3].withdraw(Error::SendTimeout).is_some());
        assert_eq!(queue.note_withdrawal(), load(2, 20));
        assert_eq!(queue.load(), load(1, 10));
        assert!(matches!(queue.pop(), Some(Departed::Wanted(_))));
        assert!(queue.pop().is_none());
    }
}
