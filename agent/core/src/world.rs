//! The mesh as one agent knows it at one instant: an immutable snapshot, and the words in which it changes.
//!
//! A [`World`] is made by [`builder::WorldBuilder`], read by [`crate::resolve`] and [`crate::authz`], and shared by
//! pointer. It answers look-ups only: it decides nothing, and nothing in it ever changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_proto::TrustDomain;

use crate::authz::{PeerModes, PolicySet};
use crate::net::{NodeName, ObjectName, PodUid};
use crate::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::service::{EndpointSlice, Service};
use crate::traffic::{TrafficPolicy, TrafficSettings};
use crate::trust::TrustBundle;
use crate::workload::{Namespace, Node, Pod, Workload};
use endpoints::Routes;
use index::{Claimants, Front, Table, VipIndex, winner_at};

pub mod builder;
pub(crate) mod endpoints;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod index;

/// One thing that has changed in the cluster, or in a directory that stands for one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A pod is new, or its object says something else now.
    Pod(Pod),
    /// A pod is no more, or has finished.
    PodGone(ObjectName),
    /// A namespace is new or changed.
    Namespace(Namespace),
    /// A namespace is no more.
    NamespaceGone(Arc<str>),
    /// A Service is new or changed.
    Service(Service),
    /// A Service is no more, or has become one without TCP ports.
    ServiceGone(ObjectName),
    /// An EndpointSlice is new or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is no more.
    EndpointSliceGone(ObjectName),
    /// A node is new or changed.
    Node(Node),
    /// A node is no more.
    NodeGone(NodeName),
    /// An AuthorizationPolicy is new or changed.
    AuthorizationPolicy(AuthorizationPolicy),
    /// An AuthorizationPolicy is no more.
    AuthorizationPolicyGone(ObjectName),
    /// A PeerAuthentication is new or changed.
    PeerAuthentication(PeerAuthentication),
    /// A PeerAuthentication is no more.
    PeerAuthenticationGone(ObjectName),
    /// A TrafficPolicy is new or changed.
    TrafficPolicy(TrafficPolicy),
    /// A TrafficPolicy is no more.
    TrafficPolicyGone(ObjectName),
    /// A node's status file, whole: the pods that its agent says are captured. No file: none.
    Captured {
        /// The node.
        node: NodeName,
        /// Its captured pods.
        pods: BTreeSet<PodUid>,
    },
    /// The trust bundle.
    TrustBundle(TrustBundle),
}

/// A kind of object that can be listed whole.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// [`Change::Pod`].
    Pod,
    /// [`Change::Namespace`].
    Namespace,
    /// [`Change::Service`].
    Service,
    /// [`Change::EndpointSlice`].
    EndpointSlice,
    /// [`Change::Node`].
    Node,
    /// [`Change::AuthorizationPolicy`].
    AuthorizationPolicy,
    /// [`Change::PeerAuthentication`].
    PeerAuthentication,
    /// [`Change::TrafficPolicy`].
    TrafficPolicy,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The trust domain of every identity in the mesh.
    pub trust_domain: TrustDomain,
    /// Adit's own namespace; never enrolled.
    pub system_namespace: Arc<str>,
    /// Further namespaces that are never enrolled.
    pub excluded_namespaces: BTreeSet<Arc<str>>,
    /// The agent's own node: policies are compiled for its pods only.
    pub node: NodeName,
}

/// How many of each there are in a snapshot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Pods with an identity: all but those in `nameless`.
    pub workloads: usize,
    /// Of these, those that are wanted in the mesh.
    pub enrolled: usize,
    /// Of these, those that are known to be captured.
    pub captured: usize,
    /// Pods left out, as their namespace and service account make no SPIFFE identity. The API server admits no such
    /// names; a directory may hold them.
    pub nameless: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Services.
    pub services: usize,
    /// Endpoint slices.
    pub endpoint_slices: usize,
    /// Nodes.
    pub nodes: usize,
    /// AuthorizationPolicies.
    pub authorization_policies: usize,
    /// PeerAuthentications.
    pub peer_authentications: usize,
    /// TrafficPolicies.
    pub traffic_policies: usize,
}

/// A pod of the own node, with what was compiled for it.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    workload: Arc<Workload>,
    policies: Arc<PolicySet>,
    modes: Arc<PeerModes>,
}

