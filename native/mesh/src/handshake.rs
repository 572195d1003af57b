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

use crate::retirements::Retirements;
use crate::unshared::{moved, moved_if};

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
        observation(connection).parameters
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

/// The connection ids that a connection's peer has retired.
pub(crate) fn retirements(connection: &quinn::Connection) -> Arc<Retirements> {
    observation(connection).retirements
}

/// What a session gives for its handshake data.
#[derive(Default)]
struct Observation {
    parameters: PeerParameters,
    retirements: Arc<Retirements>,
}

fn observation(connection: &quinn::Connection) -> Observation {
    connection
        .handshake_data()
        .and_then(|data| data.downcast::<Observation>().ok())
        .map_or_else(Observation::default, |observation| *observation)
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

/// A TLS client configuration whose sessions report an [`Observation`] as their handshake data.
pub(crate) struct Observed(pub(crate) Arc<dyn crypto::ClientConfig>);

impl crypto::ClientConfig for Observed {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let session = self.0.clone().start_session(version, server_name, params)?;
        Ok(Box::new(ObservedSession::new(session)))
    }
}

/// A TLS session of either side.
pub(crate) struct ObservedSession {
    session: Box<dyn Session>,
    retirements: Arc<Retirements>,
}

impl ObservedSession {
    pub(crate) fn new(session: Box<dyn Session>) -> Self {
        Self { session, retirements: Arc::default() }
    }

    /// Keys behind the first ones.
    fn observed(&self, pair: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        let retirements = self.retirements.clone();
        moved_if(pair, move |number, packet| retirements.look_into(number, packet))
    }
}

impl Session for ObservedSession {
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let parameters = self.session.transport_parameters().ok().flatten()?;
        let tls = self.session.handshake_data()?.downcast::<HandshakeData>().ok()?;
        let parameters = PeerParameters {
            alpn: tls.protocol.unwrap_or_default(),
            server_name: tls.server_name,
            ..PeerParameters::read(&parameters)
        };
        Some(Box::new(Observation { parameters, retirements: self.retirements.clone() }))
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        let Keys { header, packet } = self.session.initial_keys(dst_cid, side);
        Keys { header, packet: moved(packet) }
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.session.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.session.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.session.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.session.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.session.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Keys { header, packet } = self.session.write_handshake(buf)?;
        Some(Keys { header, packet: self.observed(packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.session.next_1rtt_keys()?;
        Some(self.observed(keys))
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.session.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.session.export_keying_material(output, label, context)
    }
}
