//! The endpoints of a Service's port, made ready for connections when a snapshot is frozen.
//!
//! Judges each endpoint once per change instead of once per connection. Does not choose: see [`crate::resolve`] for
//! what a source may use and [`crate::balance`] for which is tried.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_proto::SpiffeId;

use super::index::{Claimants, Keyed, Table, winner_at};
use crate::net::{NodeName, ObjectName};
use crate::service::{Distribution, Endpoint, EndpointSlice, Service, ServicePort, SlicePort, TargetPort};
use crate::traffic::TrafficSettings;
use crate::workload::Workload;

/// Where one attempt may go, and how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The pod's address and target port, or an address outside the mesh.
    pub addr: SocketAddr,
    /// The pod, where it is one that is known.
    pub workload: Option<Arc<Workload>>,
    /// How it is reached.
    pub via: Via,
    /// `trafficDistribution`: lower ones first.
    pub tier: u8,
}

/// How a destination is reached. Decided by what is known of it, never by what failed: there is no way from
/// [`Via::Tunnel`] to plaintext.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Via {
    /// Through an HBONE tunnel, to a peer that proves this identity.
    Tunnel {
        /// The identity that its certificate must show.
        expected: SpiffeId,
    },
    /// As the app would reach it without the mesh.
    Plaintext(PlaintextCause),
    /// The endpoint names a pod that is not known yet, or not at this address: whether it is in the mesh cannot be
    /// said, so it must not be dialled. The connect phase asks again within its deadline.
    Unknown,
}

/// Why a destination is reached in plaintext.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum PlaintextCause {
    /// A pod that is not wanted in the mesh.
    NotEnrolled,
    /// A pod that is wanted in the mesh and not known to be captured yet.
    NotYetCaptured,
    /// A port that the pod's annotation `adit.dev/skip-inbound-ports` keeps from being redirected.
    SkippedPort,
    /// No pod has this address.
    Outside,
    /// A pod that shares its node's network.
    HostNetwork,
}

/// How a pod is reached at one of its ports.
pub(crate) fn via(workload: &Workload, port: u16) -> Via {
    if workload.pod.host_network {
        return Via::Plaintext(PlaintextCause::HostNetwork);
    }
    match (workload.captured, workload.enrolment.is_enrolled()) {
        (true, _) if skipped(workload, port) => Via::Plaintext(PlaintextCause::SkippedPort),
        // Enrolled or not: while it is captured its agent serves tunnels, and un-enrolment takes the annotation first.
        (true, _) => Via::Tunnel { expected: workload.identity.clone() },
        (false, true) => Via::Plaintext(PlaintextCause::NotYetCaptured),
        (false, false) => Via::Plaintext(PlaintextCause::NotEnrolled),
    }
}

fn skipped(workload: &Workload, port: u16) -> bool {
    let ranges = &workload.skip.inbound_ports;
    ranges.iter().any(|range| range.contains(&port))
}

/// A Service with its ports' candidates and its settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Routes {
    /// What its object says.
    pub(crate) service: Arc<Service>,
    /// How connections to it are tried.
    pub(crate) traffic: Arc<TrafficSettings>,
    /// Its ports.
    pub(crate) ports: Box<[PortRoutes]>,
}

impl Routes {
    /// The endpoints of a port, of the family of an address.
    pub(crate) fn backends(&self, port: u16, family_of: IpAddr) -> Option<&Backends> {
        let routes = self.ports.iter().find(|routes| routes.port == port)?;
        Some(match family_of {
            IpAddr::V4(_) => &routes.v4,
            IpAddr::V6(_) => &routes.v6,
        })
    }
}

/// One port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PortRoutes {
    /// The Service's port.
    pub(crate) port: u16,
    /// Its IPv4 endpoints.
    pub(crate) v4: Backends,
    /// Its IPv6 endpoints.
    pub(crate) v6: Backends,
}

/// By the Service's name.
impl Keyed for Arc<Routes> {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.service.name
    }
}

/// The endpoints of one port and family that may be used.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Backends {
    /// Those that live; where none does, those that terminate and still serve. For a Service that prefers some
    /// endpoints to others, both: what is left depends on the source. By address, each once, all in tier 0.
    pub(crate) candidates: Arc<[Candidate]>,
    /// Where each of them is; empty for a Service that prefers none.
    pub(crate) places: Box<[Place]>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// Its node.
    pub(crate) node: Option<NodeName>,
    /// Its zone.
    pub(crate) zone: Option<Arc<str>>,
    /// Used only where nothing that lives may be.
    pub(crate) terminating: bool,
}

/// What is known of pods, to judge endpoints by.
pub(crate) struct Pods<'w> {
    /// By name.
    pub(crate) by_name: &'w Table<Arc<Workload>>,
    /// By address.
    pub(crate) by_ip: &'w Table<(IpAddr, Claimants)>,
}

/// An endpoint at one port.
struct Found {
    candidate: Candidate,
    place: Place,
}

