//! A resync is the same as the increments that lead to it; generations say what changed; claims are settled.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::net::OriginalDst;
use crate::policy::{Action, PeerMode, Scope};
use crate::resolve::{inbound, outbound};
use crate::service::{Distribution, Endpoint, SlicePort, TargetPort};
use crate::workload::{Enrolment, Labels, MeshLabel, NamedPort, Workload};
use crate::world::fixtures::{
    endpoint, ip, labels, name, namespace, node, node_name, pod, service, settings, slice,
};

const NAMESPACES: [&str; 2] = ["shop", "kube-system"];
const NAMES: [&str; 3] = ["p0", "p1", "p2"];
const IPS: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const VIPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "fd96::1"];
const NODES: [&str; 2] = ["a", "b"];
const NODE_IPS: [&str; 2] = ["192.168.0.1", "192.168.0.2"];
const LABELS: [&str; 2] = ["web", "db"];

fn object_name() -> impl Strategy<Value = ObjectName> {
    (0..NAMESPACES.len(), 0..NAMES.len()).prop_map(|(ns, n)| ObjectName::new(NAMESPACES[ns], NAMES[n]))
}

fn mesh() -> impl Strategy<Value = Option<MeshLabel>> {
    prop::sample::select(vec![None, Some(MeshLabel::Enabled), Some(MeshLabel::Disabled)])
}

fn app() -> impl Strategy<Value = Labels> {
    prop::sample::select(LABELS.to_vec()).prop_map(|app| labels(&[("app", app)]))
}

fn short_node() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NODES.to_vec())
}

fn skip() -> impl Strategy<Value = Skip> {
    any::<bool>().prop_map(|some| Skip {
        inbound_ports: if some { vec![8080..=8080] } else { vec![] },
        ..Skip::default()
    })
}

fn some_pod() -> impl Strategy<Value = Pod> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let place = (prop::option::of(short_node()), prop::sample::subsequence(IPS.to_vec(), 0..3));
    // Uids collide now and then: a directory may hold such pods.
    let words =
        (object_name(), 0_u8..8, mesh(), app(), skip(), prop::sample::select(vec!["web", "bad/name"]));
    (flags, place, words).prop_map(|(flags, (node, ips), (name, uid, mesh, labels, skip, account))| {
        let (captured, terminating, host_network, names_port) = flags;
        Pod {
            uid: PodUid(format!("uid-{uid}").into()),
            node: node.map(node_name),
            mesh,
            labels: labels.into(),
            captured,
            terminating,
            host_network: host_network && terminating,
            service_account: account.into(),
            skip,
            ports: if names_port { vec![NamedPort { name: "app".into(), port: 9000 }] } else { vec![] },
            ..pod(&name.to_string(), &ips)
        }
    })
}

fn some_service() -> impl Strategy<Value = Service> {
    let kinds = vec![Distribution::Any, Distribution::SameZone, Distribution::SameNode];
    (
        object_name(),
        prop::sample::subsequence(VIPS.to_vec(), 0..3),
        prop::sample::select(kinds),
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        (0..2_usize, 0..2_i64),
    )
        .prop_map(
            |(name, vips, distribution, (local, published, node_port, by_name), (external, created))| {
                let mut service = service(&name.to_string(), &vips);
                service.external_ips = service.cluster_ips.split_off(external.min(vips.len()));
                service.created = created;
                service.distribution = distribution;
                service.internal_local = local;
                service.publish_not_ready = published;
                service.ports[0].node_port = node_port.then_some(30080);
                if by_name {
                    service.ports[0].target = TargetPort::Name("app".into());
                }
                service
            },
        )
}

fn some_endpoint() -> impl Strategy<Value = Endpoint> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        prop::sample::select(IPS.to_vec()),
        prop::option::of(object_name()),
        flags,
        prop::option::of(short_node()),
    )
        .prop_map(|(ip, pod, (ready, serving, terminating), node)| Endpoint {
            ready,
            serving,
            terminating,
            node: node.map(node_name),
            pod,
            ..endpoint(ip, None)
        })
}

