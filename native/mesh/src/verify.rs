//! How the other side proves who it is. TLS 1.3 signatures are checked in every mode: whoever
//! shows a certificate holds its key (RFC 8446, section 4.4.3). What is decided here is whose key
//! it has to be.

use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use thiserror::Error;

/// The DER prefix of an Ed25519 public key; the 32 bytes of the key follow (RFC 8410, section 4).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What the other side has to prove.
#[derive(Clone, Debug, Default)]
pub enum Verification {
    /// Nothing.
    #[default]
    None,
    /// A certificate that one of the roots vouches for (RFC 5280), valid now.
    Peer {
        /// Whom we trust.
        roots: Arc<RootCertStore>,
        /// Whether a server's certificate must also name the host (RFC 6125).
        check_name: bool,
        /// Certificates that the peer may show besides its own.
        max_depth: usize,
    },
    /// A certain key.
    Key(KeyRule),
}

/// Which key it has to be, whatever the certificate around it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// The one whose SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7) has this SHA-256.
    SpkiSha256([u8; 32]),
    /// The node's own: its id is the SHA-256 of the key's SubjectPublicKeyInfo.
    NodeSpkiSha256,
    /// The node's own: its id is the Ed25519 public key (RFC 8032).
    NodeEd25519,
}

/// Why the other side was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It showed no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// Its certificate cannot be parsed or used.
    #[error("a certificate of no use")]
    BadCertificate,
    /// Nobody whom we trust vouches for it.
    #[error("unknown issuer")]
    UnknownIssuer,
    /// Its certificate is no longer valid.
    #[error("expired")]
    Expired,
    /// Its certificate is not valid yet.
    #[error("not valid yet")]
    NotValidYet,
    /// Its certificate was revoked.
    #[error("revoked")]
    Revoked,
    /// Its certificate is for another name.
    #[error("wrong name")]
    WrongName,
    /// Its certificate is not for this purpose.
    #[error("wrong purpose")]
    WrongPurpose,
    /// Its certificate was not signed by who is said to have signed it.
    #[error("bad signature")]
    BadSignature,
    /// The handshake was not signed with its certificate's key: whoever it is has a copy of the
    /// certificate, which is no secret, and not the key.
    #[error("key not proven")]
    KeyNotProven,
    /// It has another key.
    #[error("wrong key")]
    WrongKey,
}

/// Who the other side has shown itself to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Its public key, if that is one of Ed25519.
    pub ed25519: Option<[u8; 32]>,
}

impl PeerIdentity {
    /// Of the other side of `connection`, if it showed a certificate.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        Self::read(chain.first()?)
    }

    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
        let ed25519 = spki.strip_prefix(&ED25519_SPKI_PREFIX);
        Some(Self {
            certificate: certificate.to_vec(),
            spki_sha256: sha256(&spki),
            ed25519: ed25519.and_then(|key| key.try_into().ok()),
        })
    }
}

impl KeyRule {
    /// Checks the key of the server at `connection`, which is to be `node`.
    pub(crate) fn check_server(
        self,
        connection: &quinn::Connection,
        node: &[u8],
    ) -> Result<(), Fault> {
        let peer = PeerIdentity::of(connection).ok_or(Fault::NoCertificate)?;
        let is_right = match self {
            Self::SpkiSha256(expected) => peer.spki_sha256 == expected,
            Self::NodeSpkiSha256 => peer.spki_sha256 == node,
            Self::NodeEd25519 => peer.ed25519.is_some_and(|key| key == node),
        };
        if is_right { Ok(()) } else { Err(Fault::WrongKey) }
    }

    /// Checks the key of the client at `connection`. Which node it is, only its key says.
    pub(crate) fn check_client(self, connection: &quinn::Connection) -> Result<(), Fault> {
        let peer = PeerIdentity::of(connection).ok_or(Fault::NoCertificate)?;
        let is_right = match self {
            Self::SpkiSha256(expected) => peer.spki_sha256 == expected,
            Self::NodeSpkiSha256 => true,
            Self::NodeEd25519 => peer.ed25519.is_some(),
        };
        if is_right { Ok(()) } else { Err(Fault::WrongKey) }
    }
}

fn sha256(data: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, data).as_ref());
    hash
}

/// Where a verifier leaves why it refused: TLS itself only has an alert for it, and several
/// reasons share one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<Fault>>>);

impl Verdict {
    pub(crate) fn fault(&self) -> Option<Fault> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    fn note<T>(
        &self,
        outcome: Result<T, rustls::Error>,
        fault: impl FnOnce(&rustls::Error) -> Fault,
    ) -> Result<T, rustls::Error> {
        if let Err(error) = &outcome {
            self.set(fault(error));
        }
        outcome
    }
}

impl From<&rustls::Error> for Fault {
    fn from(error: &rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(error) = error else {
            return Self::BadCertificate;
        };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotValidYet
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::BadSignature => Self::BadSignature,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            _ => Self::BadCertificate,
        }
    }
}

impl Fault {
    /// Why the signature of a handshake was refused.
    fn of_handshake(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::BadEncoding) => {
                Self::BadCertificate
            }
            _ => Self::KeyNotProven,
        }
    }
}

/// Verifies servers.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None`: any certificate will do here.
    roots: Option<Arc<WebPkiServerVerifier>>,
    check_name: bool,
    max_depth: usize,
    verdict: Verdict,
}

impl Servers {
    pub(crate) fn new(
        verification: &Verification,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Fault> {
        let verdict = Verdict::default();
        let algorithms = provider.signature_verification_algorithms;
        Ok(match verification {
            Verification::None | Verification::Key(_) => {
                Self { algorithms, roots: None, check_name: false, max_depth: 0, verdict }
            }
            Verification::Peer { roots, check_name, max_depth } => {
                let builder =
                    WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
                let roots = Some(builder.build().map_err(|_| Fault::UnknownIssuer)?);
                let (check_name, max_depth) = (*check_name, *max_depth);
                Self { algorithms, roots, check_name, max_depth, verdict }
            }
        })
    }

    /// The same, and another verdict.
    pub(crate) fn with_verdict(&self, verdict: Verdict) -> Self {
        Self { verdict, ..self.clone() }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else {
            return Ok(ServerCertVerified::assertion());
        };
        if intermediates.len() > self.max_depth {
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let verified =
            roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is what is checked last: all else about the certificate is right.
            Err(error) if !self.check_name && Fault::from(&error) == Fault::WrongName => {
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verify(end_entity, intermediates, server_name, ocsp_response, now);
        self.verdict.note(verified, |error| Fault::from(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid =
            rustls::crypto::verify_tls13_signature(message, cert, signature, &self.algorithms);
        self.verdict.note(valid, Fault::of_handshake)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Who verifies the clients of a listener; `None`: they are not asked who they are.
pub(crate) fn clients(
    verification: &Verification,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Fault> {
    match verification {
        Verification::None => Ok(None),
        Verification::Peer { roots, .. } => {
            let builder =
                WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
            Ok(Some(builder.build().map_err(|_| Fault::UnknownIssuer)?))
        }
        Verification::Key(_) => {
            Ok(Some(Arc::new(AnyClient(provider.signature_verification_algorithms))))
        }
    }
}

/// Wants a certificate of every client, and any will do here: its key is checked afterwards.
#[derive(Debug)]
struct AnyClient(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyClient {
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
