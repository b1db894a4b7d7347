//! Services and their endpoints: validated models, read from objects by `adit-objects`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::net::{NodeName, ObjectName};
use crate::workload::Labels;

/// Where a Service's port leads in its pods.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum TargetPort {
    /// The same number in every pod.
    Number(u16),
    /// The port that each pod declares under this name.
    Name(Arc<str>),
}

/// One TCP port of a Service. UDP and SCTP ports never become one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// `ports[].name`; empty for the only, unnamed port. Endpoint slices refer to it.
    pub name: Arc<str>,
    /// `ports[].port`.
    pub port: u16,
    /// `ports[].targetPort`.
    pub target: TargetPort,
    /// `ports[].nodePort`.
    pub node_port: Option<u16>,
}

/// `spec.trafficDistribution`: which endpoints are tried first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Distribution {
    /// No preference.
    #[default]
    Any,
    /// `PreferSameZone` (and its older name `PreferClose`).
    SameZone,
    /// `PreferSameNode`.
    SameNode,
}

/// What one Service object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// When it was made, in seconds since the epoch: of two that claim one external address the older has it.
    pub created: i64,
    /// `clusterIPs`, which no other Service has; empty for headless Services.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs` and load balancer ingress addresses, as far as they are not among `cluster_ips`.
    pub external_ips: Vec<IpAddr>,
    /// `clusterIP: None`: its endpoints are dialled by their own addresses.
    pub headless: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`: by a cluster IP only endpoints of the client's own node.
    ///
    /// What a pod sends to an external address, a load balancer's or a node port is subject to no policy, as by
    /// kube-proxy (KEP-2086): it goes to all endpoints, as if it had left the cluster and come in through any node. So
    /// `externalTrafficPolicy` says nothing to the mesh and is not read.
    pub internal_local: bool,
    /// `spec.trafficDistribution`.
    pub distribution: Distribution,
    /// `sessionAffinity: ClientIP`, with its time-out.
    pub affinity: Option<Duration>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.selector`; none for a Service whose endpoints are written by hand.
    pub selector: Option<Labels>,
}

/// A port of an endpoint slice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: Arc<str>,
    /// The endpoints' port; none means "all ports" and is taken as the Service's port number.
    pub port: Option<u16>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Its address (a slice's endpoint has one that counts; others are the same endpoint).
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`; absent is true.
    pub ready: bool,
    /// `conditions.serving`; absent is as `ready`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<NodeName>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// The pod that `targetRef` names, where it is a Pod.
    pub pod: Option<ObjectName>,
}

/// What one EndpointSlice object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// The Service that the label `kubernetes.io/service-name` names, in the same namespace.
    pub service: ObjectName,
    /// Its TCP ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}
