//! The trust bundle: the ConfigMap `adit-trust-bundle`, from its three texts to the core's model.
//!
//! | key | what |
//! |---|---|
//! | `bundle.json` | `{"trust_domains": {DOMAIN: SPIFFE bundle}}` (SPIFFE Trust Domain and Bundle, 4) |
//! | `crl.pem` | revocation lists, may be absent |
//! | `revoked.json` | the kill list: `[{"serial": hex} or {"identity": SPIFFE ID}]`, may be absent |
//!
//! Knows no X.509: certificates and lists are passed on in DER, and checked by who uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use adit_core::trust::TrustBundle;
use adit_proto::spiffe::SpiffeIdError;
use adit_proto::{SpiffeId, TrustDomain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::meta::or_default;

#[cfg(test)]
mod tests;

/// Name of the ConfigMap.
pub const NAME: &str = "adit-trust-bundle";
const CRL_BEGIN: &str = "-----BEGIN X509 CRL-----";
const CRL_END: &str = "-----END X509 CRL-----";

/// A ConfigMap, as far as the mesh reads it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct ConfigMap {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `data`.
    #[serde(default, deserialize_with = "or_default")]
    pub data: BTreeMap<String, String>,
}

/// A bundle that was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Read {
    /// What it says.
    pub bundle: TrustBundle,
    /// Entries of the kill list that were not understood; the others hold.
    pub problems: Vec<BadRevocation>,
}

/// Why a trust bundle is not taken. What was trusted before stays trusted, and revoked what was revoked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TrustError {
    /// The ConfigMap has no `bundle.json`.
    #[error("bundle.json is missing")]
    NoBundle,
    /// A text is not JSON of its form; the parser's own words.
    #[error("{key}: {message}")]
    Json {
        /// Which text.
        key: &'static str,
        /// What the parser says.
        message: String,
    },
    /// A trust domain's name breaks a rule.
    #[error("bundle.json: trust domain {name:?}")]
    Domain {
        /// The name.
        name: String,
        /// The rule.
        #[source]
        source: SpiffeIdError,
    },
    /// Two bundles for one trust domain, written with and without capitals: they must not be merged.
    #[error("bundle.json: two bundles for {0}")]
    Twice(TrustDomain),
    /// The own trust domain has no bundle: nobody of the mesh could be trusted.
    #[error("bundle.json: no bundle for {0}, the mesh's own trust domain")]
    NoOwnDomain(TrustDomain),
    /// A key of a bundle breaks a rule.
    #[error("bundle.json: {domain}, key {index}: {rule}")]
    Key {
        /// Whose bundle.
        domain: TrustDomain,
        /// Which of its keys, from 0.
        index: usize,
        /// Which rule.
        rule: KeyRule,
    },
    /// A block of `crl.pem` is not base64, or has no end.
    #[error("crl.pem: block {0} is cut off or no base64")]
    Crl(usize),
}

/// The rules for a key whose use is `x509-svid`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyRule {
    /// It has a `kid`, which is for JWT keys.
    #[error("has a kid, which an x509-svid key must not have")]
    Kid,
    /// It has no certificate.
    #[error("has no certificate in x5c")]
    NoCertificate,
    /// Its certificate is not base64.
    #[error("x5c is no base64")]
    Base64,
}

/// An entry of the kill list that was not understood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("revoked.json: entry {index}: {rule}")]
pub struct BadRevocation {
    /// Which, from 0.
    pub index: usize,
    /// Which rule it breaks.
    pub rule: RevocationRule,
}

/// The rules for an entry of the kill list.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RevocationRule {
    /// It names neither or both.
    #[error("names not exactly one of serial and identity")]
    Subject,
    /// The serial is not hexadecimal.
    #[error("the serial is not hexadecimal")]
    Serial,
    /// The identity breaks a rule.
    #[error("the identity is none: {0}")]
    Identity(SpiffeIdError),
}

/// Reads the ConfigMap. `own` is the mesh's trust domain, whose sequence is the generation.
pub fn translate(config_map: &ConfigMap, own: &TrustDomain) -> Result<Read, TrustError> {
    let text = |key| config_map.data.get(key).map(String::as_str);
    let bundle_json = text("bundle.json").ok_or(TrustError::NoBundle)?;
    let (roots, generation) = bundles(bundle_json, own)?;
    let mut bundle = TrustBundle {
        roots,
        generation,
        crls: crls(text("crl.pem").unwrap_or_default())?,
        revoked_serials: BTreeSet::new(),
        revoked_identities: BTreeSet::new(),
    };
    let problems = revoke(text("revoked.json").unwrap_or("[]"), &mut bundle)?;
    Ok(Read { bundle, problems })
}

