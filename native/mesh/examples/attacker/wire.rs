//! What no QUIC library would send by itself. quinn makes the packets, keeps count and gets the
//! acknowledgements; what they say is written over just before they are encrypted.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use quinn::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    Session,
};
use quinn::{ConnectError, Side, VarInt};
use quinn_proto::coding::Codec;
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, TransportError};

/// The first byte of a packet with a long header (RFC 9000, section 17.2), ...
const LONG_HEADER: u8 = 0x80;
/// ... and of a Handshake packet: what tells it from others, but not the fixed bit, which quinn
/// leaves to chance (RFC 9287).
const HANDSHAKE: u8 = 0xa0;
const KIND: u8 = 0xb0;
/// PADDING and PING (RFC 9000, sections 19.1 and 19.2).
const PADDING: u8 = 0x00;
const PING: u8 = 0x01;
/// STOP_SENDING (RFC 9000, section 19.5).
const STOP_SENDING: u64 = 0x05;
/// STREAM with an offset and a length (RFC 9000, section 19.8).
const STREAM: u64 = 0x0e;
/// RETIRE_CONNECTION_ID (RFC 9000, section 19.16).
const RETIRE_CONNECTION_ID: u64 = 0x19;
/// What surely fits into a packet that carries as much as it can.
pub(crate) const PACKET_BYTES: usize = 1_100;

/// What the packets of one connection say.
#[derive(Clone, Debug)]
pub(crate) enum Pen {
    /// What they should.
    Honest,
    /// Handshake packets say nothing.
    Mute,
    /// Full packets say this, one after the other, and then nothing.
    Script(Arc<Script>),
}

/// Frames for packets to come.
#[derive(Debug, Default)]
pub(crate) struct Script(Mutex<VecDeque<Vec<u8>>>);

impl Script {
    pub(crate) fn new(payloads: impl IntoIterator<Item = Vec<u8>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(payloads.into_iter().collect())))
    }

    /// Packets that are still to be written.
    pub(crate) fn left(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames joined to payloads of full packets.
pub(crate) fn packets(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut packets = vec![Vec::new()];
    for frame in frames {
        match packets.last_mut() {
            Some(last) if last.len() + frame.len() <= PACKET_BYTES => last.extend(frame),
            _ => packets.push(frame),
        }
    }
    packets
}

pub(crate) fn stream(id: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
    let mut frame = integers([STREAM, id, offset, length]);
    frame.extend(data);
    frame
}

/// PING alone.
pub(crate) fn nothing() -> Vec<u8> {
    vec![PING]
}

pub(crate) fn stop_sending(id: u64, code: u64) -> Vec<u8> {
    integers([STOP_SENDING, id, code])
}

pub(crate) fn retire_connection_id(number: u64) -> Vec<u8> {
    integers([RETIRE_CONNECTION_ID, number])
}

/// Variable-length integers (RFC 9000, section 16).
fn integers<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        VarInt::from_u64(number).unwrap_or(VarInt::MAX).encode(&mut bytes);
    }
    bytes
}

impl Pen {
    fn write_over(&self, is_handshake: bool, payload: &mut [u8]) {
        match self {
            Self::Mute if is_handshake => payload.fill(PING),
            Self::Script(script) if !is_handshake && payload.len() >= PACKET_BYTES => {
                let frames = script.lock().pop_front().unwrap_or_else(nothing);
                payload.fill(PADDING);
                for (byte, said) in payload.iter_mut().zip(frames) {
                    *byte = said;
                }
            }
            _ => {}
        }
    }
}

/// A TLS client configuration whose connections' packets are written with a pen.
pub(crate) struct Rewritten {
    pub(crate) honest: Arc<dyn ClientConfig>,
    pub(crate) pen: Pen,
}

impl ClientConfig for Rewritten {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let honest = self.honest.clone().start_session(version, server_name, params)?;
        Ok(Box::new(RewrittenSession { honest, pen: self.pen.clone() }))
    }
}

struct RewrittenSession {
    honest: Box<dyn Session>,
    pen: Pen,
}

impl RewrittenSession {
    fn rewritten(&self, pair: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        let local = RewrittenKey { honest: pair.local, pen: self.pen.clone() };
        KeyPair { local: Box::new(local), remote: pair.remote }
    }
}

impl Session for RewrittenSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.honest.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.honest.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.honest.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.honest.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.honest.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.honest.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.honest.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.honest.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let keys = self.honest.write_handshake(buf)?;
        Some(Keys { header: keys.header, packet: self.rewritten(keys.packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.honest.next_1rtt_keys()?;
        Some(self.rewritten(keys))
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.honest.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.honest.export_keying_material(output, label, context)
    }
}

struct RewrittenKey {
    honest: Box<dyn PacketKey>,
    pen: Pen,
}

impl PacketKey for RewrittenKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let first = buf.first().copied().unwrap_or_default();
        let is_handshake = first & KIND == HANDSHAKE;
        let payload = header_len..buf.len().saturating_sub(self.tag_len());
        if (is_handshake || first & LONG_HEADER == 0)
            && let Some(payload) = buf.get_mut(payload)
        {
            self.pen.write_over(is_handshake, payload);
        }
        self.honest.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.honest.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.honest.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.honest.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.honest.integrity_limit()
    }
}
