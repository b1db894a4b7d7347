//! The trust bundle as agents read it: a ConfigMap with the roots, the revocation lists and the kill list.
//!
//! Pure but for the signatures of the lists. [`crate::publish`] writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use adit_proto::TrustDomain;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateRevocationListParams, RevokedCertParams, SerialNumber};
use serde_json::{Map, Value, json};
use x509_parser::public_key::PublicKey;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::root::{Broken, Certificate, RootError, parse};
use crate::stamp::Stamp;
use crate::state::{State, Subject};

/// Name of the ConfigMap.
pub const NAME: &str = "adit-trust-bundle";
/// Its namespace.
pub const NAMESPACE: &str = "adit-system";

const BUNDLE_JSON: &str = "bundle.json";
const CRL_PEM: &str = "crl.pem";
const REVOKED_JSON: &str = "revoked.json";

/// How far another replica's clock may be ahead, in seconds: a list that is signed later than this is no list of ours.
const CLOCK_SKEW_S: i64 = 3600;

/// How long a revocation list says that it is good for. Leaves live for a day at most, so a mesh whose CA is away
/// runs out of leaves long before.
pub const CRL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
const CRL_LIFE_S: i64 = 7 * 24 * 3600;
/// How often the lists are signed anew.
pub const CRL_RENEWED: Duration = Duration::from_secs(24 * 3600);

/// How often a reader that cannot watch should ask again, in seconds: the default of the SPIFFE specification.
const REFRESH_HINT_S: u64 = 300;

/// The trust bundle, ready to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bundle {
    /// `spiffe_sequence`.
    pub generation: u64,
    /// The roots, per trust domain, in SPIFFE's JSON form.
    pub bundle_json: String,
    /// One revocation list per issuing certificate whose leaves may be in use, in PEM.
    pub crl_pem: String,
    /// The kill list: `[{"serial": hex, "at": time}, {"identity": SPIFFE ID, "at": time}]`.
    pub revoked_json: String,
    /// Whose lists `crl_pem` has, in its order.
    signers: Vec<Certificate>,
}

impl Bundle {
    /// What agents shall know of `state`, with lists signed at `now`.
    pub fn of(state: &State, now: Stamp) -> Result<Self, RootError> {
        let mut keys = Vec::new();
        for root in state.roots() {
            keys.push(jwk(root)?);
        }
        let domain = json!({
            "keys": keys,
            "spiffe_sequence": state.generation,
            "spiffe_refresh_hint": REFRESH_HINT_S,
        });
        let mut domains = Map::new();
        domains.insert(state.trust_domain.to_string(), domain);
        let revoked: Vec<Value> = state
            .revoked
            .iter()
            .map(|revocation| match &revocation.subject {
                Subject::Serial(serial) => json!({"serial": serial, "at": revocation.at}),
                Subject::Identity(id) => json!({"identity": id, "at": revocation.at}),
            })
            .collect();
        Ok(Self {
            generation: state.generation,
            bundle_json: json!({"trust_domains": domains}).to_string(),
            crl_pem: crls(state, now)?,
            revoked_json: Value::from(revoked).to_string(),
            signers: state
                .authorities()
                .flat_map(|authority| {
                    let retired = authority.retired.iter().map(|retired| &retired.certificate);
                    authority.chain.iter().take(1).chain(retired)
                })
                .cloned()
                .collect(),
        })
    }

    /// The ConfigMap's data.
    pub fn data(&self) -> BTreeMap<String, String> {
        let texts =
            [(BUNDLE_JSON, &self.bundle_json), (CRL_PEM, &self.crl_pem), (REVOKED_JSON, &self.revoked_json)];
        texts.into_iter().map(|(key, text)| (key.to_owned(), text.clone())).collect()
    }

    /// Whether a ConfigMap's data say the same: the same roots and kill list, and of each issuer a list of the same
    /// serials, signed by it, not yet due to be signed anew. (The lists themselves are no two times the same: every
    /// replica signs its own.)
    pub fn is_said_by(&self, data: &BTreeMap<String, String>, now: Stamp) -> bool {
        let has = |key: &str, text: &String| data.get(key) == Some(text);
        let lists = data.get(CRL_PEM).map(|pem| revocation_lists(pem));
        has(BUNDLE_JSON, &self.bundle_json)
            && has(REVOKED_JSON, &self.revoked_json)
            && lists.flatten().is_some_and(|theirs| self.lists_equal(&theirs, now))
    }

    fn lists_equal(&self, theirs: &[Vec<u8>], now: Stamp) -> bool {
        let Some(ours) = revocation_lists(&self.crl_pem) else {
            return false;
        };
        ours.len() == theirs.len()
            && ours.len() == self.signers.len()
            && ours
                .iter()
                .zip(theirs)
                .zip(&self.signers)
                .all(|((ours, theirs), signer)| is_same_list(ours, theirs, signer, now).unwrap_or(false))
    }

