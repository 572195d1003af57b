//! Certificates and the rustls configuration of outgoing connections. Which protocols are spoken
//! and how a server is verified is decided here; the QUIC transport is not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, InconsistentKeys, SignatureScheme};
use thiserror::Error;

/// The application protocol that every node of the mesh understands (RFC 7301).
pub const ALPN: &[u8] = b"macula";

/// A certificate chain and its private key: what we show when a peer asks who we are.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// A certificate or key file that exists and is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {fault}", path.display())]
pub struct BadCertificate {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: CertificateFault,
}

/// What is wrong with a certificate or key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateFault {
    /// It could not be read.
    #[error("{0}")]
    Unreadable(io::ErrorKind),
    /// It is not well-formed PEM (RFC 7468).
    #[error("not PEM")]
    NotPem,
    /// It has no CERTIFICATE section.
    #[error("no certificate in it")]
    NoCertificate,
    /// It has no private key section.
    #[error("no private key in it")]
    NoPrivateKey,
    /// A certificate in it cannot be parsed.
    #[error("a certificate that cannot be parsed")]
    InvalidCertificate,
    /// The key is of a kind or form that cannot sign.
    #[error("a key of no use")]
    InvalidKey,
    /// The key is not that of the first certificate.
    #[error("the key does not belong to the certificate")]
    KeyMismatch,
}

impl Identity {
    /// Reads a PEM chain and a PEM private key and checks that they belong together. Blocks.
    ///
    /// # Errors
    /// [`BadCertificate`] names the file at fault.
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, BadCertificate> {
        let chain = CertificateDer::pem_file_iter(cert_file)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| bad(cert_file, fault(&error, CertificateFault::NoCertificate)))?;
        if chain.is_empty() {
            return Err(bad(cert_file, CertificateFault::NoCertificate));
        }
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| bad(key_file, fault(&error, CertificateFault::NoPrivateKey)))?;
        let identity = Self { chain, key };
        identity.check(cert_file, key_file)?;
        Ok(identity)
    }

    fn check(&self, cert_file: &Path, key_file: &Path) -> Result<(), BadCertificate> {
        let signer = ring::sign::any_supported_type(&self.key)
            .map_err(|_| bad(key_file, CertificateFault::InvalidKey))?;
        let certified = rustls::sign::CertifiedKey::new(self.chain.clone(), signer);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(bad(key_file, CertificateFault::KeyMismatch))
            }
            Err(_) => Err(bad(cert_file, CertificateFault::InvalidCertificate)),
        }
    }
}

fn bad(path: &Path, fault: CertificateFault) -> BadCertificate {
    BadCertificate {
        path: path.to_owned(),
        fault,
    }
}

fn fault(error: &pem::Error, missing: CertificateFault) -> CertificateFault {
    match error {
        pem::Error::Io(error) => CertificateFault::Unreadable(error.kind()),
        pem::Error::NoItemsFound => missing,
        _ => CertificateFault::NotPem,
    }
}

/// The TLS side of every outgoing connection: TLS 1.3 alone, [`ALPN`], our certificate when there
/// is one, and no verification of the server's.
pub(crate) fn client_config(identity: Option<Identity>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Unverified(provider.signature_verification_algorithms));
    let builder = builder(provider)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Peers share host names (many nodes per host), tickets are kept by name, and a resumed
    // session shows no certificate: a full handshake each time says who is there.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])
}

/// Accepts any certificate, as the nodes in the field do, but not any signature: the server must
/// hold the key of the certificate that it shows (RFC 8446, section 4.4.3).
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
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
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