fn some_slice() -> impl Strategy<Value = EndpointSlice> {
    (object_name(), 0_usize..2, prop::collection::vec(some_endpoint(), 0..4), prop::option::of(Just(8080)))
        .prop_map(|(of, suffix, endpoints, port)| {
            // Either of two names, whatever the Service: a slice may pass from one Service to another.
            let mut slice = slice(&of.to_string(), "x", endpoints);
            slice.name = ObjectName::new(Arc::clone(&of.namespace), format!("slice-{suffix}"));
            slice.ports = vec![SlicePort { name: "".into(), port }];
            slice
        })
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Mesh),
        Just(Scope::Namespace("shop".into())),
        app().prop_map(|labels| Scope::Selected { namespace: Some("shop".into()), labels }),
    ]
}

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    (object_name(), scope(), any::<bool>()).prop_map(|(name, scope, dry_run)| AuthorizationPolicy {
        name,
        created: 0,
        scope,
        action: Action::Allow,
        dry_run,
        rules: vec![],
    })
}

fn peer_authentication() -> impl Strategy<Value = PeerAuthentication> {
    let modes = vec![None, Some(PeerMode::Strict), Some(PeerMode::Permissive)];
    (object_name(), scope(), prop::sample::select(modes), 0_i64..3).prop_map(
        |(name, scope, mode, created)| PeerAuthentication {
            name,
            created,
            scope,
            mode,
            port_modes: BTreeMap::new(),
        },
    )
}

fn traffic_policy() -> impl Strategy<Value = TrafficPolicy> {
    let services = prop::collection::vec(object_name(), 0..3);
    (object_name(), services, 0_i64..3, 0_u32..4).prop_map(|(name, services, created, retries)| {
        let settings = TrafficSettings { retries_max: retries, ..TrafficSettings::default() };
        TrafficPolicy { name, created, services, settings }
    })
}

fn change() -> impl Strategy<Value = Change> {
    let uids =
        prop::collection::btree_set((0_u8..8).prop_map(|uid| PodUid(format!("uid-{uid}").into())), 0..4);
    let zones = prop::sample::select(vec!["z1", "z2"]);
    let addresses = prop::sample::select(NODE_IPS.to_vec());
    prop_oneof![
        6 => some_pod().prop_map(Change::Pod),
        2 => object_name().prop_map(Change::PodGone),
        2 => (0..NAMESPACES.len(), mesh(), skip()).prop_map(|(ns, mesh, skip)| Change::Namespace(Namespace {
            mesh,
            skip,
            ..namespace(NAMESPACES[ns])
        })),
        1 => (0..NAMESPACES.len()).prop_map(|ns| Change::NamespaceGone(NAMESPACES[ns].into())),
        3 => some_service().prop_map(Change::Service),
        1 => object_name().prop_map(Change::ServiceGone),
        4 => some_slice().prop_map(Change::EndpointSlice),
        1 => (0..NAMESPACES.len(), 0..2).prop_map(|(ns, at)| {
            Change::EndpointSliceGone(ObjectName::new(NAMESPACES[ns], format!("slice-{at}")))
        }),
        2 => (short_node(), zones, addresses).prop_map(|(short, zone, at)| Change::Node(node(short, zone, at))),
        1 => short_node().prop_map(|short| Change::NodeGone(node_name(short))),
        2 => authorization().prop_map(Change::AuthorizationPolicy),
        1 => object_name().prop_map(Change::AuthorizationPolicyGone),
        2 => peer_authentication().prop_map(Change::PeerAuthentication),
        1 => object_name().prop_map(Change::PeerAuthenticationGone),
        2 => traffic_policy().prop_map(Change::TrafficPolicy),
        1 => object_name().prop_map(Change::TrafficPolicyGone),
        2 => (short_node(), uids).prop_map(|(short, pods)| Change::Captured { node: node_name(short), pods }),
        1 => (0_u64..3).prop_map(|generation| Change::TrustBundle(TrustBundle { generation, ..TrustBundle::default() })),
    ]
}

/// The last words: what a fresh watch of everything would say.
#[derive(Default)]
struct LastWords(BTreeMap<Subject, Change>);

impl LastWords {
    fn hear(&mut self, change: &Change) {
        self.0.insert(change.subject(), change.clone());
    }

