//! What resolve decides, case by case.

use std::collections::BTreeMap;

use super::*;
use crate::net::PodUid;
use crate::service::{Endpoint, ServicePort, SlicePort, TargetPort};
use crate::workload::{MeshLabel, NamedPort, Pod};
use crate::world::Change;
use crate::world::builder::WorldBuilder;
use crate::world::fixtures::{endpoint, ip, name, namespace, node, node_name, pod, service, settings, slice};

/// A shop: client on node a (zone 1), `web-1` there, `web-2` on node b (zone 1), `web-3` on node c (zone 2).
struct Shop(WorldBuilder);

impl Shop {
    fn new() -> Self {
        let mut builder = WorldBuilder::new(settings());
        builder.apply(Change::Namespace(namespace("shop")));
        builder.apply(Change::Node(node("a", "z1", "192.168.0.1")));
        builder.apply(Change::Node(node("b", "z1", "192.168.0.2")));
        builder.apply(Change::Node(node("c", "z2", "192.168.0.3")));
        Self(builder)
            .with(Change::Pod(pod("shop/client", &["10.0.0.9", "fd00::9"])))
            .with(Change::Pod(pod("shop/web-1", &["10.0.0.1", "fd00::1"])))
            .with(Change::Pod(on("b", pod("shop/web-2", &["10.0.1.2", "fd00::1:2"]))))
            .with(Change::Pod(on("c", pod("shop/web-3", &["10.0.2.3", "fd00::2:3"]))))
    }

    fn with(mut self, change: Change) -> Self {
        self.0.apply(change);
        self
    }

    /// The Service `shop/web` at 10.96.0.1 and fd96::1 with these endpoints.
    fn web(self, change: impl FnOnce(&mut Service), endpoints: Vec<Endpoint>) -> Self {
        let mut web = service("shop/web", &["10.96.0.1", "fd96::1"]);
        change(&mut web);
        self.with(Change::Service(web)).with(Change::EndpointSlice(slice("shop/web", "1", endpoints)))
    }

    fn route(&mut self, dst: &str) -> Result<Destination, NoRoute> {
        self.route_from("client", dst)
    }

    fn route_from(&mut self, source: &str, dst: &str) -> Result<Destination, NoRoute> {
        let world = self.0.freeze();
        let uid = PodUid(format!("uid-{source}").into());
        let source = Arc::clone(world.workload(&uid).unwrap());
        outbound(
            &world,
            &source,
            &[ip("10.0.0.90"), ip("::ffff:10.0.0.91")],
            OriginalDst(dst.parse().unwrap()),
        )
    }

    /// Where a connection goes, in words: `service: addr via[ tier]; …`.
    #[track_caller]
    fn check(mut self, dst: &str, expected: &str) -> Self {
        assert_eq!(words(self.route(dst)), expected, "{dst}");
        self
    }
}

fn on(short: &str, pod: Pod) -> Pod {
    Pod { node: Some(node_name(short)), ..pod }
}

fn terminating(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, terminating: true, ..endpoint }
}

fn unready(endpoint: Endpoint) -> Endpoint {
    Endpoint { ready: false, serving: false, ..endpoint }
}

/// All three replicas, IPv4.
fn all() -> Vec<Endpoint> {
    vec![one(), two(), three()]
}

fn one() -> Endpoint {
    endpoint("10.0.0.1", Some("shop/web-1"))
}

fn two() -> Endpoint {
    endpoint("10.0.1.2", Some("shop/web-2"))
}

fn three() -> Endpoint {
    endpoint("10.0.2.3", Some("shop/web-3"))
}

