//! The messages of a run, and the check that each of them arrived as often as it was sent, whole.
//!
//! A run sends whole rounds of a fixed set of different messages. Each holds its number and bytes
//! that follow from it, so the receiver knows what every message must be, byte by byte, and a
//! message that is lost, cut, joined to another or sent twice shows in the account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

/// The head of a message as nodes in the field have it, then its number: version, type, flags and
/// reserved (a byte each), four bytes of length, eight of number.
pub(crate) const HEAD_BYTES: usize = 16;
/// Bytes of `HEAD_BYTES` that the length does not count.
const HEADER_BYTES: usize = 8;
/// Bytes of a round, within bounds of its messages: they stay in the processor's caches, so that
/// fetching them is no part of what is measured.
const ROUND_BYTES: usize = 256 * 1024;
const ROUND_LEAST: usize = 16;
const ROUND_MOST: usize = 1024;
/// Connections begin slowly (RFC 9002, section 7.3.1), and find the path's MTU first: rates are
/// taken from what arrives this long after the first message.
const WARM_UP: Duration = Duration::from_millis(300);

/// One round of messages, all of one size.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) messages: Vec<Bytes>,
    pub(crate) size: usize,
}

impl Work {
    /// Messages of `size` bytes.
    pub(crate) fn new(size: usize) -> Result<Arc<Self>, String> {
        if size <= HEAD_BYTES {
            return Err(format!("messages have more than {HEAD_BYTES} bytes"));
        }
        let round = (ROUND_BYTES / size).clamp(ROUND_LEAST, ROUND_MOST);
        let messages = (0..round).map(|number| message(number, size)).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { messages, size }))
    }

    /// How many messages a round has.
    pub(crate) fn round(&self) -> usize {
        self.messages.len()
    }
}

fn message(number: usize, size: usize) -> Result<Bytes, String> {
    let wrong = |_| format!("no message has {size} bytes");
    let mut message = BytesMut::with_capacity(size);
    message.put_slice(&[1, 1, 0, 0]);
    message.put_u32(u32::try_from(size - HEADER_BYTES).map_err(wrong)?);
    message.put_u64(u64::try_from(number).map_err(wrong)?);
    let ramp = (0..=u8::MAX).cycle().skip(number % 256);
    message.extend(ramp.take(size - HEAD_BYTES));
    Ok(message.freeze())
}

/// How messages follow each other on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Each is led by its length as a variable-length integer (RFC 9000, section 16).
    Led,
    /// One directly behind the other.
    Bare,
}

/// What has arrived so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) wrong: u64,
    /// Streams that came in more than one chunk.
    pub(crate) cut: u64,
    arrivals: Vec<u64>,
    first: Option<Instant>,
    /// When the warm-up was over, and what had been counted by then.
    warm: Option<(Instant, u64)>,
    last: Option<Instant>,
}

impl Tally {
    /// Notes that something arrives just now, before it is counted.
    pub(crate) fn note_time(&mut self) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(now);
        if self.warm.is_none() && now - first >= WARM_UP {
            self.warm = Some((now, self.messages));
        }
        self.last = Some(now);
    }

    /// Messages per second between the end of the warm-up and the last arrival.
    pub(crate) fn rate(&self) -> f64 {
        let (Some((begin, before)), Some(last)) = (self.warm, self.last) else { return 0.0 };
        let counted = u32::try_from(self.messages - before).unwrap_or(u32::MAX);
        f64::from(counted) / (last - begin).as_secs_f64()
    }

    /// How many of the round's messages did not arrive exactly as often as the others.
    pub(crate) fn uneven(&self, round: usize) -> usize {
        let most = self.arrivals.iter().max().copied().unwrap_or_default();
        let even = self.arrivals.iter().filter(|times| **times == most).count();
        round.saturating_sub(even)
    }

    fn count(&mut self, number: usize) {
        self.messages += 1;
        if self.arrivals.len() <= number {
            self.arrivals.resize(number + 1, 0);
        }
        if let Some(times) = self.arrivals.get_mut(number) {
            *times += 1;
        }
    }
}

/// Cuts the bytes of one stream into messages and compares each with what it must be.
#[derive(Debug)]
pub(crate) struct Checker {
    work: Arc<Work>,
    framing: Framing,
    /// The beginning of a message whose head has not arrived whole.
    head: Vec<u8>,
    /// The number of the message that is arriving, and how many of its bytes have.
    current: Option<(usize, usize)>,
    /// After the first wrong byte there is nothing to go by.
    is_lost: bool,
}

