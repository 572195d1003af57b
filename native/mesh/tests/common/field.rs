//! A server of quinn itself, as nodes in the field are or as ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// One on loopback that speaks `alpn` alone and grants so many streams, and its address.
pub(crate) fn server(alpn: &[u8], streams: u32) -> (quinn::Endpoint, SocketAddr) {
    let place = (Ipv4Addr::LOCALHOST, 0).into();
    let server = quinn::Endpoint::server(config(alpn, streams), place).expect("a server");
    let address = server.local_addr().expect("its address");
    (server, address)
}

fn config(alpn: &[u8], streams: u32) -> quinn::ServerConfig {
    let certified = rcgen::generate_simple_self_signed(["peer".into()]).expect("a certificate");
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .expect("an identity");
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = QuicServerConfig::try_from(tls).expect("a server");
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    config
}
