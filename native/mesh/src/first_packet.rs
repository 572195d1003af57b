//! First packets that end the connection that they begin: a client whose dial is taken back before
//! anything has left sends a CONNECTION_CLOSE and nothing else, and so may anybody.
//!
//! quinn makes a connection of such a packet and keeps it for its idle timeout, where no limit of
//! ours counts it: the end of the draining period (RFC 9000, section 10.2) is set for later packets
//! only. Of all that may look into a first packet, only its keys are ours to choose. So these say
//! of such a packet that it cannot be read, and quinn keeps nothing.

use std::sync::Arc;

use bytes::BytesMut;
use quinn::crypto::{self, CryptoError, KeyPair, Keys, Session, UnsupportedVersion};
use quinn_proto::ConnectionId;
use quinn_proto::transport_parameters::TransportParameters;

use crate::handshake::ObservedSession;
use crate::quic_frames::{
    ACK, ACK_ECN, APPLICATION_CLOSE, CONNECTION_CLOSE, CRYPTO, PADDING, PING, kind, pass,
};
use crate::unshared::{Stepped, moved};

/// A TLS server configuration for which a first packet that ends its connection is none.
pub(crate) struct Screened(pub(crate) Arc<dyn crypto::ServerConfig>);

impl crypto::ServerConfig for Screened {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        let Keys { header, packet } = self.0.initial_keys(version, dst_cid)?;
        let KeyPair { local, remote: key } = moved(packet);
        // Those behind the first one are read with the session's own.
        let first = Stepped {
            key,
            step: |_, payload: &mut BytesMut| {
                if ends_connection(payload) { Err(CryptoError) } else { Ok(()) }
            },
        };
        Ok(Keys { header, packet: KeyPair { local, remote: Box::new(first) } })
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let session = self.0.clone().start_session(version, params);
        Box::new(ObservedSession::new(session))
    }
}

/// Whether there is a CONNECTION_CLOSE among these frames. For all that is wrong otherwise, quinn
/// turns a first packet away itself.
pub(crate) fn ends_connection(mut frames: &[u8]) -> bool {
    while let Some(kind) = kind(&mut frames) {
        let passed = match kind {
            // What an Initial packet may hold (RFC 9000, section 17.2.2), ...
            PADDING | PING | ACK | ACK_ECN | CRYPTO => pass(kind, &mut frames),
            // ... of the second only in name: quinn takes either.
            CONNECTION_CLOSE | APPLICATION_CLOSE => return true,
            _ => None,
        };
        if passed.is_none() {
            break;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE: [u8; 4] = [0x1c, 0, 0, 0];

    fn closes_behind(frames: &[u8]) -> bool {
        ends_connection(&[frames, &CLOSE].concat())
    }

    #[test]
    fn a_close_is_found_behind_all_that_may_come_before_it() {
        assert!(closes_behind(&[]));
        assert!(closes_behind(&[0; 1_000]), "padding");
        assert!(closes_behind(&[0x01]), "ping");
        assert!(closes_behind(&[0x06, 0, 3, 0x02, 0x02, 0x02]), "crypto");
        assert!(closes_behind(&[0x02, 9, 0, 0, 4]), "ack");
        assert!(closes_behind(&[0x02, 9, 0, 2, 1, 0, 1, 0, 1]), "ack of three ranges");
        assert!(closes_behind(&[0x03, 9, 0, 0, 4, 1, 2, 3]), "ack with ecn");
    }

    #[test]
    fn a_close_is_one_by_either_type_in_any_length() {
        assert!(ends_connection(&[0x1d, 0, 0]));
        assert!(ends_connection(&[0x40, 0x1c, 0, 0, 0]));
        assert!(ends_connection(&[0xc0, 0, 0, 0, 0, 0, 0, 0x1d, 0, 0]));
        assert!(ends_connection(&[0x1c]), "cut off");
    }

    #[test]
    fn what_only_looks_like_a_close_is_none() {
        assert!(!ends_connection(&[]));
        assert!(!ends_connection(&[0x06, 0, 4, 0x1c, 0, 0, 0]), "data");
        assert!(!closes_behind(&[0x06, 0, 5]), "data that is cut off");
        assert!(!closes_behind(&[0x02, 9, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
        assert!(!closes_behind(&[0x08]), "behind a frame that has no place here");
    }
}
