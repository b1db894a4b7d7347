//! Takes changes and makes snapshots of them.
//!
//! Holds every object as it was last told, and which of them have changed since the last snapshot. The order of
//! changes does not matter: two builders that were told the same last words freeze the same [`World`], and a
//! [`WorldBuilder::resync`] is the same as the changes that lead to it. Knows neither where changes come from nor who
//! reads the snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::index::Table;
use super::{Change, Kind, Settings, World};
use crate::net::{NodeName, ObjectName, PodUid};
use crate::policy::{AuthorizationPolicy, PeerAuthentication};
use crate::service::{EndpointSlice, Service, ServicePort};
use crate::traffic::{TrafficPolicy, TrafficSettings};
use crate::trust::TrustBundle;
use crate::workload::{Namespace, Node, Pod, Skip};
use strings::Strings;

mod freeze;
mod strings;
#[cfg(test)]
mod tests;

/// Every object as it was last told, and the snapshot that was last made of them.
#[derive(Debug)]
pub struct WorldBuilder {
    pods: Table<Arc<Pod>>,
    namespaces: BTreeMap<Arc<str>, KnownNamespace>,
    services: BTreeMap<ObjectName, Arc<Service>>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    /// The slices of each Service, whether or not that is known.
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    nodes: BTreeMap<NodeName, Node>,
    authorization: BTreeMap<ObjectName, Arc<AuthorizationPolicy>>,
    peer: BTreeMap<ObjectName, Arc<PeerAuthentication>>,
    traffic: BTreeMap<ObjectName, KnownTraffic>,
    /// What each node's status file says; never an empty set.
    captured: BTreeMap<NodeName, BTreeSet<PodUid>>,
    trust: Option<Arc<TrustBundle>>,
    /// Lists that have begun and not ended: what was known before and has not been on them yet.
    listing: BTreeMap<Kind, BTreeSet<Subject>>,
    strings: Strings,
    dirty: Dirty,
    last: Arc<World>,
}

/// A namespace, with its skips ready to be shared by its pods.
#[derive(Debug)]
struct KnownNamespace {
    namespace: Namespace,
    skip: Arc<Skip>,
}

/// A traffic policy, with its settings ready to be shared by its Services.
#[derive(Debug)]
struct KnownTraffic {
    policy: TrafficPolicy,
    settings: Arc<TrafficSettings>,
}

/// What must be looked at again when the next snapshot is made.
#[derive(Debug, Default)]
struct Dirty {
    /// Something changed, if only a count.
    any: bool,
    /// These pods, or what they get from elsewhere.
    pods: BTreeSet<ObjectName>,
    /// These Services: themselves, their slices or their settings.
    services: BTreeSet<ObjectName>,
    /// The addresses of Services or nodes.
    vips: bool,
    /// Any policy or PeerAuthentication.
    policies: bool,
}