    /// Tells them to a builder: kinds in order or in reverse, each as a resync.
    fn tell(&self, builder: &mut WorldBuilder, reverse: bool) {
        let mut kinds = vec![
            Kind::Pod,
            Kind::Namespace,
            Kind::Service,
            Kind::EndpointSlice,
            Kind::Node,
            Kind::AuthorizationPolicy,
            Kind::PeerAuthentication,
            Kind::TrafficPolicy,
        ];
        if reverse {
            kinds.reverse();
        }
        for kind in kinds {
            let of_kind = self.0.values().filter(|change| listed(change) == Some(kind));
            let mut all: Vec<_> = of_kind.cloned().collect();
            if reverse {
                all.reverse();
            }
            builder.resync(kind, all);
        }
        for change in self.0.values().filter(|change| !is_listable(change)) {
            builder.apply(change.clone());
        }
    }
}

/// The kind under which a list would say this; none for what is gone.
fn listed(change: &Change) -> Option<Kind> {
    match change {
        Change::Pod(_) => Some(Kind::Pod),
        Change::Namespace(_) => Some(Kind::Namespace),
        Change::Service(_) => Some(Kind::Service),
        Change::EndpointSlice(_) => Some(Kind::EndpointSlice),
        Change::Node(_) => Some(Kind::Node),
        Change::AuthorizationPolicy(_) => Some(Kind::AuthorizationPolicy),
        Change::PeerAuthentication(_) => Some(Kind::PeerAuthentication),
        Change::TrafficPolicy(_) => Some(Kind::TrafficPolicy),
        Change::PodGone(_)
        | Change::NamespaceGone(_)
        | Change::ServiceGone(_)
        | Change::EndpointSliceGone(_)
        | Change::NodeGone(_)
        | Change::AuthorizationPolicyGone(_)
        | Change::PeerAuthenticationGone(_)
        | Change::TrafficPolicyGone(_)
        | Change::Captured { .. }
        | Change::TrustBundle(_) => None,
    }
}

fn is_listable(change: &Change) -> bool {
    !matches!(change, Change::Captured { .. } | Change::TrustBundle(_))
}

/// Everything that can be asked of a World, asked.
fn observe(world: &World) -> Vec<String> {
    let mut seen = Vec::new();
    let mut note = |what: String| seen.push(what);
    note(format!("{:?} {:?}", world.counts(), world.trust()));
    let mut workloads: Vec<_> = world.workloads().collect();
    workloads.sort_by_key(|workload| workload.pod.name.clone());
    note(format!("{workloads:?}"));
    let mut services: Vec<_> = world.services().collect();
    services.sort_by_key(|service| service.name.clone());
    note(format!("{services:?}"));
    for short in NODES {
        let node = node_name(short);
        let mut pods: Vec<_> = world.pods_on(&node).map(|workload| &workload.pod.name).collect();
        pods.sort();
        note(format!("on {short}: {pods:?}"));
    }
    for uid in 0..8 {
        let uid = PodUid(format!("uid-{uid}").into());
        let found = world.workload(&uid);
        let (policies, modes) = (world.policies_for(&uid), world.peer_modes_for(&uid));
        note(format!("{uid}: {found:?} {policies:?} {modes:?}"));
    }
    for namespace in NAMESPACES {
        for short in NAMES {
            let name = ObjectName::new(namespace, short);
            let (workload, service) = (world.workload_by_name(&name), world.service(&name));
            note(format!("{name}: {workload:?} {service:?} {:?}", world.traffic_for(&name)));
        }
    }
    let addresses: Vec<IpAddr> = [&IPS[..], &VIPS, &NODE_IPS].concat().into_iter().map(ip).collect();
    for at in &addresses {
        note(format!("{at}: {:?}", world.workload_by_ip(*at)));
    }
    for source in workloads {
        for at in &addresses {
            for port in [80, 8080, 15008, 30080] {
                let dst = SocketAddr::new(*at, port);
                note(format!("{dst}: {:?}", outbound(world, source, &[], OriginalDst(dst))));
                note(format!("{dst}: {:?}", inbound(world, source, &[], *at, dst)));
            }
        }
    }
    seen
}

