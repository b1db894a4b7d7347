//! Certificates and private keys as PEM text in files, parsed and checked when read.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why PEM text is not what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemError {
    /// Not exactly one block of the kind.
    #[error("is not exactly one PEM block {0}")]
    NotOne(&'static str),
    /// No block of the kind, or something broken among them.
    #[error("holds no PEM block {0}, or a broken one")]
    None(&'static str),
    /// A key that cannot be used.
    #[error("is no private key that can sign (ECDSA P-256 or P-384, Ed25519, RSA)")]
    Key,
}

/// An X.509 certificate. Equal when the same bytes.
#[derive(Clone, Eq, PartialEq)]
pub struct Certificate(CertificateDer<'static>);

impl Certificate {
    /// Every certificate in a PEM text, in order; at least one.
    pub fn all_in(pem: &[u8]) -> Result<Vec<Self>, PemError> {
        const KIND: &str = "CERTIFICATE";
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(all.into_iter().map(Self).collect()),
            Ok(_) | Err(_) => Err(PemError::None(KIND)),
        }
    }

    /// The DER form.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0
    }

    /// The PEM form.
    pub fn pem(&self) -> String {
        pem_text("CERTIFICATE", &self.0)
    }
}

impl From<rcgen::Certificate> for Certificate {
    fn from(certificate: rcgen::Certificate) -> Self {
        Self(certificate.into())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.0.len())
    }
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pem())
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut all = Self::all_in(text.as_bytes()).map_err(serde::de::Error::custom)?;
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_) | None, _) => Err(serde::de::Error::custom(PemError::NotOne("CERTIFICATE"))),
        }
    }
}

/// A private key. Never printed; its PEM form goes into the store's file and nowhere else.
pub struct Key(PrivateKeyDer<'static>);

impl Key {
    /// The one private key in a PEM text: PKCS#8, SEC 1 or PKCS#1.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PemError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| PemError::None("PRIVATE KEY"))?;
        let key = Self(der);
        key.pair().map_err(|_| PemError::Key)?;
        Ok(key)
    }

    /// The key as rcgen signs with it.
    pub fn pair(&self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::try_from(&self.0)
    }

    fn pem(&self) -> Result<String, PemError> {
        match &self.0 {
            PrivateKeyDer::Pkcs8(key) => Ok(pem_text("PRIVATE KEY", key.secret_pkcs8_der())),
            PrivateKeyDer::Sec1(key) => Ok(pem_text("EC PRIVATE KEY", key.secret_sec1_der())),
            PrivateKeyDer::Pkcs1(key) => Ok(pem_text("RSA PRIVATE KEY", key.secret_pkcs1_der())),
            _ => Err(PemError::Key),
        }
    }
}

impl Clone for Key {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl From<&KeyPair> for Key {
    fn from(pair: &KeyPair) -> Self {
        Self(PrivatePkcs8KeyDer::from(pair.serialize_der()).into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pem = self.pem().map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&pem)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_pem(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

/// One PEM block, lines of 64 characters (RFC 7468).
pub(crate) fn pem_text(kind: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {kind}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {kind}-----\n"));
    pem
}
