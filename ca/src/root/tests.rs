use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn now() -> Stamp {
    Stamp::of(SystemTime::now())
}

#[test]
fn no_two_roots_share_key_serial_or_name() {
    let (one, two) = (Authority::make(&domain(), now()).unwrap(), Authority::make(&domain(), now()).unwrap());
    let facts = |authority: &Authority| Facts::read(&authority.roots[0]).unwrap();
    assert_ne!(facts(&one).serial, facts(&two).serial);
    assert_ne!(facts(&one).subject, facts(&two).subject);
    assert!(one.chain[0].was_signed_by(&one.roots[0]));
    assert!(!one.chain[0].was_signed_by(&two.roots[0]));
}

#[test]
fn an_authority_is_written_and_read_back_and_its_keys_are_not_printed() {
    let made = Authority::make(&domain(), now()).unwrap();
    let text = serde_json::to_string(&made).unwrap();
    let read: Authority = serde_json::from_str(&text).unwrap();
    read.check(&domain()).unwrap();
    assert_eq!(read.roots, made.roots);
    let debug = format!("{made:?}");
    assert!(debug.contains("key: Key(..)") && !debug.contains("PRIVATE"), "{debug}");
}

#[test]
fn an_authority_that_has_expired_can_still_be_loaded_and_renewed() {
    let long_ago = Stamp::of(UNIX_EPOCH);
    let old = Authority::make(&domain(), long_ago).unwrap();
    old.check(&domain()).unwrap();
    let grant = crate::attest::grant_for_test("spiffe://cluster.local/ns/a/sa/b");
    let key = KeyPair::generate().unwrap();
    let issuer = old.issuer().unwrap();
    let leaf = crate::issue::leaf(
        &issuer,
        &grant,
        &key,
        Serial::draw().unwrap(),
        now(),
        crate::issue::Life::DEFAULT,
    );
    assert!(matches!(leaf, Err(IssueError::IssuerEnds(_))));
}

/// Makes CAs of several kinds of key with the openssl command, as a user would by hand.
#[test]
fn roots_and_intermediates_that_openssl_made_are_taken() {
    let kinds: [&[&str]; 3] = [
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"],
        &["-newkey", "rsa:2048"],
    ];
    for kind in kinds {
        let dir = tempfile::tempdir().unwrap();
        let mut arguments =
            vec!["req", "-x509", "-nodes", "-days", "30", "-keyout", "key.pem", "-out", "root.pem"];
        arguments.extend(["-subj", "/C=CH/O=Example Ltd/CN=Example Root"]);
        arguments.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        arguments.extend(kind);
        let made = Command::new("openssl")
            .current_dir(&dir)
            .args(&arguments)
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let roots = Certificate::all_in(&read("root.pem")).unwrap();
        let authority = Authority {
            chain: roots.clone(),
            roots,
            root_key: None,
            key: Key::from_pem(&read("key.pem")).unwrap(),
            retired: Vec::new(),
        };
        authority.check(&domain()).unwrap();
        assert!(authority.issuer().unwrap().chain.is_empty(), "the root itself is not sent");
        let state = crate::state::State::first(domain(), authority, crate::issue::LIFE_MAX);
        let text = serde_json::to_string(&state).unwrap();
        serde_json::from_str::<crate::state::State>(&text).unwrap().check(&domain()).unwrap();
        let bundle = crate::bundle::Bundle::of(&state, now()).unwrap();
        assert!(bundle.bundle_json.contains("\"x5c\""));
    }
}

#[test]
fn what_cannot_serve_as_a_root_is_refused_by_name() {
    let made = Authority::make(&domain(), now()).unwrap();
    let empty = Authority { roots: Vec::new(), ..made.clone() };
    assert!(matches!(empty.check(&domain()), Err(RootError::Broken(Broken::Empty))));
    let no_chain = Authority { chain: Vec::new(), ..made.clone() };
    assert!(matches!(no_chain.check(&domain()), Err(RootError::Broken(Broken::Empty))));
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = ca_params(&domain(), "root", 1, now().plus(ROOT_LIFE), now()).unwrap();
    let edwards = Certificate::from(params.self_signed(&key).unwrap());
    let edwards = Authority {
        roots: vec![edwards.clone()],
        root_key: None,
        chain: vec![edwards],
        key: Key::from(&key),
        retired: Vec::new(),
    };
    assert!(matches!(edwards.check(&domain()), Err(RootError::Broken(Broken::RootKey))));
    let key = KeyPair::generate().unwrap();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mute = Certificate::from(params.self_signed(&key).unwrap());
    let mute = Authority {
        roots: vec![mute.clone()],
        root_key: None,
        chain: vec![mute],
        key: Key::from(&key),
        retired: Vec::new(),
    };
    assert!(matches!(mute.check(&domain()), Err(RootError::Broken(Broken::NoCrlSign))));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    let leaf =
        Certificate::from(params.signed_by(&key, &signer(&made.chain[0], &made.key).unwrap()).unwrap());
    let leaf = Authority {
        roots: made.roots.clone(),
        root_key: None,
        chain: vec![leaf, made.chain[0].clone()],
        key: Key::from(&key),
        retired: Vec::new(),
    };
    assert!(matches!(leaf.check(&domain()), Err(RootError::Broken(Broken::DoesNotVerify(_)))));
}