    /// The ConfigMap in YAML.
    pub fn manifest(&self) -> String {
        let mut yaml = format!(
            "# Written by adit-ca; what is changed here is overwritten.\n\
             apiVersion: v1\n\
             kind: ConfigMap\n\
             metadata:\n  name: {NAME}\n  namespace: {NAMESPACE}\n\
             data:\n"
        );
        for (key, text) in
            [(BUNDLE_JSON, &self.bundle_json), (CRL_PEM, &self.crl_pem), (REVOKED_JSON, &self.revoked_json)]
        {
            yaml.push_str(&format!("  {key}: |\n"));
            for line in text.lines() {
                yaml.push_str(&format!("    {line}\n"));
            }
        }
        yaml
    }
}

/// The `spiffe_sequence` of `domain` in a ConfigMap's data, if it can be read.
pub fn generation_in(data: &BTreeMap<String, String>, domain: &TrustDomain) -> Option<u64> {
    let bundle: Value = serde_json::from_str(data.get(BUNDLE_JSON)?).ok()?;
    bundle.get("trust_domains")?.get(domain.as_str())?.get("spiffe_sequence")?.as_u64()
}

/// The lists in a PEM text, in DER; `None` if anything in it is none.
fn revocation_lists(pem: &str) -> Option<Vec<Vec<u8>>> {
    let blocks = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes());
    let lists = blocks.map(|block| block.ok().filter(|block| block.label == "X509 CRL"));
    lists.map(|block| block.map(|block| block.contents)).collect()
}

/// Whether `theirs` says what `ours` does, and is signed by the same; `None` if one cannot be read.
fn is_same_list(ours: &[u8], theirs: &[u8], signer: &Certificate, now: Stamp) -> Option<bool> {
    let (_, ours) = x509_parser::parse_x509_crl(ours).ok()?;
    let (_, theirs) = x509_parser::parse_x509_crl(theirs).ok()?;
    let signer = parse(signer).ok()?;
    let serials = |list: &CertificateRevocationList<'_>| -> BTreeSet<Vec<u8>> {
        list.iter_revoked_certificates().map(|revoked| revoked.raw_serial().to_vec()).collect()
    };
    let signed = theirs.last_update().timestamp();
    let renewed = now.minus(CRL_RENEWED).offset().unix_timestamp();
    Some(
        ours.issuer().as_raw() == theirs.issuer().as_raw()
            && ours.crl_number() == theirs.crl_number()
            && serials(&ours) == serials(&theirs)
            && signed > renewed
            && signed <= now.offset().unix_timestamp() + CLOCK_SKEW_S
            && theirs.next_update().map(|at| at.timestamp()) == Some(signed + CRL_LIFE_S)
            && theirs.verify_signature(signer.public_key()).is_ok(),
    )
}

/// A root as a JWK. The key's parameters are there because JWK readers demand them (RFC 7518, 6); SPIFFE's readers use
/// the certificate. No `kid`: the specification forbids it.
fn jwk(root: &Certificate) -> Result<Value, Broken> {
    let parsed = parse(root)?;
    let key = parsed.public_key().parsed().map_err(|_| Broken::RootKey)?;
    let mut jwk = match key {
        PublicKey::EC(point) => {
            // Uncompressed: 4, x, y (SEC 1, 2.3.3).
            let (form, coordinates) = point.data().split_first().ok_or(Broken::RootKey)?;
            let curve = match (form, coordinates.len()) {
                (4, 64) => "P-256",
                (4, 96) => "P-384",
                _ => return Err(Broken::RootKey),
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
        }
        PublicKey::RSA(key) => json!({
            "kty": "RSA",
            "n": URL_SAFE_NO_PAD.encode(without_zeros(key.modulus)),
            "e": URL_SAFE_NO_PAD.encode(without_zeros(key.exponent)),
        }),
        PublicKey::DSA(_)
        | PublicKey::GostR3410(_)
        | PublicKey::GostR3410_2012(_)
        | PublicKey::Unknown(_) => {
            return Err(Broken::RootKey);
        }
    };
    jwk["use"] = json!("x509-svid");
    jwk["x5c"] = json!([STANDARD.encode(root.der())]);
    Ok(jwk)
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let from = number.iter().position(|octet| *octet != 0).unwrap_or(number.len());
    &number[from..]
}

/// One list per issuing certificate. Each names every revoked serial: serials are random, so those of another issuer do
/// no harm, and nobody needs to know who issued which.
fn crls(state: &State, now: Stamp) -> Result<String, RootError> {
    let revoked_certs: Vec<RevokedCertParams> = state
        .revoked
        .iter()
        .filter_map(|revocation| match &revocation.subject {
            Subject::Serial(serial) => Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.octets()),
                revocation_time: revocation.at.offset(),
                reason_code: None,
                invalidity_date: None,
            }),
            Subject::Identity(_) => None,
        })
        .collect();
    let params = CertificateRevocationListParams {
        this_update: now.offset(),
        next_update: now.plus(CRL_LIFE).offset(),
        // Grows with every change of the list, which is what readers may rely on.
        crl_number: SerialNumber::from(state.generation),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let mut pem = String::new();
    for authority in state.authorities() {
        for signer in authority.crl_signers()? {
            pem.push_str(&crate::root::pem_text("X509 CRL", params.signed_by(&signer)?.der()));
        }
    }
    Ok(pem)
}

#[cfg(test)]
mod tests;
