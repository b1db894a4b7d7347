//! Chooses where a captured connection may go, and whether an inbound one is this pod's.
//!
//! Reads a [`World`] and an original destination, returns a [`Destination`]: one pod, the candidates of a Service, or
//! an address outside the mesh. Does not choose among candidates (see [`crate::balance`]), does not dial, does not
//! know certificates.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_proto::Reason;
use adit_proto::hbone::{PORTS_RESERVED, is_link_local_v6};

use crate::net::{ObjectName, OriginalDst};
use crate::service::{Distribution, Service};
use crate::traffic::TrafficSettings;
use crate::workload::Workload;
use crate::world::World;
use crate::world::endpoints::{Backends, Place, Routes, via};
pub use crate::world::endpoints::{Candidate, PlaintextCause, Via};
use crate::world::index::Front;

#[cfg(test)]
mod tests;

/// Where a captured connection may go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Destination {
    /// To any of a Service's endpoints.
    Service(ServiceRoute),
    /// To the pod that was dialled by its own address.
    Pod(Candidate),
    /// To an address that is neither a Service's nor a pod's: passed through as it is.
    Outside(SocketAddr),
}

/// A Service, and the endpoints that the source may use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceRoute {
    /// The Service.
    pub service: Arc<Service>,
    /// Which of its ports.
    pub port: u16,
    /// Its endpoints, never none; shared with the snapshot where all sources see the same.
    pub candidates: Arc<[Candidate]>,
    /// `sessionAffinity: ClientIP`: for how long after its last connection a client stays with its endpoint.
    pub affinity: Option<Duration>,
    /// How it is tried.
    pub traffic: Arc<TrafficSettings>,
}

/// Why a connection can go nowhere.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRoute {
    /// The Service has no endpoint that this source may use.
    #[error("{service} has no endpoint for port {port}")]
    NoEndpoint {
        /// The Service.
        service: ObjectName,
        /// Which of its ports.
        port: u16,
    },
    /// One of the agent's ports on an own address of the source.
    #[error("the destination is one of the agent's own ports")]
    Loop,
}

impl NoRoute {
    /// The word for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoEndpoint { .. } => Reason::NoEndpoint,
            Self::Loop => Reason::Loop,
        }
    }
}

/// Where an inbound connection goes: the app, at an address of its own pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// The address, canonical.
    pub addr: SocketAddr,
}

/// Why an inbound connection is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InboundRefusal {
    /// It names an address that is not this pod's.
    #[error("the address is not this pod's")]
    NotThisPod,
    /// It names one of the agent's own ports.
    #[error("the port is the agent's own")]
    Loop,
    /// It names an IPv6 link-local address, to which no spoofed dial can be made.
    #[error("link-local addresses cannot be passed on")]
    LinkLocal,
    /// It names an address of the other family than the client's, from which the app cannot be dialled.
    #[error("the address is of another family than the client's")]
    OtherFamily,
}

impl InboundRefusal {
    /// The word for it.
    pub fn reason(self) -> Reason {
        match self {
            Self::NotThisPod => Reason::NotThisPod,
            Self::Loop => Reason::Loop,
            Self::LinkLocal => Reason::LinkLocal,
            Self::OtherFamily => Reason::BadConnect,
        }
    }
}

/// Where a connection that `source` opened to `dst` may go. `own_ips` are the source's addresses as the runtime told them:
/// they are there before the pod object says them.
///
/// A Service's address and port come first, then node ports, then pods, then all else. A port that a Service does not
/// declare is not its own: what the network does with it without a mesh, it does now. Costs one or two look-ups, and
/// no allocation but for Services that prefer near endpoints.
pub fn outbound(
    world: &World,
    source: &Workload,
    own_ips: &[IpAddr],
    dst: OriginalDst,
) -> Result<Destination, NoRoute> {
    let dst = canonical(dst.0);
    let own = source.pod.ips.contains(&dst.ip()) || is_among(own_ips, dst.ip());
    if is_agents_own(dst, own) {
        return Err(NoRoute::Loop);
    }
    if let Some((routes, port, front)) = world.routes_at(dst) {
        return service_route(routes, port, front, source, dst.ip()).map(Destination::Service);
    }
    // Its own address is the source's own whoever else claims it.
    let itself = world.workload(&source.pod.uid).filter(|_| own);
    match itself.or_else(|| world.workload_by_ip(dst.ip())) {
        Some(workload) => Ok(Destination::Pod(Candidate {
            addr: dst,
            workload: Some(Arc::clone(workload)),
            via: via(workload, dst.port()),
            tier: 0,
        })),
        None => Ok(Destination::Outside(dst)),
    }
}

