//! The frames of a decrypted packet (RFC 9000, section 19), one after the other, for who has to
//! know which there are before quinn takes them. What they say is quinn's business.

use bytes::Buf;
use quinn_proto::VarInt;
use quinn_proto::coding::Codec;

pub(crate) const PADDING: u64 = 0x00;
pub(crate) const PING: u64 = 0x01;
pub(crate) const ACK: u64 = 0x02;
pub(crate) const ACK_ECN: u64 = 0x03;
const RESET_STREAM: u64 = 0x04;
const STOP_SENDING: u64 = 0x05;
pub(crate) const CRYPTO: u64 = 0x06;
const NEW_TOKEN: u64 = 0x07;
const STREAM: u64 = 0x08;
/// The last type of STREAM; its bits say what there is (section 19.8).
const STREAM_LAST: u64 = 0x0f;
const STREAM_HAS_OFFSET: u64 = 0x04;
const STREAM_HAS_LENGTH: u64 = 0x02;
const MAX_DATA: u64 = 0x10;
const MAX_STREAM_DATA: u64 = 0x11;
const MAX_STREAMS_BIDI: u64 = 0x12;
const MAX_STREAMS_UNI: u64 = 0x13;
const DATA_BLOCKED: u64 = 0x14;
const STREAM_DATA_BLOCKED: u64 = 0x15;
const STREAMS_BLOCKED_BIDI: u64 = 0x16;
const STREAMS_BLOCKED_UNI: u64 = 0x17;
const NEW_CONNECTION_ID: u64 = 0x18;
pub(crate) const RETIRE_CONNECTION_ID: u64 = 0x19;
const PATH_CHALLENGE: u64 = 0x1a;
const PATH_RESPONSE: u64 = 0x1b;
pub(crate) const CONNECTION_CLOSE: u64 = 0x1c;
pub(crate) const APPLICATION_CLOSE: u64 = 0x1d;
const HANDSHAKE_DONE: u64 = 0x1e;
/// Of extensions that quinn knows: draft-ietf-quic-ack-frequency, and RFC 9221, section 4, of which
/// the other type takes the rest of the packet.
const IMMEDIATE_ACK: u64 = 0x1f;
const DATAGRAM_WITH_LENGTH: u64 = 0x31;
const ACK_FREQUENCY: u64 = 0xaf;
/// Numbers in an ACK frame before its ranges, but for how many these are (section 19.3): the
/// largest packet and the delay, and the first range behind.
const ACK_NUMBERS: u64 = 2;
const ACK_FIRST_RANGE: u64 = 1;
/// Numbers of each further range: the gap and its length.
const RANGE_NUMBERS: u64 = 2;
/// Counts behind the ranges of an ACK frame with ECN: ECT(0), ECT(1) and CE.
const ECN_NUMBERS: u64 = 3;
/// What PATH_CHALLENGE and PATH_RESPONSE hold (section 19.17).
const PATH_BYTES: usize = 8;
/// A stateless reset token, behind the id of NEW_CONNECTION_ID (section 19.15).
const TOKEN_BYTES: usize = 16;

/// The type of the next frame. quinn takes a number of any length for one.
pub(crate) fn kind(frames: &mut &[u8]) -> Option<u64> {
    number(frames)
}

/// Passes over the rest of a frame of this type; `None`: nothing behind it can be read.
pub(crate) fn pass(kind: u64, frames: &mut &[u8]) -> Option<()> {
    match kind {
        PADDING => {
            pass_padding(frames);
            Some(())
        }
        PING | HANDSHAKE_DONE | IMMEDIATE_ACK => Some(()),
        ACK | ACK_ECN => pass_ack(frames, kind == ACK_ECN),
        MAX_DATA | MAX_STREAMS_BIDI | MAX_STREAMS_UNI | DATA_BLOCKED | STREAMS_BLOCKED_BIDI
        | STREAMS_BLOCKED_UNI | RETIRE_CONNECTION_ID => pass_numbers(frames, 1),
        STOP_SENDING | MAX_STREAM_DATA | STREAM_DATA_BLOCKED => pass_numbers(frames, 2),
        RESET_STREAM => pass_numbers(frames, 3),
        ACK_FREQUENCY => pass_numbers(frames, 4),
        NEW_TOKEN | DATAGRAM_WITH_LENGTH => pass_data(frames, 0),
        CRYPTO | APPLICATION_CLOSE => pass_data(frames, 1),
        CONNECTION_CLOSE => pass_data(frames, 2),
        STREAM..=STREAM_LAST if kind & STREAM_HAS_LENGTH == 0 => None,
        STREAM..=STREAM_LAST => pass_data(frames, 1 + u64::from(kind & STREAM_HAS_OFFSET != 0)),
        NEW_CONNECTION_ID => pass_new_id(frames),
        PATH_CHALLENGE | PATH_RESPONSE => pass_bytes(frames, PATH_BYTES),
        _ => None,
    }
}

