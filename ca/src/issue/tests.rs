//! One test per line of the X.509-SVID checklist, on certificates as they are issued; then what others say of them.

use std::path::Path;
use std::process::Command;
use std::time::UNIX_EPOCH;

use rcgen::{BasicConstraints, CustomExtension};
use rustls_pki_types::{ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::*;
use crate::attest::grant_for_test;
use crate::csr::SubjectKey;
use crate::root::{Authority, Certificate, pem_text};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web.v2";
/// 2023-11-14T22:13:20Z.
fn now() -> Stamp {
    Stamp::of(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
}

struct Made {
    authority: Authority,
    issuer: Issuer,
    key: KeyPair,
    leaf: Leaf,
}

fn made_at(now: Stamp, life: Life) -> Made {
    let authority = Authority::make(&"cluster.local".parse().unwrap(), now).unwrap();
    let issuer = authority.issuer().unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = leaf(&issuer, &grant_for_test(WEB), &key, Serial::draw().unwrap(), now, life).unwrap();
    Made { authority, issuer, key, leaf }
}

fn made() -> Made {
    made_at(now(), Life::DEFAULT)
}

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let uri = |name: &GeneralName<'a>| {
        if let GeneralName::URI(uri) = name { Some(*uri) } else { None }
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// Root and intermediate of a fresh authority.
fn signing() -> [Certificate; 2] {
    let Made { authority, .. } = made();
    [authority.roots[0].clone(), authority.chain[0].clone()]
}

#[test]
fn a_leaf_has_exactly_one_uri_san_and_it_is_the_granted_identity() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert_eq!(uris(&leaf), [WEB]);
    let id = adit_proto::SpiffeId::from_uri_sans(uris(&leaf)).unwrap();
    assert_eq!(id.service_account(), Some(("shop", "web.v2")));
}

#[test]
fn a_leaf_has_no_other_san() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
}

#[test]
fn a_leaf_has_an_empty_subject_and_therefore_a_critical_san() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
}

#[test]
fn a_leaf_is_no_ca() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
}

#[test]
fn a_leafs_key_usage_is_critical_and_only_digital_signature() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    assert_eq!(usage.value.flags, 1);
}

#[test]
fn a_leaf_has_both_extended_key_usages_and_no_other() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth);
    assert!(!usage.any && !usage.code_signing && usage.other.is_empty());
}

#[test]
fn a_signing_certificate_has_the_trust_domain_without_path_as_its_only_uri() {
    for certificate in signing() {
        assert_eq!(uris(&parsed(certificate.der())), ["spiffe://cluster.local"]);
    }
}

#[test]
fn a_signing_certificate_is_a_ca_with_a_path_length() {
    for (certificate, length) in signing().iter().zip([1, 0]) {
        let parsed = parsed(certificate.der());
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(length));
    }
}

#[test]
fn a_signing_certificates_key_usage_is_critical_and_only_for_signing() {
    for certificate in signing() {
        let parsed = parsed(certificate.der());
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
    }
}

#[test]
fn a_signing_certificate_is_of_no_use_for_authentication() {
    for certificate in signing() {
        assert!(parsed(certificate.der()).extended_key_usage().unwrap().is_none());
    }
}

#[test]
fn a_signing_certificate_has_a_subject_of_its_own_that_its_children_name() {
    let made = made();
    let [root, intermediate] = [&made.authority.roots[0], &made.authority.chain[0]];
    let (root, intermediate, leaf) = (parsed(root.der()), parsed(intermediate.der()), parsed(&made.leaf.der));
    assert_ne!(root.subject().as_raw(), intermediate.subject().as_raw());
    assert_eq!(intermediate.issuer().as_raw(), root.subject().as_raw());
    assert_eq!(leaf.issuer().as_raw(), intermediate.subject().as_raw());
}