#[derive(serde::Deserialize)]
struct BundleFile {
    trust_domains: Unique<SpiffeBundle>,
}

#[derive(serde::Deserialize)]
struct SpiffeBundle {
    keys: Vec<Jwk>,
    #[serde(default)]
    spiffe_sequence: u64,
}

#[derive(serde::Deserialize)]
struct Jwk {
    #[serde(default)]
    kty: String,
    #[serde(default, rename = "use")]
    purpose: String,
    kid: Option<serde_json::Value>,
    #[serde(default)]
    x5c: Vec<String>,
}

type Roots = BTreeMap<TrustDomain, Vec<Arc<[u8]>>>;

fn bundles(text: &str, own: &TrustDomain) -> Result<(Roots, u64), TrustError> {
    let file: BundleFile = json("bundle.json", text)?;
    let mut roots = Roots::new();
    let mut generation = None;
    for (name, bundle) in file.trust_domains.0 {
        let domain: TrustDomain = name.parse().map_err(|source| TrustError::Domain { name, source })?;
        let mut certificates = Vec::new();
        for (index, key) in bundle.keys.iter().enumerate() {
            let certificate =
                key.certificate().map_err(|rule| TrustError::Key { domain: domain.clone(), index, rule })?;
            certificates.extend(certificate);
        }
        if domain == *own {
            generation = Some(bundle.spiffe_sequence);
        }
        if roots.insert(domain.clone(), certificates).is_some() {
            return Err(TrustError::Twice(domain));
        }
    }
    let generation = generation.ok_or_else(|| TrustError::NoOwnDomain(own.clone()))?;
    Ok((roots, generation))
}

impl Jwk {
    /// The root that this key is; `None` for a key of another use or of an unknown type, which are passed over.
    fn certificate(&self) -> Result<Option<Arc<[u8]>>, KeyRule> {
        if self.purpose != "x509-svid" || !matches!(self.kty.as_str(), "EC" | "RSA" | "OKP") {
            return Ok(None);
        }
        if self.kid.is_some() {
            return Err(KeyRule::Kid);
        }
        // Only the first value counts: the others would be a chain, and a root has none.
        let first = self.x5c.first().ok_or(KeyRule::NoCertificate)?;
        let der = STANDARD.decode(first).map_err(|_| KeyRule::Base64)?;
        Ok(Some(der.into()))
    }
}

fn crls(pem: &str) -> Result<Vec<Arc<[u8]>>, TrustError> {
    let mut lists = Vec::new();
    for (index, block) in pem.split(CRL_BEGIN).skip(1).enumerate() {
        let (body, _) = block.split_once(CRL_END).ok_or(TrustError::Crl(index))?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| TrustError::Crl(index))?;
        lists.push(der.into());
    }
    Ok(lists)
}

#[derive(serde::Deserialize)]
struct Revocation {
    serial: Option<String>,
    identity: Option<String>,
}

fn revoke(text: &str, bundle: &mut TrustBundle) -> Result<Vec<BadRevocation>, TrustError> {
    let entries: Vec<Revocation> = json("revoked.json", text)?;
    let mut problems = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let rule = match (entry.serial, entry.identity) {
            (Some(serial), None) => match normal_serial(&serial) {
                Some(serial) => {
                    bundle.revoked_serials.insert(serial);
                    continue;
                }
                None => RevocationRule::Serial,
            },
            (None, Some(identity)) => match identity.parse::<SpiffeId>() {
                Ok(identity) => {
                    bundle.revoked_identities.insert(identity);
                    continue;
                }
                Err(error) => RevocationRule::Identity(error),
            },
            (None, None) | (Some(_), Some(_)) => RevocationRule::Subject,
        };
        problems.push(BadRevocation { index, rule });
    }
    Ok(problems)
}

/// A serial in lower-case hex without leading zeros; openssl writes it in capitals, some tools with colons.
fn normal_serial(text: &str) -> Option<Arc<str>> {
    let hex: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    let bare = hex.trim_start_matches('0');
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| if bare.is_empty() { "0".into() } else { bare.into() })
}

fn json<'t, T: Deserialize<'t>>(key: &'static str, text: &'t str) -> Result<T, TrustError> {
    serde_json::from_str(text).map_err(|error| TrustError::Json { key, message: error.to_string() })
}

/// A JSON object whose keys must be unique: serde would keep the last, and so drop a trust domain's roots unseen.
struct Unique<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object whose keys are unique")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
        let mut seen = BTreeSet::new();
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format_args!("the key {key:?} comes twice")));
            }
            pairs.push((key, map.next_value()?));
        }
        Ok(Unique(pairs))
    }
}
