//! What an outbox is given, and what it holds: one message, or small ones together.

use bytes::Bytes;

use crate::batch::{Batch, joined_bytes};
use crate::config::Load;
use crate::message::Message;

/// A message as its sender has it.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// To be copied.
    Borrowed(&'a [u8]),
    /// To be kept as it is.
    Shared(Bytes),
}

impl From<Bytes> for Payload<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}

impl Payload<'_> {
    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The message in a form that outlives the call.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }
}

/// What waits to be sent, or is under way: one message or many.
#[derive(Debug)]
pub(crate) enum Entry {
    /// Small messages of which nobody waits for what becomes of them.
    Batch(Batch),
    /// One message.
    Single(Message),
}

impl Entry {
    /// How many messages, and their payload bytes.
    pub(crate) fn load(&self) -> Load {
        match self {
            Self::Batch(batch) => batch.load(),
            Self::Single(message) => message.load(),
        }
    }

    /// Payload bytes of the first message.
    pub(crate) fn first_bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.first_bytes(),
            Self::Single(message) => message.len(),
        }
    }

    /// Whether its sender has not withdrawn it.
    pub(crate) fn is_wanted(&self) -> bool {
        match self {
            Self::Batch(_) => true,
            Self::Single(message) => message.is_wanted(),
        }
    }

    /// Bytes that it takes on a stream of many.
    pub(crate) fn joined_bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.joined_bytes(),
            Self::Single(message) => joined_bytes(message.len()),
        }
    }

    /// Goes back to a queue: nothing of it was sent. `false`: its sender does not count on it any
    /// more.
    pub(crate) fn stay_behind(&self) -> bool {
        match self {
            Self::Batch(_) => true,
            Self::Single(message) => message.stay_behind(),
        }
    }

    /// Goes back to a queue, to be sent again.
    pub(crate) fn turn_back(&mut self) {
        match self {
            Self::Batch(batch) => batch.turn_back(),
            Self::Single(message) => message.turn_back(),
        }
    }

    /// How often it has come back: more than never, and it may have arrived.
    pub(crate) fn returns(&self) -> u8 {
        match self {
            Self::Batch(batch) => batch.returns(),
            Self::Single(message) => message.returns(),
        }
    }

    /// Leaves the queue to be sent. `false`: it was withdrawn.
    pub(crate) fn set_off(&self) -> bool {
        match self {
            Self::Batch(_) => true,
            Self::Single(message) => message.set_off(),
        }
    }

    /// Leaves the queue for good. `false`: it was withdrawn.
    pub(crate) fn give_up(&self) -> bool {
        match self {
            Self::Batch(_) => true,
            Self::Single(message) => message.give_up(),
        }
    }
}
