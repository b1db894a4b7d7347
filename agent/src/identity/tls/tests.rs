//! Whole handshakes in memory: every reason to refuse one, and what a good one proves.

use std::future::Future;
use std::time::Duration;

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::certs::{self, CertSource, Publish};
use super::super::testing::{Authority, Spec, bundle, id, unchecked, wall};
use super::*;

type ClientEnd = io::Result<tokio_rustls::client::TlsStream<DuplexStream>>;
type ServerEnd = io::Result<tokio_rustls::server::TlsStream<DuplexStream>>;

/// One node's certificates, under one root.
struct Node {
    tls: Tls,
    publish: Publish,
    certs: CertSource,
}

impl Node {
    fn new(trust: adit_core::trust::TrustBundle) -> Self {
        let tls = Tls::new(Clock::paused(wall()));
        let (publish, certs) =
            certs::channel(tls.clone(), Arc::new(Trust::new(Arc::new(trust), tls.algorithms()).unwrap()));
        Self { tls, publish, certs }
    }

    fn with(trust: adit_core::trust::TrustBundle, id: &SpiffeId, spec: &Spec, by: &Authority) -> Self {
        let node = Self::new(trust);
        node.publish.publish(&unchecked(id, spec, by, &node.tls));
        node
    }
}

/// Both ends of one handshake; a client that is refused after its own end has finished reads the alert.
async fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (ClientEnd, ServerEnd) {
    let (near, far) = duplex(64 * 1024);
    let connect = async {
        let name = rustls_pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(stream)
    };
    both(connect, accept).await
}

async fn both(
    connect: impl Future<Output = ClientEnd>,
    accept: impl Future<Output = ServerEnd>,
) -> (ClientEnd, ServerEnd) {
    tokio::join!(connect, accept)
}

/// What web says of api, and api of web, when these two leaves meet.
struct Case {
    rule: &'static str,
    client: Spec,
    server: Spec,
    web_says: Reason,
    api_says: Reason,
}

async fn check(root: &Authority, by: &Authority, case: Case) {
    let trust = || bundle(1, &[root]);
    let web = Node::with(trust(), &id("web"), &case.client, by);
    let api = Node::with(trust(), &id("api"), &case.server, root);
    let client = web.certs.client(&id("web"), &id("api")).unwrap();
    let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
    assert_eq!(reason_of(&web_end.unwrap_err()), case.web_says, "{}: web", case.rule);
    assert_eq!(reason_of(&api_end.unwrap_err()), case.api_says, "{}: api", case.rule);
}

#[tokio::test]
async fn a_handshake_proves_both_identities_and_is_post_quantum() {
    let root = Authority::root("root");
    let issuing = root.intermediate("issuing", &[7]);
    let web = Node::with(bundle(1, &[&root]), &id("web"), &Spec::of(&id("web")), &issuing);
    let api = Node::with(bundle(1, &[&root]), &id("api"), &Spec::of(&id("api")), &issuing);
    let client = web.certs.client(&id("web"), &id("api")).unwrap();
    let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
    let facts = TlsFacts { version: "TLSv1.3", suite: "TLS13_AES_128_GCM_SHA256", group: "X25519MLKEM768" };
    let not_after = wall() + Duration::from_secs(24 * 3600);
    let expected = |name: &str| Peer {
        id: id(name),
        serial: "abc".into(),
        above: ["7".into()].into(),
        not_after,
        tls: facts,
    };
    assert_eq!(peer_of(web_end.unwrap().get_ref().1).unwrap(), expected("api"));
    assert_eq!(peer_of(api_end.unwrap().get_ref().1).unwrap(), expected("web"));
}