/// The mesh at one instant. Made by [`builder::WorldBuilder::freeze`]; shared by [`Arc`].
///
/// Clones share all that is in it: its tables are cut into shards, of which a snapshot copies only those that differ
/// from the snapshot before.
#[derive(Clone, Debug)]
pub struct World {
    generation: u64,
    policy_generation: u64,
    settings: Arc<Settings>,
    by_uid: Table<Claimants>,
    by_name: Table<Arc<Workload>>,
    by_ip: Table<(IpAddr, Claimants)>,
    routes: Table<Arc<Routes>>,
    vips: Arc<VipIndex>,
    locals: Arc<BTreeMap<PodUid, Local>>,
    traffic_default: Arc<TrafficSettings>,
    trust: Option<Arc<TrustBundle>>,
    counts: Counts,
}

impl World {
    /// A snapshot in which nothing is known.
    pub fn empty(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            generation: 0,
            policy_generation: 0,
            settings: Arc::new(settings),
            by_uid: Table::default(),
            by_name: Table::default(),
            by_ip: Table::default(),
            routes: Table::default(),
            vips: Arc::default(),
            locals: Arc::default(),
            traffic_default: Arc::default(),
            trust: None,
            counts: Counts::default(),
        })
    }

    /// Grows with every new snapshot.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Changes if, and only if, something changed on which a decision about a live inbound connection depends: which
    /// policies and PeerAuthentications select the own node's pods and what these say, the labels of these pods and
    /// whether they are enrolled, and the trust bundle. A pod that comes or goes changes nothing for the others.
    pub fn policy_generation(&self) -> u64 {
        self.policy_generation
    }

    /// What does not change while the agent runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The pod with this uid.
    pub fn workload(&self, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid).map(Claimants::winner)
    }

    /// The pod with this name.
    pub fn workload_by_name(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.by_name.get(name)
    }

    /// The pod that has this address now; never a hostNetwork pod. IPv4-mapped IPv6 finds the IPv4 address.
    ///
    /// Where several pods claim one address, one that lives wins over one that terminates, then one that is captured
    /// over one that is not, then the greater uid, so that every agent that knows the same chooses the same.
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        winner_at(&self.by_ip, ip)
    }

    /// Every pod, in no order that means anything.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_name.iter()
    }

    /// The pods of one node. Cheap for the agent's own; looks at every pod for another.
    pub fn pods_on<'w>(&'w self, node: &'w NodeName) -> impl Iterator<Item = &'w Arc<Workload>> {
        let own = (*node == self.settings.node).then(|| self.locals.values().map(|local| &local.workload));
        let others = (*node != self.settings.node)
            .then(|| self.workloads().filter(move |workload| workload.pod.node.as_ref() == Some(node)));
        own.into_iter().flatten().chain(others.into_iter().flatten())
    }

    /// Every Service, in no order that means anything.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.routes.iter().map(|routes| &routes.service)
    }

    /// The Service with this name.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.routes.get(name).map(|routes| &routes.service)
    }

    /// The authorization policies of a pod of the own node. `None`: nothing is known of it yet, which refuses
    /// (`policy_not_synced`); no policies are an empty set.
    pub fn policies_for(&self, uid: &PodUid) -> Option<&Arc<PolicySet>> {
        self.locals.get(uid).map(|local| &local.policies)
    }

    /// The PeerAuthentications of a pod of the own node; `None` as for [`World::policies_for`].
    pub fn peer_modes_for(&self, uid: &PodUid) -> Option<&Arc<PeerModes>> {
        self.locals.get(uid).map(|local| &local.modes)
    }

    /// How connections to this Service are tried: its TrafficPolicy, or the defaults. Of two the older counts, then
    /// the lesser name.
    pub fn traffic_for(&self, service: &ObjectName) -> Arc<TrafficSettings> {
        let routes = self.routes.get(service);
        Arc::clone(routes.map_or(&self.traffic_default, |routes| &routes.traffic))
    }

    /// What is trusted; `None` until a bundle has been seen.
    pub fn trust(&self) -> Option<&Arc<TrustBundle>> {
        self.trust.as_ref()
    }

    /// How many of each there are.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The Service that answers at an address and port: by cluster IP, external IP, load balancer address, or as
    /// nodeIP:nodePort. `dst` must be canonical.
    pub(crate) fn routes_at(&self, dst: SocketAddr) -> Option<(&Routes, u16, Front)> {
        let (name, port, front) = self.vips.at(dst)?;
        self.routes.get(name).map(|routes| (&**routes, port, front))
    }
}