#[test]
fn key_identifiers_lead_from_the_leaf_to_the_root() {
    let made = made();
    let chain =
        [&made.leaf.der, made.authority.chain[0].der(), made.authority.roots[0].der()].map(|der| parsed(der));
    let authority = |certificate: &X509Certificate<'_>| {
        certificate.iter_extensions().find_map(|extension| {
            let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() else {
                return None;
            };
            id.key_identifier.clone().map(|id| id.0.to_vec())
        })
    };
    let subject = |certificate: &X509Certificate<'_>| {
        certificate.iter_extensions().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else {
                return None;
            };
            Some(id.0.to_vec())
        })
    };
    assert_eq!(authority(&chain[0]), Some(subject(&chain[1]).unwrap()));
    assert_eq!(authority(&chain[1]), Some(subject(&chain[2]).unwrap()));
}

#[test]
fn the_key_is_p256_and_the_one_that_was_asked_for() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), made.key.public_key_raw());
    assert_eq!(leaf.signature_algorithm.algorithm, x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256);
}

#[test]
fn the_serial_is_the_one_drawn_positive_and_of_128_bits() {
    let made = made();
    let leaf = parsed(&made.leaf.der);
    assert_eq!(leaf.raw_serial(), made.leaf.serial.octets());
    assert_eq!((leaf.raw_serial().len(), leaf.raw_serial()[0] >> 6), (16, 1));
}

#[test]
fn a_leaf_begins_5_minutes_early_and_lives_for_24_hours_from_its_issue() {
    let made = made();
    let validity = parsed(&made.leaf.der).validity().clone();
    assert_eq!(validity.not_before.timestamp(), 1_700_000_000 - 300);
    assert_eq!(validity.not_after.timestamp(), 1_700_000_000 + 86_400);
    assert_eq!(made.leaf.not_after, now().plus(LIFE_MAX));
}

#[test]
fn a_root_lives_for_ten_years_and_an_intermediate_for_one() {
    let made = made();
    let days = |certificate: &Certificate| {
        let validity = parsed(certificate.der()).validity().clone();
        (validity.not_after.timestamp() - 1_700_000_000) / 86_400
    };
    assert_eq!(days(&made.authority.roots[0]), 3650);
    assert_eq!(days(&made.authority.chain[0]), 365);
}

#[test]
fn a_request_can_shorten_a_life_and_never_prolong_it() {
    let hour = Life::new(Duration::from_secs(3600)).unwrap();
    assert_eq!(hour.asked(0), Ok(hour));
    assert_eq!(hour.asked(60).unwrap().duration(), Duration::from_secs(60));
    assert_eq!(hour.asked(10).unwrap().duration(), LIFE_MIN);
    for more in [3601, 86_400, i64::MAX] {
        assert_eq!(hour.asked(more), Ok(hour));
    }
    for less in [9, 1, -1, i64::MIN] {
        assert_eq!(hour.asked(less), Err(LifeError::TooShort(less)));
    }
    assert_eq!(Life::new(Duration::from_millis(9_999)), Err(LifeError::TooShort(9)));
    assert_eq!(Life::new(LIFE_MAX + Duration::from_secs(1)), Err(LifeError::TooLong(86_401)));
}

#[test]
fn no_leaf_outlives_its_issuer_and_none_is_issued_that_would_end_at_once() {
    let made = made();
    let end = made.issuer.not_after;
    let issue =
        |at| leaf(&made.issuer, &grant_for_test(WEB), &made.key, Serial::draw().unwrap(), at, Life::DEFAULT);
    let late = issue(end.minus(Duration::from_secs(60))).unwrap();
    assert_eq!(late.not_after, end);
    assert!(matches!(issue(end.minus(Duration::from_secs(9))), Err(IssueError::IssuerEnds(at)) if at == end));
    assert!(issue(end.plus(Duration::from_secs(60))).is_err());
}

#[test]
fn a_request_for_more_than_a_key_gets_only_what_was_granted() {
    let made = made();
    let mut greedy = CertificateParams::new(vec!["bank.example".to_owned()]).unwrap();
    greedy
        .subject_alt_names
        .push(SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()));
    greedy.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
    greedy.distinguished_name.push(rcgen::DnType::CommonName, "admin");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    greedy.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
    let csr = greedy.serialize_request(&made.key).unwrap().pem().unwrap();
    let key = SubjectKey::from_csr_pem(&csr).unwrap();
    let serial = made.leaf.serial.clone();
    let got = leaf(&made.issuer, &grant_for_test(WEB), &key, serial, now(), Life::DEFAULT).unwrap();
    // All but the signature, whose nonce differs.
    assert_eq!(parsed(&got.der).tbs_certificate.as_ref(), parsed(&made.leaf.der).tbs_certificate.as_ref());
}

