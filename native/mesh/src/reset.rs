//! What lets the peers of a listener that has died be told by its successor (stateless reset, RFC
//! 9000, section 10.3): keys that a restart does not change, derived from the private key of its
//! certificate.
//!
//! Two of them, each with its own label. The key of the reset tokens is the secret. The key of
//! connection ids tells which ids were made by us, before a restart, too: only they are answered.
//! Half of an id is random, for none may ever come again: who has once been told the token of an id
//! could end any later connection that has it, as the keys stay (RFC 9000, section 10.3.2).
//!
//! The address is in them, since two listeners with one key would be an oracle for each other: who
//! sends a packet of one to the other gets the reset that ends the connection (RFC 9000, section
//! 21.11). Machines that share a key and listen at all their addresses still are such an oracle for
//! each other (docs/operations.md).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::EndpointConfig;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid, RandomConnectionIdGenerator};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::Error;
use crate::address::canonical;

/// Sets these keys apart from all else that is derived from a certificate's key.
const SALT: &[u8] = b"macula_gateway_mesh/1";
const RESET_LABEL: &[u8] = b"stateless reset";
const ID_LABEL: &[u8] = b"connection ids";
/// Bytes of a connection id: what is random, and the signature behind it.
const NONCE_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 8;
/// Bytes of a secret that ends with the process.
const SECRET_BYTES: usize = 32;
/// How long after a reset the next one may be sent: all the peers of a node that has been restarted
/// want one, of which quinn by itself sends fifty a second. Two ends cannot go on answering each
/// other: each reset is smaller than what has caused it (RFC 9000, section 10.3.3).
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// The root of the keys of one socket.
#[derive(Clone, Debug)]
pub(crate) struct ResetKeys(Prk);

impl ResetKeys {
    /// From the DER of a private key.
    pub(crate) fn derive(private_key: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(private_key))
    }

    /// For a socket that nobody looks for again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the system gives no random bytes.
    pub(crate) fn fresh() -> Result<Self, Error> {
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).map_err(|_| Error::Cancelled)?;
        Ok(Self::derive(&secret))
    }

    /// The configuration of an endpoint at `address`.
    ///
    /// # Errors
    /// None in practice: the lengths of the keys are fixed.
    pub(crate) fn endpoint_config(&self, address: SocketAddr) -> Result<EndpointConfig, Error> {
        let ids = self.ids(address)?;
        let mut config = EndpointConfig::new(Arc::new(self.key(RESET_LABEL, address)?));
        config.cid_generator(move || Box::new(ids.clone()));
        config.min_reset_interval(RESET_INTERVAL);
        Ok(config)
    }

    fn ids(&self, address: SocketAddr) -> Result<SignedIds, Error> {
        Ok(SignedIds(self.key(ID_LABEL, address)?))
    }

    fn key(&self, label: &[u8], address: SocketAddr) -> Result<hmac::Key, Error> {
        let place = canonical(address).to_string();
        let info = [label, place.as_bytes()];
        let okm = self.0.expand(&info, hmac::HMAC_SHA256).map_err(|_| Error::Cancelled)?;
        Ok(okm.into())
    }
}

/// Connection ids that whoever has the key knows for such.
#[derive(Clone, Debug)]
struct SignedIds(hmac::Key);

impl SignedIds {
    fn signed(&self, nonce: &[u8]) -> ConnectionId {
        let signature = hmac::sign(&self.0, nonce);
        let id = nonce.iter().chain(signature.as_ref().iter().take(SIGNATURE_BYTES));
        ConnectionId::new(&id.copied().collect::<Vec<u8>>())
    }
}

impl ConnectionIdGenerator for SignedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.signed(&RandomConnectionIdGenerator::new(NONCE_BYTES).generate_cid())
    }

    /// Not in constant time: who found a signature out byte by byte would have an id that nobody
    /// was given, and the token of no connection.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let nonce = id.get(..NONCE_BYTES).ok_or(InvalidCid)?;
        if self.signed(nonce) == *id { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        NONCE_BYTES + SIGNATURE_BYTES
    }

    /// They are good for as long as the connection is.
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const PLACE: &str = "127.0.0.1:4433";
    /// Enough that some would come again if three bytes of them were random; of eight, one in forty
    /// billion such sets has one that does.
    const IDS: usize = 30_000;

    fn ids(secret: &[u8], address: &str) -> SignedIds {
        let address = address.parse().expect("an address");
        ResetKeys::derive(secret).ids(address).expect("a key")
    }

    #[test]
    fn keys_follow_from_the_private_key_and_the_address_alone() {
        let id = ids(b"key", PLACE).generate_cid();
        let knows = |secret, address| ids(secret, address).validate(&id).is_ok();
        // As after a restart.
        assert!(knows(b"key", PLACE));
        assert!(knows(b"key", "[::ffff:127.0.0.1]:4433"));
        assert!(!knows(b"key", "127.0.0.1:4434"));
        assert!(!knows(b"other", PLACE));
    }

    /// Whoever could have the token of another's id told would end that connection.
    #[test]
    fn connection_ids_never_come_again() {
        let mut ids = ids(b"key", PLACE);
        let made: HashSet<ConnectionId> = (0..IDS).map(|_| ids.generate_cid()).collect();
        assert_eq!(made.len(), IDS);
        assert!(made.iter().all(|id| id.len() == ids.cid_len()));
    }

    #[test]
    fn an_id_with_any_byte_changed_is_none_of_ours() {
        let mut ids = ids(b"key", PLACE);
        let id = ids.generate_cid();
        for index in 0..id.len() {
            let mut changed = id.to_vec();
            *changed.get_mut(index).expect("a byte") ^= 1;
            assert!(ids.validate(&ConnectionId::new(&changed)).is_err(), "byte {index}");
        }
        assert!(ids.validate(&ConnectionId::new(&[])).is_err());
        assert!(ids.validate(&ConnectionId::new(&id[..NONCE_BYTES])).is_err());
    }

    #[test]
    fn fresh_keys_are_known_to_nobody_else() {
        let address = PLACE.parse().expect("an address");
        let ids = || ResetKeys::fresh().expect("random bytes").ids(address).expect("a key");
        let id = ids().generate_cid();
        assert!(ids().validate(&id).is_err());
    }
}
