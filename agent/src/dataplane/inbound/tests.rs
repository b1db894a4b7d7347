use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use adit_core::net::ObjectName;
use adit_core::policy::Action;
use adit_core::report::{Direction, End, Stage};
use adit_core::workload::Pod as PodModel;
use adit_core::world::Change;
use adit_proto::Reason;
use adit_proto::hbone::{PORT_INBOUND_HBONE, Refusal};
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::super::legs::Legs;
use super::super::pod::{IDLE_GRACE, INBOUND_TUNNELS_PER_SOURCE_MAX, Pod};
use super::super::pool::{GONE_AFTER, Key};
use super::super::protocol::Refused;
use super::super::testing::{Carried, Rig, app, greet, id, on_worker, policy};
use super::super::{Config, FUTURE_LEN_MAX};

mod flood;

#[test]
fn a_deny_policy_is_named_on_both_sides() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (_app, addr) = app(&api).await;
        rig.change(policy("no-one", Action::Deny, 1));
        let mut near = rig.connect(&web, addr).await;
        assert!(near.read(&mut [0; 1]).await.is_err());
        let outbound = rig.report(Direction::Outbound).await;
        assert_eq!(outbound.end.reason(), Some(Reason::PeerDenied));
        let inbound = rig.report(Direction::Inbound).await;
        assert_eq!(inbound.end.reason(), Some(Reason::PolicyDenied));
        for said in [outbound, inbound] {
            let decision = said.report.decision.unwrap();
            assert_eq!((decision.policy, decision.rule), (Some(ObjectName::new("shop", "no-one")), Some(0)));
        }
    });
}

#[test]
fn allow_policies_of_which_none_matches_refuse() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (_app, addr) = app(&api).await;
        rig.change(policy("nothing", Action::Allow, 0));
        let mut near = rig.connect(&web, addr).await;
        assert!(near.read(&mut [0; 1]).await.is_err());
        let inbound = rig.report(Direction::Inbound).await;
        let End::Failed(Reason::PolicyNoneMatched, Some(detail)) = &inbound.end else {
            panic!("{:?}", inbound.end);
        };
        assert_eq!(&**detail, "refused by policy: policy_none_matched of shop/nothing");
        let outbound = rig.report(Direction::Outbound).await;
        assert_eq!(outbound.end.reason(), Some(Reason::PeerDenied));
        for said in [outbound, inbound] {
            let unmatched = said.report.decision.unwrap().unmatched.unwrap();
            assert_eq!((unmatched.named, unmatched.more), (vec![ObjectName::new("shop", "nothing")], 0));
        }
    });
}

#[test]
fn the_first_connection_of_a_tunnel_tells_how_long_its_handshake_took_on_both_sides() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        for reused in [false, true] {
            let mut near = rig.connect(&web, addr).await;
            let (mut far, _) = app.accept().await.unwrap();
            greet(&mut near, &mut far).await;
            drop((near, far));
            for direction in [Direction::Outbound, Direction::Inbound] {
                let report = rig.report(direction).await.report;
                assert_eq!(report.tunnel_reused, Some(reused), "{direction:?}");
                let took = report.stages.get(Stage::Tls);
                assert_eq!(took.is_some_and(|took| !took.is_zero()), !reused, "{direction:?}: {took:?}");
            }
        }
    });
}

#[test]
fn a_policy_change_cuts_what_it_forbids_and_nothing_else() {
    on_worker(async {
        let Carried { rig, mut near, mut far, .. } = Carried::begin().await;
        rig.change(policy("everything", Action::Allow, 1));
        greet(&mut near, &mut far).await;
        rig.change(policy("no-one", Action::Deny, 1));
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert!(far.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::PolicyChanged));
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::PeerDenied));
    });
}

#[test]
fn what_a_pod_that_is_gone_had_open_ends() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        // Its agent dials from here.
        let mut object = rig.object(&web);
        object.ips.push("127.0.0.1".parse().unwrap());
        rig.change(Change::Pod(object.clone()));
        let (app, addr) = app(&api).await;
        let mut near = rig.connect(&web, addr).await;
        let (mut far, _) = app.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        assert_eq!(rig.sweep(&api, Duration::ZERO), None);
        rig.change(Change::PodGone(object.name));
        assert_eq!(rig.sweep(&api, Duration::ZERO), Some(GONE_AFTER));
        greet(&mut near, &mut far).await;
        assert_eq!(rig.sweep(&api, GONE_AFTER), None, "nothing is left to look at");
        assert!(far.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::PodGone));
    });
}

