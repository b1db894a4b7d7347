//! What this component's tests share: a CA made of rcgen, leaves that break one rule each, one fixed wall clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_core::rotation::Issue;
use adit_core::time::Validity;
use adit_core::trust::TrustBundle;
use adit_proto::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

use super::cert::{Certificate, Secret};
use super::leaf::serial_hex;
use super::tls::Tls;

/// The wall clock of every test here: some day in 2027.
pub(super) fn wall() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// A CA: a root, or an intermediate under one.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What a leaf's chain needs besides the leaf.
    above: Vec<CertificateDer<'static>>,
}

/// A leaf as a sound CA makes it; tests change the field whose rule they break.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) uris: Vec<String>,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) serial: Vec<u8>,
    pub(super) is_ca: IsCa,
    pub(super) key_usages: Vec<KeyUsagePurpose>,
    pub(super) extended_key_usages: Vec<ExtendedKeyUsagePurpose>,
    pub(super) san_critical: bool,
    pub(super) common_name: Option<&'static str>,
    /// Beside those that follow from the other fields.
    pub(super) extensions: Vec<CustomExtension>,
}

impl Spec {
    /// Sound for this identity, valid from 5 min ago for a day.
    pub(super) fn of(id: &SpiffeId) -> Self {
        Self {
            uris: vec![id.as_str().into()],
            from: -300,
            to: 24 * 3600,
            serial: vec![0x0a, 0xbc],
            is_ca: IsCa::ExplicitNoCa,
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            extended_key_usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            san_critical: true,
            common_name: None,
            extensions: Vec::new(),
        }
    }
}

fn at(offset_secs: i64) -> OffsetDateTime {
    OffsetDateTime::from(wall()) + time::Duration::seconds(offset_secs)
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = at(-86_400);
    params.not_after = at(365 * 86_400);
    params
}

impl Authority {
    pub(super) fn root(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, above: Vec::new() }
    }

    /// An intermediate with this serial.
    pub(super) fn intermediate(&self, name: &str, serial: &[u8]) -> Self {
        let mut params = ca_params(name);
        params.serial_number = Some(SerialNumber::from_slice(serial));
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let above = std::iter::once(issuer.der().clone()).chain(self.above.clone()).collect();
        Self { issuer, above }
    }

    pub(super) fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The chain (leaf first) and key for this leaf.
    pub(super) fn leaf(&self, spec: &Spec) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let leaf = self.params(spec).signed_by(&key, &self.issuer).unwrap();
        (std::iter::once(leaf.der().clone()).chain(self.above.clone()).collect(), key)
    }

    /// A TLS server's chain and key for this DNS name.
    pub(super) fn server(&self, name: &str) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = at(-300);
        params.not_after = at(3600);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (std::iter::once(leaf.der().clone()).chain(self.above.clone()).collect(), key)
    }

    /// What a CA answers to this request: the chain in PEM with the root last.
    pub(super) fn answer(&self, spec: &Spec, csr: &str, root: &Self) -> Vec<String> {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        let leaf = self.params(spec).signed_by(&request.public_key, &self.issuer).unwrap();
        vec![leaf.pem(), self.pem(), root.pem()]
    }

    fn params(&self, spec: &Spec) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = spec.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let san = san_extension(&spec.uris, spec.san_critical);
        params.custom_extensions.extend((!spec.uris.is_empty()).then_some(san));
        params.custom_extensions.extend(spec.extensions.iter().cloned());
        params.not_before = at(spec.from);
        params.not_after = at(spec.to);
        params.serial_number = Some(SerialNumber::from_slice(&spec.serial));
        params.is_ca = spec.is_ca;
        params.key_usages = spec.key_usages.clone();
        params.extended_key_usages = spec.extended_key_usages.clone();
        params
    }

    /// A revocation list (DER).
    pub(super) fn crl(&self, serials: &[&[u8]]) -> Arc<[u8]> {
        let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: at(0),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: at(0),
            next_update: at(86_400),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Arc::from(&params.signed_by(&self.issuer).unwrap().der()[..])
    }
}

/// SubjectAltName with these URIs, critical or not: rcgen alone makes it critical whenever the subject is empty.
fn san_extension(uris: &[String], critical: bool) -> CustomExtension {
    let names: Vec<u8> = uris.iter().flat_map(|uri| tlv(0x86, uri.as_bytes())).collect();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], tlv(0x30, &names));
    extension.set_criticality(critical);
    extension
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()).unwrap() {
        short @ ..0x80 => out.push(short),
        long => out.extend([0x81, long]),
    }
    out.extend(content);
    out
}

/// A bundle with these roots for `cluster.local`.
pub(super) fn bundle(generation: u64, roots: &[&Authority]) -> TrustBundle {
    let roots = roots.iter().map(|root| Arc::from(root.der())).collect();
    TrustBundle {
        roots: [("cluster.local".parse().unwrap(), roots)].into(),
        generation,
        ..TrustBundle::default()
    }
}

/// Joins chain and key without any check: what an attacker or a broken CA would have.
pub(super) fn unchecked(id: &SpiffeId, spec: &Spec, by: &Authority, tls: &Tls) -> Certificate {
    let (chain, key) = by.leaf(spec);
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Certificate {
        id: id.clone(),
        serial: serial_hex(&spec.serial),
        issue: Issue {
            validity: Validity { not_before: wall(), not_after: wall() + Duration::from_secs(24 * 3600) },
            at: wall(),
        },
        chain: Arc::new(CertifiedKey::from_der(chain, der, tls.provider()).unwrap()),
        secret: Secret::new(key.serialize_der()),
    }
}
