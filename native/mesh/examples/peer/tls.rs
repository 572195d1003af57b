//! Who this peer says it is, and what it asks of those who dial.

use std::error::Error;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use crate::args::Args;
use crate::signer::{self, Identity};

/// The names in the self-signed certificate: all that loopback is called.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// TLS 1.3 with the one ALPN name of `args`.
pub(crate) fn server_config(args: &Args) -> Result<Arc<QuicServerConfig>, Box<dyn Error>> {
    let provider = Arc::new(ring::default_provider());
    let identity = match &args.identity {
        Some((cert, key)) => signer::read(cert, key)?,
        None => new_identity()?,
    };
    let any_client =
        AnyClient { provider: Arc::clone(&provider), mandatory: args.require_client_cert };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(any_client))
        .with_cert_resolver(signer::shown(identity, args.corrupt_signature)?);
    config.alpn_protocols = vec![args.alpn.clone().into_bytes()];
    Ok(Arc::new(config.try_into()?))
}

fn new_identity() -> Result<Identity, Box<dyn Error>> {
    let made = rcgen::generate_simple_self_signed(NAMES.map(String::from))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    Ok((vec![made.cert.into()], key))
}

/// Asks every client for a certificate and takes any whose key the client has: certificates in the
/// field are self-signed, and tests want to see which one came.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
