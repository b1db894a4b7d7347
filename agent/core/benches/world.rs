//! What a large mesh costs one agent: memory of 20,000 workloads, time of freezing and resolving.
//!
//! `cargo bench -p adit-core --bench world` prints one line a figure; it asserts nothing.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a bench reads the clock and prints")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use adit_core::net::{NodeName, ObjectName, OriginalDst, PodUid};
use adit_core::resolve;
use adit_core::service::{
    Distribution, Endpoint, EndpointSlice, Service, ServicePort, SlicePort, TargetPort,
};
use adit_core::workload::{Labels, MeshLabel, NamedPort, Namespace, Node, Owner, Pod, Skip};
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Kind, Settings, World};

/// Pods, as many to a Service, and nodes. 100 namespaces.
const PODS: u32 = 20_000;
const PODS_PER_SERVICE: u32 = 10;
const NODES: u32 = 200;
const NAMESPACES: u32 = 100;

fn main() {
    let before = resident_kib();
    let mut builder = WorldBuilder::new(settings());
    let started = Instant::now();
    list(&mut builder, Kind::Namespace, namespaces());
    list(&mut builder, Kind::Node, nodes());
    list(&mut builder, Kind::Pod, (0..PODS).map(|n| Change::Pod(pod(n, false))));
    let mut world = builder.freeze();
    println!("resync and freeze of {PODS} pods: {:?}", started.elapsed());
    let pods = resident_kib();
    println!("memory of {PODS} pods: {} KiB", pods - before);

    let started = Instant::now();
    list(&mut builder, Kind::Service, services());
    list(&mut builder, Kind::EndpointSlice, slices());
    world = replace(world, builder.freeze());
    println!("with services and slices: {:?}", started.elapsed());
    println!("memory of these: {} KiB", resident_kib() - pods);

    let rounds: u32 = 1_000;
    let started = Instant::now();
    for n in 0..rounds {
        builder.apply(Change::Pod(pod(n, n % 2 == 0)));
        world = replace(world, builder.freeze());
    }
    println!("one pod changes, one freeze: {:?}", started.elapsed() / rounds);
    println!("memory after {rounds} snapshots: {} KiB", resident_kib() - before);

    let started = Instant::now();
    let again = |n| Change::Pod(pod(n, n < rounds && n % 2 == 0));
    list(&mut builder, Kind::Pod, (0..PODS).map(again));
    world = replace(world, builder.freeze());
    println!("resync that says nothing new: {:?}", started.elapsed());
    println!("memory after it: {} KiB", resident_kib() - before);

    resolve_times(&world);
}

fn resolve_times(world: &World) {
    let source = Arc::clone(world.workload(&uid(7)).expect("pod 7 was made"));
    let rounds: u32 = 1_000_000;
    for (what, dst) in [
        ("a service", SocketAddr::new(vip(77), 80)),
        ("a pod", SocketAddr::new(pod_ip(7777), 8080)),
        ("outside", SocketAddr::from(([203, 0, 113, 1], 443))),
    ] {
        let started = Instant::now();
        for _ in 0..rounds {
            let found = resolve::outbound(world, &source, &[], OriginalDst(std::hint::black_box(dst)));
            std::hint::black_box(&found).as_ref().expect("every destination of this bench exists");
        }
        println!("resolve {what}: {:?}", started.elapsed() / rounds);
    }
}

/// A list, one object after the other, as a watch says it.
fn list(builder: &mut WorldBuilder, kind: Kind, all: impl Iterator<Item = Change>) {
    builder.list_begins(kind);
    all.for_each(|change| builder.apply(change));
    builder.list_ends(kind);
}

/// The old snapshot goes only once the new one is there, as in the agent.
fn replace(old: Arc<World>, new: Arc<World>) -> Arc<World> {
    drop(old);
    new
}

fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".parse().expect("it is a trust domain"),
        system_namespace: "adit-system".into(),
        excluded_namespaces: ["kube-system".into()].into(),
        node: node_name(0),
    }
}

