//! What a peer's transport parameters say and quinn keeps to itself. A keep-alive must come
//! before the *negotiated* idle timeout, and a peer that returns stream credit is told from one
//! that never does by what it granted at first; so this wraps the TLS session, through which the
//! parameters pass, and reads them. From it come the keys, too: see `unshared.rs`.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use quinn::crypto::rustls::HandshakeData;
use quinn::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
};
use quinn::{ConnectError, Side};
use quinn_proto::coding::Codec;
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, TransportError, VarInt};

use crate::unshared::moved;

/// max_idle_timeout (RFC 9000, section 18.2), in milliseconds; 0 or absent: none.
const MAX_IDLE_TIMEOUT: u64 = 0x01;
/// initial_max_streams_bidi (RFC 9000, section 18.2).
const INITIAL_MAX_STREAMS_BIDI: u64 = 0x08;

/// What the peer declared in the handshake, and what was agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerParameters {
    /// The application protocol agreed on (RFC 7301).
    pub(crate) alpn: Vec<u8>,
    /// The name that a client asked for.
    pub(crate) server_name: Option<String>,
    /// Silence after which the peer gives the connection up; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// Bidirectional streams that we may open before any credit comes back.
    pub(crate) bidi_streams: u64,
}

impl PeerParameters {
    /// The parameters of a connection's peer.
    pub(crate) fn of(connection: &quinn::Connection) -> Self {
        connection
            .handshake_data()
            .and_then(|data| data.downcast::<Self>().ok())
            .map_or_else(Self::default, |parameters| *parameters)
    }

    pub(crate) fn read(parameters: &TransportParameters) -> Self {
        let mut encoded = Vec::new();
        parameters.write(&mut encoded);
        let mut found = Self::default();
        let mut rest = encoded.as_slice();
        while let Some((id, value)) = next_parameter(&mut rest) {
            match id {
                MAX_IDLE_TIMEOUT if value > 0 => {
                    found.idle_timeout = Some(Duration::from_millis(value));
                }
                INITIAL_MAX_STREAMS_BIDI => found.bidi_streams = value,
                _ => {}
            }
        }
        found
    }
}

/// One parameter: id, length and value, all but the value variable-length integers (RFC 9000,
/// section 18). The value of one that is no integer is given as 0.
fn next_parameter(rest: &mut &[u8]) -> Option<(u64, u64)> {
    let id = VarInt::decode(rest).ok()?;
    let length = usize::try_from(VarInt::decode(rest).ok()?.into_inner()).ok()?;
    let mut value = rest.get(..length)?;
    rest.advance(length);
    let integer = VarInt::decode(&mut value).map_or(0, VarInt::into_inner);
    Some((id.into_inner(), integer))
}

/// A TLS client configuration whose sessions report [`PeerParameters`] as their handshake data.
pub(crate) struct Observed(pub(crate) Arc<dyn crypto::ClientConfig>);

impl crypto::ClientConfig for Observed {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let session = self.0.clone().start_session(version, server_name, params)?;
        Ok(Box::new(ObservedSession(session)))
    }
}

/// A TLS session of either side.
pub(crate) struct ObservedSession(pub(crate) Box<dyn Session>);

impl Session for ObservedSession {
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let parameters = self.0.transport_parameters().ok().flatten()?;
        let tls = self.0.handshake_data()?.downcast::<HandshakeData>().ok()?;
        Some(Box::new(PeerParameters {
            alpn: tls.protocol.unwrap_or_default(),
            server_name: tls.server_name,
            ..PeerParameters::read(&parameters)
        }))
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        let Keys { header, packet } = self.0.initial_keys(dst_cid, side);
        Keys { header, packet: moved(packet) }
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

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Keys { header, packet } = self.0.write_handshake(buf)?;
        Some(Keys { header, packet: moved(packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys().map(moved)
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