fn words(route: Result<Destination, NoRoute>) -> String {
    let candidate = |candidate: &Candidate| {
        let via = match &candidate.via {
            Via::Tunnel { expected } => format!("tunnel {}", expected.path()),
            Via::Plaintext(cause) => format!("{cause:?}"),
            Via::Unknown => "unknown".to_owned(),
        };
        let tier = if candidate.tier == 0 { String::new() } else { format!(" tier {}", candidate.tier) };
        format!("{} {via}{tier}", candidate.addr)
    };
    match route {
        Ok(Destination::Service(route)) => {
            let candidates: Vec<_> = route.candidates.iter().map(candidate).collect();
            format!("{}:{} = {}", route.service.name, route.port, candidates.join("; "))
        }
        Ok(Destination::Pod(pod)) => candidate(&pod),
        Ok(Destination::Outside(addr)) => format!("outside {addr}"),
        Err(refusal) => format!("{:?}: {refusal}", refusal.reason()),
    }
}

const TUNNEL: &str = "tunnel /ns/shop/sa/web";

#[test]
fn a_vip_leads_to_every_endpoint_of_its_family() {
    let v6 = ["fd00::1", "fd00::1:2"];
    let v6 = v6.iter().zip(["shop/web-1", "shop/web-2"]);
    let v6 = v6.map(|(ip, pod)| endpoint(ip, Some(pod))).collect();
    Shop::new()
        .web(|_| {}, vec![one(), two()])
        .with(Change::EndpointSlice(slice("shop/web", "v6", v6)))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL}"))
        .check("[fd96::1]:80", &format!("shop/web:80 = [fd00::1]:8080 {TUNNEL}; [fd00::1:2]:8080 {TUNNEL}"))
        .check(
            "[::ffff:10.96.0.1]:80",
            &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL}"),
        );
}

#[test]
fn an_undeclared_port_of_a_vip_is_not_the_services() {
    Shop::new().web(|_| {}, all()).check("10.96.0.1:81", "outside 10.96.0.1:81");
}

#[test]
fn external_and_load_balancer_addresses_are_vips() {
    Shop::new()
        .web(|web| web.external_ips.push(ip("203.0.113.7")), vec![one()])
        .check("203.0.113.7:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"));
}

#[test]
fn a_service_cannot_take_anothers_cluster_ip_by_calling_it_external() {
    let mut thief = service("shop/a-thief", &["10.96.0.99"]);
    thief.created = -1;
    thief.external_ips.push(ip("10.96.0.1"));
    Shop::new()
        .web(|_| {}, vec![one()])
        .with(Change::Service(thief))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"));
}

#[test]
fn an_external_address_is_the_older_services_then_that_of_the_lesser_name() {
    let claims = |name: &str, cluster_ip: &str, created: i64| {
        let external_ips = vec![ip("203.0.113.7")];
        Change::Service(Service { created, external_ips, ..service(name, &[cluster_ip]) })
    };
    let to_web = format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}");
    Shop::new()
        .web(|web| (web.created, web.external_ips) = (7, vec![ip("203.0.113.7")]), vec![one()])
        .with(claims("shop/a-later", "10.96.0.8", 8))
        .check("203.0.113.7:80", &to_web)
        .with(claims("shop/a-later", "10.96.0.8", 6))
        .check("203.0.113.7:80", "NoEndpoint: shop/a-later has no endpoint for port 80")
        .with(claims("shop/a-later", "10.96.0.8", 7))
        .check("203.0.113.7:80", "NoEndpoint: shop/a-later has no endpoint for port 80")
        .with(Change::ServiceGone(name("shop/a-later")))
        .with(claims("shop/z-later", "10.96.0.9", 7))
        .check("203.0.113.7:80", &to_web);
}

#[test]
fn the_internal_policy_is_for_cluster_ips_only() {
    let local = |web: &mut Service| {
        web.internal_local = true;
        web.external_ips.push(ip("203.0.113.7"));
    };
    Shop::new()
        .web(local, vec![two()])
        .check("10.96.0.1:80", "NoEndpoint: shop/web has no endpoint for port 80")
        .check("203.0.113.7:80", &format!("shop/web:80 = 10.0.1.2:8080 {TUNNEL}"));
}

