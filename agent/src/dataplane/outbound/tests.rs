use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::{NodeName, ObjectName};
use adit_core::report::Direction;
use adit_core::service::{
    Distribution, Endpoint, EndpointSlice, Service, ServicePort, SlicePort, TargetPort,
};
use adit_core::traffic::{TrafficPolicy, TrafficSettings};
use adit_core::world::Change;
use adit_proto::Reason;
use adit_proto::hbone::{HEADER_ADIT_REASON, PORT_INBOUND_HBONE};
use http::Response;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use super::super::pool::GONE_AFTER;
use super::super::testing::{Carried, Rig, app, greet, id, on_worker, own_ip};
use super::super::{Config, pod::Pod};

/// What a scripted peer does.
#[derive(Clone, Copy, Debug)]
enum Peer {
    /// Answers every CONNECT with this status and reason.
    Answers(u16, &'static str),
    /// Its first tunnel says GOAWAY before any stream; later ones answer 503.
    SaysGoAwayOnce,
    /// Refuses the first stream unprocessed; later ones get 503.
    RefusesOneStream,
    /// Resets every stream instead of answering.
    Resets,
}

/// Plays a peer agent on `pod`'s address; counts the CONNECTs that it saw.
async fn plays(rig: &Rig, pod: &Pod, account: &str, peer: Peer) -> Rc<Cell<u32>> {
    let listener = TcpListener::bind((pod.first_ip(), PORT_INBOUND_HBONE)).await.unwrap();
    let config = rig.worker.handles.certs.server(&id(account)).unwrap();
    let seen = Rc::new(Cell::new(0));
    let count = Rc::clone(&seen);
    spawn_local(async move {
        let mut tunnels = 0;
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tunnels += 1;
            let (config, count) = (Arc::clone(&config), Rc::clone(&count));
            spawn_local(async move {
                // The client may refuse our certificate.
                let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await else { return };
                let Ok(mut connection) = h2::server::handshake(tls).await else { return };
                if matches!(peer, Peer::SaysGoAwayOnce) && tunnels == 1 {
                    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                }
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    count.set(count.get() + 1);
                    let (status, reason) = match peer {
                        Peer::Answers(status, reason) => (status, reason),
                        Peer::RefusesOneStream if count.get() == 1 => {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                            continue;
                        }
                        Peer::Resets => {
                            respond.send_reset(h2::Reason::INTERNAL_ERROR);
                            continue;
                        }
                        Peer::SaysGoAwayOnce | Peer::RefusesOneStream => (503, ""),
                    };
                    let mut response = Response::builder().status(status);
                    if !reason.is_empty() {
                        response = response.header(HEADER_ADIT_REASON, reason);
                    }
                    respond.send_response(response.body(()).unwrap(), true).unwrap();
                }
            });
        }
    });
    seen
}

/// What one failed connection to a scripted peer is reported as.
struct Outcome {
    reason: Reason,
    attempts: u16,
    connects: u32,
    policy: Option<ObjectName>,
}

async fn outcome(peer: Peer) -> Outcome {
    outcome_at(&Rig::new(Config::default()), peer, |app| app).await
}

/// What comes of a connection to where `leads` says, of the address of the peer's app.
async fn outcome_at(rig: &Rig, peer: Peer, leads: impl FnOnce(SocketAddr) -> SocketAddr) -> Outcome {
    let (web, api) = (rig.pod("web"), rig.pod("api"));
    let seen = plays(rig, &api, "api", peer).await;
    let mut near = rig.connect(&web, leads(SocketAddr::new(api.first_ip(), 80))).await;
    let error = near.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "a failed connect is a reset");
    let said = rig.report(Direction::Outbound).await;
    let report = said.report;
    assert!(!said.carried);
    Outcome {
        reason: said.end.reason().unwrap(),
        attempts: report.attempts,
        connects: seen.get(),
        policy: report.decision.and_then(|decision| decision.policy),
    }
}