fn first_difference(left: &World, right: &World) -> Option<(String, String)> {
    let (left, right) = (observe(left), observe(right));
    left.into_iter().zip(right).find(|(left, right)| left != right)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// However the changes came, and whenever snapshots were made of them.
    #[test]
    fn a_resync_is_the_same_as_the_increments(
        changes in prop::collection::vec((change(), any::<bool>()), 0..60),
        other in prop::collection::vec(change(), 0..20),
    ) {
        let mut by_increments = WorldBuilder::new(settings());
        let mut words = LastWords::default();
        for (change, freeze) in changes {
            words.hear(&change);
            by_increments.apply(change);
            if freeze {
                by_increments.freeze();
            }
        }
        let by_increments = by_increments.freeze();

        let mut fresh = WorldBuilder::new(settings());
        words.tell(&mut fresh, true);
        prop_assert_eq!(first_difference(&by_increments, &fresh.freeze()), None);

        // One that knew something else before.
        let mut resynced = WorldBuilder::new(settings());
        for change in other.into_iter().filter(is_listable) {
            resynced.apply(change);
        }
        resynced.freeze();
        words.tell(&mut resynced, false);
        prop_assert_eq!(first_difference(&by_increments, &resynced.freeze()), None);
    }

    /// In both directions: a missed change would let a connection live on, a false one costs every connection a look.
    #[test]
    fn the_policy_generation_changes_if_and_only_if_a_live_decision_might(
        changes in prop::collection::vec(change(), 0..60),
    ) {
        let mut builder = WorldBuilder::new(settings());
        let mut old = builder.freeze();
        for change in changes {
            builder.apply(change);
            let new = builder.freeze();
            let might = old.trust() != new.trust() || old.pods_on(&node_name("a")).any(|pod| {
                let uid = &pod.pod.uid;
                let of = |world: &World| {
                    let workload: Arc<Workload> = Arc::clone(world.workload(uid)?);
                    let policies = Arc::clone(world.policies_for(uid)?);
                    let (labels, enrolled) = (workload.pod.labels.clone(), workload.enrolment.is_enrolled());
                    Some((labels, enrolled, policies, Arc::clone(world.peer_modes_for(uid)?)))
                };
                of(&new).is_some_and(|new| of(&old) != Some(new))
            });
            prop_assert_eq!(old.policy_generation() != new.policy_generation(), might);
            prop_assert!(new.generation() >= old.generation());
            old = new;
        }
    }
}

fn builder(changes: impl IntoIterator<Item = Change>) -> WorldBuilder {
    let mut builder = WorldBuilder::new(settings());
    changes.into_iter().for_each(|change| builder.apply(change));
    builder
}

fn freeze(changes: impl IntoIterator<Item = Change>) -> Arc<World> {
    builder(changes).freeze()
}

#[test]
fn nothing_new_makes_no_new_snapshot() {
    let all = || {
        vec![
            Change::Namespace(namespace("shop")),
            Change::Pod(pod("shop/p0", &["10.0.0.1"])),
            Change::Node(node("a", "z1", "192.168.0.1")),
            Change::Service(service("shop/web", &["10.96.0.1"])),
            Change::EndpointSlice(slice("shop/web", "1", vec![endpoint("10.0.0.1", Some("shop/p0"))])),
            Change::Captured { node: node_name("a"), pods: [PodUid("uid-p0".into())].into() },
        ]
    };
    let mut builder = builder(all());
    let first = builder.freeze();
    all().into_iter().for_each(|change| builder.apply(change));
    builder.resync(Kind::Pod, vec![Change::Pod(pod("shop/p0", &["10.0.0.1"]))]);
    builder.apply(Change::PodGone(name("shop/never")));
    assert!(Arc::ptr_eq(&first, &builder.freeze()));
}