#[test]
fn a_node_port_leads_where_the_vip_does() {
    let with_node_port = |web: &mut Service| {
        web.ports[0].node_port = Some(30080);
        // Says nothing about traffic that comes by a node port.
        web.internal_local = true;
    };
    Shop::new()
        .web(with_node_port, vec![two()])
        .check("192.168.0.3:30080", &format!("shop/web:80 = 10.0.1.2:8080 {TUNNEL}"))
        .check("192.168.0.3:30081", "outside 192.168.0.3:30081")
        .check("192.168.0.4:30080", "outside 192.168.0.4:30080");
}

#[test]
fn endpoints_that_are_not_ready_are_not_used_unless_published() {
    Shop::new()
        .web(|_| {}, vec![one(), unready(two())])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"))
        .web(|web| web.publish_not_ready = true, vec![one(), unready(two())])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL}"));
}

#[test]
fn terminating_endpoints_serve_only_where_nothing_else_does() {
    let gone = Endpoint { serving: false, ..terminating(three()) };
    Shop::new()
        .web(|_| {}, vec![one(), terminating(two()), gone.clone()])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"))
        .web(|_| {}, vec![unready(one()), terminating(two()), gone.clone()])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.1.2:8080 {TUNNEL}"))
        .web(|_| {}, vec![gone])
        .check("10.96.0.1:80", "NoEndpoint: shop/web has no endpoint for port 80");
}

#[test]
fn a_pod_that_terminates_is_left_before_its_slice_says_so() {
    let leaving = Pod { terminating: true, ..pod("shop/web-1", &["10.0.0.1"]) };
    Shop::new()
        .with(Change::Pod(leaving))
        .web(|_| {}, vec![one(), two()])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.1.2:8080 {TUNNEL}"))
        .web(|_| {}, vec![one()])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"));
}

#[test]
fn without_endpoints_there_is_a_reason() {
    let no_endpoint = "NoEndpoint: shop/web has no endpoint for port 80";
    Shop::new()
        .web(|_| {}, vec![])
        .check("10.96.0.1:80", no_endpoint)
        .web(|_| {}, all())
        .check("[fd96::1]:80", no_endpoint);
    Shop::new().with(Change::Service(service("shop/web", &["10.96.0.1"]))).check("10.96.0.1:80", no_endpoint);
}

#[test]
fn internal_traffic_policy_local_stays_on_the_sources_node() {
    let local = |web: &mut Service| web.internal_local = true;
    let no_endpoint = "NoEndpoint: shop/web has no endpoint for port 80";
    let mut shop =
        Shop::new().web(local, all()).check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"));
    assert_eq!(
        words(shop.route_from("web-3", "10.96.0.1:80")),
        format!("shop/web:80 = 10.0.2.3:8080 {TUNNEL}")
    );
    Shop::new().web(local, vec![two(), three()]).check("10.96.0.1:80", no_endpoint);
    Shop::new()
        .web(local, vec![terminating(one()), two()])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}"));
}

#[test]
fn traffic_distribution_puts_near_endpoints_into_lower_tiers() {
    Shop::new()
        .web(|web| web.distribution = Distribution::SameZone, all())
        .check(
            "10.96.0.1:80",
            &format!(
                "shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL}; 10.0.2.3:8080 {TUNNEL} tier 1"
            ),
        )
        .web(|web| web.distribution = Distribution::SameNode, all())
        .check(
            "10.96.0.1:80",
            &format!(
                "shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL} tier 1; 10.0.2.3:8080 {TUNNEL} tier 2"
            ),
        )
        .web(
            |web| web.distribution = Distribution::SameZone,
            vec![terminating(one()), three()],
        )
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.2.3:8080 {TUNNEL} tier 1"));
}