#[test]
fn a_refusal_by_policy_names_it_and_is_not_retried() {
    on_worker(async {
        let said = "policy_denied; policy=\"shop/no-bots\"; rule=0";
        let outcome = outcome(Peer::Answers(403, said)).await;
        assert_eq!((outcome.reason, outcome.attempts, outcome.connects), (Reason::PeerDenied, 1, 1));
        assert_eq!(outcome.policy, Some(ObjectName::new("shop", "no-bots")));
    });
}

#[test]
fn a_refusal_by_another_implementation_counts_as_one() {
    on_worker(async {
        let outcome = outcome(Peer::Answers(401, "")).await;
        assert_eq!((outcome.reason, outcome.attempts), (Reason::PeerDenied, 1));
    });
}

#[test]
fn an_unreachable_app_of_the_only_endpoint_is_not_retried() {
    on_worker(async {
        let outcome = outcome(Peer::Answers(503, "app_refused")).await;
        assert_eq!((outcome.reason, outcome.attempts), (Reason::PeerAppUnreachable, 1));
    });
}

#[test]
fn a_peer_that_is_not_this_pod_is_asked_once_more_after_looking_it_up() {
    on_worker(async {
        let outcome = outcome(Peer::Answers(400, "not_this_pod")).await;
        assert_eq!((outcome.reason, outcome.attempts, outcome.connects), (Reason::PeerNotThisPod, 2, 2));
    });
}

#[test]
fn a_goaway_before_the_stream_is_retried_at_once_on_a_fresh_tunnel() {
    on_worker(async {
        let outcome = outcome(Peer::SaysGoAwayOnce).await;
        assert_eq!((outcome.reason, outcome.attempts), (Reason::PeerAppUnreachable, 2));
        assert_eq!(outcome.connects, 1, "the first tunnel saw no CONNECT");
    });
}

#[test]
fn a_refused_stream_is_retried_at_once() {
    on_worker(async {
        let outcome = outcome(Peer::RefusesOneStream).await;
        assert_eq!((outcome.reason, outcome.attempts, outcome.connects), (Reason::PeerAppUnreachable, 2, 2));
    });
}

#[test]
fn retries_end_where_the_budget_does() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        // The floor pays for the first retry, and for the second in an hour.
        let floor = Some(Duration::from_secs(3600));
        let settings = TrafficSettings { budget_floor_interval: floor, ..TrafficSettings::default() };
        let outcome = outcome_at(&rig, Peer::Resets, |app| {
            let vip = service(&rig, &[app]);
            traffic_policy(&rig, settings);
            vip
        })
        .await;
        assert_eq!((outcome.reason, outcome.attempts), (Reason::RetryBudgetExhausted, 2));
        let registry = rig.worker.handles.reporter.registry();
        let asked = |result| registry.counter_value("adit_retry_budget_total", &[("result", result)]);
        assert_eq!((asked("granted"), asked("denied")), (1, 1));
    });
}

#[test]
fn a_peer_that_proves_another_identity_is_refused_before_anything_is_sent() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let (web, api) = (rig.pod("web"), rig.pod("api"));
        rig.certs.borrow().issue(&id("thief"));
        let seen = plays(&rig, &api, "thief", Peer::Answers(200, "")).await;
        let mut near = rig.connect(&web, SocketAddr::new(api.first_ip(), 80)).await;
        assert!(near.read(&mut [0; 1]).await.is_err());
        let said = rig.report(Direction::Outbound).await;
        assert_eq!(said.end.reason(), Some(Reason::PeerIdentity));
        assert_eq!((said.report.attempts, seen.get()), (1, 0));
    });
}

