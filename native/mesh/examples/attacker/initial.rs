//! Initial packets of one's own making, which anybody can write: their keys follow from an id that
//! the client has chosen (RFC 9001, section 5.2). The tests of the crate write them, too.

use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};

/// The least datagram that may begin a connection (RFC 9000, section 14.1).
const FIRST_DATAGRAM_BYTES: usize = 1_200;
/// An Initial packet of version 1 whose number takes four bytes, to an id of eight (RFC 9000,
/// section 17.2.2); behind the id, that there is neither an id of ours nor a token.
const HEAD: [u8; 6] = [0xc3, 0, 0, 0, 1, 8];
const NEITHER_ID_NOR_TOKEN: [u8; 2] = [0, 0];
const PACKET_NUMBER_BYTES: usize = 4;
/// What marks a length of two bytes (RFC 9000, section 16).
const TWO_BYTES: u16 = 0x4000;
/// PING, and PADDING up to where the sample begins that protects the header (RFC 9001, section
/// 5.4.2).
const PING: [u8; 4] = [1, 0, 0, 0];
/// CONNECTION_CLOSE without an error, a frame or a reason (RFC 9000, section 19.19).
const CLOSE: [u8; 4] = [0x1c, 0, 0, 0];
const SAMPLE_BYTES: usize = 16;

/// A datagram of two Initial packets, of which the first does nothing, so that a connection begins,
/// and the second ends it. Each id makes another connection of it.
pub(crate) fn closed_in_its_second_packet(id: [u8; 8]) -> Option<Vec<u8>> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
    let keys = Keys::initial(Version::V1, suite, suite.quic?, &id, Side::Client);
    let mut datagram = initial(&keys, id, 0, &PING)?;
    let close = initial(&keys, id, 1, &CLOSE)?.len();
    let mut frames = CLOSE.to_vec();
    frames.resize(CLOSE.len() + FIRST_DATAGRAM_BYTES.checked_sub(datagram.len() + close)?, 0);
    datagram.extend(initial(&keys, id, 1, &frames)?);
    Some(datagram)
}

fn initial(keys: &Keys, id: [u8; 8], number: u8, frames: &[u8]) -> Option<Vec<u8>> {
    let (key, mask) = (&keys.local.packet, &keys.local.header);
    let length = u16::try_from(PACKET_NUMBER_BYTES + frames.len() + key.tag_len()).ok()?;
    let length = (TWO_BYTES | length).to_be_bytes();
    let mut header = [&HEAD[..], &id, &NEITHER_ID_NOR_TOKEN, &length].concat();
    let number_at = header.len();
    header.extend([0, 0, 0, number]);
    let mut payload = frames.to_vec();
    let tag = key.encrypt_in_place(number.into(), &header, &mut payload).ok()?;
    let mut packet = [&header, &payload[..], tag.as_ref()].concat();
    let (head, rest) = packet.split_at_mut(number_at + PACKET_NUMBER_BYTES);
    let (first, number) = head.split_at_mut(number_at);
    mask.encrypt_in_place(rest.get(..SAMPLE_BYTES)?, first.first_mut()?, number).ok()?;
    Some(packet)
}