#[test]
fn webpki_takes_a_leaf_for_both_purposes_until_its_end_and_not_after() {
    let made = made();
    let anchors = [anchor_from_trusted_cert(made.authority.roots[0].der()).unwrap()];
    let leaf = EndEntityCert::try_from(&made.leaf.der).unwrap();
    let verify = |at: u64, usage: KeyUsage| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(at));
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &made.issuer.chain,
            time,
            usage,
            None,
            None,
        )
        .map(|_| ())
    };
    for usage in [KeyUsage::client_auth, KeyUsage::server_auth] {
        assert_eq!(verify(1_700_000_000 - 300, usage()), Ok(()));
        assert_eq!(verify(1_700_000_000 + 86_400, usage()), Ok(()));
        assert!(verify(1_700_000_000 + 86_401, usage()).is_err());
        assert!(verify(1_700_000_000 - 301, usage()).is_err());
    }
    assert!(verify(1_700_000_000, KeyUsage::required(&[1, 3])).is_err());
}

#[test]
fn the_server_certificate_has_names_but_no_identity_and_is_no_clients() {
    let made = made();
    let names = ServerNames {
        dns: vec!["adit-ca.adit-system.svc".to_owned()],
        ips: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
    };
    let server =
        server(&made.issuer, &names, &made.key, Serial::draw().unwrap(), now(), Life::DEFAULT).unwrap();
    assert!(uris(&parsed(&server.der)).is_empty());
    let anchors = [anchor_from_trusted_cert(made.authority.roots[0].der()).unwrap()];
    let leaf = EndEntityCert::try_from(&server.der).unwrap();
    for name in ["adit-ca.adit-system.svc", "127.0.0.1", "::1"] {
        leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).unwrap();
    }
    assert!(leaf.verify_is_valid_for_subject_name(&ServerName::try_from("other.example").unwrap()).is_err());
    let time = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
    let verify = |usage: KeyUsage| {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &made.issuer.chain,
            time,
            usage,
            None,
            None,
        )
        .map(|_| ())
    };
    assert_eq!(verify(KeyUsage::server_auth()), Ok(()));
    assert!(verify(KeyUsage::client_auth()).is_err());
}

fn openssl(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .expect("the openssl command is installed (apt-get install openssl)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_openssl_command_verifies_a_leaf_and_reads_the_same() {
    // openssl asks the real clock.
    let made = made_at(Stamp::of(std::time::SystemTime::now()), Life::DEFAULT);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    write("root.pem", made.authority.roots[0].pem());
    write("intermediate.pem", pem_text("CERTIFICATE", &made.issuer.chain[0]));
    write("leaf.pem", made.leaf.pem.clone());
    for purpose in ["sslclient", "sslserver"] {
        let verify = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            "root.pem",
            "-untrusted",
            "intermediate.pem",
            "leaf.pem",
        ];
        assert_eq!(openssl(dir, &verify), "leaf.pem: OK\n");
    }
    let text = openssl(dir, &["x509", "-in", "leaf.pem", "-noout", "-text"]);
    for line in [
        "Subject: \n",
        "ASN1 OID: prime256v1\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Server Authentication, TLS Web Client Authentication\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    assert!(
        text.contains(&format!("X509v3 Subject Alternative Name: critical\n                URI:{WEB}\n")),
        "{text}"
    );
    let serial = openssl(dir, &["x509", "-in", "leaf.pem", "-noout", "-serial"]);
    let serial = serial.trim().strip_prefix("serial=").unwrap();
    assert_eq!(serial.parse::<Serial>().unwrap(), made.leaf.serial);
    let root = openssl(dir, &["x509", "-in", "root.pem", "-noout", "-text"]);
    for line in ["CA:TRUE, pathlen:1", "Certificate Sign, CRL Sign", "URI:spiffe://cluster.local\n"] {
        assert!(root.contains(line), "{line:?} is missing in {root}");
    }
}