#[test]
fn a_peer_of_an_unknown_ca_is_refused_and_its_handshake_counted() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let (web, api) = (rig.pod("web"), rig.pod("api"));
        rig.certs.borrow().issue_untrusted(&id("api"));
        plays(&rig, &api, "api", Peer::Answers(200, "")).await;
        let mut near = rig.connect(&web, SocketAddr::new(api.first_ip(), 80)).await;
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::PeerUntrusted));
        let (registry, untrusted) =
            (rig.worker.handles.reporter.registry(), [("side", "client"), ("result", "peer_untrusted")]);
        assert_eq!(registry.counter_value("adit_tls_handshakes_total", &untrusted), 1);
    });
}

#[test]
fn what_is_carried_to_a_pod_that_is_gone_ends() {
    on_worker(async {
        let Carried { rig, web, api, mut near, mut far, .. } = Carried::begin().await;
        rig.change(Change::PodGone(rig.object(&api).name));
        assert_eq!(rig.sweep(&web, Duration::ZERO), Some(GONE_AFTER));
        assert!(rig.sweep(&web, GONE_AFTER / 2).is_some_and(|left| left <= GONE_AFTER / 2));
        greet(&mut near, &mut far).await;
        assert_eq!(rig.sweep(&web, GONE_AFTER), None);
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::PodGone));
    });
}

#[test]
fn a_world_that_knows_nobody_ends_nothing() {
    on_worker(async {
        let Carried { rig, web, api, mut near, mut far, .. } = Carried::begin().await;
        let names = [&web, &api].map(|pod| rig.object(pod).name);
        names.into_iter().for_each(|name| rig.change(Change::PodGone(name)));
        for pod in [&web, &api] {
            assert_eq!(rig.sweep(pod, Duration::ZERO), None);
            assert_eq!(rig.sweep(pod, GONE_AFTER), None);
        }
        greet(&mut near, &mut far).await;
    });
}

#[test]
fn what_is_carried_to_a_pod_that_terminates_or_is_away_for_a_moment_goes_on() {
    on_worker(async {
        let Carried { rig, web, api, mut near, mut far, .. } = Carried::begin().await;
        let terminating = adit_core::workload::Pod { terminating: true, ..rig.object(&api) };
        rig.change(Change::Pod(terminating.clone()));
        assert_eq!(rig.sweep(&web, Duration::ZERO), None);
        rig.change(Change::PodGone(terminating.name.clone()));
        assert_eq!(rig.sweep(&web, Duration::from_secs(60)), Some(GONE_AFTER), "it was there so long");
        rig.change(Change::Pod(terminating));
        assert_eq!(rig.sweep(&web, Duration::from_secs(61)), None);
        greet(&mut near, &mut far).await;
    });
}

/// A Service `shop/api` with a VIP, whose endpoints are these.
fn service(rig: &Rig, endpoints: &[SocketAddr]) -> SocketAddr {
    let name = ObjectName::new("shop", "api");
    let vip = SocketAddr::from(([10, 96, 0, 1], 80));
    rig.change(Change::Service(Service {
        name: name.clone(),
        created: 0,
        cluster_ips: vec![vip.ip()],
        external_ips: Vec::new(),
        headless: false,
        ports: vec![ServicePort {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(80),
            node_port: None,
        }],
        internal_local: false,
        distribution: Distribution::Any,
        affinity: None,
        publish_not_ready: false,
        selector: None,
    }));
    for (at, endpoint) in endpoints.iter().enumerate() {
        let ready = Endpoint {
            addresses: vec![endpoint.ip()],
            ready: true,
            serving: true,
            terminating: false,
            node: Some(NodeName("here".into())),
            zone: None,
            pod: None,
        };
        rig.change(Change::EndpointSlice(EndpointSlice {
            name: ObjectName::new("shop", format!("api-{at}")),
            service: name.clone(),
            ports: vec![SlicePort { name: "".into(), port: Some(endpoint.port()) }],
            endpoints: vec![ready],
        }));
    }
    vip
}

/// For what goes to [`service`].
fn traffic_policy(rig: &Rig, settings: TrafficSettings) {
    let name = ObjectName::new("shop", "api");
    let services = vec![name.clone()];
    rig.change(Change::TrafficPolicy(TrafficPolicy { services, name, created: 0, settings }));
}

