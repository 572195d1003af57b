//! Frames, and one stream's bytes on their way to them.

use std::sync::Arc;

use crate::tally::{Counter, Tally};

/// Version, type, flags and reserved (a byte each), then four bytes of payload length.
const HEADER_BYTES: usize = 8;
const VERSION: u8 = 1;
/// The index that a test puts in front of its fill, big-endian.
const INDEX_BYTES: usize = 8;

/// A frame whose payload has `size` bytes: its index, then bytes that follow from it.
pub fn frame(index: u64, size: u32) -> Vec<u8> {
    let mut frame = vec![VERSION, 1, 0, 0];
    frame.extend(size.to_be_bytes());
    frame.extend(index.to_be_bytes());
    let [.., first] = index.to_be_bytes();
    let fill = usize::try_from(size).unwrap_or(0).saturating_sub(INDEX_BYTES);
    frame.extend((first..=u8::MAX).chain(0..first).cycle().take(fill));
    frame
}

/// The bytes of one stream, which it judges frame by frame.
#[derive(Debug)]
pub struct Inbox {
    tally: Arc<Tally>,
    has_old_habit: bool,
    rest: Vec<u8>,
}

impl Inbox {
    /// For a stream of which nothing has arrived yet.
    pub fn new(tally: Arc<Tally>, has_old_habit: bool) -> Self {
        Self { tally, has_old_habit, rest: Vec::new() }
    }

    /// Takes one chunk, as the stack delivers it.
    pub fn take(&mut self, chunk: &[u8]) {
        if chunk.is_empty() {
            return;
        }
        self.rest.extend_from_slice(chunk);
        let mut taken = 0;
        while let Some(data) = self.rest.get(taken..).and_then(whole_frame) {
            match index(data) {
                Some(index) => self.tally.take(index),
                None => self.tally.count(Counter::Corrupt),
            }
            taken += data.len();
            if self.has_old_habit {
                break;
            }
        }
        self.rest.drain(..taken);
        if self.has_old_habit {
            // A chunk is a message: what follows in it is dropped, and half of one is broken.
            if taken == 0 {
                self.tally.count(Counter::Corrupt);
            }
            self.rest.clear();
        }
    }

    /// The stream has ended in order.
    pub fn finish(&mut self) {
        self.tally.count(Counter::Finished);
        if !self.rest.is_empty() {
            self.tally.count(Counter::Corrupt);
        }
    }
}

fn whole_frame(data: &[u8]) -> Option<&[u8]> {
    let (_, rest) = data.split_first_chunk::<4>()?;
    let (length, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    data.get(..HEADER_BYTES + length)
}

/// The index of an intact frame.
fn index(data: &[u8]) -> Option<u64> {
    let payload = data.get(HEADER_BYTES..)?;
    let index = u64::from_be_bytes(*payload.first_chunk::<INDEX_BYTES>()?);
    let size = u32::try_from(payload.len()).ok()?;
    let intact = frame(index, size);
    let is_intact = data.first() == Some(&VERSION) && data.get(4..) == intact.get(4..);
    is_intact.then_some(index)
}
