//! The Kubernetes objects of a mesh here, as values to be written as YAML.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::topology::Host;

/// Whether the label `adit.dev/mesh` is there, and what it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enrolment {
    /// No label.
    Unsaid,
    /// `enabled`.
    Enabled,
    /// `disabled`.
    Disabled,
}

/// A pod to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its node.
    pub node: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account; the name unless changed.
    pub account: String,
    /// Its labels; `app: NAME` unless changed.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// What its container declares: name and number.
    pub ports: Vec<(String, u16)>,
    /// More fields of its container: probes and the like.
    pub container: Value,
    /// More fields of its `metadata`: ownerReferences and the like.
    pub metadata: Value,
    /// Whether its endpoints are ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// Its uid.
    pub uid: String,
    /// Its sandbox's container id.
    pub sandbox: String,
    /// Its namespace and addresses.
    pub host: Host,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its virtual addresses; none is a headless one.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it.
    pub selector: BTreeMap<String, String>,
    /// More fields of its `spec`: internalTrafficPolicy and the like.
    pub spec: Value,
}

/// A service's port.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name.
    pub name: String,
    /// The port at the service's address.
    pub port: u16,
    /// The port at the pod.
    pub target: u16,
}

impl PodSpec {
    /// A ready pod with defaults for all else.
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            container: Value::Null,
            metadata: Value::Null,
            ready: true,
            terminating: false,
        }
    }

    /// With this service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// With this label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With this annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Its name in the topology, unique over namespaces.
    pub(super) fn host_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// The name of its file in the mesh directory.
    pub fn object_file(&self) -> String {
        format!("pod-{}-{}", self.namespace, self.name)
    }
}

impl ServiceSpec {
    /// A service of this virtual IPv4 and IPv6 address (`10.96.0.N`, `fd96::N`) for the pods labelled `app: NAME`.
    pub fn new(namespace: &str, name: &str, number: u8, port: u16, target: u16) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ips: vec![
                IpAddr::from([10, 96, 0, number]),
                IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            ],
            ports: vec![ServicePort { name: "main".to_owned(), port, target }],
            selector: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            spec: Value::Null,
        }
    }

    /// The name of its file in the mesh directory.
    pub fn object_file(&self) -> String {
        format!("service-{}-{}", self.namespace, self.name)
    }
}

/// The pods behind a service.
#[derive(Clone, Debug)]
pub struct Endpoints(Vec<Pod>);

impl Endpoints {
    pub(super) fn select<'p>(service: &ServiceSpec, pods: impl Iterator<Item = &'p Pod>) -> Self {
        let selected = |pod: &&Pod| {
            let labels = &pod.spec.labels;
            !service.selector.is_empty()
                && pod.spec.namespace == service.namespace
                && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        Self(pods.filter(selected).cloned().collect())
    }

    /// Those that take new connections.
    pub fn ready(&self) -> impl Iterator<Item = &Pod> {
        self.0.iter().filter(|pod| pod.spec.ready && !pod.spec.terminating)
    }
}

pub(super) fn namespace(name: &str, enrolment: Enrolment) -> Value {
    let labels = match enrolment {
        Enrolment::Unsaid => json!({}),
        Enrolment::Enabled => json!({ "adit.dev/mesh": "enabled" }),
        Enrolment::Disabled => json!({ "adit.dev/mesh": "disabled" }),
    };
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A pod's object; without `host` it has no address yet.
pub(super) fn pod(spec: &PodSpec, uid: &str, host: Option<&Host>) -> Value {
    let ports: Vec<Value> =
        spec.ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
    let mut container = json!({ "name": "main", "image": "test", "ports": ports });
    super::merge(&mut container, &spec.container);
    let status = match host {
        None => json!({ "phase": "Pending" }),
        Some(host) => json!({
            "phase": "Running",
            "podIP": host.v4,
            "podIPs": host.ips().map(|ip| json!({ "ip": ip })),
            "conditions": [{ "type": "Ready", "status": if spec.ready { "True" } else { "False" } }],
        }),
    };
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name, "namespace": spec.namespace, "uid": uid,
            "labels": spec.labels, "annotations": spec.annotations,
        },
        "spec": {
            "nodeName": spec.node, "serviceAccountName": spec.account, "containers": [container],
        },
        "status": status,
    });
    super::merge(&mut object["metadata"], &spec.metadata);
    if spec.terminating {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}

pub(super) fn service(spec: &ServiceSpec) -> Value {
    let ips: Vec<String> = spec.ips.iter().map(IpAddr::to_string).collect();
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| json!({ "name": port.name, "port": port.port, "targetPort": port.target, "protocol": "TCP" }))
        .collect();
    let mut inner = json!({
        "type": "ClusterIP",
        "clusterIP": ips.first().map_or("None", String::as_str),
        "clusterIPs": if ips.is_empty() { vec!["None".to_owned()] } else { ips.clone() },
        "ports": ports,
        "selector": spec.selector,
    });
    super::merge(&mut inner, &spec.spec);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": spec.name, "namespace": spec.namespace, "uid": format!("service-{}", spec.name) },
        "spec": inner,
    })
}

/// One slice a family, as the endpoint controller makes them.
pub(super) fn slices(service: &ServiceSpec, endpoints: &Endpoints) -> [(&'static str, Value); 2] {
    let slice = |family: &'static str, kind: &str, ip: fn(&Host) -> IpAddr| {
        let endpoints: Vec<Value> = endpoints.0.iter().map(|pod| endpoint(pod, ip(&pod.host))).collect();
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|port| json!({ "name": port.name, "port": port.target, "protocol": "TCP" }))
            .collect();
        let value = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{family}", service.name),
                "namespace": service.namespace,
                "labels": { "kubernetes.io/service-name": service.name },
            },
            "addressType": kind,
            "endpoints": endpoints,
            "ports": ports,
        });
        (family, value)
    };
    [slice("v4", "IPv4", |host| host.v4.into()), slice("v6", "IPv6", |host| host.v6.into())]
}

fn endpoint(pod: &Pod, ip: IpAddr) -> Value {
    let PodSpec { ready, terminating, .. } = pod.spec;
    json!({
        "addresses": [ip],
        "conditions": { "ready": ready && !terminating, "serving": ready, "terminating": terminating },
        "nodeName": pod.spec.node,
        "targetRef": { "kind": "Pod", "name": pod.spec.name, "namespace": pod.spec.namespace, "uid": pod.uid },
    })
}