#[tokio::test]
async fn each_broken_rule_of_a_servers_certificate_has_its_reason() {
    let root = Authority::root("root");
    let other = Authority::root("other");
    let (web, api) = (id("web"), id("api"));
    let sound = Spec::of(&api);
    let foreign = SpiffeId::of_service_account(&"other.local".parse().unwrap(), "shop", "api").unwrap();
    let signing = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    let cases: [(&str, &Authority, Spec, Reason, Reason); 14] = [
        ("another identity", &root, Spec::of(&id("cart")), Reason::PeerIdentity, Reason::PeerUntrusted),
        ("another trust domain", &root, Spec::of(&foreign), Reason::PeerUntrusted, Reason::PeerUntrusted),
        (
            "expired",
            &root,
            Spec { to: -1, ..sound.clone() },
            Reason::PeerExpired,
            Reason::OwnCertificateMissing,
        ),
        (
            "not yet valid",
            &root,
            Spec { from: 60, ..sound.clone() },
            Reason::PeerExpired,
            Reason::OwnCertificateMissing,
        ),
        ("another root", &other, sound.clone(), Reason::PeerUntrusted, Reason::PeerUntrusted),
        (
            "two URI SANs",
            &root,
            Spec { uris: vec![api.as_str().into(), web.as_str().into()], ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "no URI SAN",
            &root,
            Spec { uris: vec![], ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "no workload's identity",
            &root,
            Spec { uris: vec!["spiffe://cluster.local".into()], ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "a CA's certificate",
            &root,
            Spec { is_ca: IsCa::Ca(BasicConstraints::Unconstrained), ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "a signing key",
            &root,
            Spec { key_usages: signing, ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "a key that signs revocation lists",
            &root,
            Spec {
                key_usages: vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
                ..sound.clone()
            },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "a URI of another scheme",
            &root,
            Spec { uris: vec!["https://cluster.local/ns/shop/sa/api".into()], ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "a client's purpose only",
            &root,
            Spec { extended_key_usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
        (
            "no subject and a SAN that is not critical",
            &root,
            Spec { san_critical: false, ..sound.clone() },
            Reason::PeerUntrusted,
            Reason::PeerUntrusted,
        ),
    ];
    for (rule, by, server, web_says, api_says) in cases {
        let trust = || bundle(1, &[&root]);
        let web_node = Node::with(trust(), &web, &Spec::of(&web), &root);
        let api_node = Node::with(trust(), &api, &server, by);
        let client = web_node.certs.client(&web, &api).unwrap();
        let (web_end, api_end) = shake(client, api_node.certs.server(&api).unwrap()).await;
        assert_eq!(reason_of(&web_end.unwrap_err()), web_says, "{rule}: web");
        assert_eq!(reason_of(&api_end.unwrap_err()), api_says, "{rule}: api");
    }
}

#[tokio::test]
async fn each_broken_rule_of_a_clients_certificate_has_its_reason() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let sound = Spec::of(&id("web"));
    let usages = |signing| vec![KeyUsagePurpose::DigitalSignature, signing];
    let uris = |uri: &str| Spec { uris: vec![uri.into()], ..Spec::of(&id("web")) };
    let foreign = SpiffeId::of_service_account(&"other.local".parse().unwrap(), "shop", "web").unwrap();
    let case = |rule, client: Spec, api_says, web_says| Case {
        rule,
        client,
        server: Spec::of(&id("api")),
        web_says,
        api_says,
    };
    let distrust = (Reason::PeerUntrusted, Reason::PeerUntrusted);
    let age = (Reason::PeerExpired, Reason::OwnCertificateMissing);
    for (rule, by, client, (api_says, web_says)) in [
        ("another trust domain", &root, Spec::of(&foreign), distrust),
        ("expired", &root, Spec { to: -1, ..sound.clone() }, age),
        ("not yet valid", &root, Spec { from: 60, ..sound.clone() }, age),
        ("another root", &other, sound.clone(), distrust),
        ("no URI SAN", &root, Spec { uris: vec![], ..sound.clone() }, distrust),
        ("no workload's identity", &root, uris("spiffe://cluster.local"), distrust),
        ("a URI of another scheme", &root, uris("https://cluster.local/ns/shop/sa/web"), distrust),
        (
            "a signing key",
            &root,
            Spec { key_usages: usages(KeyUsagePurpose::KeyCertSign), ..sound.clone() },
            distrust,
        ),
        (
            "a key that signs revocation lists",
            &root,
            Spec { key_usages: usages(KeyUsagePurpose::CrlSign), ..sound.clone() },
            distrust,
        ),
        (
            "no subject and a SAN that is not critical",
            &root,
            Spec { san_critical: false, ..sound.clone() },
            distrust,
        ),
        (
            "two URI SANs",
            &root,
            Spec { uris: vec![id("web").to_string(), id("api").to_string()], ..sound.clone() },
            distrust,
        ),
        (
            "a CA's",
            &root,
            Spec { is_ca: IsCa::Ca(BasicConstraints::Unconstrained), ..sound.clone() },
            distrust,
        ),
        (
            "a server's purpose only",
            &root,
            Spec { extended_key_usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..sound.clone() },
            distrust,
        ),
    ] {
        check(&root, by, case(rule, client, api_says, web_says)).await;
    }
}

#[tokio::test]
async fn a_revoked_serial_identity_intermediate_or_trust_domain_is_refused_on_both_sides() {
    let root = Authority::root("root");
    let issuing = root.intermediate("issuing", &[0, 7]);
    let sound = bundle(1, &[&root]);
    let kill = |change: fn(&mut adit_core::trust::TrustBundle)| {
        let mut trust = sound.clone();
        change(&mut trust);
        trust
    };
    let lists = [
        kill(|trust| _ = trust.revoked_serials.insert("abc".into())),
        kill(|trust| _ = trust.revoked_serials.insert("7".into())),
        kill(|trust| {
            trust.revoked_identities.insert(id("web"));
            trust.revoked_identities.insert(id("api"));
        }),
        kill(|trust| trust.roots.values_mut().for_each(Vec::clear)),
    ];
    for list in lists {
        let plain = |name: &str| Node::with(sound.clone(), &id(name), &Spec::of(&id(name)), &issuing);
        let knowing = |name: &str| Node::with(list.clone(), &id(name), &Spec::of(&id(name)), &issuing);
        let (web, api) = (knowing("web"), plain("api"));
        let client = web.certs.client(&id("web"), &id("api")).unwrap();
        let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
        assert_eq!(reason_of(&web_end.unwrap_err()), Reason::PeerRevoked, "{list:?}");
        assert_eq!(reason_of(&api_end.unwrap_err()), Reason::IdentityRevoked, "{list:?}");
        let (web, api) = (plain("web"), knowing("api"));
        let client = web.certs.client(&id("web"), &id("api")).unwrap();
        let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
        assert_eq!(reason_of(&api_end.unwrap_err()), Reason::PeerRevoked, "{list:?}");
        assert_eq!(reason_of(&web_end.unwrap_err()), Reason::IdentityRevoked, "{list:?}");
    }
}

#[tokio::test]
async fn who_is_connected_is_distrusted_once_any_certificate_of_its_chain_is_revoked() {
    let root = Authority::root("root");
    let issuing = root.intermediate("above", &[8]).intermediate("issuing", &[7]);
    let node = |name: &str| Node::with(bundle(1, &[&root]), &id(name), &Spec::of(&id(name)), &issuing);
    let (web, api) = (node("web"), node("api"));
    let client = web.certs.client(&id("web"), &id("api")).unwrap();
    let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
    let peers =
        [peer_of(web_end.unwrap().get_ref().1).unwrap(), peer_of(api_end.unwrap().get_ref().1).unwrap()];
    for (serial, expected) in [
        ("abc", Some(Reason::IdentityRevoked)),
        ("7", Some(Reason::IdentityRevoked)),
        ("8", Some(Reason::IdentityRevoked)),
        ("9", None),
    ] {
        let mut trust = bundle(2, &[&root]);
        trust.revoked_serials.insert(serial.into());
        let revoking = Arc::new(trust);
        // Whether the leaves have expired meanwhile or not: a connection outlives its certificate.
        let now = wall() + Duration::from_secs(25 * 3600);
        for (node, peer) in [&web, &api].into_iter().zip(&peers) {
            let trust = Trust::new(revoking.clone(), node.tls.algorithms()).unwrap();
            node.publish.trust_in(&Arc::new(trust.after(&node.publish.trust(), now)), now);
            assert_eq!(node.certs.distrusts(peer), expected, "{serial}: {peer:?}");
        }
    }
}

#[tokio::test]
async fn bundles_are_never_merged_a_root_counts_for_its_own_trust_domain_only() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let mut trust = bundle(1, &[&root]);
    trust.roots.insert("other.local".parse().unwrap(), vec![Arc::from(other.der())]);
    // other.local's root issues a cluster.local identity.
    let web = Node::with(trust.clone(), &id("web"), &Spec::of(&id("web")), &other);
    let api = Node::with(trust.clone(), &id("api"), &Spec::of(&id("api")), &root);
    let client = web.certs.client(&id("web"), &id("api")).unwrap();
    let (_, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
    assert_eq!(reason_of(&api_end.unwrap_err()), Reason::PeerUntrusted);

    let foreign = SpiffeId::of_service_account(&"other.local".parse().unwrap(), "shop", "web").unwrap();
    let web = Node::with(trust, &foreign, &Spec::of(&foreign), &other);
    let client = web.certs.client(&foreign, &id("api")).unwrap();
    let (_, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
    assert_eq!(peer_of(api_end.unwrap().get_ref().1).unwrap().id, foreign);
}

/// A client or server that is no agent of ours, with what it deviates in.
fn stranger(root: &Authority, change: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    let node = Node::with(bundle(1, &[root]), &id("web"), &Spec::of(&id("web")), root);
    let mut config = ClientConfig::clone(&node.certs.client(&id("web"), &id("api")).unwrap());
    change(&mut config);
    Arc::new(config)
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let root = Authority::root("root");
    let api = Node::with(bundle(1, &[&root]), &id("api"), &Spec::of(&id("api")), &root);
    let trust = api.publish.trust();
    let mut config = ClientConfig::builder_with_provider(api.tls.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExpectPeer { trust, expected: id("api") }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.time_provider = Arc::new(WallClock(Clock::paused(wall())));
    let (web_end, api_end) = shake(Arc::new(config), api.certs.server(&id("api")).unwrap()).await;
    assert_eq!(reason_of(&api_end.unwrap_err()), Reason::NoClientCertificate);
    assert_eq!(reason_of(&web_end.unwrap_err()), Reason::OwnCertificateMissing);
}

#[tokio::test]
async fn another_protocol_than_h2_is_refused_and_so_is_none() {
    let root = Authority::root("root");
    let api = Node::with(bundle(1, &[&root]), &id("api"), &Spec::of(&id("api")), &root);
    let server = || api.certs.server(&id("api")).unwrap();
    let http1 = stranger(&root, |config| config.alpn_protocols = vec![b"http/1.1".to_vec()]);
    let (web_end, api_end) = shake(http1, server()).await;
    assert_eq!(reason_of(&web_end.unwrap_err()), Reason::Alpn);
    assert_eq!(reason_of(&api_end.unwrap_err()), Reason::Alpn);

    let none = stranger(&root, |config| config.alpn_protocols = vec![]);
    let (web_end, api_end) = shake(none, server()).await;
    for error in [
        peer_of(web_end.unwrap().get_ref().1).unwrap_err(),
        peer_of(api_end.unwrap().get_ref().1).unwrap_err(),
    ] {
        assert_eq!(error.reason(), Reason::Alpn);
        assert_eq!(reason_of(&error.into()), Reason::Alpn);
    }
}

#[tokio::test]
async fn what_is_not_tls_is_a_broken_protocol_and_what_ends_is_a_lost_tunnel() {
    let root = Authority::root("root");
    let web = Node::with(bundle(1, &[&root]), &id("web"), &Spec::of(&id("web")), &root);
    let name = || rustls_pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    for (answer, reason) in
        [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], Reason::PeerProtocol), (b"", Reason::TunnelLost)]
    {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        let config = web.certs.client(&id("web"), &id("api")).unwrap();
        let error = TlsConnector::from(config).connect(name(), near).await.unwrap_err();
        assert_eq!(reason_of(&error), reason, "{error}");
    }
}

#[test]
fn errors_of_the_socket_keep_their_meaning() {
    for (kind, reason) in [
        (io::ErrorKind::TimedOut, Reason::HandshakeTimeout),
        (io::ErrorKind::ConnectionReset, Reason::TunnelLost),
        (io::ErrorKind::ConnectionRefused, Reason::Refused),
        (io::ErrorKind::HostUnreachable, Reason::Unreachable),
    ] {
        assert_eq!(reason_of(&kind.into()), reason);
    }
    let missing = NoCertificate { id: id("web") };
    assert_eq!(missing.reason(), Reason::OwnCertificateMissing);
    assert_eq!(reason_of(&missing.into()), Reason::OwnCertificateMissing);
}

#[test]
fn only_tls_1_3_with_aes_gcm_and_the_three_groups_is_offered_and_no_server_name() {
    let tls = Tls::new(Clock::paused(wall()));
    let provider = tls.provider();
    let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| suite.suite().as_str().unwrap()).collect();
    assert_eq!(suites, ["TLS13_AES_128_GCM_SHA256", "TLS13_AES_256_GCM_SHA384"]);
    let groups: Vec<_> = provider.kx_groups.iter().map(|group| group_name(group.name())).collect();
    assert_eq!(groups, ["X25519MLKEM768", "X25519", "secp256r1"]);
    let root = Authority::root("root");
    let config = stranger(&root, |_| ());
    assert!(!config.enable_sni);
}

/// A ClientHello of TLS 1.2, as OpenSSL would send it: no supported_versions extension.
const CLIENT_HELLO_TLS12: &[u8] = &[
    22, 3, 1, 0, 69, // handshake record
    1, 0, 0, 65, 3, 3, // ClientHello, TLS 1.2
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, // random
    0, // no session
    0, 2, 0xc0, 0x2b, // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    1, 0, // no compression
    0, 22, // extensions
    0, 10, 0, 4, 0, 2, 0, 29, // supported_groups: X25519
    0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    0, 11, 0, 2, 1, 0, // ec_point_formats
];

#[tokio::test]
async fn tls_1_2_is_refused() {
    let root = Authority::root("root");
    let api = Node::with(bundle(1, &[&root]), &id("api"), &Spec::of(&id("api")), &root);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(CLIENT_HELLO_TLS12).await.unwrap();
    let accepted = TlsAcceptor::from(api.certs.server(&id("api")).unwrap()).accept(far).await;
    let error = accepted.unwrap_err();
    let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    assert_eq!(
        *tls,
        rustls::Error::PeerIncompatible(rustls::PeerIncompatible::SupportedVersionsExtensionRequired)
    );
    assert_eq!(reason_of(&error), Reason::PeerProtocol);
    let mut alert = [0; 7];
    near.read_exact(&mut alert).await.unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70], "a fatal protocol_version alert");
}

#[tokio::test]
async fn no_session_is_resumed_even_between_the_same_configurations() {
    let root = Authority::root("root");
    let web = Node::with(bundle(1, &[&root]), &id("web"), &Spec::of(&id("web")), &root);
    let api = Node::with(bundle(1, &[&root]), &id("api"), &Spec::of(&id("api")), &root);
    for _ in 0..2 {
        let client = web.certs.client(&id("web"), &id("api")).unwrap();
        let (web_end, api_end) = shake(client, api.certs.server(&id("api")).unwrap()).await;
        let (web_end, api_end) = (web_end.unwrap(), api_end.unwrap());
        assert_eq!(web_end.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(api_end.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    // Nor with a client that would: the server sends it no ticket.
    let keen = stranger(&root, |config| config.resumption = Resumption::in_memory_sessions(8));
    for _ in 0..2 {
        let (web_end, _) = shake(keen.clone(), api.certs.server(&id("api")).unwrap()).await;
        let web_end = web_end.unwrap();
        assert_eq!(web_end.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(web_end.get_ref().1.tls13_tickets_received(), 0);
    }
}
