//! What lets the peers of a listener that has died be told by its successor (stateless reset, RFC
//! 9000, section 10.3): keys that a restart does not change, derived from the private key of its
//! certificate.
//!
//! Two of them, each with its own label. The key of connection ids tells which ids were made by
//! us; quinn mixes it in by a hash that gives it away to whoever has seen some of them, so it must
//! lead to nothing else. The key of the reset tokens is the secret.
//!
//! The address is in them, since two listeners with one key would be an oracle for each other: who
//! sends a packet of one to the other gets the reset that ends the connection (RFC 9000, section
//! 21.11). Machines that share a key and listen at all their addresses still are such an oracle for
//! each other (docs/operations.md).

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::hmac;

use crate::Error;
use crate::address::canonical;

/// Sets these keys apart from all else that is derived from a certificate's key.
const SALT: &[u8] = b"macula_gateway_mesh/1";
const RESET_LABEL: &[u8] = b"stateless reset";
const ID_LABEL: &[u8] = b"connection id";

/// The root of the keys of one listener.
#[derive(Clone, Debug)]
pub(crate) struct ResetKeys(Prk);

impl ResetKeys {
    /// From the DER of a private key.
    pub(crate) fn derive(private_key: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(private_key))
    }

    /// The configuration of an endpoint at `address`.
    ///
    /// # Errors
    /// None in practice: the lengths of the keys are fixed.
    pub(crate) fn endpoint_config(&self, address: SocketAddr) -> Result<EndpointConfig, Error> {
        let place = canonical(address).to_string();
        let reset: hmac::Key = self
            .0
            .expand(&[RESET_LABEL, place.as_bytes()], hmac::HMAC_SHA256)
            .map_err(|_| Error::Cancelled)?
            .into();
        let id_key = self.id_key(address)?;
        let mut config = EndpointConfig::new(Arc::new(reset));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
        Ok(config)
    }

    fn id_key(&self, address: SocketAddr) -> Result<u64, Error> {
        let place = canonical(address).to_string();
        let mut key = [0; size_of::<u64>()];
        self.0
            .expand(&[ID_LABEL, place.as_bytes()], IdKey)
            .and_then(|okm| okm.fill(&mut key))
            .map_err(|_| Error::Cancelled)?;
        Ok(u64::from_be_bytes(key))
    }
}

/// The length of a key of connection ids.
struct IdKey;

impl ring::hkdf::KeyType for IdKey {
    fn len(&self) -> usize {
        size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection_id(secret: &[u8], address: &str) -> u64 {
        let address = address.parse().expect("an address");
        ResetKeys::derive(secret).id_key(address).expect("a key")
    }

    #[test]
    fn keys_follow_from_the_private_key_and_the_address_alone() {
        let id = connection_id(b"key", "127.0.0.1:4433");
        assert_eq!(connection_id(b"key", "127.0.0.1:4433"), id);
        assert_eq!(connection_id(b"key", "[::ffff:127.0.0.1]:4433"), id);
        assert_ne!(connection_id(b"key", "127.0.0.1:4434"), id);
        assert_ne!(connection_id(b"other", "127.0.0.1:4433"), id);
    }
}
