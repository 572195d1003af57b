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

/// A key for reading with one step more: what is done with a packet that has been decrypted, before
/// quinn sees it.
pub(crate) struct Stepped<S> {
    pub(crate) key: Box<dyn PacketKey>,
    pub(crate) step: S,
}

/// What is read with these keys has memory of its own.
pub(crate) fn moved(pair: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
    moved_if(pair, |_, _| Ok(()))
}

/// The same; and what `check` refuses, given the packet's number, counts as not read.
pub(crate) fn moved_if(
    KeyPair { local, remote }: KeyPair<Box<dyn PacketKey>>,
    check: impl Fn(u64, &[u8]) -> Result<(), CryptoError> + Send + Sync + 'static,
) -> KeyPair<Box<dyn PacketKey>> {
    let step = move |number, payload: &mut BytesMut| {
        *payload = BytesMut::from(&payload[..]);
        check(number, payload)
    };
    KeyPair { local, remote: Box::new(Stepped { key: remote, step }) }
}

impl<S> PacketKey for Stepped<S>
where
    S: Fn(u64, &mut BytesMut) -> Result<(), CryptoError> + Send + Sync,
{
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.key.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.key.decrypt(packet, header, payload)?;
        (self.step)(packet, payload)
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}
