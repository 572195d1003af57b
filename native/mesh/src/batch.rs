//! Small messages in one buffer, each led by its length as a variable-length integer (RFC 9000,
//! section 16): as they wait to be sent, and as they travel between two of ours. A message that
//! joins a batch costs one copy and no allocation of its own, and the batch is handed to the stack
//! as it is.

use bytes::{Buf, BufMut, Bytes};
use quinn::VarInt;
use quinn_proto::coding::Codec;

use crate::config::Load;
use crate::message::Message;
use crate::spare::{self, Spare};

/// Bytes of a batch from which on it takes no more messages: quinn's send buffer is slow with many
/// small chunks, and gains nothing from larger ones.
const FULL_BYTES: usize = 16 * 1024;
/// Bytes set aside for a batch that may stay the only one; if it gets more messages it grows.
const FIRST_BYTES: usize = 1_024;
/// Bytes of the longest such integer.
const LONGEST_PREFIX: usize = 8;

/// Messages in their order.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: Buffer,
    load: Load,
    /// How often it has come back from a connection that was lost.
    returns: u8,
}

#[derive(Debug)]
enum Buffer {
    /// More messages may be added.
    Open(Vec<u8>),
    /// Copies of the batch may be under way.
    Sealed(Bytes),
}

impl Batch {
    /// A batch of one message; `follows`: others wait already.
    pub(crate) fn of(message: &[u8], follows: bool) -> Self {
        let room = LONGEST_PREFIX + message.len();
        // One behind another most often gets full, and growing would copy all of it twice.
        let mut buffer = if follows && room <= spare::BYTES {
            spare::take()
        } else {
            Vec::with_capacity(room.max(FIRST_BYTES))
        };
        append(&mut buffer, message);
        let load = Load { messages: 1, bytes: message.len() };
        Self { buffer: Buffer::Open(buffer), load, returns: 0 }
    }

    /// Adds a message behind the others. `false`: the batch takes no more.
    pub(crate) fn add(&mut self, message: &[u8]) -> bool {
        match &mut self.buffer {
            Buffer::Open(buffer) if buffer.len() < FULL_BYTES => append(buffer, message),
            Buffer::Open(_) | Buffer::Sealed(_) => return false,
        }
        self.load.messages += 1;
        self.load.bytes += message.len();
        true
    }

    /// How many messages, and their payload bytes.
    pub(crate) fn load(&self) -> Load {
        self.load
    }

    /// Goes back to a queue, to be sent again, and takes no more messages.
    pub(crate) fn turn_back(&mut self) {
        self.sealed();
        self.returns = self.returns.saturating_add(1);
    }

    pub(crate) fn returns(&self) -> u8 {
        self.returns
    }

    /// Payload bytes of the first message.
    pub(crate) fn first_bytes(&self) -> usize {
        prefix(self.buffer.bytes()).1
    }

    /// Takes the first message out, and no more in.
    pub(crate) fn pop(&mut self) -> Option<Message> {
        if self.load.messages == 0 {
            return None;
        }
        let buffer = self.sealed();
        let (skipped, length) = prefix(buffer);
        buffer.advance(skipped);
        let message = buffer.split_to(length);
        self.load.messages -= 1;
        self.load.bytes -= length;
        Some(Message::of_batch(message, self.returns))
    }

    /// Bytes of all messages, each led by its length.
    pub(crate) fn joined_bytes(&self) -> usize {
        self.buffer.bytes().len()
    }

    /// Takes out the messages that are wholly within the last so many bytes; `None`: there are none.
    pub(crate) fn split_off(&mut self, bytes: usize) -> Option<Self> {
        let mut rest = self.sealed().clone();
        let mut load = self.load;
        while rest.len() > bytes {
            let (skipped, length) = prefix(&rest);
            rest.advance(skipped + length);
            load.messages -= 1;
            load.bytes -= length;
        }
        let kept = self.joined_bytes() - rest.len();
        self.sealed().truncate(kept);
        self.load -= load;
        let buffer = Buffer::Sealed(rest);
        (load.messages > 0).then_some(Self { buffer, load, returns: self.returns })
    }

    /// Takes no more messages, and gives the bytes of all, each led by its length.
    pub(crate) fn seal(&mut self) -> Bytes {
        self.sealed().clone()
    }

    fn sealed(&mut self) -> &mut Bytes {
        if let Buffer::Open(buffer) = &mut self.buffer {
            self.buffer = Buffer::Sealed(Bytes::from_owner(Spare::new(std::mem::take(buffer))));
        }
        match &mut self.buffer {
            Buffer::Sealed(bytes) => bytes,
            Buffer::Open(_) => unreachable!("it has just been sealed"),
        }
    }
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Open(buffer) => buffer,
            Self::Sealed(buffer) => buffer,
        }
    }
}

/// Bytes of a message of this length, led by it.
pub(crate) fn joined_bytes(length: usize) -> usize {
    let prefix = match length {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => LONGEST_PREFIX,
    };
    prefix + length
}

/// Writes the length that leads a message.
pub(crate) fn put_prefix(buffer: &mut impl BufMut, length: usize) {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    // A message is held in memory, and no memory is as large as the largest such integer.
    VarInt::from_u64(length).unwrap_or(VarInt::MAX).encode(buffer);
}

fn append(buffer: &mut Vec<u8>, message: &[u8]) {
    put_prefix(buffer, message.len());
    buffer.extend_from_slice(message);
}

/// How long the leading integer is, and the length that it gives; both within what was written.
fn prefix(bytes: &[u8]) -> (usize, usize) {
    let mut rest = bytes;
    let length = VarInt::decode(&mut rest).map_or(0, VarInt::into_inner);
    let skipped = bytes.len() - rest.len();
    (skipped, usize::try_from(length).unwrap_or(usize::MAX).min(rest.len()))
}

#[cfg(test)]
impl Batch {
    /// Bytes that its buffer has room for.
    pub(crate) fn room(&self) -> usize {
        match &self.buffer {
            Buffer::Open(buffer) => buffer.capacity(),
            Buffer::Sealed(buffer) => buffer.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_is_the_messages_each_led_by_its_length() {
        let mut batch = Batch::of(b"", false);
        assert!(batch.add(b"ab"));
        assert_eq!(batch.load(), Load { messages: 2, bytes: 2 });
        assert_eq!(batch.seal(), [0, 2, b'a', b'b'].as_slice());
        assert!(!batch.add(b"more"));
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut batch = Batch::of(&[0; FULL_BYTES], true);
        assert!(!batch.add(b"more"));
        assert_eq!(batch.load().messages, 1);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_sealed_or_not(
            sizes in prop::collection::vec(0..300_usize, 1..60),
            popped_before in 0..10_usize,
            follows in any::<bool>(),
        ) {
            let messages: Vec<Vec<u8>> =
                sizes.iter().zip(0_u8..).map(|(size, fill)| vec![fill; *size]).collect();
            let mut batch = Batch::of(&messages[0], follows);
            for message in &messages[1..] {
                prop_assert!(batch.add(message));
            }
            let mut out: Vec<Vec<u8>> = Vec::new();
            for _ in 0..popped_before {
                out.extend(batch.pop().map(|message| message.data.to_vec()));
            }
            batch.seal();
            while batch.load().messages > 0 {
                prop_assert_eq!(batch.first_bytes(), messages[out.len()].len());
                out.extend(batch.pop().map(|message| message.data.to_vec()));
            }
            prop_assert_eq!(batch.load(), Load::default());
            prop_assert!(batch.pop().is_none());
            prop_assert_eq!(out, messages);
        }
    }
}