impl Checker {
    pub(crate) fn new(work: Arc<Work>, framing: Framing) -> Self {
        Self { work, framing, head: Vec::new(), current: None, is_lost: false }
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, mut data: &[u8], tally: &mut Tally) {
        while !data.is_empty() && !self.is_lost {
            let taken = match self.current {
                Some((number, arrived)) => self.take_body(number, arrived, data, tally),
                None => self.take_head(data),
            };
            match taken {
                Some(bytes) => data = data.get(bytes..).unwrap_or_default(),
                None => {
                    tally.wrong += 1;
                    self.is_lost = true;
                }
            }
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.head.is_empty() && self.current.is_none() && !self.is_lost
    }

    fn take_body(
        &mut self,
        number: usize,
        arrived: usize,
        data: &[u8],
        tally: &mut Tally,
    ) -> Option<usize> {
        let bytes = data.len().min(self.work.size - arrived);
        let expected = self.work.messages.get(number)?.get(arrived..arrived + bytes)?;
        if data.get(..bytes)? != expected {
            return None;
        }
        self.current = Some((number, arrived + bytes));
        if arrived + bytes == self.work.size {
            self.current = None;
            tally.count(number);
        }
        Some(bytes)
    }

    fn take_head(&mut self, data: &[u8]) -> Option<usize> {
        if self.head.is_empty() {
            let bytes = self.head_bytes(data);
            if let Some(head) = data.get(..bytes) {
                self.current = Some((self.number(head)?, HEAD_BYTES));
                return Some(bytes);
            }
        }
        let before = self.head.len();
        self.head.extend_from_slice(data.get(..HEAD_BYTES.min(data.len()))?);
        let bytes = self.head_bytes(&self.head);
        if self.head.len() < bytes {
            return Some(self.head.len() - before);
        }
        self.head.truncate(bytes);
        self.current = Some((self.number(&self.head)?, HEAD_BYTES));
        self.head.clear();
        Some(bytes - before)
    }

    /// How many bytes the head has, of which the first ones are here.
    fn head_bytes(&self, begun: &[u8]) -> usize {
        match (self.framing, begun.first()) {
            (Framing::Led, Some(first)) => (1 << (first >> 6)) + HEAD_BYTES,
            _ => HEAD_BYTES,
        }
    }

    /// The number of the message with this head, if there is such a message.
    fn number(&self, head: &[u8]) -> Option<usize> {
        let (prefix, head) = head.split_at_checked(head.len() - HEAD_BYTES)?;
        let (_, number) = head.split_last_chunk()?;
        let number = usize::try_from(u64::from_be_bytes(*number)).ok()?;
        let length_fits = self.framing == Framing::Bare || length(prefix) == Some(self.work.size);
        let expected = self.work.messages.get(number)?.get(..HEAD_BYTES)?;
        (length_fits && head == expected).then_some(number)
    }
}

/// Writes a length as RFC 9000, section 16 has it; messages are shorter than 2^30 bytes.
pub(crate) fn put_length(buffer: &mut BytesMut, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 0x40 => buffer.put_u8(short),
        (_, Ok(middle)) if middle < 0x4000 => buffer.put_u16(0x4000 | middle),
        _ => buffer.put_u32(0x8000_0000 | length),
    }
}

fn length(prefix: &[u8]) -> Option<usize> {
    let (first, rest) = prefix.split_first()?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |high, low| high << 8 | u64::from(*low));
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 5] = [17, 63, 64, 256, 16_384];

    /// Three rounds as they are on a stream.
    fn stream(work: &Work, framing: Framing) -> BytesMut {
        let mut stream = BytesMut::new();
        for message in (0..3).flat_map(|_| &work.messages) {
            if framing == Framing::Led {
                put_length(&mut stream, message.len());
            }
            stream.extend_from_slice(message);
        }
        stream
    }

    fn check(work: &Arc<Work>, framing: Framing, stream: &[u8], cut: usize) -> (Checker, Tally) {
        let mut checker = Checker::new(work.clone(), framing);
        let mut tally = Tally::default();
        stream.chunks(cut).for_each(|chunk| checker.push(chunk, &mut tally));
        (checker, tally)
    }

    #[test]
    fn counts_every_message_however_the_stream_is_cut() {
        for (size, framing) in
            SIZES.into_iter().flat_map(|s| [(s, Framing::Led), (s, Framing::Bare)])
        {
            let work = Work::new(size).unwrap();
            let stream = stream(&work, framing);
            for cut in [1, 7, 16, 17, 1_200, 65_536] {
                let (checker, tally) = check(&work, framing, &stream, cut);
                let sent = u64::try_from(3 * work.round()).unwrap();
                assert_eq!((tally.messages, tally.wrong), (sent, 0), "{size} {framing:?} {cut}");
                assert_eq!(tally.uneven(work.round()), 0);
                assert!(checker.is_between_messages());
            }
        }
    }

    #[test]
    fn notices_any_wrong_byte() {
        let work = Work::new(64).unwrap();
        let intact = stream(&work, Framing::Led);
        for at in 0..132 {
            let mut wrong = intact.clone();
            wrong[at] ^= 1;
            let (_, tally) = check(&work, Framing::Led, &wrong, 1_200);
            // In its number it may make of a message another one.
            assert!(tally.wrong == 1 || tally.uneven(work.round()) > 0, "byte {at}");
        }
    }

    #[test]
    fn a_lost_message_leaves_the_account_uneven() {
        let work = Work::new(256).unwrap();
        let mut stream = stream(&work, Framing::Bare);
        let lost = stream.split_off(stream.len() - 256);
        let (_, tally) = check(&work, Framing::Bare, &stream, 1_200);
        assert_eq!((tally.uneven(work.round()), lost.len()), (1, 256));
    }
}