#[test]
fn a_slice_says_the_target_port_and_else_the_pod_names_it() {
    let named = |web: &mut Service| {
        web.ports = vec![ServicePort {
            name: "http".into(),
            port: 80,
            target: TargetPort::Name("app".into()),
            node_port: None,
        }];
    };
    let speaks = |of, ip, port| Pod { ports: vec![NamedPort { name: "app".into(), port }], ..pod(of, &[ip]) };
    let slice_with = |port| {
        let mut slice = slice("shop/web", "1", vec![one(), two(), endpoint("10.0.0.9", Some("shop/client"))]);
        slice.ports = vec![SlicePort { name: "http".into(), port }];
        slice
    };
    Shop::new()
        .web(named, vec![])
        .with(Change::Pod(speaks("shop/web-1", "10.0.0.1", 9001)))
        .with(Change::Pod(speaks("shop/web-2", "10.0.1.2", 9002)))
        .with(Change::EndpointSlice(slice_with(None)))
        .check(
            "10.96.0.1:80",
            &format!("shop/web:80 = 10.0.0.1:9001 {TUNNEL}; 10.0.0.9:80 {TUNNEL}; 10.0.1.2:9002 {TUNNEL}"),
        )
        .with(Change::EndpointSlice(slice_with(Some(7000))))
        .check(
            "10.96.0.1:80",
            &format!("shop/web:80 = 10.0.0.1:7000 {TUNNEL}; 10.0.0.9:7000 {TUNNEL}; 10.0.1.2:7000 {TUNNEL}"),
        );
}

#[test]
fn slices_of_a_service_are_merged_and_each_address_counts_once() {
    Shop::new()
        .web(|_| {}, vec![terminating(one()), two()])
        .with(Change::EndpointSlice(slice("shop/web", "0", vec![one()])))
        .with(Change::EndpointSlice(slice("shop/web", "2", vec![terminating(one())])))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 10.0.1.2:8080 {TUNNEL}"));
}

#[test]
fn a_service_without_selector_leads_outside_or_to_the_pod_that_has_the_address() {
    Shop::new()
        .web(|web| web.selector = None, vec![endpoint("203.0.113.5", None), endpoint("10.0.0.1", None)])
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.1:8080 {TUNNEL}; 203.0.113.5:8080 Outside"));
}

#[test]
fn an_endpoint_whose_pod_is_not_known_yet_is_never_taken_for_plaintext() {
    let unknown = "shop/web:80 = 10.0.7.7:8080 unknown";
    let new = vec![endpoint("10.0.7.7", Some("shop/web-7"))];
    Shop::new()
        .web(|_| {}, new)
        .check("10.96.0.1:80", unknown)
        // A pod of that name, as it was before its sandbox was made again.
        .with(Change::Pod(pod("shop/web-7", &["10.0.7.6"])))
        .check("10.96.0.1:80", unknown)
        .with(Change::Pod(pod("shop/web-7", &["10.0.7.7"])))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.7.7:8080 {TUNNEL}"))
        // The address is another pod's now; the slice does not say so yet.
        .with(Change::Pod(Pod { terminating: true, ..pod("shop/web-7", &["10.0.7.7"]) }))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.7.7:8080 {TUNNEL}"))
        .with(Change::Pod(pod("shop/other", &["10.0.7.7"])))
        .check("10.96.0.1:80", unknown);
}

#[test]
fn a_pod_is_reached_by_what_is_known_of_it() {
    let running = |captured| Pod { captured, ..pod("shop/web-1", &["10.0.0.1"]) };
    let out = Pod { mesh: Some(MeshLabel::Disabled), ..running(false) };
    let leaving = Pod { captured: true, ..out.clone() };
    let mut skipping = running(true);
    skipping.skip.inbound_ports = vec![9000..=9010];
    Shop::new()
        .check("10.0.0.1:8080", &format!("10.0.0.1:8080 {TUNNEL}"))
        .with(Change::Pod(running(false)))
        .check("10.0.0.1:8080", "10.0.0.1:8080 NotYetCaptured")
        .with(Change::Captured { node: node_name("a"), pods: [PodUid("uid-web-1".into())].into() })
        .check("10.0.0.1:8080", &format!("10.0.0.1:8080 {TUNNEL}"))
        .with(Change::Captured { node: node_name("a"), pods: [].into() })
        .with(Change::Pod(out))
        .check("10.0.0.1:8080", "10.0.0.1:8080 NotEnrolled")
        .with(Change::Pod(leaving))
        .check("10.0.0.1:8080", &format!("10.0.0.1:8080 {TUNNEL}"))
        .with(Change::Pod(skipping))
        .check("10.0.0.1:9010", "10.0.0.1:9010 SkippedPort")
        .check("10.0.0.1:9011", &format!("10.0.0.1:9011 {TUNNEL}"));
}

