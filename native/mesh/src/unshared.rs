//! Memory of its own for each packet that arrives.
//!
//! quinn takes what the kernel hands over at once, up to 64 KiB of a peer's datagrams, as one piece
//! of memory, and what is not read yet of a packet keeps all of it. The rest may be padding: with
//! one packet of data in each such piece, a peer would pin fifty times what flow control allows it,
//! and with a byte in each, thousands of times. quinn counts what a packet takes by itself. Of all
//! that sees a packet before its data is kept, only the keys are ours to choose; so these move what
//! they have decrypted.

use bytes::BytesMut;
use quinn::crypto::{CryptoError, KeyPair, PacketKey};

/// A key that moves what it has decrypted.
struct Mover(Box<dyn PacketKey>);

/// What is read with these keys is moved.
pub(crate) fn moved(
    KeyPair { local, remote }: KeyPair<Box<dyn PacketKey>>,
) -> KeyPair<Box<dyn PacketKey>> {
    KeyPair { local, remote: Box::new(Mover(remote)) }
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