impl WorldBuilder {
    /// A builder that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            pods: Table::default(),
            namespaces: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            nodes: BTreeMap::new(),
            authorization: BTreeMap::new(),
            peer: BTreeMap::new(),
            traffic: BTreeMap::new(),
            captured: BTreeMap::new(),
            trust: None,
            listing: BTreeMap::new(),
            strings: Strings::default(),
            dirty: Dirty::default(),
            last: World::empty(settings),
        }
    }

    /// Takes one change. What says nothing new costs a comparison and leaves no trace.
    pub fn apply(&mut self, change: Change) {
        self.note_listed(&change);
        match change {
            Change::Pod(pod) => self.pod(pod),
            Change::PodGone(name) => {
                if self.pods.set(name.clone(), None).is_some() {
                    self.dirty.pod(name);
                }
            }
            Change::Namespace(namespace) => self.namespace(namespace),
            Change::NamespaceGone(name) => {
                if self.namespaces.remove(&name).is_some() {
                    self.touch_namespace(&name);
                }
            }
            Change::Service(service) => self.service(service),
            Change::ServiceGone(name) => {
                if self.services.remove(&name).is_some() {
                    self.dirty.vips = true;
                    self.dirty.service(name);
                }
            }
            Change::EndpointSlice(slice) => self.slice(slice),
            Change::EndpointSliceGone(name) => self.slice_gone(&name),
            Change::Node(node) => self.node(node),
            Change::NodeGone(name) => {
                if self.nodes.remove(&name).is_some() {
                    self.dirty.vips = true;
                    self.touch_node(&name);
                }
            }
            Change::AuthorizationPolicy(policy) => {
                let changed = put(&mut self.authorization, policy.name.clone(), policy);
                self.dirty.policies(changed);
            }
            Change::AuthorizationPolicyGone(name) => {
                let changed = self.authorization.remove(&name).is_some();
                self.dirty.policies(changed);
            }
            Change::PeerAuthentication(policy) => {
                let changed = put(&mut self.peer, policy.name.clone(), policy);
                self.dirty.policies(changed);
            }
            Change::PeerAuthenticationGone(name) => {
                let changed = self.peer.remove(&name).is_some();
                self.dirty.policies(changed);
            }
            Change::TrafficPolicy(policy) => self.traffic(policy),
            Change::TrafficPolicyGone(name) => {
                if let Some(gone) = self.traffic.remove(&name) {
                    self.dirty.services(gone.policy.services);
                }
            }
            Change::Captured { node, pods } => self.captured(node, pods),
            Change::TrustBundle(bundle) => {
                if self.trust.as_deref() != Some(&bundle) {
                    self.trust = Some(Arc::new(bundle));
                    self.dirty.any = true;
                }
            }
        }
    }

    /// Replaces every object of a kind by those that `all` says. What is the same in both leaves no trace, so that a
    /// watch that begins again disturbs nobody.
    ///
    /// The same as [`WorldBuilder::list_begins`], every change, [`WorldBuilder::list_ends`], which spare the memory of
    /// having them all at once: 20 MiB for 20,000 pods.
    pub fn resync(&mut self, kind: Kind, all: Vec<Change>) {
        self.list_begins(kind);
        for change in all {
            self.apply(change);
        }
        self.list_ends(kind);
    }

    /// From now on, until [`WorldBuilder::list_ends`], the changes of this kind are a list of every object that there
    /// is. They count at once: only what is not among them waits for the end to be removed. A list that had begun and
    /// never ended is forgotten.
    pub fn list_begins(&mut self, kind: Kind) {
        let known = self.known(kind);
        self.listing.insert(kind, known);
    }

    /// An object is on the list of its kind, and cannot be read: what was known of it stays.
    pub fn list_has(&mut self, kind: Kind, name: &ObjectName) {
        let subject = match kind {
            Kind::Namespace => Subject::Namespace(Arc::clone(&name.name)),
            Kind::Node => Subject::Node(NodeName(Arc::clone(&name.name))),
            Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::TrafficPolicy => Subject::Object(kind, name.clone()),
        };
        if let Some(unlisted) = self.listing.get_mut(&kind) {
            unlisted.remove(&subject);
        }
    }

    /// Removes every object of this kind that was known before [`WorldBuilder::list_begins`] and was not among the
    /// changes since. Without that, does nothing.
    pub fn list_ends(&mut self, kind: Kind) {
        let unlisted = self.listing.remove(&kind).unwrap_or_default();
        for gone in unlisted.into_iter().filter_map(Subject::gone) {
            self.apply(gone);
        }
    }

    /// Notes that an object is on the list of its kind, while there is one.
    fn note_listed(&mut self, change: &Change) {
        if self.listing.is_empty() {
            return;
        }
        let subject = change.subject();
        if let Some(unlisted) = subject.kind().and_then(|kind| self.listing.get_mut(&kind)) {
            unlisted.remove(&subject);
        }
    }

    /// Every object of a kind.
    fn known(&self, kind: Kind) -> BTreeSet<Subject> {
        fn named<V>(kind: Kind, objects: &BTreeMap<ObjectName, V>) -> BTreeSet<Subject> {
            objects.keys().map(|name| Subject::Object(kind, name.clone())).collect()
        }
        match kind {
            Kind::Pod => {
                let names = self.pods.iter().map(|pod| pod.name.clone());
                names.map(|name| Subject::Object(kind, name)).collect()
            }
            Kind::Service => named(kind, &self.services),
            Kind::EndpointSlice => named(kind, &self.slices),
            Kind::AuthorizationPolicy => named(kind, &self.authorization),
            Kind::PeerAuthentication => named(kind, &self.peer),
            Kind::TrafficPolicy => named(kind, &self.traffic),
            Kind::Namespace => self.namespaces.keys().cloned().map(Subject::Namespace).collect(),
            Kind::Node => self.nodes.keys().cloned().map(Subject::Node).collect(),
        }
    }

    fn pod(&mut self, mut pod: Pod) {
        if self.pods.get(&pod.name).is_some_and(|known| **known == pod) {
            return;
        }
        self.strings.share_pod(&mut pod);
        self.dirty.pod(pod.name.clone());
        self.pods.set(pod.name.clone(), Some(Arc::new(pod)));
    }

    fn namespace(&mut self, namespace: Namespace) {
        let name = Arc::clone(&namespace.name);
        if self.namespaces.get(&name).is_some_and(|known| known.namespace == namespace) {
            return;
        }
        let known = KnownNamespace { skip: Arc::new(namespace.skip.clone()), namespace };
        self.namespaces.insert(Arc::clone(&name), known);
        self.touch_namespace(&name);
    }

    fn service(&mut self, service: Service) {
        let known = self.services.get(&service.name);
        if known.is_some_and(|known| **known == service) {
            return;
        }
        self.dirty.vips |= known.is_none_or(|known| place(known) != place(&service));
        self.dirty.service(service.name.clone());
        self.services.insert(service.name.clone(), Arc::new(service));
    }

    fn slice(&mut self, mut slice: EndpointSlice) {
        // Only the first address of an endpoint counts.
        for endpoint in &mut slice.endpoints {
            endpoint.addresses.truncate(1);
        }
        if self.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        self.slice_gone(&slice.name.clone());
        self.strings.share_slice(&mut slice);
        let of_service = self.slices_of.entry(slice.service.clone()).or_default();
        of_service.insert(slice.name.clone());
        self.dirty.service(slice.service.clone());
        self.slices.insert(slice.name.clone(), slice);
    }

    fn slice_gone(&mut self, name: &ObjectName) {
        let Some(gone) = self.slices.remove(name) else {
            return;
        };
        if let Some(of_service) = self.slices_of.get_mut(&gone.service) {
            of_service.remove(name);
            if of_service.is_empty() {
                self.slices_of.remove(&gone.service);
            }
        }
        self.dirty.service(gone.service);
    }

    fn node(&mut self, node: Node) {
        let known = self.nodes.get(&node.name);
        if known == Some(&node) {
            return;
        }
        let same_zone = known.is_some_and(|known| known.zone == node.zone);
        self.dirty.any = true;
        self.dirty.vips |= known.is_none_or(|known| known.addresses != node.addresses);
        if !same_zone {
            self.touch_node(&node.name);
        }
        self.nodes.insert(node.name.clone(), node);
    }

    fn traffic(&mut self, policy: TrafficPolicy) {
        let known = self.traffic.get(&policy.name);
        if known.is_some_and(|known| known.policy == policy) {
            return;
        }
        self.dirty.services(policy.services.iter().cloned());
        let known = KnownTraffic { settings: Arc::new(policy.settings.clone()), policy };
        if let Some(old) = self.traffic.insert(known.policy.name.clone(), known) {
            self.dirty.services(old.policy.services);
        }
    }

    fn captured(&mut self, node: NodeName, pods: BTreeSet<PodUid>) {
        let old = self.captured.remove(&node).unwrap_or_default();
        let on_node = |pod: &&Arc<Pod>| pod.node.as_ref() == Some(&node);
        let changed = |pod: &&Arc<Pod>| old.contains(&pod.uid) != pods.contains(&pod.uid);
        if old != pods {
            let touched = self.pods.iter().filter(on_node).filter(changed);
            self.dirty.pods(touched.map(|pod| pod.name.clone()));
        }
        if !pods.is_empty() {
            self.captured.insert(node, pods);
        }
    }

    /// Every pod of a namespace gets something else from it.
    fn touch_namespace(&mut self, namespace: &Arc<str>) {
        self.dirty.any = true;
        let touched = self.pods.iter().filter(|pod| pod.name.namespace == *namespace);
        self.dirty.pods(touched.map(|pod| pod.name.clone()));
    }

    /// Every pod of a node gets another zone.
    fn touch_node(&mut self, node: &NodeName) {
        self.dirty.any = true;
        let touched = self.pods.iter().filter(|pod| pod.node.as_ref() == Some(node));
        self.dirty.pods(touched.map(|pod| pod.name.clone()));
    }
}

