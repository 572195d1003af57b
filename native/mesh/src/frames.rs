//! Cuts a byte stream into protocol frames, however QUIC has cut or joined it. Pure data.
//!
//! A frame is 1 byte version, 1 byte type, 1 byte flags, 1 byte reserved, 4 bytes payload length
//! (big-endian), and the payload. A stream whose first byte, or whose first byte after a whole
//! frame, is not the version carries no frames from there on, and its bytes pass as they come.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// The version byte that a frame begins with.
const VERSION: u8 = 1;
/// Bytes before the payload.
const HEADER_BYTES: usize = 8;

/// How a stream's bytes are cut into deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// One protocol frame each.
    Macula,
    /// As they come.
    Raw,
}

/// A frame that is longer than allowed: its whole length in bytes, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) u64);

/// The bytes of one stream that have not been delivered yet.
#[derive(Debug)]
pub(crate) struct Frames {
    packet: Packet,
    max_bytes: usize,
    parts: VecDeque<Bytes>,
    held: usize,
}

impl Frames {
    pub(crate) fn new(packet: Packet, max_bytes: usize) -> Self {
        Self { packet, max_bytes, parts: VecDeque::new(), held: 0 }
    }

    pub(crate) fn set_packet(&mut self, packet: Packet) {
        self.packet = packet;
    }

    /// Adds what has arrived.
    pub(crate) fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.held += data.len();
            self.parts.push_back(data);
        }
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The next delivery, in parts to be joined; `None`: more has to arrive first.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Bytes>>, TooLong> {
        let Some(first) = self.parts.front().and_then(|part| part.first()) else {
            return Ok(None);
        };
        if self.packet == Packet::Macula && *first != VERSION {
            self.packet = Packet::Raw;
        }
        if self.packet == Packet::Raw {
            return Ok(Some(self.rest()));
        }
        let Some(length) = self.frame_length() else {
            return Ok(None);
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.max_bytes => {
                Ok((self.held >= length).then(|| self.split(length)))
            }
            _ => Err(TooLong(length)),
        }
    }

    /// All that is held: at the end of a stream nothing more will complete it.
    pub(crate) fn rest(&mut self) -> Vec<Bytes> {
        self.held = 0;
        self.parts.drain(..).collect()
    }

    /// The length of the frame at the front, once its header has arrived.
    fn frame_length(&self) -> Option<u64> {
        let mut header = self.parts.iter().flat_map(|part| part.iter()).copied();
        let length: [u8; 4] = {
            let mut field = header.by_ref().skip(HEADER_BYTES - size_of::<u32>());
            [field.next()?, field.next()?, field.next()?, field.next()?]
        };
        Some(HEADER_BYTES as u64 + u64::from(u32::from_be_bytes(length)))
    }

    fn split(&mut self, mut length: usize) -> Vec<Bytes> {
        self.held -= length;
        let mut frame = Vec::new();
        while length > 0 {
            let Some(front) = self.parts.front_mut() else {
                break;
            };
            let taken = front.split_to(length.min(front.len()));
            length -= taken.len();
            frame.push(taken);
            if !front.has_remaining() {
                self.parts.pop_front();
            }
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
        [&[VERSION, 7, 0, 0], &length[..], payload].concat()
    }

    fn deliveries(frames: &mut Frames) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| frames.next().expect("no long frame")).map(|p| p.concat()).collect()
    }

    #[test]
    fn a_frame_beyond_the_limit_is_told_by_its_length_before_it_arrives() {
        let mut frames = Frames::new(Packet::Macula, 100);
        frames.push(Bytes::from(frame(&[0; 93])).slice(..HEADER_BYTES));
        assert_eq!(frames.next(), Err(TooLong(101)));
    }

    #[test]
    fn bytes_that_are_no_frame_pass_as_they_come() {
        let mut frames = Frames::new(Packet::Macula, 100);
        frames.push(Bytes::from([frame(b"one"), b"text".to_vec()].concat()));
        frames.push(Bytes::from_static(&[VERSION, 2]));
        assert_eq!(
            deliveries(&mut frames),
            vec![frame(b"one"), [b"text".as_slice(), &[VERSION, 2]].concat()]
        );
    }

    #[test]
    fn an_unfinished_frame_is_left_for_the_end() {
        let mut frames = Frames::new(Packet::Macula, 100);
        let mut half = frame(b"payload");
        half.truncate(10);
        frames.push(Bytes::from(half.clone()));
        assert_eq!(deliveries(&mut frames), Vec::<Vec<u8>>::new());
        assert_eq!(frames.rest().concat(), half);
        assert_eq!(frames.held(), 0);
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20),
            cuts in prop::collection::vec(1..30_usize, 1..60),
        ) {
            let sent: Vec<Vec<u8>> = payloads.iter().map(|payload| frame(payload)).collect();
            let mut stream = Bytes::from(sent.concat());
            let mut frames = Frames::new(Packet::Macula, 100);
            let mut received = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if stream.is_empty() {
                    break;
                }
                frames.push(stream.split_to(cut.min(stream.len())));
                received.extend(deliveries(&mut frames));
            }
            prop_assert_eq!(received, sent);
            prop_assert_eq!(frames.held(), 0);
        }
    }
}