#[test]
fn an_object_on_a_list_that_cannot_be_read_stays_as_it_was() {
    let mut builder = builder([
        Change::Pod(pod("shop/p0", &["10.0.0.1"])),
        Change::Pod(pod("shop/p1", &["10.0.0.2"])),
        Change::Node(node("a", "z", "192.168.0.1")),
        Change::Node(node("b", "z", "192.168.0.2")),
    ]);
    for (kind, listed) in
        [(Kind::Pod, ObjectName::new("shop", "p0")), (Kind::Node, ObjectName::new("", "node-b"))]
    {
        builder.list_begins(kind);
        builder.list_has(kind, &listed);
        builder.list_ends(kind);
    }
    let world = builder.freeze();
    assert_eq!((world.counts().workloads, world.counts().nodes), (1, 1));
    assert!(world.workload_by_name(&ObjectName::new("shop", "p0")).is_some());
}

#[test]
fn of_two_pods_with_one_address_the_live_then_the_captured_one_wins() {
    let claim = |short: &str, terminating, captured| {
        Change::Pod(Pod { terminating, captured, ..pod(&format!("shop/{short}"), &["10.0.0.1"]) })
    };
    let winner = |changes: Vec<Change>| {
        let world = freeze(changes);
        let winner = world.workload_by_ip(ip("10.0.0.1")).unwrap();
        winner.pod.name.name.to_string()
    };
    assert_eq!(winner(vec![claim("p1", true, true), claim("p0", false, false)]), "p0");
    assert_eq!(winner(vec![claim("p1", false, false), claim("p0", false, true)]), "p0");
    assert_eq!(winner(vec![claim("p0", false, true), claim("p1", false, true)]), "p1");
    assert_eq!(
        winner(vec![claim("p0", true, true), claim("p1", false, true), Change::PodGone(name("shop/p1"))]),
        "p0",
        "the old one has the address again while it is still there"
    );
}

#[test]
fn enrolment_says_what_decided() {
    let enrolment = |change: fn(&mut Pod), namespace: Option<Namespace>| {
        let mut pod = pod("shop/p0", &[]);
        change(&mut pod);
        let name = pod.name.clone();
        let world = freeze(namespace.map(Change::Namespace).into_iter().chain([Change::Pod(pod)]));
        world.workload_by_name(&name).unwrap().enrolment
    };
    let on = || Some(namespace("shop"));
    assert_eq!(enrolment(|_| {}, None), Enrolment::NotAsked);
    assert_eq!(enrolment(|_| {}, on()), Enrolment::ByNamespace);
    assert_eq!(enrolment(|pod| pod.mesh = Some(MeshLabel::Enabled), None), Enrolment::ByPod);
    assert_eq!(enrolment(|pod| pod.mesh = Some(MeshLabel::Disabled), on()), Enrolment::OptedOut);
    assert_eq!(enrolment(|pod| pod.host_network = true, on()), Enrolment::HostNetwork);
    assert_eq!(enrolment(|pod| pod.is_static = true, on()), Enrolment::StaticPod);
    for excluded in ["kube-system/p0", "adit-system/p0"] {
        let mut pod = pod(excluded, &[]);
        pod.mesh = Some(MeshLabel::Enabled);
        let world = freeze([Change::Pod(pod)]);
        let workload = world.workload_by_name(&name(excluded)).unwrap();
        assert_eq!(workload.enrolment, Enrolment::ExcludedNamespace);
    }
}

#[test]
fn a_skip_that_is_not_understood_is_told_of_each_pod_and_says_whose_it_is() {
    let bad = |what: &str| Skip { invalid: Some(what.into()), ..Skip::default() };
    let invalid = |of_pod: Skip, of_namespace: Skip| {
        let pod = Pod { skip: of_pod, ..pod("shop/p0", &[]) };
        let namespace = Namespace { skip: of_namespace, ..namespace("shop") };
        let world = freeze([Change::Namespace(namespace), Change::Pod(pod)]);
        world.workload_by_name(&name("shop/p0")).unwrap().skip.invalid.clone()
    };
    assert_eq!(invalid(Skip::default(), Skip::default()), None);
    assert_eq!(invalid(bad("port x"), Skip::default()).as_deref(), Some("port x"));
    assert_eq!(invalid(bad("port x"), bad("port y")).as_deref(), Some("port x"));
    assert_eq!(invalid(Skip::default(), bad("port y")).as_deref(), Some("its namespace's port y"));
    let world = freeze([Change::Pod(Pod { skip: bad("port x"), ..pod("shop/p0", &[]) })]);
    assert_eq!(world.workload_by_name(&name("shop/p0")).unwrap().skip.invalid.as_deref(), Some("port x"));
}

