//! The client against a gRPC server made by hand of TLS and HTTP/2 alone: what goes over the wire is Istio's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use adit_core::draw::Seed;
use adit_core::rotation::Policy;
use adit_core::trust::TrustBundle;
use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::super::certs::{self, Publish};
use super::super::driver::{Driver, Inlets, Issuer, Outlets};
use super::super::needs::IdentityStatus;
use super::super::testing::{Authority, bundle, id, wall};
use super::*;
use crate::clock::Clock;
use crate::identity::stub::IstioCertificateResponse;

const CA_NAME: &str = "adit-ca.adit-system.svc";

/// What the server does with a request.
#[derive(Clone)]
enum Script {
    Issue(Vec<String>),
    /// A gRPC status.
    Refuse(u8),
    /// Takes the request and never answers.
    Silent,
    /// Ends the connection.
    Cut,
}

/// What it saw of one.
struct Seen {
    path: String,
    authorization: String,
    request: IstioCertificateRequest,
}

struct Server {
    address: String,
    seen: mpsc::Receiver<Seen>,
    /// TLS handshakes that were begun with it.
    connections: Arc<AtomicUsize>,
    _running: JoinSet<()>,
}

/// Serves with a certificate for `name`, issued by `root`.
async fn serve(root: &Authority, name: &str, script: Script) -> Server {
    let tls = Tls::new(Clock::paused(wall()));
    let (chain, key) = root.server(name);
    let mut config = rustls::ServerConfig::builder_with_provider(tls.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (saw, seen) = mpsc::channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let accepted = Arc::clone(&connections);
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::Relaxed);
            let (acceptor, saw, script) = (acceptor.clone(), saw.clone(), script.clone());
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut requests = JoinSet::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    if matches!(script, Script::Cut) {
                        return;
                    }
                    requests.spawn(answer(request, respond, saw.clone(), script.clone()));
                }
            });
        }
    });
    Server { address, seen, connections, _running: running }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    saw: mpsc::Sender<Seen>,
    script: Script,
) {
    let (head, mut body) = request.into_parts();
    let mut text = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        text.extend_from_slice(&chunk);
    }
    saw.send(Seen {
        path: head.uri.path().to_owned(),
        authorization: head.headers["authorization"].to_str().unwrap().to_owned(),
        request: IstioCertificateRequest::decode(&text[5..]).unwrap(),
    })
    .unwrap();
    let (message, status) = match script {
        Script::Issue(cert_chain) => (Some(IstioCertificateResponse { cert_chain }.encode_to_vec()), 0),
        Script::Refuse(status) => (None, status),
        Script::Silent | Script::Cut => return std::future::pending().await,
    };
    let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    if let Some(message) = message {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.extend_from_slice(&message);
        stream.send_data(frame.freeze(), false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.to_string().parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

/// A client, and what must live as long as it.
struct Setup {
    client: CaClient,
    publish: Publish,
    dir: tempfile::TempDir,
}

impl Setup {
    /// As the driver does with a bundle that differs.
    fn trust_in(&self, bundle: TrustBundle) {
        self.publish.trust_in(&trust(bundle), wall());
    }
}

fn trust(bundle: TrustBundle) -> Arc<Trust> {
    let tls = Tls::new(Clock::paused(wall()));
    Arc::new(Trust::new(Arc::new(bundle), tls.algorithms()).unwrap())
}

fn setup(address: &str, bundle: TrustBundle, root_pem: Option<String>) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "the-token\n").unwrap();
    let root_file = root_pem.map(|pem| {
        std::fs::write(dir.path().join("root.pem"), pem).unwrap();
        dir.path().join("root.pem")
    });
    let ca = Ca {
        address: address.into(),
        server_name: server_name(CA_NAME).unwrap(),
        root_file,
        token_file: dir.path().join("token"),
        trust_domain: "cluster.local".parse().unwrap(),
        life: Duration::from_secs(3600),
    };
    let tls = Tls::new(Clock::paused(wall()));
    let (publish, certs) = certs::channel(tls.clone(), trust(bundle));
    Setup { client: CaClient::new(ca, tls, certs).unwrap(), publish, dir }
}

async fn ask(setup: &Setup) -> Result<Vec<String>, CaError> {
    setup.client.issue(&id("web"), "the csr".into()).await
}

