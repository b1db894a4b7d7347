//! Reads the ConfigMap `adit-trust-bundle`: SPIFFE bundles, the certificate revocation list and the kill list.
//!
//! Pure: three strings in, a [`TrustBundle`] or the rule that was broken out. Who calls keeps the last good bundle
//! when a new one is refused. Its content is as trusted as the roots in it, so the CRL's own signature proves
//! nothing more and is not asked for: an entry only ever takes trust away.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use adit_core::trust::TrustBundle;
use adit_proto::spiffe::SpiffeIdError;
use adit_proto::{SpiffeId, TrustDomain};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::verify::serial_hex;

/// The key of the ConfigMap that holds the SPIFFE bundles.
pub const BUNDLE_KEY: &str = "bundle.json";
/// The key that holds the revocation lists in PEM; may be absent or empty.
pub const CRL_KEY: &str = "crl.pem";
/// The key that holds the revoked identities; may be absent or empty.
pub const REVOKED_KEY: &str = "revoked.json";
/// The longest of the three strings. A ConfigMap holds 1 MiB in all.
pub const LEN_MAX: usize = 1024 * 1024;

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// One of the strings is longer than [`LEN_MAX`].
    #[error("{0} is longer than {LEN_MAX} bytes")]
    TooLong(&'static str),
    /// No JSON of the expected form.
    #[error("{key} cannot be read")]
    Json {
        /// Which string.
        key: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A trust domain's name breaks a rule.
    #[error("trust domain {name:?}")]
    TrustDomain {
        /// As written.
        name: String,
        /// The rule.
        #[source]
        source: SpiffeIdError,
    },
    /// Two names of one trust domain, differing in case.
    #[error("trust domain {0} occurs twice")]
    Twice(TrustDomain),
    /// A key for X.509-SVIDs is no certificate: `x5c` is missing, no base64 or no X.509.
    #[error("key {index} of trust domain {domain} is no certificate")]
    Root {
        /// Whose.
        domain: TrustDomain,
        /// Which, from 0.
        index: usize,
    },
    /// `crl.pem` holds something that is no CRL.
    #[error("{CRL_KEY} holds something that is no certificate revocation list")]
    Crl,
    /// An entry of `revoked.json` names neither a serial in hex nor an identity, or both.
    #[error("entry {index} of {REVOKED_KEY} names neither a serial nor an identity, or both")]
    Revoked {
        /// Which, from 0.
        index: usize,
    },
}

#[derive(Deserialize)]
struct Bundles {
    trust_domains: UniqueMap<Bundle>,
}

/// SPIFFE_Trust_Domain_and_Bundle.md, 4. Unknown members are ignored, as it demands.
#[derive(Deserialize)]
struct Bundle {
    keys: Vec<Key>,
    #[serde(default)]
    spiffe_sequence: u64,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

/// One entry of the kill list. When it was made (`at`) and what else it says is not the agents' business.
#[derive(Deserialize)]
struct Revoked {
    #[serde(default)]
    serial: Option<String>,
    #[serde(default)]
    identity: Option<SpiffeId>,
}

/// Reads the three strings. `own` is the trust domain whose `spiffe_sequence` is the bundle's generation.
pub fn parse(own: &TrustDomain, bundle: &str, crl: &str, revoked: &str) -> Result<TrustBundle, BundleError> {
    for (key, text) in [(BUNDLE_KEY, bundle), (CRL_KEY, crl), (REVOKED_KEY, revoked)] {
        if text.len() > LEN_MAX {
            return Err(BundleError::TooLong(key));
        }
    }
    let mut parsed = TrustBundle::default();
    let bundles: Bundles = serde_json::from_str(bundle).map_err(|source| BundleError::Json {
        key: BUNDLE_KEY,
        source,
    })?;
    for (name, bundle) in bundles.trust_domains.0 {
        let domain: TrustDomain = name.parse().map_err(|source| BundleError::TrustDomain {
            name: name.clone(),
            source,
        })?;
        if domain == *own {
            parsed.generation = bundle.spiffe_sequence;
        }
        let roots = roots(&domain, &bundle.keys)?;
        if parsed.roots.insert(domain.clone(), roots).is_some() {
            return Err(BundleError::Twice(domain));
        }
    }
    for list in CertificateRevocationListDer::pem_slice_iter(crl.as_bytes()) {
        let list = list.map_err(|_| BundleError::Crl)?;
        let (_, read) = CertificateRevocationList::from_der(&list).map_err(|_| BundleError::Crl)?;
        parsed.revoked_serials.extend(
            read.iter_revoked_certificates()
                .map(|entry| serial_hex(entry.raw_serial())),
        );
        parsed.crls.push(Arc::from(&list[..]));
    }
    if !revoked.trim().is_empty() {
        let revoked: Vec<Revoked> = serde_json::from_str(revoked).map_err(|source| BundleError::Json {
            key: REVOKED_KEY,
            source,
        })?;
        for (index, entry) in revoked.into_iter().enumerate() {
            match (entry.serial, entry.identity) {
                (Some(serial), None) => {
                    parsed
                        .revoked_serials
                        .insert(serial_of(&serial).ok_or(BundleError::Revoked { index })?);
                }
                (None, Some(identity)) => {
                    parsed.revoked_identities.insert(identity);
                }
                (None, None) | (Some(_), Some(_)) => return Err(BundleError::Revoked { index }),
            }
        }
    }
    Ok(parsed)
}

/// The roots among a bundle's keys. Keys for other uses are ignored; of `x5c` only the first value counts.
fn roots(domain: &TrustDomain, keys: &[Key]) -> Result<Vec<Arc<[u8]>>, BundleError> {
    let for_x509 = keys
        .iter()
        .enumerate()
        .filter(|(_, key)| key.purpose.as_deref() == Some("x509-svid"));
    for_x509
        .map(|(index, key)| {
            root(key).ok_or_else(|| BundleError::Root {
                domain: domain.clone(),
                index,
            })
        })
        .collect()
}

fn root(key: &Key) -> Option<Arc<[u8]>> {
    let der = STANDARD.decode(key.x5c.first()?).ok()?;
    webpki::anchor_from_trusted_cert(&CertificateDer::from(&der[..])).ok()?;
    Some(der.into())
}

/// A serial in hex, as [`serial_hex`] writes it.
fn serial_of(hex: &str) -> Option<Arc<str>> {
    let digits = hex.len().is_multiple_of(2) && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let octets = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits {
        octets
            .collect::<Option<Vec<u8>>>()
            .map(|octets| serial_hex(&octets))
    } else {
        None
    }
}

/// A JSON object whose keys are unique: a repeated one is an error, not an override.
struct UniqueMap<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with unique keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry::<String, V>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{key:?} occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(UniqueMap(map))
    }
}

#[cfg(test)]
mod tests;