fn node_name(n: u32) -> NodeName {
    NodeName(format!("ip-10-0-{n}-17.eu-central-1.compute.internal").into())
}

fn namespace_name(n: u32) -> Arc<str> {
    format!("team-{}-production", n % NAMESPACES).into()
}

fn uid(n: u32) -> PodUid {
    PodUid(format!("6f1c2a3e-{:04x}-4c5d-9e8f-{n:012x}", n % 65_536).into())
}

fn service_name(n: u32) -> ObjectName {
    ObjectName::new(namespace_name(n), format!("service-number-{n}"))
}

fn pod_name(n: u32) -> ObjectName {
    let service = n / PODS_PER_SERVICE;
    ObjectName::new(namespace_name(service), format!("service-number-{service}-7d9c5b8f6d-{n:05}"))
}

fn pod_ip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a80_0000 + n))
}

fn vip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + n))
}

/// Strings of its own each time, as from a decoder.
fn pod(n: u32, terminating: bool) -> Pod {
    let service = n / PODS_PER_SERVICE;
    let labels = [
        ("app.kubernetes.io/name", format!("service-number-{service}")),
        ("app.kubernetes.io/instance", format!("service-number-{service}")),
        ("pod-template-hash", "7d9c5b8f6d".to_owned()),
        ("team", format!("team-{}", service % NAMESPACES)),
    ];
    let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
    Pod {
        uid: uid(n),
        name: pod_name(n),
        node: Some(node_name(n % NODES)),
        ips: vec![pod_ip(n)],
        service_account: format!("service-number-{service}").into(),
        labels: Labels(labels.collect::<BTreeMap<_, _>>()).into(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating,
        captured: true,
        ports: vec![NamedPort { name: "http".into(), port: 8080 }],
        probe_ports: vec![8080],
        skip: Skip::default(),
        owner: Owner { kind: "Deployment".into(), name: format!("service-number-{service}").into() },
    }
}

fn namespaces() -> impl Iterator<Item = Change> {
    let namespace = |n| {
        Change::Namespace(Namespace {
            name: namespace_name(n),
            mesh: Some(MeshLabel::Enabled),
            skip: Skip::default(),
        })
    };
    (0..NAMESPACES).map(namespace)
}

fn nodes() -> impl Iterator<Item = Change> {
    let node = |n| {
        Change::Node(Node {
            name: node_name(n),
            zone: Some(format!("eu-central-1{}", if n % 2 == 0 { 'a' } else { 'b' }).into()),
            addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0011 + (n << 8)))],
        })
    };
    (0..NODES).map(node)
}

fn services() -> impl Iterator<Item = Change> {
    (0..PODS / PODS_PER_SERVICE).map(|n| {
        Change::Service(Service {
            name: service_name(n),
            created: 0,
            cluster_ips: vec![vip(n)],
            external_ips: Vec::new(),
            headless: false,
            ports: vec![ServicePort {
                name: "http".into(),
                port: 80,
                target: TargetPort::Name("http".into()),
                node_port: None,
            }],
            internal_local: false,
            distribution: Distribution::Any,
            affinity: None,
            publish_not_ready: false,
            selector: Some(Labels::default()),
        })
    })
}

fn slices() -> impl Iterator<Item = Change> {
    (0..PODS / PODS_PER_SERVICE).map(|n| {
        let endpoint = |pod| Endpoint {
            addresses: vec![pod_ip(pod)],
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node_name(pod % NODES)),
            zone: Some("eu-central-1a".into()),
            pod: Some(pod_name(pod)),
        };
        let service = service_name(n);
        Change::EndpointSlice(EndpointSlice {
            name: ObjectName::new(Arc::clone(&service.namespace), format!("{}-x7k2p", service.name)),
            service,
            ports: vec![SlicePort { name: "http".into(), port: Some(8080) }],
            endpoints: (n * PODS_PER_SERVICE..(n + 1) * PODS_PER_SERVICE).map(endpoint).collect(),
        })
    })
}

/// Resident memory of this process, by the kernel's account.
fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    figure.unwrap_or(0)
}