#[tokio::test]
async fn a_request_is_istios_and_its_token_is_read_anew_each_time() {
    let root = Authority::root("root");
    let server = serve(&root, CA_NAME, Script::Issue(vec!["leaf".into(), "root".into()])).await;
    let setup = setup(&server.address, bundle(1, &[&root]), None);
    assert_eq!(ask(&setup).await.unwrap(), ["leaf", "root"]);
    let seen = server.seen.try_recv().unwrap();
    assert_eq!(seen.path, "/istio.v1.auth.IstioCertificateService/CreateCertificate");
    assert_eq!(seen.authorization, "Bearer the-token");
    assert_eq!(seen.request.csr, "the csr");
    assert_eq!(seen.request.validity_duration, 3600);
    let wanted = &seen.request.metadata.unwrap().fields["ImpersonatedIdentity"];
    let uri = prost_types::value::Kind::StringValue("spiffe://cluster.local/ns/shop/sa/web".into());
    assert_eq!(wanted.kind, Some(uri));

    std::fs::write(setup.dir.path().join("token"), "the-next-token").unwrap();
    ask(&setup).await.unwrap();
    assert_eq!(server.seen.try_recv().unwrap().authorization, "Bearer the-next-token");
}

#[tokio::test]
async fn a_ca_with_another_name_or_another_root_is_not_asked() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    for (by, name, trusted) in [(&root, "evil.adit-system.svc", &root), (&other, CA_NAME, &root)] {
        let server = serve(by, name, Script::Issue(vec![])).await;
        let error = ask(&setup(&server.address, bundle(1, &[trusted]), None)).await.unwrap_err();
        assert_eq!(error.kind(), Failure::Unreachable, "{error}");
        assert!(server.seen.try_recv().is_err(), "the token went out to a stranger");
    }
    // A forged one, under an intermediate whose key leaked and that is revoked.
    let leaked = root.intermediate("leaked", &[0x70]);
    let server = serve(&leaked, CA_NAME, Script::Issue(vec!["leaf".into()])).await;
    let revoking =
        |serial: &str| TrustBundle { revoked_serials: [serial.into()].into(), ..bundle(1, &[&root]) };
    let error = ask(&setup(&server.address, revoking("70"), None)).await.unwrap_err();
    assert_eq!(error.kind(), Failure::Unreachable, "{error}");
    assert!(server.seen.try_recv().is_err(), "the token went out under a revoked certificate");
    assert_eq!(ask(&setup(&server.address, revoking("71"), None)).await.unwrap(), ["leaf"]);
    // Another CA's root, where it is configured.
    let server = serve(&other, CA_NAME, Script::Issue(vec!["leaf".into()])).await;
    let with_file = setup(&server.address, bundle(1, &[&root]), Some(other.pem()));
    assert_eq!(ask(&with_file).await.unwrap(), ["leaf"]);
}

#[tokio::test]
async fn a_refusal_is_told_from_an_outage() {
    let root = Authority::root("root");
    for (status, kind) in [
        (7, Failure::Refused),
        (16, Failure::Refused),
        (3, Failure::Refused),
        (14, Failure::Unreachable),
        (13, Failure::Unreachable),
    ] {
        let server = serve(&root, CA_NAME, Script::Refuse(status)).await;
        let error = ask(&setup(&server.address, bundle(1, &[&root]), None)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "status {status}: {error}");
    }
    let server = serve(&root, CA_NAME, Script::Cut).await;
    let error = ask(&setup(&server.address, bundle(1, &[&root]), None)).await.unwrap_err();
    assert_eq!(error.kind(), Failure::Unreachable);
}

