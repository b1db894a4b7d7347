use super::super::leaf::unix_time;
use super::super::testing::{Authority, Spec, bundle, id, wall};
use super::super::tls::Tls;
use super::*;
use crate::clock::Clock;

fn trust(bundle: TrustBundle) -> Result<Trust, BundleError> {
    let tls = Tls::new(Clock::paused(wall()));
    Trust::new(Arc::new(bundle), tls.algorithms())
}

fn verify(trust: &Trust, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    let time = unix_time(wall()).unwrap();
    trust.verify(&chain[0], &chain[1..], Purpose::Server, time).map(|leaf| leaf.id)
}

#[test]
fn a_serial_is_lower_case_hex_without_leading_zeros() {
    for (octets, hex) in
        [(&[0x0a, 0xbc][..], "abc"), (&[0, 0xff], "ff"), (&[0x4f, 0, 1], "4f0001"), (&[0], "0"), (&[], "0")]
    {
        assert_eq!(&*serial_hex(octets), hex);
    }
}

#[test]
fn what_revocation_lists_name_is_revoked_whoever_signed_them() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let (chain, _) = root.leaf(&Spec::of(&id("web")));
    let mut revoking = bundle(1, &[&root]);
    revoking.crls = vec![other.crl(&[]), other.crl(&[&[0x41; 16], &[0x0a, 0xbc]])];
    let revoking = trust(revoking).unwrap();
    let error = verify(&revoking, &chain).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: certificate abc is revoked", id("web")));
    let is_revoked = |serial: &str| revoking.is_revoked(&id("web"), [Arc::from(serial)].iter());
    assert!(is_revoked("abc") && !is_revoked("abd") && is_revoked(&"41".repeat(16)));
}

#[test]
fn a_bundle_with_a_root_or_a_list_that_cannot_be_read_is_refused() {
    let root = Authority::root("root");
    let mut no_root = bundle(1, &[&root]);
    no_root.roots.values_mut().for_each(|roots| roots.push(Arc::from([0_u8; 4])));
    assert_eq!(
        trust(no_root).unwrap_err().to_string(),
        "root 1 of trust domain cluster.local is no certificate"
    );
    let mut no_list = bundle(1, &[&root]);
    no_list.crls.push(Arc::from(root.der()));
    assert_eq!(trust(no_list).unwrap_err().to_string(), "revocation list 0 cannot be read");
}

#[test]
fn signing_lists_anew_changes_nothing_and_naming_more_does() {
    let root = Authority::root("root");
    let with = |crls: Vec<Arc<[u8]>>| trust(TrustBundle { crls, ..bundle(2, &[&root]) }).unwrap();
    let first = trust(bundle(1, &[&root])).unwrap();
    assert!(first.same_as(&with(vec![root.crl(&[])])));
    assert!(!first.same_as(&with(vec![root.crl(&[&[9]])])));
    assert!(!first.same_as(&Trust::nobody(first.algorithms)));
}

#[test]
fn an_intermediate_may_be_revoked_and_may_not_be_a_leaf() {
    let root = Authority::root("root");
    let issuing = root.intermediate("issuing", &[0x70]);
    let (chain, _) = issuing.leaf(&Spec::of(&id("web")));
    assert_eq!(verify(&trust(bundle(1, &[&root])).unwrap(), &chain).unwrap(), id("web"));
    let below_a_leaf = verify(&trust(bundle(1, &[&root])).unwrap(), &chain[1..]).unwrap_err();
    assert!(matches!(below_a_leaf, VerifyError::Ca), "{below_a_leaf}");
    let mut revoking = bundle(1, &[&root]);
    revoking.revoked_serials.insert("70".into());
    let error = verify(&trust(revoking).unwrap(), &chain).unwrap_err();
    assert!(matches!(error, VerifyError::SerialRevoked { serial, .. } if &*serial == "70"));
}

#[test]
fn key_usage_must_forbid_nothing_and_must_not_allow_signing() {
    use rcgen::KeyUsagePurpose;
    let root = Authority::root("root");
    let sound = Spec::of(&id("web"));
    let trust = trust(bundle(1, &[&root])).unwrap();
    let found = |spec: &Spec| verify(&trust, &root.leaf(spec).0);
    // An issuer must set it and mark it critical (X509-SVID.md, 4.3); who verifies is told only what it must not say (5.2).
    let absent = Spec { key_usages: vec![], ..sound.clone() };
    let mut uncritical = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    uncritical.set_criticality(false);
    let uncritical = Spec { extensions: vec![uncritical], ..absent.clone() };
    for spec in [&sound, &absent, &uncritical] {
        assert_eq!(found(spec).unwrap(), id("web"));
    }
    for signing in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let spec = Spec { key_usages: vec![KeyUsagePurpose::DigitalSignature, signing], ..sound.clone() };
        assert!(matches!(found(&spec), Err(VerifyError::SigningKeyUsage)));
    }
}

#[test]
fn no_bytes_make_reading_a_leaf_panic() {
    use adit_core::draw::Seed;
    let root = Authority::root("root");
    let (chain, _) = root.leaf(&Spec::of(&id("web")));
    let mut seed = Seed(7);
    for _ in 0..20_000 {
        let mut der = chain[0].to_vec();
        let flips = 1 + seed.below(4);
        for _ in 0..flips {
            let at = usize::try_from(seed.below(der.len() as u64)).unwrap();
            der[at] = u8::try_from(seed.below(256)).unwrap();
        }
        der.truncate(usize::try_from(seed.below(2 * der.len() as u64)).unwrap().max(1));
        let _ = Leaf::read(&der);
    }
}
