//! Short words for objects, for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Settings;
use crate::net::{NodeName, ObjectName, PodUid};
use crate::service::{Distribution, Endpoint, EndpointSlice, Service, ServicePort, SlicePort, TargetPort};
use crate::workload::{Labels, MeshLabel, Namespace, Node, Owner, Pod, Skip};

/// An agent on `node-a`, with `kube-system` excluded.
pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        system_namespace: "adit-system".into(),
        excluded_namespaces: ["kube-system".into()].into(),
        node: node_name("a"),
    }
}

pub(crate) fn node_name(short: &str) -> NodeName {
    NodeName(format!("node-{short}").into())
}

/// `namespace/name`.
pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A captured pod of node-a, by `namespace/name`; its uid is `uid-<name>`.
pub(crate) fn pod(of: &str, ips: &[&str]) -> Pod {
    let name = name(of);
    Pod {
        uid: PodUid(format!("uid-{}", name.name).into()),
        node: Some(node_name("a")),
        ips: ips.iter().copied().map(ip).collect(),
        service_account: "web".into(),
        labels: labels(&[("app", "web")]).into(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating: false,
        captured: true,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        skip: Skip::default(),
        owner: Owner { kind: "Pod".into(), name: Arc::clone(&name.name) },
        name,
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    Labels(pairs.collect::<BTreeMap<_, _>>())
}

/// An enrolled namespace.
pub(crate) fn namespace(name: &str) -> Namespace {
    Namespace { name: name.into(), mesh: Some(MeshLabel::Enabled), skip: Skip::default() }
}

pub(crate) fn node(short: &str, zone: &str, address: &str) -> Node {
    Node { name: node_name(short), zone: Some(zone.into()), addresses: vec![ip(address)] }
}

/// A Service with one unnamed port 80 → 8080.
pub(crate) fn service(of: &str, cluster_ips: &[&str]) -> Service {
    Service {
        name: name(of),
        created: 0,
        cluster_ips: cluster_ips.iter().copied().map(ip).collect(),
        external_ips: Vec::new(),
        headless: cluster_ips.is_empty(),
        ports: vec![ServicePort {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
        }],
        internal_local: false,
        distribution: Distribution::Any,
        affinity: None,
        publish_not_ready: false,
        selector: Some(labels(&[("app", "web")])),
    }
}

/// A slice `<service>-<suffix>` whose unnamed port is 8080.
pub(crate) fn slice(service: &str, suffix: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let service = name(service);
    EndpointSlice {
        name: ObjectName::new(Arc::clone(&service.namespace), format!("{}-{suffix}", service.name)),
        service,
        ports: vec![SlicePort { name: "".into(), port: Some(8080) }],
        endpoints,
    }
}

/// A ready endpoint at an address, of a pod or of none.
pub(crate) fn endpoint(address: &str, pod: Option<&str>) -> Endpoint {
    Endpoint {
        addresses: vec![ip(address)],
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        pod: pod.map(name),
    }
}