/// Makes the endpoints of every port of a Service ready, from all its slices together.
///
/// Nothing for a Service that has no address of its own: its endpoints are dialled by theirs.
pub(crate) fn port_routes(
    service: &Service,
    slices: &[&EndpointSlice],
    pods: &Pods<'_>,
) -> Box<[PortRoutes]> {
    let addressed = !service.cluster_ips.is_empty() || !service.external_ips.is_empty();
    let reachable = |port: &&ServicePort| addressed || port.node_port.is_some();
    let ports = service.ports.iter().filter(reachable);
    ports
        .map(|port| {
            let found = found(service, port, slices, pods);
            let (v4, v6) = found.into_iter().partition(|found| found.candidate.addr.is_ipv4());
            PortRoutes { port: port.port, v4: backends(service, v4), v6: backends(service, v6) }
        })
        .collect()
}

/// The endpoints of one port, each address once, by address.
fn found(service: &Service, port: &ServicePort, slices: &[&EndpointSlice], pods: &Pods<'_>) -> Vec<Found> {
    let mut by_addr: BTreeMap<SocketAddr, Found> = BTreeMap::new();
    for slice in slices {
        let Some(slice_port) = slice.ports.iter().find(|own| own.name == port.name) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some(found) = judge(service, port, slice_port, endpoint, pods) else {
                continue;
            };
            // An endpoint that moves between slices is in both for a while, and one may say that it has terminated.
            let better = by_addr.get(&found.candidate.addr).is_none_or(|held| rank(&found) > rank(held));
            if better {
                by_addr.insert(found.candidate.addr, found);
            }
        }
    }
    by_addr.into_values().collect()
}

/// Which of two entries for one address counts: the greater. Total but for the place, so that the order of slices
/// matters to nobody.
fn rank(found: &Found) -> (bool, bool, Option<&ObjectName>, Option<&NodeName>, Option<&Arc<str>>) {
    let name = found.candidate.workload.as_ref().map(|workload| &workload.pod.name);
    let known = found.candidate.via != Via::Unknown;
    let place = &found.place;
    (!place.terminating, known, name, place.node.as_ref(), place.zone.as_ref())
}

/// What an endpoint is good for; `None` if it may not be used at all.
fn judge(
    service: &Service,
    port: &ServicePort,
    slice_port: &SlicePort,
    endpoint: &Endpoint,
    pods: &Pods<'_>,
) -> Option<Found> {
    let ip = endpoint.addresses.first()?.to_canonical();
    let at_address = winner_at(pods.by_ip, ip);
    let (workload, known) = match &endpoint.pod {
        None => (at_address, true),
        Some(name) => {
            let named = pods.by_name.get(name);
            // A name is not enough: a StatefulSet's pod comes back under the same name, and an address goes to
            // another pod while slices still say otherwise.
            let known = named.is_some_and(|workload| {
                workload.pod.host_network || at_address.is_some_and(|holder| holder.pod.name == *name)
            });
            (named.filter(|_| known), known)
        }
    };
    let terminating = endpoint.terminating || workload.is_some_and(|workload| workload.pod.terminating);
    let usable = if terminating { endpoint.serving || endpoint.ready } else { endpoint.ready };
    if !usable && !service.publish_not_ready {
        return None;
    }
    let port = slice_port.port.unwrap_or_else(|| target_port(port, workload.map(|workload| &**workload)));
    let via = match workload {
        _ if !known => Via::Unknown,
        Some(workload) => via(workload, port),
        None => Via::Plaintext(PlaintextCause::Outside),
    };
    let place = Place {
        node: endpoint.node.clone().or_else(|| workload?.pod.node.clone()),
        zone: endpoint.zone.clone().or_else(|| workload?.zone.clone()),
        terminating,
    };
    let candidate = Candidate { addr: SocketAddr::new(ip, port), workload: workload.cloned(), via, tier: 0 };
    Some(Found { candidate, place })
}

/// The port where the slice does not say: by number, or as this pod names it; the Service's own where it does not.
fn target_port(port: &ServicePort, workload: Option<&Workload>) -> u16 {
    match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => workload
            .and_then(|workload| workload.pod.ports.iter().find(|own| own.name == *name))
            .map_or(port.port, |own| own.port),
    }
}

fn backends(service: &Service, found: Vec<Found>) -> Backends {
    if prefers(service) {
        let (candidates, places): (Vec<_>, Vec<_>) =
            found.into_iter().map(|found| (found.candidate, found.place)).unzip();
        return Backends { candidates: candidates.into(), places: places.into() };
    }
    let none_lives = found.iter().all(|found| found.place.terminating);
    let usable = found.into_iter().filter(|found| none_lives || !found.place.terminating);
    Backends { candidates: usable.map(|found| found.candidate).collect(), places: Box::default() }
}

/// Whether it matters to the Service where a source is.
fn prefers(service: &Service) -> bool {
    service.internal_local || service.distribution != Distribution::Any
}
