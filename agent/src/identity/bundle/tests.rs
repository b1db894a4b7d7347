use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::testing::{Authority, id};
use super::*;

fn own() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn key(root: &Authority) -> Value {
    json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(root.der())]})
}

fn domains(domains: Value) -> String {
    json!({ "trust_domains": domains }).to_string()
}

fn refusal(bundle: &str, crl: &str, revoked: &str) -> String {
    parse(&own(), bundle, crl, revoked).unwrap_err().to_string()
}

#[test]
fn a_bundle_has_roots_by_trust_domain_and_the_own_domains_sequence() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let text = domains(json!({
        "cluster.local": {"keys": [key(&root), key(&other)], "spiffe_sequence": 7, "spiffe_refresh_hint": 300},
        "other.local": {"keys": [key(&other)], "spiffe_sequence": 9},
        "gone.local": {"keys": []},
    }));
    let parsed = parse(&own(), &text, "", "").unwrap();
    assert_eq!(parsed.generation, 7);
    let roots = |domain: &str| parsed.roots[&domain.parse::<TrustDomain>().unwrap()].clone();
    assert_eq!(
        roots("cluster.local"),
        [Arc::from(root.der()), Arc::from(other.der())]
    );
    assert_eq!(roots("other.local"), [Arc::from(other.der())]);
    assert_eq!(
        roots("gone.local"),
        [],
        "an empty list is kept: it means that all is revoked"
    );
}

#[test]
fn keys_for_other_uses_are_ignored_and_of_x5c_the_first_counts() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let mut two = key(&root);
    two["x5c"]
        .as_array_mut()
        .unwrap()
        .push(json!("not base64 at all"));
    let jwt = json!({"kty": "EC", "use": "jwt-svid", "kid": "1"});
    let strange = json!({"kty": "??", "use": "something-new", "x5c": [STANDARD.encode(other.der())]});
    let text = domains(json!({"cluster.local": {"keys": [jwt, two, strange]}}));
    let parsed = parse(&own(), &text, "", "").unwrap();
    assert_eq!(parsed.roots[&own()], [Arc::from(root.der())]);
}

#[test]
fn the_kill_list_names_serials_and_identities() {
    let root = Authority::root("root");
    let text = domains(json!({"cluster.local": {"keys": [key(&root)]}}));
    let crl = root.crl(&[&[0x0a, 0xbc], &[0x41; 16]]);
    let revoked = json!([
        {"serial": "4fAA", "at": "2027-01-15T08:00:00Z"},
        {"identity": id("web"), "at": "2027-01-15T08:00:00Z"},
    ]);
    let parsed = parse(&own(), &text, &crl, &revoked.to_string()).unwrap();
    let serials: Vec<&str> = parsed.revoked_serials.iter().map(|serial| &**serial).collect();
    assert_eq!(serials, ["0abc", "41414141414141414141414141414141", "4faa"]);
    assert_eq!(parsed.revoked_identities, [id("web")].into());
    assert_eq!(parsed.crls.len(), 1);
}

#[test]
fn what_breaks_a_rule_is_refused_as_a_whole_and_names_the_rule() {
    let root = Authority::root("root");
    let good = domains(json!({"cluster.local": {"keys": [key(&root)]}}));
    let no_cert = domains(json!({"cluster.local": {"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}}));
    assert_eq!(
        refusal(&no_cert, "", ""),
        "key 0 of trust domain cluster.local is no certificate"
    );
    let no_x5c = domains(json!({"cluster.local": {"keys": [key(&root), {"use": "x509-svid"}]}}));
    assert_eq!(
        refusal(&no_x5c, "", ""),
        "key 1 of trust domain cluster.local is no certificate"
    );
    let twice = r#"{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}"#;
    let source = std::error::Error::source(&parse(&own(), twice, "", "").unwrap_err())
        .unwrap()
        .to_string();
    assert!(source.contains("\"a\" occurs twice"), "{source}");
    let cases = r#"{"trust_domains": {"a": {"keys": []}, "A": {"keys": []}}}"#;
    assert_eq!(refusal(cases, "", ""), "trust domain a occurs twice");
    assert_eq!(
        refusal(r#"{"trust_domains": {"a:1": {"keys": []}}}"#, "", ""),
        "trust domain \"a:1\""
    );
    assert_eq!(refusal("{}", "", ""), "bundle.json cannot be read");
    assert_eq!(
        refusal(
            &good,
            "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            ""
        ),
        "crl.pem holds something that is no certificate revocation list"
    );
    let neither = "entry 0 of revoked.json names neither a serial nor an identity, or both";
    for entry in [
        json!([{}]),
        json!([{"serial": "xy"}]),
        json!([{"serial": "1"}]),
        json!([{"serial": "01", "identity": id("a")}]),
    ] {
        assert_eq!(refusal(&good, "", &entry.to_string()), neither, "{entry}");
    }
    let long = " ".repeat(LEN_MAX + 1);
    assert_eq!(refusal(&good, &long, ""), "crl.pem is longer than 1048576 bytes");
}

proptest! {
    #[test]
    fn no_input_panics(bundle in ".{0,200}", crl in ".{0,200}", revoked in ".{0,200}") {
        let _ = parse(&own(), &bundle, &crl, &revoked);
        let wrapped = format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", STANDARD.encode(&crl));
        let _ = parse(&own(), r#"{"trust_domains": {}}"#, &wrapped, &revoked);
    }
}
