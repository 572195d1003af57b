//! One message as it arrives, chunk by chunk: its length, its beginning, and whether it is intact.
//!
//! Nothing is collected beyond the beginning, so a message of any size costs the same memory.
//! Counting messages is the business of `tally.rs`.

use std::sync::LazyLock;

/// Version, type, flags and reserved (a byte each), then four bytes of payload length.
const HEADER_BYTES: usize = 8;
/// The only version of macula's protocol.
const VERSION: u8 = 1;
/// The index that a test puts in front of its fill, big-endian.
const INDEX_BYTES: usize = 8;
/// Where the fill begins.
const FILL_START: usize = HEADER_BYTES + INDEX_BYTES;
/// How much of a message's beginning is kept, for `last_payload`.
const KEPT_BYTES: usize = 4096;
/// The fill repeats after as many bytes as a byte has values.
const PERIOD: usize = 256;
/// How much fill one comparison covers: whole periods, large enough to run at memory speed.
const STRIDE: usize = 16 * PERIOD;

/// 0, 1, ..., 255, 0, 1, ...: the fill from any starting value is a slice of it.
static RAMP: LazyLock<[u8; STRIDE + PERIOD]> = LazyLock::new(|| {
    std::array::from_fn(|position| {
        let [low, ..] = position.to_le_bytes();
        low
    })
});

/// What a whole message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A macula frame around this index and its fill.
    Framed(u64),
    /// It begins as a frame does; its length or its fill is wrong.
    Corrupt,
    /// Anything else.
    Unframed,
}

/// A message of which some, or all, has arrived.
#[derive(Default)]
pub(crate) struct Message {
    length: usize,
    beginning: Vec<u8>,
    fill_is_wrong: bool,
}

impl Message {
    /// Takes the next bytes.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        let offset = self.length;
        self.length += chunk.len();
        let kept = chunk.len().min(KEPT_BYTES - self.beginning.len());
        self.beginning.extend(chunk.iter().take(kept));
        self.fill_is_wrong = self.fill_is_wrong || !self.continues_fill(offset, chunk);
    }

    /// How many bytes have arrived.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Its first bytes, 4096 at most.
    pub(crate) fn into_beginning(self) -> Vec<u8> {
        self.beginning
    }

    /// Judges the message, now that it is whole.
    pub(crate) fn class(&self) -> Class {
        let Some(([version, _, _, _, length @ ..], _)) =
            self.beginning.split_first_chunk::<HEADER_BYTES>()
        else {
            return Class::Unframed;
        };
        if *version != VERSION {
            return Class::Unframed;
        }
        let payload = usize::try_from(u32::from_be_bytes(*length));
        let length_is_right = payload.is_ok_and(|payload| HEADER_BYTES + payload == self.length);
        match self.index() {
            Some(index) if length_is_right && !self.fill_is_wrong => {
                Class::Framed(u64::from_be_bytes(index))
            }
            _ => Class::Corrupt,
        }
    }

    /// Whether what `chunk`, found at `offset`, holds of the fill is right.
    fn continues_fill(&self, offset: usize, chunk: &[u8]) -> bool {
        let ahead_of_fill = FILL_START.saturating_sub(offset);
        let Some(([.., index_low], fill)) = self.index().zip(chunk.get(ahead_of_fill..)) else {
            return true;
        };
        let position = offset + ahead_of_fill - FILL_START;
        let first = (usize::from(index_low) + position) % PERIOD;
        // A stride is whole periods, so each begins with the same value.
        fill.chunks(STRIDE).all(|part| RAMP.get(first..first + part.len()) == Some(part))
    }

    fn index(&self) -> Option<[u8; INDEX_BYTES]> {
        let after_header = self.beginning.get(HEADER_BYTES..)?;
        after_header.first_chunk::<INDEX_BYTES>().copied()
    }
}
