//! Whom a program of the tests shows itself to be: as a rule itself, and on demand an impostor,
//! which shows a certificate without holding its key, or signs with a key that writes nonsense.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

/// A certificate chain, and a key with which the handshake is signed.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads both from PEM files. Whether they belong together is not asked.
pub(crate) fn read(cert: &Path, key: &Path) -> Result<Identity, Box<dyn Error>> {
    let complain = |path: &Path, error| format!("{}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| complain(cert, error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| complain(key, error))?;
    Ok((chain, key))
}

/// Shows the certificate, whoever asks. rustls' own builders would refuse a foreign key.
pub(crate) fn shown(
    (chain, key): Identity,
    corrupt: bool,
) -> Result<Arc<SingleCertAndKey>, rustls::Error> {
    let key = ring::sign::any_supported_type(&key)?;
    let key = if corrupt { Arc::new(Corrupt(key)) } else { key };
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

/// A key whose signatures have one bit wrong.
#[derive(Debug)]
struct Corrupt<T>(T);

impl SigningKey for Corrupt<Arc<dyn SigningKey>> {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Corrupt(self.0.choose_scheme(offered)?)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Signer for Corrupt<Box<dyn Signer>> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut signature = self.0.sign(message)?;
        if let Some(last) = signature.last_mut() {
            *last ^= 1;
        }
        Ok(signature)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}