/// Whether a CONNECT or a plaintext connection of `client` to `dst` is for this pod's app. `own_ips` are the addresses
/// found in the pod's namespace or told by the runtime: they are there before the pod object says them.
pub fn inbound(
    world: &World,
    local: &Workload,
    own_ips: &[IpAddr],
    client: IpAddr,
    dst: SocketAddr,
) -> Result<Target, InboundRefusal> {
    let dst = canonical(dst);
    if matches!(dst.ip(), IpAddr::V6(ip) if is_link_local_v6(&ip)) {
        return Err(InboundRefusal::LinkLocal);
    }
    let known = || {
        let now = world.workload(&local.pod.uid);
        now.is_some_and(|workload| workload.pod.ips.contains(&dst.ip()))
    };
    let own = is_among(own_ips, dst.ip()) || known();
    if is_agents_own(dst, own) {
        return Err(InboundRefusal::Loop);
    }
    if !own {
        return Err(InboundRefusal::NotThisPod);
    }
    if client.to_canonical().is_ipv4() != dst.is_ipv4() {
        return Err(InboundRefusal::OtherFamily);
    }
    Ok(Target { addr: dst })
}

fn is_among(ips: &[IpAddr], ip: IpAddr) -> bool {
    ips.iter().any(|own| own.to_canonical() == ip)
}

/// Whether one of the agent's own listeners in this pod has this address: passed on, a connection to it would come back
/// to the agent, without end. `own`: whether the pod has the address by what is known of it; a loopback one it always has.
fn is_agents_own(dst: SocketAddr, own: bool) -> bool {
    let here = own || dst.ip().is_loopback() || dst.ip().is_unspecified();
    here && PORTS_RESERVED.contains(&dst.port())
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn service_route(
    routes: &Routes,
    port: u16,
    front: Front,
    source: &Workload,
    dst: IpAddr,
) -> Result<ServiceRoute, NoRoute> {
    let service = &routes.service;
    let candidates = routes
        .backends(port, dst)
        .map(|backends| usable(service, backends, front, source))
        .unwrap_or_default();
    if candidates.is_empty() {
        return Err(NoRoute::NoEndpoint { service: service.name.clone(), port });
    }
    Ok(ServiceRoute {
        service: Arc::clone(service),
        port,
        candidates,
        affinity: service.affinity,
        traffic: Arc::clone(&routes.traffic),
    })
}

/// The endpoints that this source may use, those that terminate only where nothing else is left.
fn usable(service: &Service, backends: &Backends, front: Front, source: &Workload) -> Arc<[Candidate]> {
    if backends.places.is_empty() {
        return Arc::clone(&backends.candidates);
    }
    let node = source.pod.node.as_ref();
    let local_only = service.internal_local && front == Front::ClusterIp;
    let within = |place: &Place| !local_only || (node.is_some() && place.node.as_ref() == node);
    let none_lives = !backends.places.iter().any(|place| within(place) && !place.terminating);
    let all = backends.candidates.iter().zip(&backends.places);
    all.filter(|(_, place)| within(place) && (none_lives || !place.terminating))
        .map(|(candidate, place)| Candidate {
            tier: tier(service.distribution, place, source),
            ..candidate.clone()
        })
        .collect()
}

/// How far an endpoint is from the source, as far as the Service cares.
fn tier(distribution: Distribution, place: &Place, source: &Workload) -> u8 {
    let same_node = source.pod.node.is_some() && place.node == source.pod.node;
    let same_zone = source.zone.is_some() && place.zone == source.zone;
    match distribution {
        Distribution::Any => 0,
        Distribution::SameZone => u8::from(!same_zone),
        Distribution::SameNode if same_node => 0,
        Distribution::SameNode => 1 + u8::from(!same_zone),
    }
}
