//! Builds and signs certificates.
//!
//! Pure given the grant, the public key, the serial, the instant and the issuer. Every name in a certificate comes
//! from its argument [`Grant`] or [`ServerNames`]; a certificate request never gets here (see [`crate::csr`]).

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use crate::attest::Grant;
use crate::serial::Serial;
use crate::stamp::Stamp;

/// How far before the moment of issue a certificate begins, for clocks that are behind.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// The shortest life of a leaf. Below it, clock granularity and one retry eat what is left.
pub const LIFE_MIN: Duration = Duration::from_secs(10);
/// The longest life of a leaf, and the default.
pub const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What signs leaves: a key, the certificates that lead from it to the root, and when the first of them ends.
#[derive(Debug)]
pub struct Issuer {
    /// The key with its certificate's name.
    pub(crate) signer: rcgen::Issuer<'static, KeyPair>,
    /// The issuing certificate first, towards the root; without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// No leaf may outlive this.
    pub(crate) not_after: Stamp,
}

/// How long a leaf lives: at least [`LIFE_MIN`], at most [`LIFE_MAX`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Life(Duration);

/// Why a life is not one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LifeError {
    /// Below [`LIFE_MIN`] (or negative).
    #[error("a life of {0} s is too short: the least is {least} s", least = LIFE_MIN.as_secs())]
    TooShort(i64),
    /// Above [`LIFE_MAX`].
    #[error("a life of {0} s is too long: the most is {most} s", most = LIFE_MAX.as_secs())]
    TooLong(i64),
}

impl Life {
    /// The default: [`LIFE_MAX`].
    pub const DEFAULT: Self = Self(LIFE_MAX);

    /// A configured life.
    pub fn new(life: Duration) -> Result<Self, LifeError> {
        let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        if life < LIFE_MIN {
            return Err(LifeError::TooShort(seconds));
        }
        if life > LIFE_MAX {
            return Err(LifeError::TooLong(seconds));
        }
        Ok(Self(life))
    }

    /// The life for a request that asks for `seconds`: 0 means this one; a request can shorten it, never prolong it.
    pub fn asked(self, seconds: i64) -> Result<Self, LifeError> {
        match u64::try_from(seconds) {
            Ok(0) => Ok(self),
            Ok(asked) if Duration::from_secs(asked) >= LIFE_MIN => {
                Ok(Self(self.0.min(Duration::from_secs(asked))))
            }
            Ok(_) | Err(_) => Err(LifeError::TooShort(seconds)),
        }
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

/// A signed leaf, and what the log says of it.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The same in PEM.
    pub pem: String,
    /// Its serial.
    pub serial: Serial,
    /// When it ends.
    pub not_after: Stamp,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuing certificate ends before the shortest life is over.
    #[error("the issuing certificate ends at {0}, too soon for any leaf")]
    IssuerEnds(Stamp),
    /// rcgen would not build or sign it.
    #[error("cannot build the certificate")]
    Build(#[from] rcgen::Error),
}

/// Signs a workload's certificate (an X.509-SVID): `grant`'s identity as the only SAN, `key`, from
/// [`BACKDATED`] before `now` to `life` after it, or to the issuer's own end if that comes first.
pub fn leaf(
    issuer: &Issuer,
    grant: &Grant,
    key: &impl PublicKeyData,
    serial: Serial,
    now: Stamp,
    life: Life,
) -> Result<Leaf, IssueError> {
    let uri = grant.identity().as_str().try_into()?;
    let names = vec![SanType::URI(uri)];
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    sign(issuer, names, usages, key, serial, now, life)
}

/// The names under which agents reach this CA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// Signs this CA's own TLS server certificate. It carries no URI, so it is nobody's SPIFFE identity, and it cannot be
/// used as a client's.
pub fn server(
    issuer: &Issuer,
    names: &ServerNames,
    key: &impl PublicKeyData,
    serial: Serial,
    now: Stamp,
    life: Life,
) -> Result<Leaf, IssueError> {
    let mut sans = Vec::new();
    for name in &names.dns {
        sans.push(SanType::DnsName(name.as_str().try_into()?));
    }
    sans.extend(names.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    sign(issuer, sans, vec![ExtendedKeyUsagePurpose::ServerAuth], key, serial, now, life)
}

fn sign(
    issuer: &Issuer,
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    key: &impl PublicKeyData,
    serial: Serial,
    now: Stamp,
    life: Life,
) -> Result<Leaf, IssueError> {
    let not_after = now.plus(life.duration()).min(issuer.not_after);
    if not_after.since(now) < LIFE_MIN {
        return Err(IssueError::IssuerEnds(issuer.not_after));
    }
    let mut params = CertificateParams::default();
    params.not_before = now.minus(BACKDATED).offset();
    params.not_after = not_after.offset();
    params.serial_number = Some(SerialNumber::from_slice(serial.octets()));
    // An empty subject: rcgen then marks the SAN critical, as RFC 5280, 4.1.2.6 demands.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(key, &issuer.signer)?;
    Ok(Leaf { pem: certificate.pem(), der: certificate.into(), serial, not_after })
}

#[cfg(test)]
mod tests;