#[test]
fn a_host_network_pod_is_its_node_unless_an_endpoint_names_it() {
    let host = Pod { host_network: true, ..pod("shop/host", &["192.168.0.1"]) };
    Shop::new()
        .with(Change::Pod(host))
        .web(|_| {}, vec![endpoint("192.168.0.1", Some("shop/host"))])
        .check("192.168.0.1:8080", "outside 192.168.0.1:8080")
        .check("10.96.0.1:80", "shop/web:80 = 192.168.0.1:8080 HostNetwork");
}

#[test]
fn a_headless_service_is_dialled_by_its_pods_addresses() {
    let mut headless = service("shop/db", &[]);
    headless.selector = None;
    Shop::new()
        .with(Change::Service(headless))
        .with(Change::EndpointSlice(slice("shop/db", "1", vec![one()])))
        .check("10.0.0.1:5432", &format!("10.0.0.1:5432 {TUNNEL}"));
}

#[test]
fn a_pod_reaches_itself_by_its_address_and_by_its_service() {
    let itself = vec![endpoint("10.0.0.9", Some("shop/client"))];
    Shop::new()
        .web(|_| {}, itself)
        .check("10.0.0.9:8080", &format!("10.0.0.9:8080 {TUNNEL}"))
        .check("[fd00::9]:8080", &format!("[fd00::9]:8080 {TUNNEL}"))
        .check("10.96.0.1:80", &format!("shop/web:80 = 10.0.0.9:8080 {TUNNEL}"));
}

#[test]
fn the_agents_ports_are_a_loop_on_an_own_address_only() {
    for port in PORTS_RESERVED {
        let own = "Loop: the destination is one of the agent's own ports";
        Shop::new()
            .check(&format!("10.0.0.9:{port}"), own)
            .check(&format!("[::ffff:10.0.0.9]:{port}"), own)
            .check(&format!("[fd00::9]:{port}"), own)
            // As the runtime told them; the pod's object does not name them yet.
            .check(&format!("10.0.0.90:{port}"), own)
            .check(&format!("10.0.0.91:{port}"), own)
            .check(&format!("127.0.0.1:{port}"), own)
            .check(&format!("127.8.9.10:{port}"), own)
            .check(&format!("[::ffff:127.0.0.1]:{port}"), own)
            .check(&format!("[::1]:{port}"), own)
            .check(&format!("0.0.0.0:{port}"), own)
            .check(&format!("[::]:{port}"), own)
            .check(&format!("10.0.0.1:{port}"), &format!("10.0.0.1:{port} {TUNNEL}"))
            .check(&format!("203.0.113.1:{port}"), &format!("outside 203.0.113.1:{port}"));
    }
}

#[test]
fn all_else_is_outside() {
    Shop::new()
        .check("203.0.113.1:443", "outside 203.0.113.1:443")
        .check("[2001:db8::1]:443", "outside [2001:db8::1]:443");
}

#[test]
fn a_route_shares_the_snapshots_candidates_where_all_sources_see_the_same() {
    let mut shop = Shop::new().web(|_| {}, all());
    let mut candidates = || match shop.route("10.96.0.1:80") {
        Ok(Destination::Service(route)) => route.candidates,
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&candidates(), &candidates()));
}

