//! The CA in this process, asked over real TLS on loopback with the agent's stub.

use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::common::{Ask, Files, WEB, connect, text, tls};
use adit_ca::lifecycle::Request;
use adit_ca::{App, store};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;

/// No wait in these tests takes longer; what passes it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a CA beside `test`, and stops it afterwards.
async fn with<F: Future<Output = ()>>(
    files: &Files,
    config: adit_ca::Config,
    test: impl FnOnce(SocketAddr, Counting) -> F,
) {
    with_patience(files, config, PATIENCE, test).await;
}

/// What a CA has counted by now.
pub(crate) type Counting = Box<dyn Fn() -> adit_ca::counts::Counted>;

/// As [`with`], for a test in which much time passes while the clock is paused.
pub(crate) async fn with_patience<F: Future<Output = ()>>(
    files: &Files,
    config: adit_ca::Config,
    patience: Duration,
    test: impl FnOnce(SocketAddr, Counting) -> F,
) {
    let app = App::bind(config, "test").await.unwrap();
    let (address, counts) = (app.address(), app.counts());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = app.run(async {
        let _ = stopped.await;
    });
    let testing = async {
        tokio::time::timeout(patience, test(address, Box::new(counts))).await.expect("the test ends in time");
        drop(stop);
    };
    let (ran, ()) = tokio::join!(running, testing);
    ran.unwrap();
    assert!(!store::is_held(&files.path("store")), "the store is let go");
}

/// Looks again and again until `look` finds what it looks for; the test's own time bound ends it otherwise.
pub(crate) async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    loop {
        ticks.tick().await;
        if let Some(found) = look() {
            return found;
        }
    }
}

fn chain_of(reply: &[String]) -> Vec<CertificateDer<'static>> {
    reply.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap)).collect()
}

#[tokio::test]
async fn a_caller_gets_a_chain_leaf_first_root_last_that_leads_to_the_published_root() {
    let files = Files::new();
    with(&files, files.config(), |address, counts| {
        let files = &files;
        async move {
            let roots = files.roots();
            let channel = connect(address, tls(&roots)).await.unwrap();
            let before = SystemTime::now();
            let reply = Ask::good().of(&channel).await.unwrap();
            assert_eq!(reply.cert_chain.len(), 3);
            let chain = chain_of(&reply.cert_chain);
            assert_eq!(chain[2], roots[0]);
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            let life = leaf.validity().not_after.timestamp() - unix(before);
            assert!((86_399..=86_401).contains(&life), "24 h by default, not {life} s");
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert!(matches!(
                names.value.general_names[..],
                [x509_parser::extensions::GeneralName::URI(WEB)]
            ));
            let short = Ask { validity: 60, ..Ask::good() }.of(&channel).await.unwrap();
            let chain = chain_of(&short.cert_chain);
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            let life = leaf.validity().not_after.timestamp() - unix(before);
            assert!((59..=120).contains(&life), "{life}");
            assert_eq!(counts().issued, 2);
        }
    })
    .await;
}

