//! Certificate files, and the rustls configurations of connections. What the other side has to
//! prove is the business of `verify`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;

use crate::joined::MESH_ALPN;
use crate::reset::ResetKeys;
use crate::settings::Settings;
use crate::verify::{self, Fault, Servers, Verdict};

/// The application protocol that every node of the mesh understands (RFC 7301).
pub const ALPN: &[u8] = b"macula";

/// Sets of roots that are looked through for the same.
const MOST_ROOTS: usize = 8;
/// Bytes of a certificate or key file at most: the roots of a whole system take a fraction of it. A
/// path may also name a device, which never ends.
const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// A certificate chain and its private key: what we show when a peer asks who we are.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
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
        Self::from_pem((&read(cert_file)?, cert_file), (&read(key_file)?, key_file))
    }

    /// The same of what the files say.
    pub(crate) fn from_pem(
        cert: (&[u8], &Path),
        key: (&[u8], &Path),
    ) -> Result<Self, BadCertificate> {
        let ((cert, cert_file), (key, key_file)) = (cert, key);
        let chain = certificates(cert, cert_file)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| bad(key_file, fault(&error, CertificateFault::NoPrivateKey)))?;
        let identity = Self { chain, key };
        identity.check(cert_file, key_file)?;
        Ok(identity)
    }

    /// From DER: a chain, and a PKCS #8, PKCS #1 or SEC 1 private key.
    ///
    /// # Errors
    /// [`BadCertificate`] with the option's name in place of a file.
    pub fn from_der(chain: Vec<Vec<u8>>, key: Vec<u8>) -> Result<Self, BadCertificate> {
        let (cert_option, key_option) = (Path::new("cert"), Path::new("key"));
        let key = PrivateKeyDer::try_from(key)
            .map_err(|_| bad(key_option, CertificateFault::InvalidKey))?;
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let identity = Self { chain, key };
        identity.check(cert_option, key_option)?;
        Ok(identity)
    }

    /// What a listener with this identity needs to be known again after a restart.
    pub(crate) fn reset_keys(&self) -> ResetKeys {
        ResetKeys::derive(self.key.secret_der())
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

fn read(path: &Path) -> Result<Vec<u8>, BadCertificate> {
    let unreadable = |kind| bad(path, CertificateFault::Unreadable(kind));
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut text))
        .map_err(|error| unreadable(crate::error::kind(&error)))?;
    if text.len() > MAX_FILE_BYTES {
        return Err(unreadable(io::ErrorKind::FileTooLarge));
    }
    Ok(text)
}

/// The certificates of a PEM text, one at least.
fn certificates(text: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, BadCertificate> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(path, fault(&error, CertificateFault::NoCertificate)))?;
    if certificates.is_empty() {
        return Err(bad(path, CertificateFault::NoCertificate));
    }
    Ok(certificates)
}

fn bad(path: &Path, fault: CertificateFault) -> BadCertificate {
    BadCertificate { path: path.to_owned(), fault }
}

fn fault(error: &pem::Error, missing: CertificateFault) -> CertificateFault {
    match error {
        pem::Error::NoItemsFound => missing,
        _ => CertificateFault::NotPem,
    }
}

/// The TLS side of outgoing connections: TLS 1.3 alone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    config: ClientConfig,
    verifier: Servers,
}

impl Client {
    /// # Errors
    /// What is wrong with the identity or the roots.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Fault> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Servers::new(&settings.verification, &provider)?;
        let config = client_config(settings, provider, verifier.clone())?;
        Ok(Self { config, verifier })
    }

    /// The configuration of one dial, which leaves in `verdict` why a server was refused.
    pub(crate) fn config(&self, verdict: Verdict) -> ClientConfig {
        let mut config = self.config.clone();
        let verifier = self.verifier.with_verdict(verdict);
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config
    }
}

fn client_config(
    settings: &Settings,
    provider: Arc<CryptoProvider>,
    verifier: Servers,
) -> Result<ClientConfig, Fault> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| Fault::BadCertificate)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match settings.identity.clone() {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(|_| Fault::BadCertificate)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols.clone_from(&settings.alpn);
    // Peers share host names (many nodes per host), tickets are kept by name, and a resumed
    // session shows no certificate: a full handshake each time says who is there.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The TLS side of a listener: TLS 1.3 alone.
///
/// # Errors
/// What is wrong with the identity or the roots.
pub(crate) fn server_config(settings: &Settings) -> Result<ServerConfig, Fault> {
    let provider = Arc::new(ring::default_provider());
    let clients = verify::clients(&settings.verification, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| Fault::BadCertificate)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let identity = settings.identity.clone().ok_or(Fault::NoCertificate)?;
    let mut config = builder
        .with_single_cert(identity.chain, identity.key)
        .map_err(|_| Fault::BadCertificate)?;
    // Ours before what older nodes speak: the server's order decides (RFC 7301, section 3.2).
    let mesh = settings.alpn.iter().any(|name| name == ALPN).then(|| MESH_ALPN.to_vec());
    config.alpn_protocols = mesh.into_iter().chain(settings.alpn.iter().cloned()).collect();
    // As for clients: each connection shows who it is.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Reads the roots of a CA file. Blocks.
///
/// # Errors
/// [`BadCertificate`] names the file.
pub fn load_roots(ca_file: &Path) -> Result<RootCertStore, BadCertificate> {
    roots_from_pem(&read(ca_file)?, ca_file)
}

/// The same of what the file says.
pub(crate) fn roots_from_pem(text: &[u8], path: &Path) -> Result<RootCertStore, BadCertificate> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text, path)? {
        roots.add(certificate).map_err(|_| bad(path, CertificateFault::InvalidCertificate))?;
    }
    Ok(roots)
}

/// The same roots in one place for all who have them: each connection keeps its own, some 100 KiB
/// of a whole system's. May have to compare with many.
pub fn shared_roots(roots: RootCertStore) -> Arc<RootCertStore> {
    static KNOWN: Mutex<Vec<Weak<RootCertStore>>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|known| known.strong_count() > 0);
    let same = |known: Arc<RootCertStore>| (known.roots == roots.roots).then_some(known);
    if let Some(same) = known.iter().filter_map(Weak::upgrade).find_map(same) {
        return same;
    }
    let roots = Arc::new(roots);
    if known.len() < MOST_ROOTS {
        known.push(Arc::downgrade(&roots));
    }
    roots
}

/// The roots that this system trusts. Blocks. Those that cannot be used are passed over.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_are_the_same_are_kept_once() {
        let pem = || {
            let names = ["root".into()];
            rcgen::generate_simple_self_signed(names).expect("a certificate").cert.pem()
        };
        let load = |text: &str| roots_from_pem(text.as_bytes(), Path::new("roots")).expect("roots");
        let (some, others) = (pem(), pem());
        let first = shared_roots(load(&some));
        assert!(Arc::ptr_eq(&first, &shared_roots(load(&some))));
        let changed = shared_roots(load(&others));
        assert_ne!(first.roots, changed.roots);
        assert!(Arc::ptr_eq(&changed, &shared_roots(load(&others))));
        assert!(Arc::ptr_eq(&first, &shared_roots(load(&some))));
    }
}