#[test]
fn inbound_is_taken_for_an_own_address_and_an_apps_port() {
    let mut shop = Shop::new();
    let world = shop.0.freeze();
    let local = Arc::clone(world.workload_by_name(&name("shop/web-1")).unwrap());
    let told = [ip("10.0.0.1"), ip("fe80::1")];
    let ask = |own: &[IpAddr], dst: &str| {
        let dst: SocketAddr = dst.parse().unwrap();
        let client = if dst.ip().to_canonical().is_ipv4() { "10.0.0.9" } else { "fd00::9" };
        let taken = inbound(&world, &local, own, ip(client), dst);
        taken.map(|target| target.addr.to_string()).map_err(InboundRefusal::reason)
    };
    let expected = BTreeMap::from([
        ("10.0.0.1:8080", Ok("10.0.0.1:8080".to_owned())),
        ("[::ffff:10.0.0.1]:8080", Ok("10.0.0.1:8080".to_owned())),
        ("[fd00::1]:8080", Ok("[fd00::1]:8080".to_owned())),
        ("10.0.0.1:15001", Err(Reason::Loop)),
        ("10.0.0.1:15006", Err(Reason::Loop)),
        ("[fd00::1]:15008", Err(Reason::Loop)),
        ("10.0.1.2:8080", Err(Reason::NotThisPod)),
        ("10.0.1.2:15008", Err(Reason::NotThisPod)),
        ("127.0.0.1:8080", Err(Reason::NotThisPod)),
        ("127.0.0.1:15006", Err(Reason::Loop)),
        ("[::1]:15006", Err(Reason::Loop)),
        ("10.96.0.1:80", Err(Reason::NotThisPod)),
        ("[fe80::1]:8080", Err(Reason::LinkLocal)),
    ]);
    for (dst, expected) in expected {
        assert_eq!(ask(&told, dst), expected, "{dst}");
    }
    assert_eq!(ask(&[], "10.0.0.1:8080"), Ok("10.0.0.1:8080".to_owned()), "the World knows it too");
}

#[test]
fn an_own_address_is_the_source_s_own_whoever_else_claims_it() {
    // A pod object that is out of date, or a forged one, names the client's address too, and wins it for all others.
    let mut shop = Shop::new().with(Change::Pod(pod("shop/z-claimant", &["10.0.0.9", "fd00::9"])));
    for dst in ["10.0.0.9:8080", "[fd00::9]:8080"] {
        let Ok(Destination::Pod(candidate)) = shop.route(dst) else { panic!("{dst} is a pod's") };
        assert_eq!(candidate.workload.unwrap().pod.uid, PodUid("uid-client".into()), "{dst}");
    }
}

#[test]
fn an_app_is_dialled_only_from_a_client_of_its_addresss_family() {
    let mut shop = Shop::new();
    let world = shop.0.freeze();
    let local = Arc::clone(world.workload_by_name(&name("shop/web-1")).unwrap());
    let ask = |client, dst: &str| inbound(&world, &local, &[], ip(client), dst.parse().unwrap()).map(drop);
    assert_eq!(ask("10.0.0.9", "10.0.0.1:80"), Ok(()));
    assert_eq!(ask("::ffff:10.0.0.9", "10.0.0.1:80"), Ok(()));
    assert_eq!(ask("10.0.0.9", "[::ffff:10.0.0.1]:80"), Ok(()));
    assert_eq!(ask("fd00::9", "[fd00::1]:80"), Ok(()));
    for (client, dst) in [("10.0.0.9", "[fd00::1]:80"), ("fd00::9", "10.0.0.1:80")] {
        let refusal = ask(client, dst).unwrap_err();
        assert_eq!((refusal, refusal.reason()), (InboundRefusal::OtherFamily, Reason::BadConnect));
    }
    // Whose it is comes first: the peer may look that up again.
    assert_eq!(ask("10.0.0.9", "[fd00::1:2]:80"), Err(InboundRefusal::NotThisPod));
}
