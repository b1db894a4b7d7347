//! What the CA issued, checked before anyone is served with it.
//!
//! The key must match, the SAN must be the identity that was asked for, and the chain must lead to the bundle for
//! both purposes: a certificate that peers would refuse is a failed request, not a broken mesh.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use adit_core::rotation::Issue;
use adit_proto::SpiffeId;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use webpki::EndEntityCert;
use zeroize::Zeroize;

use super::leaf::{Leaf, unix_time};
use super::unproven::VerifyError;
use super::verify::{Purpose, Trust};

/// Certificates in one answer, roots included. Ours has three; 16 leave room for a bundle of roots at its end.
const CHAIN_LEN_MAX: usize = 16;

/// Why what the CA issued cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertError {
    /// No PEM certificate, or something else than certificates.
    #[error("answer is no chain of PEM certificates")]
    Pem,
    /// More than [`CHAIN_LEN_MAX`] certificates.
    #[error("answer has more than {CHAIN_LEN_MAX} certificates")]
    TooLong,
    /// The leaf is another identity's.
    #[error("certificate is for {issued}, asked for {wanted}")]
    WrongIdentity { wanted: SpiffeId, issued: SpiffeId },
    /// The leaf is for another key.
    #[error("certificate does not match the key")]
    Key(#[source] rustls::Error),
    /// Peers would refuse it.
    #[error("certificate would be refused by peers")]
    Refused(#[from] VerifyError),
    /// The wall clock is before 1970.
    #[error("wall clock is before 1970")]
    Clock,
}

/// A private key, wiped when dropped and never shown.
pub(crate) struct Secret(PrivatePkcs8KeyDer<'static>);

impl Secret {
    /// Takes a PKCS#8 key; the caller keeps no copy.
    pub(crate) fn new(pkcs8: Vec<u8>) -> Self {
        Self(pkcs8.into())
    }

    /// PKCS#8 in DER. For the journal only.
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.secret_pkcs8_der()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A certificate with its key, checked.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Arc<str>,
    pub(crate) issue: Issue,
    /// Leaf and intermediates, as they are sent; no root.
    pub(crate) chain: Arc<CertifiedKey>,
    /// The key once more, as the journal keeps it.
    pub(crate) secret: Secret,
}

/// Reads a chain in PEM (leaf first; an entry may hold several), without its roots.
pub(crate) fn parse_chain(pem: &[String]) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let mut chain = Vec::new();
    for entry in pem {
        for certificate in CertificateDer::pem_slice_iter(entry.as_bytes()) {
            let certificate = certificate.map_err(|_| CertError::Pem)?;
            if chain.len() == CHAIN_LEN_MAX {
                return Err(CertError::TooLong);
            }
            chain.push(certificate);
        }
    }
    if chain.is_empty() {
        return Err(CertError::Pem);
    }
    let leaf = chain.remove(0);
    let mut sent = vec![leaf];
    sent.extend(chain.into_iter().filter(|certificate| !is_self_issued(certificate)));
    Ok(sent)
}

/// A root is known to whoever trusts it; sending it only costs bytes.
fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|parsed| parsed.subject() == parsed.issuer())
}

/// Joins a chain and its key, if peers will accept them as `id` at `now`. `at` is the moment of issue.
pub(crate) fn check(
    id: &SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    secret: Secret,
    at: SystemTime,
    now: SystemTime,
    trust: &Trust,
    provider: &CryptoProvider,
) -> Result<Certificate, CertError> {
    let leaf = check_chain(&chain, id, trust, now)?;
    let key = PrivateKeyDer::Pkcs8(secret.0.clone_key());
    let chain = CertifiedKey::from_der(chain, key, provider).map_err(CertError::Key)?;
    Ok(Certificate {
        id: leaf.id,
        serial: leaf.serial,
        issue: Issue { validity: leaf.validity, at },
        chain: Arc::new(chain),
        secret,
    })
}

/// Whether peers with this bundle accept this chain as `id`, when it dials and when it is dialled.
pub(crate) fn check_chain(
    chain: &[CertificateDer<'_>],
    id: &SpiffeId,
    trust: &Trust,
    now: SystemTime,
) -> Result<Leaf, CertError> {
    let now = unix_time(now).ok_or(CertError::Clock)?;
    let (leaf, intermediates) = chain.split_first().ok_or(CertError::Pem)?;
    trust.verify(leaf, intermediates, Purpose::Client, now)?;
    let leaf = trust.verify(leaf, intermediates, Purpose::Server, now)?;
    if leaf.id != *id {
        return Err(CertError::WrongIdentity { wanted: id.clone(), issued: leaf.id });
    }
    Ok(leaf)
}