impl Dirty {
    fn take(&mut self) -> Self {
        mem::take(self)
    }

    fn pod(&mut self, name: ObjectName) {
        self.any = true;
        self.pods.insert(name);
    }

    fn pods(&mut self, names: impl Iterator<Item = ObjectName>) {
        for name in names {
            self.pod(name);
        }
    }

    fn service(&mut self, name: ObjectName) {
        self.any = true;
        self.services.insert(name);
    }

    fn services(&mut self, names: impl IntoIterator<Item = ObjectName>) {
        self.any = true;
        self.services.extend(names);
    }

    fn policies(&mut self, changed: bool) {
        self.any |= changed;
        self.policies |= changed;
    }
}

/// What a change is about; one object has one, whether it comes or goes.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Subject {
    /// A namespaced object.
    Object(Kind, ObjectName),
    /// A namespace.
    Namespace(Arc<str>),
    /// A node.
    Node(NodeName),
    /// A node's status file.
    Status(NodeName),
    /// The trust bundle.
    Trust,
}

impl Subject {
    /// What removes the object; none for what only ever changes.
    fn gone(self) -> Option<Change> {
        Some(match self {
            Self::Object(Kind::Pod, name) => Change::PodGone(name),
            Self::Object(Kind::Service, name) => Change::ServiceGone(name),
            Self::Object(Kind::EndpointSlice, name) => Change::EndpointSliceGone(name),
            Self::Object(Kind::AuthorizationPolicy, name) => Change::AuthorizationPolicyGone(name),
            Self::Object(Kind::PeerAuthentication, name) => Change::PeerAuthenticationGone(name),
            Self::Object(Kind::TrafficPolicy, name) => Change::TrafficPolicyGone(name),
            Self::Namespace(name) => Change::NamespaceGone(name),
            Self::Node(name) => Change::NodeGone(name),
            Self::Object(Kind::Namespace | Kind::Node, _) | Self::Status(_) | Self::Trust => return None,
        })
    }