#[test]
fn a_peer_that_is_at_no_pods_address_is_not_missed() {
    on_worker(async {
        let Carried { rig, web, api, mut near, mut far, .. } = Carried::begin().await;
        rig.change(Change::PodGone(rig.object(&web).name));
        assert_eq!(rig.sweep(&api, Duration::ZERO), None);
        assert_eq!(rig.sweep(&api, GONE_AFTER), None);
        greet(&mut near, &mut far).await;
    });
}

#[test]
fn connections_end_with_the_root_that_vouched_for_a_certificate_that_is_still_valid() {
    for direction in [Direction::Inbound, Direction::Outbound] {
        on_worker(async {
            let Carried { rig, web, app, addr, mut near, mut far, .. } = Carried::begin().await;
            rig.certs.borrow_mut().rotate();
            ["web", "api"].iter().for_each(|account| rig.certs.borrow().issue(&id(account)));
            greet(&mut near, &mut far).await;
            let mut younger = rig.connect(&web, addr).await;
            let (mut younger_far, _) = app.accept().await.unwrap();
            greet(&mut younger, &mut younger_far).await;

            rig.certs.borrow_mut().drop_old_roots(Duration::ZERO);
            if direction == Direction::Outbound {
                web.pool.cut_distrusted();
            }
            assert!(near.read(&mut [0; 1]).await.is_err());
            assert_eq!(rig.reason(direction).await, Some(Reason::PeerUntrusted));
            greet(&mut younger, &mut younger_far).await;
        });
    }
}

#[test]
fn connections_outlive_the_root_of_a_certificate_that_has_expired() {
    on_worker(async {
        let Carried { rig, web, mut near, mut far, .. } = Carried::begin().await;
        rig.certs.borrow_mut().rotate();
        rig.certs.borrow_mut().drop_old_roots(Duration::from_secs(25 * 3600));
        web.pool.cut_distrusted();
        greet(&mut near, &mut far).await;
    });
}

#[test]
fn a_revoked_identity_loses_its_live_connections() {
    on_worker(async {
        let Carried { rig, mut near, mut far, .. } = Carried::begin().await;
        rig.certs.borrow_mut().revoke(&id("web"));
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert!(far.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::IdentityRevoked));
    });
}

#[test]
fn an_app_that_does_not_listen_is_a_503() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        drop(app);
        let mut near = rig.connect(&web, addr).await;
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::PeerAppUnreachable));
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::AppRefused));
    });
}

#[test]
fn a_new_certificate_takes_new_connections_and_the_old_ones_finish() {
    on_worker(async {
        let Carried { rig, web, app, addr, mut near, mut far, .. } = Carried::begin().await;
        rig.certs.borrow().issue(&id("web"));
        let mut second = rig.connect(&web, addr).await;
        let (mut second_far, _) = app.accept().await.unwrap();
        greet(&mut second, &mut second_far).await;
        assert_eq!(web.pool.tunnels(), 2);
        greet(&mut near, &mut far).await;
        drop((near, far));
        assert_eq!(rig.reason(Direction::Outbound).await, None);
        while web.pool.tunnels() > 1 {
            tokio::task::yield_now().await;
        }
    });
}

