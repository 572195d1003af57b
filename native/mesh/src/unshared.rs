//! Memory of its own for each packet that arrives.
//!
//! quinn takes what the kernel hands over at once, up to 64 KiB of a peer's datagrams, as one piece
//! of memory, and what is not read yet of a packet keeps all of it. The rest may be padding: with
//! one packet of data in each such piece, a peer would pin fifty times what flow control allows it,
//! and with a byte in each, thousands of times. quinn counts what a packet takes by itself. Of all
//! that sees a packet before its data is kept, only the keys are ours to choose; so these move what
//! they have decrypted.

use std::any::Any;

use bytes::BytesMut;
use quinn::Side;
use quinn::crypto::{
    CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, TransportError};

/// A TLS session whose keys give each packet memory of its own.
pub(crate) struct Unshared(pub(crate) Box<dyn Session>);

/// A key that moves what it has decrypted.
struct Mover(Box<dyn PacketKey>);

/// What is read with these keys is moved.
pub(crate) fn moved(
    KeyPair { local, remote }: KeyPair<Box<dyn PacketKey>>,
) -> KeyPair<Box<dyn PacketKey>> {
    KeyPair { local, remote: Box::new(Mover(remote)) }
}

impl Session for Unshared {
    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Keys { header, packet } = self.0.write_handshake(buf)?;
        Some(Keys { header, packet: moved(packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys().map(moved)
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        let Keys { header, packet } = self.0.initial_keys(dst_cid, side);
        Keys { header, packet: moved(packet) }
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.0.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.0.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.0.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.0.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.0.transport_parameters()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.0.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.0.export_keying_material(output, label, context)
    }
}

impl PacketKey for Mover {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.0.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.0.decrypt(packet, header, payload)?;
        *payload = BytesMut::from(&payload[..]);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        self.0.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.0.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.0.integrity_limit()
    }
}