#[tokio::test]
async fn without_a_bundle_or_a_token_nothing_is_sent() {
    let root = Authority::root("root");
    let server = serve(&root, CA_NAME, Script::Issue(vec!["leaf".into()])).await;
    let setup = setup(&server.address, TrustBundle::default(), None);
    let error = ask(&setup).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Failure::NotReady, "the trust bundle of cluster.local is not known yet")
    );
    setup.trust_in(bundle(1, &[&root]));
    for token in ["", " \n", "two\nlines"] {
        std::fs::write(setup.dir.path().join("token"), token).unwrap();
        let error = ask(&setup).await.unwrap_err();
        assert_eq!(error.kind(), Failure::NotReady, "{token:?}");
        assert!(!format!("{error:?}").contains("lines"), "a token is never shown");
    }
    std::fs::remove_file(setup.dir.path().join("token")).unwrap();
    assert_eq!(ask(&setup).await.unwrap_err().kind(), Failure::NotReady);
    assert!(server.seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_never_answers_costs_one_time_out() {
    let root = Authority::root("root");
    let server = serve(&root, CA_NAME, Script::Silent).await;
    let setup = setup(&server.address, bundle(1, &[&root]), None);
    let begun = tokio::time::Instant::now();
    assert_eq!(ask(&setup).await.unwrap_err().kind(), Failure::Unreachable);
    assert!(begun.elapsed() <= CALL_TIMEOUT + Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn after_a_failed_call_the_next_one_connects_anew() {
    let root = Authority::root("root");
    let dead = serve(&root, CA_NAME, Script::Cut).await;
    let setup = setup(&dead.address, bundle(1, &[&root]), None);
    ask(&setup).await.unwrap_err();
    assert!(setup.client.channel.lock().unwrap().is_none());
}

/// What revokes the serial 70: the kill list, and a revocation list.
fn revocations_of_70(root: &Authority) -> [TrustBundle; 2] {
    [
        TrustBundle { revoked_serials: ["70".into()].into(), ..bundle(2, &[root]) },
        TrustBundle { crls: vec![root.crl(&[&[0x70]])], ..bundle(2, &[root]) },
    ]
}

#[tokio::test]
async fn a_ca_under_an_intermediate_that_either_list_revokes_gets_no_token() {
    let root = Authority::root("root");
    let leaked = root.intermediate("leaked", &[0x70]);
    for revoking in revocations_of_70(&root) {
        let server = serve(&leaked, CA_NAME, Script::Issue(vec!["leaf".into()])).await;
        let error = ask(&setup(&server.address, revoking, None)).await.unwrap_err();
        assert_eq!(error.kind(), Failure::Unreachable, "{error}");
        assert!(server.seen.try_recv().is_err(), "the token went out under a revoked certificate");
    }
}

#[tokio::test]
async fn a_ca_that_was_connected_to_before_its_revocation_gets_no_token_after_it() {
    let root = Authority::root("root");
    let leaked = root.intermediate("leaked", &[0x70]);
    for revoking in revocations_of_70(&root) {
        let server = serve(&leaked, CA_NAME, Script::Issue(vec!["leaf".into()])).await;
        let setup = setup(&server.address, bundle(1, &[&root]), None);
        for _ in 0..2 {
            assert_eq!(ask(&setup).await.unwrap(), ["leaf"]);
            server.seen.try_recv().unwrap();
        }
        assert_eq!(server.connections.load(Ordering::Relaxed), 1, "one channel while trust stays");
        setup.trust_in(revoking);
        let error = ask(&setup).await.unwrap_err();
        assert_eq!(error.kind(), Failure::Unreachable, "{error}");
        assert!(server.seen.try_recv().is_err(), "the token went out over the channel of before");
    }
}

#[tokio::test]
async fn a_ca_whose_certificates_are_refused_proves_itself_anew_before_the_next_request() {
    let (root, stranger) = (Authority::root("root"), Authority::root("stranger"));
    let server = serve(&root, CA_NAME, Script::Issue(vec![stranger.pem()])).await;
    let Setup { client, publish, dir: _dir } = setup(&server.address, bundle(1, &[&root]), None);
    let (_trust, trust) = watch::channel(Arc::new(bundle(1, &[&root])));
    let clock = Clock::paused(wall());
    let (driver, outlets) = Driver::new(Inlets {
        clock,
        tls: Tls::new(clock),
        ca: Issuer::Ca(Arc::new(client)),
        trust,
        journal: None,
        publish,
        policy: Policy::default(),
        seed: Seed(7),
    });
    let Outlets { needs, mut status, .. } = outlets;
    let mut running = JoinSet::new();
    running.spawn(driver.run());
    for (name, connections) in [("web", 1), ("api", 2)] {
        needs.need(id(name));
        let failed = |status: &Arc<[IdentityStatus]>| {
            status.iter().any(|status| status.id == id(name) && status.last_failure.is_some())
        };
        let seen = status.wait_for(failed).await.unwrap().clone();
        let of_it = seen.iter().find(|status| status.id == id(name)).unwrap();
        assert_eq!(of_it.last_failure.as_ref().unwrap().0, Failure::Unusable, "{of_it:?}");
        assert_eq!(server.connections.load(Ordering::Relaxed), connections, "{name}");
    }
}