#[test]
fn policies_are_compiled_for_the_own_nodes_pods_and_shared() {
    let mut elsewhere = pod("shop/p2", &[]);
    elsewhere.node = Some(node_name("b"));
    let world = freeze([
        Change::Pod(pod("shop/p0", &[])),
        Change::Pod(pod("shop/p1", &[])),
        Change::Pod(elsewhere),
        Change::AuthorizationPolicy(AuthorizationPolicy {
            name: name("shop/deny"),
            created: 0,
            scope: Scope::Namespace("shop".into()),
            action: Action::Deny,
            dry_run: false,
            rules: vec![],
        }),
    ]);
    let of = |uid: &str| world.policies_for(&PodUid(uid.into()));
    assert_eq!(of("uid-p0").unwrap().policies().count(), 1);
    assert!(Arc::ptr_eq(of("uid-p0").unwrap(), of("uid-p1").unwrap()));
    assert_eq!(of("uid-p2"), None);
    assert_eq!(of("uid-p9"), None);
}

#[test]
fn of_two_traffic_policies_the_older_counts_then_the_lesser_name() {
    let policy = |short: &str, created, retries_max| {
        Change::TrafficPolicy(TrafficPolicy {
            name: ObjectName::new("shop", short),
            created,
            services: vec![name("shop/web")],
            settings: TrafficSettings { retries_max, ..TrafficSettings::default() },
        })
    };
    let mut builder = builder([
        Change::Service(service("shop/web", &["10.96.0.1"])),
        policy("b", 1, 7),
        policy("a", 2, 8),
        policy("c", 1, 9),
    ]);
    let retries = |world: Arc<World>| world.traffic_for(&name("shop/web")).retries_max;
    assert_eq!(retries(builder.freeze()), 7);
    builder.apply(Change::TrafficPolicyGone(name("shop/b")));
    assert_eq!(retries(builder.freeze()), 9);
    builder.apply(Change::TrafficPolicyGone(name("shop/c")));
    builder.apply(Change::TrafficPolicyGone(name("shop/a")));
    assert_eq!(retries(builder.freeze()), TrafficSettings::default().retries_max);
}

#[test]
fn a_snapshot_never_changes() {
    let mut builder = builder([Change::Pod(pod("shop/p0", &["10.0.0.1"]))]);
    let before = builder.freeze();
    builder.apply(Change::PodGone(name("shop/p0")));
    let after = builder.freeze();
    assert!(before.workload_by_ip(ip("10.0.0.1")).is_some());
    assert!(after.workload_by_ip(ip("10.0.0.1")).is_none());
}

#[test]
fn equal_words_are_held_once() {
    let world = freeze([Change::Pod(pod("shop/p0", &[])), Change::Pod(pod("shop/p1", &[]))]);
    let of = |short: &str| Arc::clone(&world.workload_by_name(&ObjectName::new("shop", short)).unwrap().pod);
    let (left, right) = (of("p0"), of("p1"));
    assert!(Arc::ptr_eq(&left.name.namespace, &right.name.namespace));
    assert!(Arc::ptr_eq(&left.service_account, &right.service_account));
    let first = |pod: &Pod| Arc::clone(pod.labels.0.values().next().unwrap());
    assert!(Arc::ptr_eq(&first(&left), &first(&right)));
    assert!(Arc::ptr_eq(&left.labels, &right.labels));
}

#[test]
fn strings_that_are_not_used_any_more_are_forgotten() {
    let mut builder = builder([]);
    for n in 0..10_000 {
        let of = format!("shop/pod-{n}");
        let mut pod = pod(&of, &[]);
        pod.labels = labels(&[("app", "web"), ("pod", &of)]).into();
        builder.apply(Change::Pod(pod));
        builder.freeze();
        builder.apply(Change::PodGone(name(&of)));
        builder.freeze();
    }
    assert!(builder.strings.len() <= 2 * 1024, "{}", builder.strings.len());
}