fn unix(at: SystemTime) -> i64 {
    i64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[tokio::test]
async fn every_refusal_has_its_code_its_step_and_its_word_and_is_counted() {
    let files = Files::new();
    with(&files, files.config(), |address, counts| {
        let files = &files;
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            let csr_of = |kind| {
                let key = rcgen::KeyPair::generate_for(kind).unwrap();
                rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
            };
            let rsa = csr_of(&rcgen::PKCS_RSA_SHA256);
            let pem = |der: &[u8]| {
                let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
                format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
            };
            // The signature's last byte is another.
            let signed = csr_of(&rcgen::PKCS_ECDSA_P256_SHA256);
            let signed = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(signed.as_bytes());
            let mut unsigned = signed.unwrap().to_vec();
            *unsigned.last_mut().unwrap() ^= 1;
            let good = Ask::good;
            let cases = [
                (
                    Ask { authorization: None, ..good() },
                    Code::Unauthenticated,
                    "authenticate",
                    "no_authorization",
                ),
                (
                    Ask { authorization: Some("Basic x".into()), ..good() },
                    Code::Unauthenticated,
                    "authenticate",
                    "not_bearer",
                ),
                (
                    Ask { authorization: Some("Bearer nobody-knows-this-one".into()), ..good() },
                    Code::Unauthenticated,
                    "authenticate",
                    "unknown_token",
                ),
                (Ask { identity: None, ..good() }, Code::InvalidArgument, "identity", "no_identity"),
                (
                    Ask { identity: Some(true.into()), ..good() },
                    Code::InvalidArgument,
                    "identity",
                    "no_identity",
                ),
                (
                    Ask { identity: Some(text("web")), ..good() },
                    Code::InvalidArgument,
                    "identity",
                    "bad_identity",
                ),
                (Ask { validity: -1, ..good() }, Code::InvalidArgument, "validity", "bad_validity"),
                (Ask { validity: 9, ..good() }, Code::InvalidArgument, "validity", "bad_validity"),
                (Ask { csr: "x".repeat(9000), ..good() }, Code::InvalidArgument, "csr", "csr_too_long"),
                (Ask { csr: String::new(), ..good() }, Code::InvalidArgument, "csr", "csr_not_pem"),
                (Ask { csr: rsa, ..good() }, Code::InvalidArgument, "csr", "csr_key"),
                (Ask { csr: pem(b"no DER"), ..good() }, Code::InvalidArgument, "csr", "csr_malformed"),
                (Ask { csr: pem(&unsigned), ..good() }, Code::InvalidArgument, "csr", "csr_signature"),
                (
                    Ask { identity: Some(text("spiffe://cluster.local/ns/shop/sa/other")), ..good() },
                    Code::PermissionDenied,
                    "attest",
                    "not_allowed",
                ),
                (
                    Ask { identity: Some(text("spiffe://elsewhere/ns/shop/sa/web")), ..good() },
                    Code::PermissionDenied,
                    "attest",
                    "trust_domain",
                ),
            ];
            for (ask, code, step, word) in cases {
                let before = counts().refused.get(word).copied().unwrap_or(0);
                let refused = ask.of(&channel).await.unwrap_err();
                assert_eq!(refused.code(), code, "{refused:?}");
                assert!(refused.message().starts_with(&format!("{step}: ")), "{refused:?}");
                assert_eq!(refused.metadata().get("adit-refusal").unwrap(), word);
                assert_eq!(counts().refused[word], before + 1);
            }
            assert_eq!(counts().issued, 0);
            // More than any message may have: refused before it is parsed.
            let huge = Ask { csr: "x".repeat(20_000), ..good() }.of(&channel).await.unwrap_err();
            assert_eq!(huge.code(), Code::OutOfRange, "{huge:?}");
            Ask::good().of(&channel).await.unwrap();
            assert_eq!(counts().issued, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn an_issuer_given_by_hand_that_ends_refuses_and_says_when() {
    let files = Files::new();
    // Enough for the CA's own certificate, however slowly it starts (a life is 10 s at least); some seconds later not
    // enough for any other.
    let ends = SystemTime::now() + Duration::from_secs(20);
    give_issuer(&files.path("store"), ends);
    with(&files, files.config(), |address, counts| {
        let files = &files;
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            let refused = loop {
                ticks.tick().await;
                if let Err(refused) = Ask::good().of(&channel).await {
                    break refused;
                }
            };
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            assert!(refused.message().starts_with("issue: "), "{refused:?}");
            assert_eq!(refused.metadata().get("adit-refusal").unwrap(), "issuer_ends");
            assert_eq!(counts().refused["issuer_ends"], 1);
        }
    })
    .await;
}

/// Leaves a root, and an intermediate that ends then, as if a user had.
fn give_issuer(store: &std::path::Path, ends: SystemTime) {
    let params = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params
    };
    let key = || rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertifiedIssuer::self_signed(params("root"), key()).unwrap();
    let mut issuing = params("issuing");
    issuing.not_before = (ends - Duration::from_secs(3600)).into();
    issuing.not_after = ends.into();
    let issuing = rcgen::CertifiedIssuer::signed_by(issuing, key(), &root).unwrap();
    std::fs::create_dir_all(store).unwrap();
    std::fs::set_permissions(store, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    crate::common::replace(&store.join("tls.crt"), &issuing.pem());
    crate::common::replace(&store.join("tls.key"), &issuing.key().serialize_pem());
    crate::common::replace(&store.join("ca.crt"), &root.pem());
}

#[tokio::test]
async fn a_changed_token_file_counts_for_the_next_request() {
    let files = Files::new();
    let mut config = files.config();
    // Long enough that only the refusal itself can have made it read the file.
    config.poll = Duration::from_secs(60);
    with(&files, config, |address, _| {
        let files = &files;
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            let cart = "spiffe://cluster.local/ns/cart/sa/api";
            let ask = |token: &str| Ask {
                authorization: Some(format!("Bearer {token}")),
                identity: Some(text(cart)),
                ..Ask::good()
            };
            assert_eq!(
                ask(crate::common::TOKEN).of(&channel).await.unwrap_err().code(),
                Code::PermissionDenied
            );
            let node = |name: &str, token: &str| {
                format!("  {name}:\n    token: {token}\n    identities: [{cart}]\n")
            };
            files.tokens(&format!("nodes:\n{}", node("node-a", crate::common::TOKEN)));
            ask(crate::common::TOKEN).of(&channel).await.unwrap();
            let new = "token-of-node-b-0123456789";
            files.tokens(&format!("nodes:\n{}{}", node("node-a", crate::common::TOKEN), node("node-b", new)));
            ask(new).of(&channel).await.unwrap();
            // A broken file takes nothing away.
            files.tokens("nodes: [");
            assert_eq!(
                ask("nobody-knows-this-one").of(&channel).await.unwrap_err().code(),
                Code::Unauthenticated
            );
            ask(new).of(&channel).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_taken_away_is_refused_after_the_poll() {
    let files = Files::new();
    with(&files, files.config(), |address, _| {
        let files = &files;
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            Ask::good().of(&channel).await.unwrap();
            files.tokens("nodes: {}\n");
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            loop {
                ticks.tick().await;
                match Ask::good().of(&channel).await {
                    Ok(_) => {}
                    Err(refused) => return assert_eq!(refused.code(), Code::Unauthenticated),
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_root_rotation_under_way_fails_no_request_and_ends_with_one_new_root() {
    let files = Files::new();
    let mut config = files.config();
    config.leaf_life = adit_ca::issue::Life::new(Duration::from_secs(10)).unwrap();
    with(&files, config, |address, _| {
        let files = &files;
        async move {
            let old = files.roots();
            std::fs::create_dir_all(files.path("mesh/status")).unwrap();
            let status = files.path("mesh/status/node-a.yaml");
            std::fs::write(&status, "bundle-generation: 1\n").unwrap();
            store::leave(&files.path("store"), Request::RotateRoot, SystemTime::now()).unwrap();
            let both = until(|| Some(files.roots()).filter(|roots| roots.len() == 2)).await;
            assert_eq!(both[0], old[0]);
            // The old one signs until the agent has acknowledged.
            let channel = connect(address, tls(&old)).await.unwrap();
            let reply = Ask::good().of(&channel).await.unwrap();
            assert_eq!(chain_of(&reply.cert_chain)[2..], both, "the reply names both, its own first");
            std::fs::write(&status, "bundle-generation: 2\n").unwrap();
            let mut issued = 0;
            // With the new root, for as long as leaves of the old one live.
            loop {
                let roots = files.roots();
                let channel = connect(address, tls(&roots)).await.unwrap();
                Ask::good().of(&channel).await.unwrap();
                issued += 1;
                if roots.len() == 1 {
                    assert_eq!(roots[0], both[1]);
                    break;
                }
            }
            assert!(issued > 10, "{issued}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_revoked_identity_gets_no_certificate_until_it_is_restored() {
    let files = Files::new();
    with(&files, files.config(), |address, _| {
        let files = &files;
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            let subject = adit_ca::state::Subject::Identity(WEB.parse().unwrap());
            let dir = files.path("store");
            store::leave(&dir, Request::Revoke(subject.clone()), SystemTime::now()).unwrap();
            until(|| (store::pending(&dir).unwrap() == 0).then_some(())).await;
            let refused = Ask::good().of(&channel).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.metadata().get("adit-refusal").unwrap().as_bytes()),
                (Code::PermissionDenied, &b"revoked"[..])
            );
            store::leave(&dir, Request::Restore(subject), SystemTime::now()).unwrap();
            until(|| (store::pending(&dir).unwrap() == 0).then_some(())).await;
            Ask::good().of(&channel).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn who_does_not_trust_the_root_or_speaks_no_tls_1_3_gets_no_connection() {
    let files = Files::new();
    with(&files, files.config(), |address, counts| {
        let files = &files;
        async move {
            let stranger = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
            assert!(connect(address, tls(&[stranger.cert.der().clone()])).await.is_err());
            until(|| counts().dropped.get("handshake").copied()).await;
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            Ask::good().of(&channel).await.unwrap();
            let (spoke, _) = openssl(address, files, "-tls1_2").await;
            assert!(!spoke);
            until(|| (counts().dropped["handshake"] == 2).then_some(())).await;
            // Plain text, as from something that is no agent.
            let mut plain = TcpStream::connect(address).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = plain.read_to_end(&mut answer).await;
            until(|| (counts().dropped["handshake"] == 3).then_some(())).await;
            let (spoke, what) = openssl(address, files, "-tls1_3").await;
            assert!(
                spoke && what.contains("TLSv1.3") && what.contains("Verify return code: 0 (ok)"),
                "{what}"
            );
            assert!(what.contains("ALPN protocol: h2"), "{what}");
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            Ask::good().of(&channel).await.unwrap();
        }
    })
    .await;
}

/// What the openssl command says of the CA's TLS, and whether it got a connection.
async fn openssl(address: SocketAddr, files: &Files, version: &str) -> (bool, String) {
    let root = files.path("root.pem");
    let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &files.roots()[0]);
    std::fs::write(&root, format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"))
        .unwrap();
    let output = tokio::process::Command::new("openssl")
        .args(["s_client", version, "-alpn", "h2", "-verify_hostname", "adit-ca.adit-system.svc", "-connect"])
        .arg(address.to_string())
        .arg("-CAfile")
        .arg(&root)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .expect("the openssl command is installed (apt-get install openssl)");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn a_silent_connection_is_dropped_at_the_handshake_deadline() {
    let files = Files::new();
    with(&files, files.config(), |address, counts| async move {
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "closed by the CA");
        assert_eq!(counts().dropped["handshake_timeout"], 1);
    })
    .await;
}

#[tokio::test]
async fn a_connection_on_which_nobody_known_asks_is_dropped_and_a_callers_stays() {
    let files = Files::new();
    let mut config = files.config();
    config.poll = Duration::from_secs(60);
    with(&files, config, |address, counts| {
        let files = &files;
        async move {
            let config = tls(&files.roots());
            let caller = connect(address, config.clone()).await.unwrap();
            Ask::good().of(&caller).await.unwrap();
            let stranger = connect(address, config.clone()).await.unwrap();
            let refused = Ask { authorization: None, ..Ask::good() }.of(&stranger).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
            let name = "adit-ca.adit-system.svc".try_into().unwrap();
            let mut silent =
                connector.connect(name, TcpStream::connect(address).await.unwrap()).await.unwrap();
            // From here on time passes as fast as nothing else is to be done.
            tokio::time::pause();
            let began = tokio::time::Instant::now();
            let _ = silent.read_to_end(&mut Vec::new()).await;
            let waited = began.elapsed();
            let bound = adit_ca::server::UNKNOWN_FOR_MAX;
            assert!((bound / 2..=bound + Duration::from_secs(1)).contains(&waited), "{waited:?}");
            until(|| (counts().dropped["unknown"] == 2).then_some(())).await;
            tokio::time::resume();
            Ask::good().of(&caller).await.unwrap();
            assert_eq!(counts().dropped.len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_restarted_ca_has_the_same_root_and_what_it_issued_stays_good() {
    let files = Files::new();
    let mut first = Vec::new();
    with(&files, files.config(), |address, _| {
        let (files, first) = (&files, &mut first);
        async move {
            let channel = connect(address, tls(&files.roots())).await.unwrap();
            first.extend(chain_of(&Ask::good().of(&channel).await.unwrap().cert_chain));
        }
    })
    .await;
    with(&files, files.config(), |_, _| {
        let (files, first) = (&files, &first);
        async move {
            let roots = files.roots();
            assert_eq!(roots, [first[2].clone()]);
            let anchors = [webpki::anchor_from_trusted_cert(&roots[0]).unwrap()];
            let leaf = webpki::EndEntityCert::try_from(&first[0]).unwrap();
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &first[1..2],
                UnixTime::now(),
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .unwrap();
        }
    })
    .await;
}
