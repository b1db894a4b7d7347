//! Pods, namespaces and nodes as the mesh sees them: validated models, read from objects by `adit-objects`.
//!
//! [`Pod`], [`Namespace`] and [`Node`] are what one object says; a [`Workload`] is a pod with what its namespace, its
//! node and the mesh's settings add, made by [`crate::world`] when a snapshot is frozen.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use adit_proto::SpiffeId;
use ipnet::IpNet;

use crate::net::{NodeName, ObjectName, PodUid};

/// Kubernetes labels.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Labels(pub BTreeMap<Arc<str>, Arc<str>>);

impl Labels {
    /// Whether every pair of `selector` is among these; an empty selector selects everything.
    pub fn contain(&self, selector: &Self) -> bool {
        selector.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

/// What the label `adit.dev/mesh` says, on a pod or on a namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MeshLabel {
    /// `enabled`.
    Enabled,
    /// `disabled`.
    Disabled,
}

/// A port range; a single port is a range of one.
pub type PortRange = RangeInclusive<u16>;

/// Which packets of a pod are not redirected (annotations `adit.dev/skip-…`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Skip {
    /// Destination ports of outbound connections.
    pub outbound_ports: Vec<PortRange>,
    /// Destination addresses of outbound connections.
    pub outbound_cidrs: Vec<IpNet>,
    /// The pod's own ports.
    pub inbound_ports: Vec<PortRange>,
    /// What of the annotations cannot be understood, where and why; then nothing that stands beside it is skipped.
    pub invalid: Option<Arc<str>>,
}

impl Skip {
    /// Whether there are no annotations, of whatever kind.
    pub fn says_nothing(&self) -> bool {
        self.is_empty() && self.invalid.is_none()
    }

    /// Whether nothing is skipped.
    pub fn is_empty(&self) -> bool {
        self.outbound_ports.is_empty() && self.outbound_cidrs.is_empty() && self.inbound_ports.is_empty()
    }
}

/// A TCP port that a container declares under a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedPort {
    /// `ports[].name`.
    pub name: Arc<str>,
    /// `ports[].containerPort`.
    pub port: u16,
}

/// The object that made a pod, for telemetry: its Deployment rather than the ReplicaSet between them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, … or `Pod` where nothing made it.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What one Pod object says. Finished pods never become one: their addresses may already be another's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// `spec.nodeName`; none while unscheduled.
    pub node: Option<NodeName>,
    /// `status.podIPs`, canonical (no IPv4-mapped IPv6); empty before the sandbox is there.
    pub ips: Vec<IpAddr>,
    /// `spec.serviceAccountName`, `default` where absent.
    pub service_account: Arc<str>,
    /// `metadata.labels`; one set for all pods with the same.
    pub labels: Arc<Labels>,
    /// The pod's own label `adit.dev/mesh`.
    pub mesh: Option<MeshLabel>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Made by the kubelet from a file (annotation `kubernetes.io/config.source` other than `api`, or the mirror annotation).
    pub is_static: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Annotation `adit.dev/capture: enabled`: its node's agent says that it is captured.
    pub captured: bool,
    /// Named TCP ports of its containers, for Services with named target ports.
    pub ports: Vec<NamedPort>,
    /// Ports declared for probes and lifecycle hooks (HTTP, TCP, gRPC), named ones resolved; sorted, no doubles.
    pub probe_ports: Vec<u16>,
    /// Its own skip annotations.
    pub skip: Skip,
    /// What made it.
    pub owner: Owner,
}

/// What one Namespace object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The label `adit.dev/mesh`.
    pub mesh: Option<MeshLabel>,
    /// Its skip annotations, for all its pods.
    pub skip: Skip,
}

/// What one Node object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP and ExternalIP, for nodeIP:nodePort.
    pub addresses: Vec<IpAddr>,
}

/// Whether a pod is wanted in the mesh, and what says so.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Enrolment {
    /// By its own label.
    ByPod,
    /// By its namespace's label.
    ByNamespace,
    /// No label asks for it.
    NotAsked,
    /// Its own label says `disabled`.
    OptedOut,
    /// It is in a namespace that is never enrolled.
    ExcludedNamespace,
    /// It shares its node's network.
    HostNetwork,
    /// The kubelet made it from a file.
    StaticPod,
}

impl Enrolment {
    /// Whether the pod is wanted in the mesh.
    pub fn is_enrolled(self) -> bool {
        match self {
            Self::ByPod | Self::ByNamespace => true,
            Self::NotAsked
            | Self::OptedOut
            | Self::ExcludedNamespace
            | Self::HostNetwork
            | Self::StaticPod => false,
        }
    }
}

/// A pod in a snapshot: what its object says, with what its namespace, node and the mesh add.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// What its object says; `captured` also by its node's status file.
    pub pod: Arc<Pod>,
    /// Its SPIFFE identity.
    pub identity: SpiffeId,
    /// Whether it is wanted in the mesh.
    pub enrolment: Enrolment,
    /// Known to be captured, by annotation or by its node's status file.
    pub captured: bool,
    /// Its node's zone.
    pub zone: Option<Arc<str>>,
    /// Skips of pod and namespace together.
    pub skip: Arc<Skip>,
}
