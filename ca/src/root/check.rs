//! What a certificate says, and whether root, chain and key belong together.

use adit_proto::TrustDomain;
use rcgen::KeyPair;
use rustls_pki_types::{TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::FromDer;

use super::{Authority, Certificate, RootError};
use crate::attest::Grant;
use crate::issue::{self, Issuer, Life};
use crate::serial::Serial;
use crate::stamp::Stamp;

/// Why certificates and keys cannot be used together. Each text follows the name of the file that holds them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Broken {
    /// There is no root, or no issuing certificate.
    #[error("holds no root or no issuing certificate")]
    Empty,
    /// Not an X.509 certificate.
    #[error("holds something that is no X.509 certificate")]
    Unreadable,
    /// A leaf signed with the key does not verify against the roots.
    #[error("does not lead to a root: a leaf signed with its key does not verify ({0:?})")]
    DoesNotVerify(webpki::Error),
    /// A signing certificate that names another trust domain.
    #[error("has a certificate of {found}, but the trust domain is {wanted}")]
    TrustDomain {
        /// The URI SAN that it has.
        found: String,
        /// What is configured.
        wanted: TrustDomain,
    },
    /// A root whose key cannot be written into a SPIFFE bundle.
    #[error("has a root whose key is neither ECDSA P-256 or P-384 nor RSA")]
    RootKey,
    /// The issuing certificate may not sign revocation lists.
    #[error("has an issuing certificate without key usage cRLSign: it could not revoke")]
    NoCrlSign,
}

/// What a certificate says about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// First instant of its life.
    pub not_before: Stamp,
    /// Last instant of its life.
    pub not_after: Stamp,
    /// Its serial.
    pub serial: Serial,
    /// Its subject, for people.
    pub subject: String,
}

impl Facts {
    /// Reads a certificate.
    pub fn read(certificate: &Certificate) -> Result<Self, Broken> {
        let certificate = parse(certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            not_before: Stamp::of(validity.not_before.to_datetime().into()),
            not_after: Stamp::of(validity.not_after.to_datetime().into()),
            serial: Serial::from_octets(certificate.raw_serial()).map_err(|_| Broken::Unreadable)?,
            subject: certificate.subject().to_string(),
        })
    }
}

impl Certificate {
    /// Whether `root`'s key signed this certificate (a root signed itself). False if either cannot be read.
    pub fn was_signed_by(&self, root: &Self) -> bool {
        let (Ok(signed), Ok(root)) = (parse(self), parse(root)) else {
            return false;
        };
        signed.issuer() == root.subject() && signed.verify_signature(Some(root.public_key())).is_ok()
    }
}

/// Parses the whole of a certificate.
pub(crate) fn parse(certificate: &Certificate) -> Result<X509Certificate<'_>, Broken> {
    match X509Certificate::from_der(certificate.der()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(Broken::Unreadable),
    }
}

impl Authority {
    /// Checks that key, chain and roots belong together and to `domain`, by signing a leaf and verifying it.
    ///
    /// Expiry is not checked here: it is asked as of the first instant at which the whole chain is valid, so that a CA
    /// that was away for long can still start and renew what it can. A root's own dates are not asked for, as nowhere
    /// in path building: one that was made while the clock was ahead stays a root.
    pub fn check(&self, domain: &TrustDomain) -> Result<(), RootError> {
        for certificate in self.roots.iter().chain(&self.chain) {
            check_names(certificate, domain)?;
        }
        let mut at = Stamp::of(std::time::UNIX_EPOCH);
        for certificate in &self.chain {
            at = at.max(Facts::read(certificate)?.not_before);
        }
        for root in &self.roots {
            check_root_key(root)?;
        }
        check_crl_sign(self.issuing()?)?;
        let mut issuer = self.issuer()?;
        // Room for the probe's life, whatever is left of the issuer's: expiry is judged where leaves are issued.
        issuer.not_after = at.plus(issue::LIFE_MAX);
        self.check_probe(domain, &issuer, at)
    }

    fn check_probe(&self, domain: &TrustDomain, issuer: &Issuer, at: Stamp) -> Result<(), RootError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let grant = Grant::for_probe(domain);
        let leaf = issue::leaf(issuer, &grant, &key, Serial::draw()?, at, Life::DEFAULT)?;
        let mut anchors: Vec<TrustAnchor<'_>> = Vec::new();
        for root in &self.roots {
            anchors.push(anchor_from_trusted_cert(root.der()).map_err(Broken::DoesNotVerify)?);
        }
        let end = EndEntityCert::try_from(&leaf.der).map_err(Broken::DoesNotVerify)?;
        let now = UnixTime::since_unix_epoch(at.since(Stamp::of(std::time::UNIX_EPOCH)));
        end.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &issuer.chain,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(Broken::DoesNotVerify)?;
        Ok(())
    }
}

/// A signing certificate may carry a SPIFFE ID; if so, it must be that of the trust domain, without a path.
fn check_names(certificate: &Certificate, domain: &TrustDomain) -> Result<(), Broken> {
    let parsed = parse(certificate)?;
    let names = parsed.subject_alternative_name().map_err(|_| Broken::Unreadable)?;
    let wanted = format!("spiffe://{domain}");
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let spiffe = names.filter_map(|name| {
        let GeneralName::URI(uri) = name else {
            return None;
        };
        uri.starts_with("spiffe:").then_some(*uri)
    });
    for found in spiffe {
        if !found.eq_ignore_ascii_case(&wanted) {
            return Err(Broken::TrustDomain { found: found.to_owned(), wanted: domain.clone() });
        }
    }
    Ok(())
}

fn check_root_key(root: &Certificate) -> Result<(), Broken> {
    let parsed = parse(root)?;
    let algorithm = &parsed.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let known = if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        curve == Some(OID_EC_P256) || curve == Some(OID_NIST_EC_P384)
    } else {
        algorithm.algorithm == OID_PKCS1_RSAENCRYPTION
    };
    if known { Ok(()) } else { Err(Broken::RootKey) }
}

fn check_crl_sign(issuing: &Certificate) -> Result<(), Broken> {
    let parsed = parse(issuing)?;
    let usage = parsed.key_usage().map_err(|_| Broken::Unreadable)?;
    match usage {
        Some(usage) if !usage.value.crl_sign() => Err(Broken::NoCrlSign),
        Some(_) | None => Ok(()),
    }
}
