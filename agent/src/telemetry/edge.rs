//! What makes two connections belong to one edge.

use std::sync::Arc;
use std::time::Duration;

use adit_core::net::ObjectName;
use adit_core::report::{ConnectionReport, Direction, Stage, Transport};
use adit_core::workload::Owner;
use adit_proto::SpiffeId;

/// One side of an edge.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Side {
    /// Namespace, kind and name of what made the pod; none for an address that is no pod's.
    pub workload: Option<(Arc<str>, Arc<str>, Arc<str>)>,
    /// Its identity: its own on the reporting side, a verified one on the other.
    pub identity: Option<SpiffeId>,
}

/// What makes two connections belong to one edge.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct EdgeKey {
    /// Which side told it.
    pub direction: Direction,
    /// How it was carried.
    pub transport: Transport,
    /// The client.
    pub source: Side,
    /// The server.
    pub destination: Side,
    /// The service that was addressed, with its port.
    pub service: Option<(ObjectName, u16)>,
}

impl EdgeKey {
    /// What edges are sorted by.
    pub(super) fn order(&self) -> impl Ord {
        (&self.source, &self.destination, &self.service, self.direction.label(), self.transport.label())
    }

    /// The edge that a connection belongs to.
    pub fn of(report: &ConnectionReport) -> Self {
        let side = |workload: &adit_core::workload::Workload| {
            let Owner { kind, name } = &workload.pod.owner;
            (Arc::clone(&workload.pod.name.namespace), Arc::clone(kind), Arc::clone(name))
        };
        let local =
            Side { workload: Some(side(&report.local)), identity: Some(report.local.identity.clone()) };
        let remote = Side {
            workload: report.remote.as_deref().map(side),
            identity: report.security.as_ref().map(|security| security.peer.clone()),
        };
        let (source, destination) = match report.direction {
            Direction::Outbound => (local, remote),
            Direction::Inbound => (remote, local),
        };
        Self {
            direction: report.direction,
            transport: report.transport,
            source,
            destination,
            service: report.service.clone(),
        }
    }
}

/// How long the connect phase of a report took: all its stages but the first byte.
pub fn connect_phase(report: &ConnectionReport) -> Duration {
    [Stage::Resolve, Stage::PoolWait, Stage::Tcp, Stage::Tls, Stage::Connect]
        .into_iter()
        .filter_map(|stage| report.stages.get(stage))
        .sum()
}
