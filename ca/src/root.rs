//! Roots and intermediates: made, checked, and turned into what signs.
//!
//! Pure but for the keys and serials that it draws. Where they are kept is [`crate::store`]'s job; when one follows
//! another is [`crate::lifecycle`]'s.

use std::time::Duration;

use adit_proto::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::issue::{BACKDATED, IssueError, Issuer};
use crate::serial::{NoRandomness, Serial};
use crate::stamp::Stamp;

mod check;
mod pem;

pub(crate) use check::parse;
pub use check::{Broken, Facts};
pub(crate) use pem::pem_text;
pub use pem::{Certificate, Key, PemError};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a root that we make lives: ten years.
pub const ROOT_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// How long an intermediate that we make lives: one year. It is replaced at half of that.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());

/// A root with what it has signed: all that is needed to issue, to verify and to revoke.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Authority {
    /// The trust anchors. The first is the one that the chain leads to; more than one only where given by hand.
    pub roots: Vec<Certificate>,
    /// The root's key; none where root or intermediate were given by hand.
    pub root_key: Option<Key>,
    /// The issuing certificate, then what lies between it and the root. Only the root itself where leaves are signed
    /// with a root given by hand.
    pub chain: Vec<Certificate>,
    /// The issuing certificate's key.
    pub key: Key,
    /// Earlier issuing certificates whose leaves may still be in use: they sign their part of the revocation list.
    #[serde(default)]
    pub retired: Vec<Retired>,
}

/// An issuing certificate that signs no leaves any more.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retired {
    /// The certificate.
    pub certificate: Certificate,
    /// Its key.
    pub key: Key,
    /// When its last leaf has expired.
    pub until: Stamp,
}

/// Why an authority could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No random numbers.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// rcgen would not build, sign or read.
    #[error("cannot build a certificate")]
    Build(#[from] rcgen::Error),
    /// A certificate that is kept cannot be read.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A certificate cannot be issued.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A new intermediate was wanted from a root whose key is not ours.
    #[error("the root was given by hand and its key is not kept: no intermediate can be made")]
    NoRootKey,
}

impl Authority {
    /// Makes a root and an intermediate for `domain`.
    pub fn make(domain: &TrustDomain, now: Stamp) -> Result<Self, RootError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let params = ca_params(domain, "root", PATH_LEN_ROOT, now.plus(ROOT_LIFE), now)?;
        let root = Certificate::from(params.self_signed(&key)?);
        let (intermediate, intermediate_key) = intermediate(domain, &root, &key, now)?;
        Ok(Self {
            roots: vec![root],
            root_key: Some(Key::from(&key)),
            chain: vec![intermediate],
            key: Key::from(&intermediate_key),
            retired: Vec::new(),
        })
    }

    /// What was given by hand, not yet checked: see [`Authority::check`].
    ///
    /// The root that signed the chain is put first among the roots, as the other code expects.
    pub fn given(chain: Vec<Certificate>, key: Key, mut roots: Vec<Certificate>) -> Self {
        let last = chain.last();
        let leads_to = |root: &Certificate| last.is_some_and(|last| last.was_signed_by(root));
        if let Some(at) = roots.iter().position(leads_to) {
            roots.swap(0, at);
        }
        Self { roots, root_key: None, chain, key, retired: Vec::new() }
    }

    /// This authority with a fresh intermediate; the old one is retired until `leaves_end`.
    pub fn renewed(&self, domain: &TrustDomain, now: Stamp, leaves_end: Stamp) -> Result<Self, RootError> {
        let (Some(root), Some(root_key)) = (self.roots.first(), &self.root_key) else {
            return Err(RootError::NoRootKey);
        };
        let (certificate, key) = intermediate(domain, root, &root_key.pair()?, now)?;
        Ok(self.reissued(vec![certificate], Key::from(&key), leaves_end))
    }

    /// This authority with another issuing certificate; the old one is retired until `leaves_end`.
    pub fn reissued(&self, chain: Vec<Certificate>, key: Key, leaves_end: Stamp) -> Self {
        let mut retired = self.retired.clone();
        retired.extend(self.chain.first().map(|issuing| Retired {
            certificate: issuing.clone(),
            key: self.key.clone(),
            until: leaves_end,
        }));
        Self { chain, key, retired, ..self.clone() }
    }

    /// What signs leaves.
    pub fn issuer(&self) -> Result<Issuer, RootError> {
        let issuing = self.issuing()?;
        let mut not_after = Facts::read(self.root()?)?.not_after;
        for certificate in &self.chain {
            not_after = not_after.min(Facts::read(certificate)?.not_after);
        }
        let chain = self
            .chain
            .iter()
            .filter(|certificate| !self.roots.contains(certificate))
            .map(|certificate| certificate.der().clone())
            .collect();
        Ok(Issuer { signer: signer(issuing, &self.key)?, chain, not_after })
    }

    /// What signs revocation lists: the issuing certificate and the retired ones.
    pub fn crl_signers(&self) -> Result<Vec<rcgen::Issuer<'static, KeyPair>>, RootError> {
        let mut signers = vec![signer(self.issuing()?, &self.key)?];
        for retired in &self.retired {
            signers.push(signer(&retired.certificate, &retired.key)?);
        }
        Ok(signers)
    }

    /// The root that the chain leads to.
    pub fn root(&self) -> Result<&Certificate, Broken> {
        self.roots.first().ok_or(Broken::Empty)
    }

    /// The certificate that signs leaves.
    pub fn issuing(&self) -> Result<&Certificate, Broken> {
        self.chain.first().ok_or(Broken::Empty)
    }
}

/// A root may have one intermediate below it, an intermediate none.
const PATH_LEN_ROOT: u8 = 1;
const PATH_LEN_INTERMEDIATE: u8 = 0;

fn intermediate(
    domain: &TrustDomain,
    root: &Certificate,
    root_key: &KeyPair,
    now: Stamp,
) -> Result<(Certificate, KeyPair), RootError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let until = now.plus(INTERMEDIATE_LIFE).min(Facts::read(root)?.not_after);
    let params = ca_params(domain, "intermediate", PATH_LEN_INTERMEDIATE, until, now)?;
    let signer = rcgen::Issuer::from_ca_cert_der(root.der(), root_key)?;
    let signed = params.signed_by(&key, &signer)?;
    Ok((Certificate::from(signed), key))
}

/// The parameters of a signing certificate: critical keyCertSign and cRLSign, the trust domain itself as its SPIFFE ID
/// (no path), and a name that is its own, so that two roots are never mistaken for each other by name.
fn ca_params(
    domain: &TrustDomain,
    kind: &str,
    path_len: u8,
    until: Stamp,
    now: Stamp,
) -> Result<CertificateParams, RootError> {
    let serial = Serial::draw()?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Adit");
    name.push(DnType::CommonName, format!("{kind} {serial}"));
    let mut params = CertificateParams::default();
    params.not_before = now.minus(BACKDATED).offset();
    params.not_after = until.offset();
    params.serial_number = Some(SerialNumber::from_slice(serial.octets()));
    params.distinguished_name = name;
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn signer(certificate: &Certificate, key: &Key) -> Result<rcgen::Issuer<'static, KeyPair>, RootError> {
    let der: CertificateDer<'static> = certificate.der().clone();
    Ok(rcgen::Issuer::from_ca_cert_der(&der, key.pair()?)?)
}

#[cfg(test)]
mod tests;