/// What a tunnel of `web`'s to `api` is carried by, to speak HTTP/2 by hand.
async fn leg(rig: &Rig, api: &Pod) -> tokio_rustls::client::TlsStream<TcpStream> {
    let legs = Legs::here(rig.worker.config.legs());
    let tcp = legs.tunnel(SocketAddr::new(api.first_ip(), PORT_INBOUND_HBONE)).await.unwrap();
    let config = rig.worker.handles.certs.client(&id("web"), &id("api")).unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(api.first_ip().into());
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

/// HTTP/2 by hand on such a leg.
async fn raw(leg: impl AsyncRead + AsyncWrite + Unpin + 'static) -> SendRequest<bytes::Bytes> {
    let (requests, connection) = h2::client::handshake(leg).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    requests
}

async fn answer(requests: &SendRequest<bytes::Bytes>, method: Method, uri: &str) -> Refused {
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let mut requests = requests.clone().ready().await.unwrap();
    let (response, _send) = requests.send_request(request, false).unwrap();
    Refused::of(&response.await.unwrap()).unwrap_err()
}

#[test]
fn a_pod_that_its_peers_know_first_answers_once_its_own_agent_knows_it() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let _web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        let object = rig.forget(&api);
        let request = Request::builder().method(Method::CONNECT).uri(addr.to_string()).body(()).unwrap();
        let mut requests = raw(leg(&rig, &api).await).await.ready().await.unwrap();
        let (response, _send) = requests.send_request(request, false).unwrap();
        rig.until_seated(&api, 1).await;
        rig.change(object);
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        app.accept().await.unwrap();
    });
}

#[test]
fn what_is_no_connect_to_this_pods_app_is_a_400_with_its_reason() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let _web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let requests = raw(leg(&rig, &api).await).await;
        let own = api.first_ip();
        rig.change(Change::Pod(PodModel { ips: vec![own, "fd00::7".parse().unwrap()], ..rig.object(&api) }));
        for (method, uri, reason) in [
            (Method::GET, format!("https://{own}:80/"), Reason::BadConnect),
            (Method::CONNECT, "api.shop:80".to_owned(), Reason::BadConnect),
            (Method::CONNECT, format!("{own}:0"), Reason::BadConnect),
            (Method::CONNECT, "10.9.9.9:80".to_owned(), Reason::NotThisPod),
            (Method::CONNECT, "[fe80::1]:80".to_owned(), Reason::LinkLocal),
            (Method::CONNECT, format!("{own}:15008"), Reason::Loop),
            (Method::CONNECT, format!("{own}:15001"), Reason::Loop),
            // The pod's own too, but the client has no address of that family.
            (Method::CONNECT, "[fd00::7]:80".to_owned(), Reason::BadConnect),
        ] {
            let refused = answer(&requests, method, &uri).await;
            let said = refused.refusal.as_ref().map(|refusal: &Refusal| refusal.reason);
            assert_eq!((refused.status, said), (StatusCode::BAD_REQUEST, Some(reason)), "{uri}");
            assert_eq!(rig.reason(Direction::Inbound).await, Some(reason), "{uri}");
        }
    });
}

#[test]
fn handshakes_are_counted_by_side_and_result_with_retries_and_without() {
    on_worker(async {
        let carried = Carried::begin().await;
        let registry = carried.rig.worker.handles.reporter.registry();
        let count = |side, result| {
            registry.counter_value("adit_tls_handshakes_total", &[("side", side), ("result", result)])
        };
        assert_eq!((count("client", "ok"), count("server", "ok")), (1, 1));
        let thief = carried.rig.serving_pod("thief").await;
        let to = SocketAddr::new(thief.first_ip(), PORT_INBOUND_HBONE);
        let mut plain = TcpStream::connect(to).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(carried.rig.reason(Direction::Inbound).await, Some(Reason::PeerProtocol));
        assert_eq!((count("server", "peer_protocol"), count("server", "ok")), (1, 1));
        assert_eq!(carried.api.inbound_tunnels(), 1);
        assert_eq!(thief.inbound_tunnels(), 0, "a seat of a tunnel that never was is given back");
    });
}

#[test]
fn what_does_not_speak_tls_is_reported_and_dropped() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let api = rig.serving_pod("api").await;
        let mut plain = TcpStream::connect((api.first_ip(), PORT_INBOUND_HBONE)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        let _ = plain.read_to_end(&mut said).await;
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::PeerProtocol));
    });
}

#[test]
fn no_more_handshakes_of_one_source_run_at_once_than_may() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let api = rig.serving_pod("api").await;
        let to = SocketAddr::new(api.first_ip(), PORT_INBOUND_HBONE);
        let mut silent = Vec::new();
        for _ in 0..=super::super::gate::HANDSHAKES_PER_SOURCE_MAX {
            silent.push(TcpStream::connect(to).await.unwrap());
        }
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::HandshakeLimit));
    });
}