/// Any more of it: a probe of the path's MTU has a thousand such frames, of a byte each.
fn pass_padding(frames: &mut &[u8]) {
    let end = frames.iter().position(|byte| u64::from(*byte) != PADDING);
    frames.advance(end.unwrap_or(frames.len()));
}

fn pass_ack(frames: &mut &[u8], has_ecn: bool) -> Option<()> {
    pass_numbers(frames, ACK_NUMBERS)?;
    let ranges = number(frames)?;
    pass_numbers(frames, ACK_FIRST_RANGE + RANGE_NUMBERS.checked_mul(ranges)?)?;
    pass_numbers(frames, if has_ecn { ECN_NUMBERS } else { 0 })
}

fn pass_new_id(frames: &mut &[u8]) -> Option<()> {
    pass_numbers(frames, 2)?;
    let (length, rest) = frames.split_first()?;
    *frames = rest;
    pass_bytes(frames, usize::from(*length) + TOKEN_BYTES)
}

/// So many numbers, and a length with so much behind it.
fn pass_data(frames: &mut &[u8], numbers: u64) -> Option<()> {
    pass_numbers(frames, numbers)?;
    let length = usize::try_from(number(frames)?).ok()?;
    pass_bytes(frames, length)
}

fn pass_bytes(frames: &mut &[u8], length: usize) -> Option<()> {
    frames.get(..length)?;
    frames.advance(length);
    Some(())
}

fn pass_numbers(frames: &mut &[u8], count: u64) -> Option<()> {
    (0..count).try_for_each(|_| number(frames).map(drop))
}

/// A variable-length integer (RFC 9000, section 16).
fn number(frames: &mut &[u8]) -> Option<u64> {
    VarInt::decode(frames).ok().map(VarInt::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each type, with the bytes that follow its type.
    #[test]
    fn every_frame_that_quinn_takes_is_passed_over_to_its_last_byte() {
        let id = [&[9, 0, 4][..], &[7; 4 + TOKEN_BYTES]].concat();
        let frames: &[(&[u64], &[u8])] = &[
            (&[0x00, 0x01, 0x1e, 0x1f], &[]),
            (&[0x02], &[9, 0, 2, 1, 0, 1, 0, 1]),
            (&[0x03], &[9, 0, 0, 4, 1, 2, 3]),
            (&[0x10, 0x12, 0x13, 0x14, 0x16, 0x17, 0x19], &[0x40, 0x19]),
            (&[0x05, 0x11, 0x15], &[1, 0x80, 0, 0, 2]),
            (&[0x04], &[1, 2, 3]),
            (&[0xaf], &[1, 2, 3, 4]),
            (&[0x07, 0x31], &[2, 8, 8]),
            (&[0x06, 0x1d, 0x0a, 0x0b], &[0, 2, 8, 8]),
            (&[0x1c, 0x0e, 0x0f], &[0, 0, 2, 8, 8]),
            (&[0x18], &id),
            (&[0x1a, 0x1b], &[1; PATH_BYTES]),
        ];
        for (kinds, bytes) in frames {
            for kind in *kinds {
                let behind = [bytes, &[0x19, 5][..]].concat();
                let mut rest = behind.as_slice();
                assert_eq!((pass(*kind, &mut rest), rest), (Some(()), &[0x19, 5][..]), "{kind:#x}");
                for end in 0..bytes.len() {
                    let mut cut = bytes.get(..end).expect("a part");
                    assert_eq!(pass(*kind, &mut cut), None, "{kind:#x} cut off at {end}");
                }
            }
        }
    }

    #[test]
    fn what_takes_the_rest_of_a_packet_has_nothing_behind_it() {
        for kind in [0x08, 0x09, 0x0c, 0x0d, 0x30, 0x20] {
            assert_eq!(pass(kind, &mut [0x19, 5].as_slice()), None, "{kind:#x}");
        }
    }
}
