//! A client's seat, among what quinn keeps of its connection: one that is over stays for three
//! probe timeouts (RFC 9000, section 10.2), with all that nobody has read, and how long these are
//! is up to the client. Nothing tells when they have passed. But the configuration that a
//! connection was accepted with goes with it; so each has its own, and the seat is in there.

use std::sync::Arc;

use quinn::ServerConfig;
use quinn::crypto::{self, Keys, Session, UnsupportedVersion};
use quinn_proto::ConnectionId;
use quinn_proto::transport_parameters::TransportParameters;

use crate::census::Seat;

/// What one client is accepted with; its seat is given back when quinn keeps nothing of it.
pub(crate) fn seated(server: &ServerConfig, seat: Arc<Seat>) -> Arc<ServerConfig> {
    let mut server = server.clone();
    server.crypto = Arc::new(Seated { crypto: server.crypto, _seat: seat });
    Arc::new(server)
}

/// A TLS server configuration with somebody's seat.
struct Seated {
    crypto: Arc<dyn crypto::ServerConfig>,
    _seat: Arc<Seat>,
}

impl crypto::ServerConfig for Seated {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.crypto.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.crypto.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        self.crypto.clone().start_session(version, params)
    }
}
