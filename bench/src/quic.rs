//! Sockets, TLS and transport of the benchmark's own quinn endpoints: the settings of the product
//! (native/mesh/src/settings.rs, endpoint.rs, tls.rs), written down a second time, so that the
//! ceiling is not made of the product's code.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectError, Connecting, Connection, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use socket2::{Domain, Protocol, Socket, Type};

/// The product's defaults: `udp_buffer_bytes`, `idle_timeout_ms`, `keep_alive_interval_ms`, the
/// receive window of a connection, and what a listener grants of streams.
const UDP_BUFFER_BYTES: usize = 4 * 1024 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
pub(crate) const RECEIVE_WINDOW: VarInt = VarInt::from_u32(8 * 1024 * 1024);
/// One byte more.
pub(crate) const LARGER_WINDOW: VarInt = VarInt::from_u32(8 * 1024 * 1024 + 1);
const SERVER_BIDI_STREAMS: VarInt = VarInt::from_u32(100);
const SERVER_UNI_STREAMS: VarInt = VarInt::from_u32(8);
/// What the pool grants a peer.
const CLIENT_BIDI_STREAMS: VarInt = VarInt::from_u32(0);
const CLIENT_UNI_STREAMS: VarInt = VarInt::from_u32(3);
/// The name in the certificate, and the one that is asked for.
const NAME: &str = "localhost";

/// A server on loopback that speaks `alpn`, on any free port.
pub(crate) fn server(alpn: &str) -> Result<Endpoint, Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.into()], key)?;
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls.send_tls13_tickets = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(SERVER_BIDI_STREAMS, SERVER_UNI_STREAMS, None)?);
    bind(Some(config))
}

/// A client's endpoint; one for all its connections. `send_window`: bytes that a connection may
/// have under way, if not quinn's default.
pub(crate) fn client(alpn: &str, send_window: Option<u64>) -> Result<Endpoint, Box<dyn Error>> {
    let provider = Arc::new(ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls.resumption = Resumption::disabled();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(CLIENT_BIDI_STREAMS, CLIENT_UNI_STREAMS, send_window)?);
    let mut endpoint = bind(None)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// A new connection to a server on loopback.
pub(crate) async fn connect(endpoint: &Endpoint, port: u16) -> Result<Connection, Box<dyn Error>> {
    Ok(begin(endpoint, port)?.await?)
}

/// The same, begun only.
pub(crate) fn begin(endpoint: &Endpoint, port: u16) -> Result<Connecting, ConnectError> {
    endpoint.connect((Ipv4Addr::LOCALHOST, port).into(), NAME)
}

fn bind(server: Option<ServerConfig>) -> Result<Endpoint, Box<dyn Error>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
    socket.set_send_buffer_size(UDP_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let runtime = Arc::new(TokioRuntime);
    Ok(Endpoint::new(EndpointConfig::default(), server, socket.into(), runtime)?)
}

fn transport(
    bidi: VarInt,
    uni: VarInt,
    send_window: Option<u64>,
) -> Result<Arc<TransportConfig>, Box<dyn Error>> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into()?))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(bidi)
        .max_concurrent_uni_streams(uni)
        .receive_window(RECEIVE_WINDOW)
        .datagram_receive_buffer_size(None);
    if let Some(bytes) = send_window {
        transport.send_window(bytes);
    }
    Ok(Arc::new(transport))
}

/// Believes every certificate and checks that the server holds its key, as `verify => none` does.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