    /// Under which kind it is listed, if it can be.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Object(kind, _) => Some(*kind),
            Self::Namespace(_) => Some(Kind::Namespace),
            Self::Node(_) => Some(Kind::Node),
            Self::Status(_) | Self::Trust => None,
        }
    }
}

impl Change {
    fn subject(&self) -> Subject {
        let object = |kind, name: &ObjectName| Subject::Object(kind, name.clone());
        match self {
            Self::Pod(Pod { name, .. }) | Self::PodGone(name) => object(Kind::Pod, name),
            Self::Service(Service { name, .. }) | Self::ServiceGone(name) => object(Kind::Service, name),
            Self::EndpointSlice(EndpointSlice { name, .. }) | Self::EndpointSliceGone(name) => {
                object(Kind::EndpointSlice, name)
            }
            Self::AuthorizationPolicy(AuthorizationPolicy { name, .. })
            | Self::AuthorizationPolicyGone(name) => object(Kind::AuthorizationPolicy, name),
            Self::PeerAuthentication(PeerAuthentication { name, .. })
            | Self::PeerAuthenticationGone(name) => object(Kind::PeerAuthentication, name),
            Self::TrafficPolicy(TrafficPolicy { name, .. }) | Self::TrafficPolicyGone(name) => {
                object(Kind::TrafficPolicy, name)
            }
            Self::Namespace(Namespace { name, .. }) | Self::NamespaceGone(name) => {
                Subject::Namespace(Arc::clone(name))
            }
            Self::Node(Node { name, .. }) | Self::NodeGone(name) => Subject::Node(name.clone()),
            Self::Captured { node, .. } => Subject::Status(node.clone()),
            Self::TrustBundle(_) => Subject::Trust,
        }
    }
}

/// Puts an object in place; whether it says anything new.
/// What of a Service says where it is found.
fn place(service: &Service) -> (&[IpAddr], &[IpAddr], &[ServicePort], i64) {
    (&service.cluster_ips, &service.external_ips, &service.ports, service.created)
}

fn put<V: PartialEq>(objects: &mut BTreeMap<ObjectName, Arc<V>>, name: ObjectName, object: V) -> bool {
    if objects.get(&name).is_some_and(|known| **known == object) {
        return false;
    }
    objects.insert(name, Arc::new(object));
    true
}