#[test]
fn a_dead_endpoint_is_passed_over_and_no_connection_fails() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let dead = rig.pod("api");
        let alive = rig.serving_pod("api").await;
        let (app, addr) = app(&alive).await;
        let vip = service(&rig, &[SocketAddr::new(dead.first_ip(), addr.port()), addr]);
        // Every first attempt earns a whole retry: what is looked at here is not the budget.
        traffic_policy(&rig, TrafficSettings { budget_percent: 100, ..TrafficSettings::default() });
        let mut attempts = Vec::new();
        for _ in 0..8 {
            let mut near = rig.connect(&web, vip).await;
            let (mut far, _) = app.accept().await.unwrap();
            greet(&mut near, &mut far).await;
            drop((near, far));
            let said = rig.report(Direction::Outbound).await;
            assert_eq!(said.report.target, Some(addr));
            assert_eq!(said.report.service, Some((ObjectName::new("shop", "api"), 80)));
            attempts.push(said.report.attempts);
        }
        assert!(attempts.iter().all(|attempts| (1..=2).contains(attempts)), "{attempts:?}");
        assert!(attempts.contains(&2), "the dead one was tried: {attempts:?}");
    });
}

#[test]
fn a_dial_without_a_descriptor_left_ejects_no_endpoint_and_a_refused_one_does() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let (lacking, web) = (rig.pod_without_descriptors("lacking"), rig.pod("web"));
        // Two addresses outside the mesh where nobody listens.
        let closed = [own_ip(), own_ip()].map(|ip| SocketAddr::new(ip, 9));
        let vip = service(&rig, &closed);
        let (registry, failures) =
            (rig.worker.handles.reporter.registry(), TrafficSettings::default().ejection_failures);
        for (pod, reason, ejects) in [(&lacking, Reason::MemoryLimit, false), (&web, Reason::Refused, true)] {
            // Whichever is chosen: one of the two fails often enough.
            for _ in 0..2 * failures {
                let mut near = rig.connect(pod, vip).await;
                assert!(near.read(&mut [0; 1]).await.is_err());
                assert_eq!(rig.reason(Direction::Outbound).await, Some(reason));
            }
            let ejections = registry.counter_value("adit_ejections_total", &[("service", "shop/api")]);
            assert_eq!(ejections > 0, ejects, "{reason:?}");
        }
    });
}

#[test]
fn a_service_without_endpoints_resets_and_says_so() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let vip = service(&rig, &[]);
        let mut near = rig.connect(&web, vip).await;
        let error = near.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::NoEndpoint));
    });
}

#[test]
fn connections_of_one_pod_are_bounded() {
    on_worker(async {
        let rig = Rig::new(Config { connections_per_pod: 1, ..Config::default() });
        let web = rig.pod("web");
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = rig.connect(&web, outside.local_addr().unwrap()).await;
        let (mut far, _) = outside.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        let mut second = rig.connect(&web, outside.local_addr().unwrap()).await;
        assert!(second.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::AcceptLimit));
    });
}

#[test]
fn a_client_that_gives_up_ends_its_connect_phase() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let (web, api) = (rig.pod("web"), rig.pod("api"));
        // It accepts TCP, and never shakes hands.
        let listener = TcpListener::bind((api.first_ip(), PORT_INBOUND_HBONE)).await.unwrap();
        let near = rig.connect(&web, SocketAddr::new(api.first_ip(), 80)).await;
        let _held = listener.accept().await.unwrap();
        near.set_zero_linger().unwrap();
        drop(near);
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByClient));
    });
}

#[test]
fn a_connections_future_stays_small() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let (_near, captured) = super::super::testing::pair().await;
        let client = captured.peer_addr().unwrap();
        let future = super::serve(web, captured, client);
        let size = size_of_val(&future);
        assert!(size <= super::super::FUTURE_LEN_MAX, "{size} bytes");
    });
}