#[test]
fn one_address_cannot_take_all_tunnels_to_a_pod() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let api = rig.serving_pod("api").await;
        let seat = |ip: &str| api.tunnel_seat(ip.parse().unwrap());
        let seats: Vec<_> = std::iter::from_fn(|| seat("127.0.0.1")).collect();
        assert_eq!(seats.len(), INBOUND_TUNNELS_PER_SOURCE_MAX);
        let to = SocketAddr::new(api.first_ip(), PORT_INBOUND_HBONE);
        let mut refused = TcpStream::connect(to).await.unwrap();
        assert!(refused.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::AcceptLimit));
        assert!(seat("127.0.0.2").is_some());
        drop(seats);
        assert!(seat("127.0.0.1").is_some());
    });
}

#[test]
fn a_tunnel_that_its_opener_leaves_idle_is_closed_and_one_that_carries_is_kept() {
    on_worker(async {
        let config = Config { tunnel_idle_timeout: Duration::from_secs(600), ..Config::default() };
        let (closed, kept) = (Duration::from_secs(600) + IDLE_GRACE, Duration::from_secs(600));
        let Carried { rig, web, api, app, addr, mut near, mut far } = Carried::begin_with(config).await;
        rig.sweep(&api, closed);
        greet(&mut near, &mut far).await;
        drop((near, far));
        assert_eq!(rig.report(Direction::Outbound).await.report.tunnel_reused, Some(false));
        let again = async |idle: Duration| {
            rig.sweep(&api, idle);
            let mut near = rig.connect(&web, addr).await;
            let (mut far, _) = app.accept().await.unwrap();
            greet(&mut near, &mut far).await;
            drop((near, far));
            let said = rig.report(Direction::Outbound).await;
            assert_eq!(said.end.reason(), None);
            said.report.tunnel_reused
        };
        for _ in 0..3 {
            assert_eq!(again(kept).await, Some(true));
        }
        // It idles from the moment that its last stream's task is gone.
        while again(closed).await == Some(true) {}
    });
}

#[test]
fn tunnels_to_a_pod_that_is_gone_are_let_go() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let key = Key { pod: api.key.uid.clone(), ip: api.first_ip(), expected: id("api") };
        drop(web.pool.lease(&key).await.unwrap());
        let world = rig.worker.handles.view.world();
        web.pool.sweep(&world, rig.worker.handles.clock.now());
        assert_eq!(web.pool.tunnels(), 1);
        rig.change(Change::PodGone(ObjectName::new("shop", &*api.key.uid.0)));
        let world = rig.worker.handles.view.world();
        web.pool.sweep(&world, rig.worker.handles.clock.now());
        assert_eq!(web.pool.tunnels(), 0);
    });
}

#[test]
fn an_idle_tunnel_is_let_go_and_a_busy_one_kept() {
    on_worker(async {
        let config = Config { tunnel_idle_timeout: Duration::ZERO, ..Config::default() };
        let rig = Rig::new(config);
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        let sweep = || web.pool.sweep(&rig.worker.handles.view.world(), rig.worker.handles.clock.now());
        let mut near = rig.connect(&web, addr).await;
        let (mut far, _) = app.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        sweep();
        assert_eq!(web.pool.tunnels(), 1, "it carries a connection");
        drop((near, far));
        assert_eq!(rig.reason(Direction::Outbound).await, None);
        sweep();
        assert_eq!(web.pool.tunnels(), 0);
    });
}

#[test]
fn a_thousand_connections_at_once_share_the_tunnels_they_need() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        let serving = spawn_local(async move {
            let mut open = Vec::new();
            for _ in 0..1000 {
                open.push(app.accept().await.unwrap());
            }
            open
        });
        let mut near = Vec::new();
        for _ in 0..1000 {
            near.push(rig.connect(&web, addr).await);
        }
        let open = serving.await.unwrap();
        assert_eq!((open.len(), web.pool.tunnels()), (1000, 10));
    });
}

#[test]
fn an_inbound_connections_future_stays_small() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let api = rig.pod("api");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = tcp.local_addr().unwrap();
        let plaintext = super::super::plaintext::serve(Rc::clone(&api), tcp, client);
        assert!(size_of_val(&plaintext) <= FUTURE_LEN_MAX, "{}", size_of_val(&plaintext));
        assert!(super::stream_future_len() <= FUTURE_LEN_MAX, "{}", super::stream_future_len());
    });
}
