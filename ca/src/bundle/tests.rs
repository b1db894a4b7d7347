use std::process::Command;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use serde::Deserialize;
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder,
    anchor_from_trusted_cert,
};

use super::*;
use crate::attest::grant_for_test;
use crate::issue::{LIFE_MAX, Life, leaf};
use crate::lifecycle::Request;
use crate::root::Authority;
use crate::serial::Serial;

fn now() -> Stamp {
    Stamp::of(std::time::SystemTime::now())
}

fn state() -> State {
    let domain = "cluster.local".parse().unwrap();
    let authority = Authority::make(&domain, now()).unwrap();
    State::first(domain, authority, LIFE_MAX)
}

#[derive(Deserialize)]
struct ConfigMap {
    kind: String,
    metadata: BTreeMap<String, String>,
    data: BTreeMap<String, String>,
}

#[test]
fn the_manifest_is_yaml_that_holds_the_three_texts_as_they_are() {
    let bundle = Bundle::of(&state(), now()).unwrap();
    let read: ConfigMap = serde_saphyr::from_str(&bundle.manifest()).unwrap();
    assert_eq!(read.kind, "ConfigMap");
    assert_eq!(read.metadata["name"], NAME);
    assert_eq!(read.metadata["namespace"], NAMESPACE);
    assert_eq!(read.data["bundle.json"].trim_end(), bundle.bundle_json);
    assert_eq!(read.data["crl.pem"], bundle.crl_pem);
    assert_eq!(read.data["revoked.json"].trim_end(), "[]");
}

#[test]
fn a_bundle_is_what_the_specification_asks_for() {
    let state = state();
    let bundle: Value = serde_json::from_str(&Bundle::of(&state, now()).unwrap().bundle_json).unwrap();
    let domain = &bundle["trust_domains"]["cluster.local"];
    assert_eq!(domain["spiffe_sequence"], 1);
    assert_eq!(domain["spiffe_refresh_hint"], 300);
    let keys = domain["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    let key = keys[0].as_object().unwrap();
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("x509-svid"), &json!("EC"), &json!("P-256")));
    assert!(!key.contains_key("kid"));
    let x5c = key["x5c"].as_array().unwrap();
    assert_eq!(STANDARD.decode(x5c[0].as_str().unwrap()).unwrap(), state.authority.roots[0].der().as_ref());
    // The JWK's own parameters are those of the certificate.
    let point: Vec<u8> = ["x", "y"]
        .iter()
        .flat_map(|part| URL_SAFE_NO_PAD.decode(key[*part].as_str().unwrap()).unwrap())
        .collect();
    let root = parse(&state.authority.roots[0]).unwrap();
    assert_eq!(root.public_key().subject_public_key.data[1..], point);
}

#[test]
fn both_roots_are_in_the_bundle_while_the_root_is_changed() {
    let rotating = state().asked(&Request::RotateRoot, now()).unwrap();
    let bundle: Value = serde_json::from_str(&Bundle::of(&rotating, now()).unwrap().bundle_json).unwrap();
    let domain = &bundle["trust_domains"]["cluster.local"];
    assert_eq!(domain["keys"].as_array().unwrap().len(), 2);
    assert_eq!(domain["spiffe_sequence"], 2);
}

#[test]
fn a_revoked_serial_is_refused_by_webpki_and_openssl_and_another_is_not() {
    let state = state();
    let issuer = state.authority.issuer().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let grant = grant_for_test("spiffe://cluster.local/ns/shop/sa/web");
    let make = || leaf(&issuer, &grant, &key, Serial::draw().unwrap(), now(), Life::DEFAULT).unwrap();
    let (good, bad) = (make(), make());
    let revoked = Request::Revoke(Subject::Serial(bad.serial.clone()));
    // The list is signed by the retired intermediate as well as by the new one.
    let state = state.asked(&revoked, now()).unwrap();
    let domain = state.trust_domain.clone();
    let renewed = state.authority.renewed(&domain, now(), now()).unwrap();
    let state = State { authority: renewed, ..state };
    let bundle = Bundle::of(&state, now()).unwrap();
    assert_eq!(
        bundle.revoked_json,
        format!("[{{\"at\":\"{}\",\"serial\":\"{}\"}}]", state.revoked[0].at, bad.serial)
    );

    let lists: Vec<CertRevocationList<'_>> =
        CertificateRevocationListDer::pem_slice_iter(bundle.crl_pem.as_bytes())
            .map(|der| {
                BorrowedCertRevocationList::from_der(&der.unwrap()).unwrap().to_owned().unwrap().into()
            })
            .collect();
    assert_eq!(lists.len(), 2);
    let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
    let anchors = [anchor_from_trusted_cert(state.authority.roots[0].der()).unwrap()];
    let verify = |leaf: &crate::issue::Leaf| {
        let revocation = RevocationOptionsBuilder::new(&lists)
            .unwrap()
            .with_depth(webpki::RevocationCheckDepth::EndEntity)
            .build();
        EndEntityCert::try_from(&leaf.der)
            .unwrap()
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &issuer.chain,
                UnixTime::now(),
                KeyUsage::client_auth(),
                Some(revocation),
                None,
            )
            .map(|_| ())
    };
    assert_eq!(verify(&good), Ok(()));
    assert_eq!(verify(&bad), Err(webpki::Error::CertRevoked));

    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("trust.pem", &format!("{}{}", state.authority.roots[0].pem(), bundle.crl_pem));
    write("intermediate.pem", &crate::root::pem_text("CERTIFICATE", &issuer.chain[0]));
    write("good.pem", &good.pem);
    write("bad.pem", &bad.pem);
    let openssl = |leaf: &str| {
        let output = Command::new("openssl")
            .current_dir(&dir)
            .args(["verify", "-crl_check", "-CAfile", "trust.pem", "-untrusted", "intermediate.pem", leaf])
            .output()
            .expect("the openssl command is installed (apt-get install openssl)");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (taken, why) = openssl("good.pem");
    assert!(taken, "{why}");
    let (taken, why) = openssl("bad.pem");
    assert!(!taken && why.contains("certificate revoked"), "{why}");
}

#[test]
fn a_revoked_identity_is_on_the_kill_list_and_not_on_the_serials() {
    let id: adit_proto::SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let state = state().asked(&Request::Revoke(Subject::Identity(id)), now()).unwrap();
    let bundle = Bundle::of(&state, now()).unwrap();
    let list: Value = serde_json::from_str(&bundle.revoked_json).unwrap();
    assert_eq!(list[0]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(bundle.generation, 2);
}

#[test]
fn a_full_kill_list_fits_a_config_map() {
    let mut state = state();
    for n in 0..crate::state::REVOKED_MAX {
        let subject = if n % 2 == 0 {
            Subject::Serial(Serial::draw().unwrap())
        } else {
            Subject::Identity(
                format!("spiffe://cluster.local/ns/{}/sa/{n:063}", "n".repeat(63)).parse().unwrap(),
            )
        };
        state.revoked.push(crate::state::Revocation { subject, at: now(), until: None });
    }
    let state = state.asked(&Request::RotateRoot, now()).unwrap();
    let manifest = Bundle::of(&state, now()).unwrap().manifest();
    assert!(manifest.len() < 1024 * 1024, "{}", manifest.len());
    assert!(matches!(
        state.asked(&Request::Revoke(Subject::Serial(Serial::draw().unwrap())), now()),
        Err(crate::lifecycle::Declined::Full)
    ));
}
