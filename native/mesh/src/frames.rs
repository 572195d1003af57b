//! Cuts a byte stream into protocol frames, however QUIC has cut or joined it. Pure data.
//!
//! A frame is 1 byte version, 1 byte type, 1 byte flags, 1 byte reserved, 4 bytes payload length
//! (big-endian), and the payload. A stream whose first byte, or whose first byte after a whole
//! frame, is not the version carries no frames from there on, and its bytes pass as they come.

use std::sync::Arc;

use bytes::Bytes;

use crate::parts::Parts;
use crate::unfinished::{Place, Room};

/// The version byte that a frame begins with.
const VERSION: u8 = 1;
/// Bytes before the payload.
const HEADER_BYTES: usize = 8;
/// An unfinished frame up to this size needs no room of its own: one on each stream is little, and
/// a peer's long frames must not hold up its short ones.
const SHORT_BYTES: usize = 65_536;

/// How a stream's bytes are cut into deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// One protocol frame each.
    Macula,
    /// As they come.
    Raw,
}

/// A frame that is longer than allowed, or than there is room for: its whole length in bytes,
/// header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) u64);

/// The bytes of one stream that have not been delivered yet.
#[derive(Debug)]
pub(crate) struct Frames {
    packet: Packet,
    max_bytes: usize,
    parts: Parts,
    room: Arc<Room>,
    place: Option<Place>,
}

impl Frames {
    /// `room` is that of all streams of the connection.
    pub(crate) fn new(packet: Packet, max_bytes: usize, room: Arc<Room>) -> Self {
        Self { packet, max_bytes, parts: Parts::default(), room, place: None }
    }

    pub(crate) fn set_packet(&mut self, packet: Packet) {
        self.packet = packet;
    }

    /// Adds what has arrived.
    pub(crate) fn push(&mut self, data: Bytes) {
        self.parts.push(data);
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.parts.held()
    }

    /// The next delivery, in parts to be joined; `None`: more has to arrive first.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Bytes>>, TooLong> {
        let Some(first) = self.parts.bytes().next() else {
            return Ok(None);
        };
        if self.packet == Packet::Macula && first != VERSION {
            self.packet = Packet::Raw;
        }
        if self.packet == Packet::Raw {
            return Ok(Some(self.rest()));
        }
        let Some(length) = self.frame_length() else {
            return Ok(None);
        };
        match usize::try_from(length) {
            Ok(whole) if whole <= self.max_bytes => {
                if self.parts.held() >= whole {
                    self.place = None;
                    return Ok(Some(self.parts.take(whole)));
                }
                if whole > SHORT_BYTES && self.place.is_none() {
                    self.place = Some(self.room.take(whole).ok_or(TooLong(length))?);
                }
                Ok(None)
            }
            _ => Err(TooLong(length)),
        }
    }

    /// All that is held: at the end of a stream nothing more will complete it.
    pub(crate) fn rest(&mut self) -> Vec<Bytes> {
        self.place = None;
        self.parts.take_all()
    }

    /// The length of the frame at the front, once its header has arrived.
    fn frame_length(&self) -> Option<u64> {
        let mut header = self.parts.bytes();
        let length: [u8; 4] = {
            let mut field = header.by_ref().skip(HEADER_BYTES - size_of::<u32>());
            [field.next()?, field.next()?, field.next()?, field.next()?]
        };
        Some(HEADER_BYTES as u64 + u64::from(u32::from_be_bytes(length)))
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

    fn frames(max_bytes: usize) -> Frames {
        Frames::new(Packet::Macula, max_bytes, Room::new(max_bytes))
    }

    fn deliveries(frames: &mut Frames) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| frames.next().expect("no long frame")).map(|p| p.concat()).collect()
    }

    #[test]
    fn a_frame_beyond_the_limit_is_told_by_its_length_before_it_arrives() {
        let mut frames = frames(100);
        frames.push(Bytes::from(frame(&[0; 93])).slice(..HEADER_BYTES));
        assert_eq!(frames.next(), Err(TooLong(101)));
    }

    #[test]
    fn bytes_that_are_no_frame_pass_as_they_come() {
        let mut frames = frames(100);
        frames.push(Bytes::from([frame(b"one"), b"text".to_vec()].concat()));
        frames.push(Bytes::from_static(&[VERSION, 2]));
        assert_eq!(
            deliveries(&mut frames),
            vec![frame(b"one"), [b"text".as_slice(), &[VERSION, 2]].concat()]
        );
    }

    #[test]
    fn an_unfinished_frame_is_left_for_the_end() {
        let mut frames = frames(100);
        let mut half = frame(b"payload");
        half.truncate(10);
        frames.push(Bytes::from(half.clone()));
        assert_eq!(deliveries(&mut frames), Vec::<Vec<u8>>::new());
        assert_eq!(frames.rest().concat(), half);
        assert_eq!(frames.held(), 0);
    }

    #[test]
    fn long_frames_of_a_connection_share_its_room() {
        let most = 4 * SHORT_BYTES;
        let room = Room::new(most);
        let mut streams = [(); 3].map(|()| Frames::new(Packet::Macula, most, room.clone()));
        let long = Bytes::from(frame(&vec![0; 2 * SHORT_BYTES]));
        let [first, second, third] = &mut streams;
        for stream in [&mut *first, &mut *second] {
            stream.push(long.slice(..100));
        }
        assert_eq!(first.next(), Ok(None));
        assert_eq!(second.next(), Err(TooLong(long.len() as u64)));
        // A short one needs none, and a finished one gives its room back.
        let short = Bytes::from(frame(&[0; 1_000]));
        third.push(short.slice(..500));
        assert_eq!(third.next(), Ok(None));
        first.push(long.slice(100..));
        assert_eq!(deliveries(first), vec![long.to_vec()]);
        assert_eq!(second.next(), Ok(None));
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20),
            cuts in prop::collection::vec(1..30_usize, 1..60),
        ) {
            let sent: Vec<Vec<u8>> = payloads.iter().map(|payload| frame(payload)).collect();
            let mut stream = Bytes::from(sent.concat());
            let mut frames = frames(100);
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
