//! `macula-mesh/1` on real sockets: what a peer that breaks it is told, and that one which keeps
//! it gets through. The sender is quinn itself, so that it can do what our own never does.

#![allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
#![allow(clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;

use common::{PATIENCE, listen, next};
use mesh::{Connection, Listener, MESH_ALPN, Reader, Received, Settings, Stream};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::time::timeout;

/// A raw sender and the connection that has taken it in.
async fn connect() -> (Listener, quinn::Endpoint, quinn::Connection, Connection) {
    connect_to(Settings::default()).await
}

/// The same to a listener with these settings.
async fn connect_to(
    settings: Settings,
) -> (Listener, quinn::Endpoint, quinn::Connection, Connection) {
    let (listener, address) = listen(settings);
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("an endpoint");
    let connecting = endpoint.connect_with(client(), address, "peer").expect("a dial");
    let accepted = next(|waiter| listener.request(1, waiter));
    let (sender, receiver) = tokio::join!(connecting, accepted);
    (listener, endpoint, sender.expect("a connection"), receiver)
}

async fn send(connection: &quinn::Connection, bytes: &[u8]) {
    let mut stream = connection.open_uni().await.expect("a stream");
    stream.write_all(bytes).await.expect("written");
    stream.finish().expect("finished");
}

async fn reader(connection: &Connection) -> Reader {
    let stream: Stream = next(|waiter| connection.request_stream(1, waiter)).await;
    stream.bytes().and_then(mesh::ByteStream::take_reader).expect("a reader")
}

async fn receive(reader: &mut Reader) -> Vec<u8> {
    match timeout(PATIENCE, reader.receive()).await.expect("in time") {
        Received::Data { parts, .. } => parts.concat(),
        other => panic!("no message but {other:?}"),
    }
}

/// The code that a sender of `bytes` is closed with, who ends the stream behind them or not.
async fn code_for(bytes: &[u8], ends: bool) -> u64 {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    let mut stream = sender.open_uni().await.expect("a stream");
    stream.write_all(bytes).await.expect("written");
    if ends {
        stream.finish().expect("finished");
    }
    let mut reader = reader(&receiver).await;
    let reading = tokio::spawn(async move { reader.receive().await });
    let closed = timeout(PATIENCE, sender.closed()).await.expect("in time");
    reading.abort();
    match closed {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("not closed by code but {other}"),
    }
}

#[tokio::test]
async fn the_end_of_the_connection_ends_the_reading_when_all_is_read() {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    send(&sender, &[0, 3, b'o', b'n', b'e']).await;
    let mut reader = reader(&receiver).await;
    assert_eq!(receive(&mut reader).await, b"one");
    sender.close(7_u32.into(), b"");
    let end = timeout(PATIENCE, reader.receive()).await.expect("an end");
    assert_eq!(end, Received::Lost(mesh::Error::ClosedByPeer(7)));
}

#[tokio::test]
async fn a_stream_of_no_known_kind_closes_the_connection() {
    assert_eq!(code_for(&[9, 1, 1], true).await, 0x4d01);
}

#[tokio::test]
async fn a_message_beyond_the_limit_closes_the_connection() {
    // 100,001 as a variable-length integer of four bytes.
    assert_eq!(code_for(&[0, 0x80, 0x01, 0x86, 0xa1], true).await, 0x4d02);
}

#[tokio::test]
async fn a_stream_that_ends_within_a_message_closes_the_connection() {
    assert_eq!(code_for(&[0, 3, b'a', b'b'], true).await, 0x4d03);
}

#[tokio::test]
async fn a_large_message_with_more_behind_it_closes_the_connection() {
    assert_eq!(code_for(&[1, 1, b'a', 0], true).await, 0x4d03);
}

#[tokio::test]
async fn a_large_message_with_more_behind_it_is_not_waited_for_to_end() {
    assert_eq!(code_for(&[1, 1, b'a', 0], false).await, 0x4d03);
    assert_eq!(code_for(&[1, 0, 0], false).await, 0x4d03);
}

#[tokio::test]
async fn all_streams_that_were_granted_are_kept_until_somebody_reads() {
    const GRANTED: u8 = 100;
    let mut settings = Settings::default();
    settings.transport.set("peer_unidi_stream_count", GRANTED.into()).expect("a count");
    let (_listener, _endpoint, sender, receiver) = connect_to(settings).await;
    for number in 0..GRANTED {
        send(&sender, &[0, 1, number]).await;
    }
    let mut reader = reader(&receiver).await;
    for number in 0..GRANTED {
        assert_eq!(receive(&mut reader).await, [number]);
    }
}

#[tokio::test]
async fn ordered_streams_are_one_sequence_whenever_they_arrive() {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    let mut first = sender.open_uni().await.expect("a stream");
    first.write_all(&[0, 1, b'a']).await.expect("written");
    send(&sender, &[0, 1, b'c', 1, b'd']).await;
    let mut reader = reader(&receiver).await;
    assert_eq!(receive(&mut reader).await, b"a");
    // A message out of order passes while the second stream waits for the first.
    send(&sender, &[1, 1, b'x']).await;
    assert_eq!(receive(&mut reader).await, b"x");
    first.write_all(&[1, b'b']).await.expect("written");
    assert_eq!(receive(&mut reader).await, b"b");
    first.finish().expect("finished");
    assert_eq!(receive(&mut reader).await, b"c");
    assert_eq!(receive(&mut reader).await, b"d");
}

#[tokio::test]
async fn a_large_message_on_its_way_holds_up_no_small_one() {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    let mut large = sender.open_uni().await.expect("a stream");
    large.write_all(&[1, 3, b'x', b'y']).await.expect("written");
    send(&sender, &[0, 1, b'a']).await;
    let mut reader = reader(&receiver).await;
    assert_eq!(receive(&mut reader).await, b"a");
    large.write_all(b"z").await.expect("written");
    large.finish().expect("finished");
    assert_eq!(receive(&mut reader).await, b"xyz");
}

#[tokio::test]
async fn a_large_message_that_is_whole_is_delivered_though_its_stream_has_no_end() {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    let mut large = sender.open_uni().await.expect("a stream");
    large.write_all(&[1, 3, b'x', b'y', b'z']).await.expect("written");
    // It has arrived when what was sent behind it is there.
    send(&sender, &[0, 1, b'a']).await;
    let mut reader = reader(&receiver).await;
    assert_eq!(receive(&mut reader).await, b"a");
    sender.close(7_u32.into(), b"");
    assert_eq!(receive(&mut reader).await, b"xyz");
}

#[tokio::test]
async fn a_stream_that_is_given_up_holds_up_no_other() {
    let (_listener, _endpoint, sender, receiver) = connect().await;
    let mut first = sender.open_uni().await.expect("a stream");
    first.write_all(&[0, 1, b'a', 5, b'b']).await.expect("written");
    let mut reader = reader(&receiver).await;
    assert_eq!(receive(&mut reader).await, b"a");
    first.reset(7_u32.into()).expect("reset");
    send(&sender, &[0, 1, b'c']).await;
    assert_eq!(receive(&mut reader).await, b"c");
}

fn client() -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![MESH_ALPN.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a client")))
}

/// The certificate was made a moment ago for this test.
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
