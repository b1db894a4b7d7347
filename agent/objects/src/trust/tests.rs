use proptest::prelude::*;

use super::*;

fn own() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn read(bundle: &str, crl: Option<&str>, revoked: Option<&str>) -> Result<Read, TrustError> {
    let texts = [("bundle.json", Some(bundle)), ("crl.pem", crl), ("revoked.json", revoked)];
    let data = texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.to_owned())));
    let config_map = ConfigMap { metadata: ObjectMeta::default(), data: data.collect() };
    translate(&config_map, &own())
}

fn bundle_of(keys: &str) -> String {
    format!(r#"{{"trust_domains": {{"cluster.local": {{"keys": [{keys}], "spiffe_sequence": 7}}}}}}"#)
}

fn roots(keys: &str) -> Result<Vec<Arc<[u8]>>, TrustError> {
    read(&bundle_of(keys), None, None).map(|read| read.bundle.roots[&own()].clone())
}

fn key_error(keys: &str) -> KeyRule {
    let error = roots(keys).unwrap_err();
    let TrustError::Key { rule, index: 0, .. } = error else { panic!("{error}") };
    rule
}

#[test]
fn a_bundle_has_the_first_certificate_of_each_x509_key_and_its_sequence() {
    let read = read(
        &bundle_of(r#"{"kty":"EC","use":"x509-svid","x5c":["AQI=","AwQ="],"x":"?"},{"kty":"RSA","use":"x509-svid","x5c":["BQ=="]}"#),
        None,
        None,
    )
    .unwrap();
    assert_eq!(read.bundle.generation, 7);
    assert_eq!(read.bundle.roots[&own()], [Arc::from([1, 2]), Arc::from([5])]);
    assert_eq!(read.problems, []);
}

#[test]
fn keys_of_another_use_or_an_unknown_type_are_passed_over() {
    let jwt = r#"{"kty":"EC","use":"jwt-svid","kid":"1"}"#;
    let unknown = r#"{"kty":"future","use":"x509-svid","kid":"1"}"#;
    let unnamed = r#"{"kty":"EC"}"#;
    assert_eq!(roots(&[jwt, unknown, unnamed].join(",")), Ok(vec![]));
}

#[test]
fn a_key_that_breaks_a_rule_refuses_the_bundle() {
    assert_eq!(key_error(r#"{"kty":"EC","use":"x509-svid","kid":"1","x5c":["AQ=="]}"#), KeyRule::Kid);
    assert_eq!(key_error(r#"{"kty":"EC","use":"x509-svid"}"#), KeyRule::NoCertificate);
    assert_eq!(key_error(r#"{"kty":"EC","use":"x509-svid","x5c":["?"]}"#), KeyRule::Base64);
}

#[test]
fn empty_keys_mean_that_nobody_of_the_domain_is_trusted() {
    assert_eq!(roots(""), Ok(vec![]));
}

#[test]
fn bundles_of_trust_domains_stay_apart_and_come_once() {
    let two = r#"{"trust_domains": {"cluster.local": {"keys": []}, "b.org": {"keys": [{"kty":"EC","use":"x509-svid","x5c":["AQ=="]}], "spiffe_sequence": 9}}}"#;
    let bundle = read(two, None, None).unwrap().bundle;
    assert_eq!((bundle.roots.len(), bundle.generation), (2, 0));
    assert_eq!(bundle.roots[&own()], []);
    let same = r#"{"trust_domains": {"cluster.local": {"keys": []}, "cluster.local": {"keys": []}}}"#;
    assert!(matches!(read(same, None, None), Err(TrustError::Json { .. })));
    let case = r#"{"trust_domains": {"cluster.local": {"keys": []}, "Cluster.Local": {"keys": []}}}"#;
    assert_eq!(read(case, None, None), Err(TrustError::Twice(own())));
    let foreign = r#"{"trust_domains": {"b.org": {"keys": []}}}"#;
    assert_eq!(read(foreign, None, None), Err(TrustError::NoOwnDomain(own())));
    let bad = r#"{"trust_domains": {"a/b": {"keys": []}}}"#;
    assert!(matches!(read(bad, None, None), Err(TrustError::Domain { .. })));
}

#[test]
fn the_kill_list_names_serials_and_identities_and_skips_what_is_neither() {
    let list = r#"[{"serial": "00:AB:0c", "at": 1}, {"identity": "spiffe://cluster.local/ns/a/sa/b", "at": "x"},
        {"serial": "xyz"}, {"identity": "web"}, {}, {"serial": "1", "identity": "spiffe://a/b"}, {"serial": "0"}]"#;
    let read = read(&bundle_of(""), None, Some(list)).unwrap();
    let serials: Vec<_> = read.bundle.revoked_serials.iter().map(|serial| &**serial).collect();
    assert_eq!(serials, ["0", "ab0c"]);
    let identities: Vec<_> = read.bundle.revoked_identities.iter().map(SpiffeId::as_str).collect();
    assert_eq!(identities, ["spiffe://cluster.local/ns/a/sa/b"]);
    let bad: Vec<_> = read.problems.iter().map(|problem| (problem.index, problem.rule)).collect();
    assert_eq!(
        bad,
        [
            (2, RevocationRule::Serial),
            (3, RevocationRule::Identity(SpiffeIdError::Scheme)),
            (4, RevocationRule::Subject),
            (5, RevocationRule::Subject),
        ]
    );
}

#[test]
fn revocation_lists_are_read_from_pem() {
    let pem = "text\n-----BEGIN X509 CRL-----\nAQ\nI=\n-----END X509 CRL-----\n\n-----BEGIN X509 CRL-----\r\nAw==\r\n-----END X509 CRL-----\r\n";
    let crls = read(&bundle_of(""), Some(pem), None).unwrap().bundle.crls;
    assert_eq!(crls, [Arc::from([1, 2]), Arc::from([3])]);
    for bad in ["-----BEGIN X509 CRL-----\nAQI=\n", "-----BEGIN X509 CRL-----\n?\n-----END X509 CRL-----"] {
        assert_eq!(read(&bundle_of(""), Some(bad), None), Err(TrustError::Crl(0)));
    }
}

#[test]
fn a_config_map_without_a_bundle_is_refused() {
    let empty = ConfigMap { metadata: ObjectMeta::default(), data: BTreeMap::new() };
    assert_eq!(translate(&empty, &own()), Err(TrustError::NoBundle));
}

proptest! {
    #[test]
    fn reading_never_panics(bundle in "\\PC{0,60}", crl in "\\PC{0,60}", revoked in "\\PC{0,60}") {
        let _ = read(&bundle, Some(&crl), Some(&revoked));
    }
}
