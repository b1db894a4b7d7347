//! Makes a snapshot: recomputes what has changed since the last one, and shares the rest with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::endpoints::{Pods, Routes, port_routes};
use super::super::index::{Claimants, VipIndex};
use super::super::{Counts, Local, World};
use super::WorldBuilder;
use crate::authz::{PeerModes, PolicySet};
use crate::net::{ObjectName, PodUid};
use crate::traffic::TrafficSettings;
use crate::workload::{Enrolment, MeshLabel, Pod, Skip, Workload};

/// Pods that are looked at together. What is kept for one meanwhile is about 0.5 KiB: without this bound, the first
/// snapshot of 20,000 pods would need 10 MiB beside itself.
const BATCH: usize = 1024;

/// Pods that differ from the last snapshot: as they were there, and as they are.
type Moved = BTreeMap<ObjectName, (Option<Arc<Workload>>, Option<Arc<Workload>>)>;

impl WorldBuilder {
    /// Makes the snapshot of what was told so far: the last one itself, if nothing has changed since.
    ///
    /// Costs what has changed, plus a look at every endpoint in the namespaces of pods that have.
    pub fn freeze(&mut self) -> Arc<World> {
        let dirty = self.dirty.take();
        if !dirty.any {
            return Arc::clone(&self.last);
        }
        let mut world = World::clone(&self.last);
        let mut services = dirty.services;
        let mut redecide = world.trust != self.trust;
        let pods: Vec<_> = dirty.pods.into_iter().collect();
        let mut touched = BTreeSet::new();
        for batch in pods.chunks(BATCH) {
            let moved = self.moved(&world, batch);
            touched.extend(update_pods(&mut world, &moved));
            redecide |= self.update_locals(&mut world, &moved);
        }
        if dirty.policies {
            redecide |= self.recompile(&mut world);
        }
        services.extend(self.services_of(&touched));
        self.update_routes(&mut world, services);
        if dirty.vips {
            let nodes = self.nodes.values().flat_map(|node| node.addresses.iter().copied());
            world.vips = Arc::new(VipIndex::new(self.services.values(), nodes));
        }
        world.trust.clone_from(&self.trust);
        world.counts = self.count(world.counts, &world);
        world.policy_generation += u64::from(redecide);
        world.generation += 1;
        self.last = Arc::new(world);
        Arc::clone(&self.last)
    }

    /// What has become of pods that were touched, those left out that are as they were.
    fn moved(&mut self, world: &World, touched: &[ObjectName]) -> Moved {
        let mut moved = Moved::new();
        for name in touched {
            let old = world.by_name.get(name).cloned();
            let pod = self.pods.get(name).cloned();
            let new = pod.and_then(|pod| self.workload(pod)).map(Arc::new);
            if old != new {
                moved.insert(name.clone(), (old, new));
            }
        }
        moved
    }

    /// A pod with what its namespace, its node and the mesh add. `None` where its names make no identity.
    fn workload(&mut self, pod: Arc<Pod>) -> Option<Workload> {
        let domain = &self.last.settings.trust_domain;
        let identity = self.strings.identity(domain, &pod).ok()?;
        let namespace = self.namespaces.get(&pod.name.namespace);
        let reported = || {
            let on_node = pod.node.as_ref().and_then(|node| self.captured.get(node));
            on_node.is_some_and(|pods| pods.contains(&pod.uid))
        };
        let node = pod.node.as_ref().and_then(|node| self.nodes.get(node));
        let skip = match namespace.map(|known| &known.skip) {
            Some(of_namespace) if pod.skip.says_nothing() && of_namespace.invalid.is_none() => {
                Arc::clone(of_namespace)
            }
            Some(of_namespace) => Arc::new(both(&pod.skip, of_namespace)),
            None if pod.skip.says_nothing() => Arc::clone(&self.strings.no_skip),
            None => Arc::new(pod.skip.clone()),
        };
        Some(Workload {
            identity,
            enrolment: self.enrolment(&pod),
            captured: !pod.host_network && (pod.captured || reported()),
            zone: node.and_then(|node| node.zone.clone()),
            skip,
            pod,
        })
    }

    fn enrolment(&self, pod: &Pod) -> Enrolment {
        let settings = &self.last.settings;
        let namespace = &pod.name.namespace;
        if pod.host_network {
            return Enrolment::HostNetwork;
        }
        if pod.is_static {
            return Enrolment::StaticPod;
        }
        if *namespace == settings.system_namespace || settings.excluded_namespaces.contains(namespace) {
            return Enrolment::ExcludedNamespace;
        }
        let by_namespace = self.namespaces.get(namespace).and_then(|known| known.namespace.mesh);
        match (pod.mesh, by_namespace) {
            (Some(MeshLabel::Enabled), _) => Enrolment::ByPod,
            (Some(MeshLabel::Disabled), _) => Enrolment::OptedOut,
            (None, Some(MeshLabel::Enabled)) => Enrolment::ByNamespace,
            (None, Some(MeshLabel::Disabled) | None) => Enrolment::NotAsked,
        }
    }

    /// The Services that have an endpoint among these pods, and those whose endpoints may be any pod.
    fn services_of(&self, touched: &BTreeSet<ObjectName>) -> BTreeSet<ObjectName> {
        if touched.is_empty() {
            return BTreeSet::new();
        }
        let namespaces: BTreeSet<&Arc<str>> = touched.iter().map(|name| &name.namespace).collect();
        let concerned = self.slices.values().filter(|slice| {
            slice.endpoints.iter().any(|endpoint| match &endpoint.pod {
                Some(pod) => namespaces.contains(&pod.namespace) && touched.contains(pod),
                None => true,
            })
        });
        concerned.map(|slice| slice.service.clone()).collect()
    }

    /// Makes these Services ready again.
    fn update_routes(&self, world: &mut World, services: BTreeSet<ObjectName>) {
        if services.is_empty() {
            return;
        }
        let settings = self.traffic_settings();
        let pods = Pods { by_name: &world.by_name, by_ip: &world.by_ip };
        let mut changes = BTreeMap::new();
        for name in services {
            let new = self.services.get(&name).map(|service| {
                let names = self.slices_of.get(&name).into_iter().flatten();
                let slices: Vec<_> = names.filter_map(|name| self.slices.get(name)).collect();
                Arc::new(Routes {
                    service: Arc::clone(service),
                    traffic: Arc::clone(settings.get(&name).copied().unwrap_or(&world.traffic_default)),
                    ports: port_routes(service, &slices, &pods),
                })
            });
            if world.routes.get(&name) != new.as_ref() {
                changes.insert(name, new);
            }
        }
        world.routes.update(changes);
    }

    /// The settings of each Service that a traffic policy names: the older policy's, then that of the lesser name.
    fn traffic_settings(&self) -> BTreeMap<&ObjectName, &Arc<TrafficSettings>> {
        let mut by_seniority: Vec<_> = self.traffic.values().collect();
        by_seniority.sort_by_key(|known| (known.policy.created, &known.policy.name));
        let mut settings = BTreeMap::new();
        for known in by_seniority {
            for service in &known.policy.services {
                settings.entry(service).or_insert(&known.settings);
            }
        }
        settings
    }

    /// Compiles the policies of those pods of the own node that have moved. Whether a live connection to any of them
    /// must be decided again.
    fn update_locals(&self, world: &mut World, moved: &Moved) -> bool {
        let here = Some(&self.last.settings.node);
        let found = |uid: &PodUid| {
            let winner = world.by_uid.get(uid).map(Claimants::winner);
            winner.filter(|workload| workload.pod.node.as_ref() == here)
        };
        let sides = moved.values().flat_map(|(old, new)| [old, new]).flatten();
        let uids = sides.map(|workload| &workload.pod.uid);
        let local = uids.filter(|uid| world.locals.contains_key(*uid) || found(uid).is_some());
        let local: BTreeSet<PodUid> = local.cloned().collect();
        if local.is_empty() {
            return false;
        }
        let mut locals = BTreeMap::clone(&world.locals);
        let mut compiled = Compiled::default();
        let mut redecide = false;
        for uid in local {
            let old = locals.remove(&uid);
            let Some(workload) = found(&uid) else { continue };
            let same_labels = |old: &&Local| {
                let (old, new) = (&old.workload.pod, &workload.pod);
                old.labels == new.labels && old.name.namespace == new.name.namespace
            };
            let new = match old.as_ref().filter(same_labels) {
                Some(old) => Local { workload: Arc::clone(workload), ..old.clone() },
                None => self.compile(workload, &mut compiled),
            };
            redecide |= old.is_some_and(|old| old.decides_unlike(&new));
            locals.insert(uid, new);
        }
        world.locals = Arc::new(locals);
        redecide
    }

    /// Compiles the policies of all of the own node's pods; the same answer.
    fn recompile(&self, world: &mut World) -> bool {
        let mut compiled = Compiled::default();
        let mut redecide = false;
        let mut locals = BTreeMap::clone(&world.locals);
        for local in locals.values_mut() {
            let new = self.compile(&local.workload, &mut compiled);
            redecide |= local.decides_unlike(&new);
            *local = new;
        }
        world.locals = Arc::new(locals);
        redecide
    }

    fn compile(&self, workload: &Arc<Workload>, compiled: &mut Compiled) -> Local {
        let (namespace, labels) = (&workload.pod.name.namespace, &workload.pod.labels);
        let authorization = self.authorization.values();
        let peer = self.peer.values();
        Local {
            workload: Arc::clone(workload),
            policies: one_of(
                &mut compiled.policies,
                PolicySet::compile(authorization.filter(|policy| policy.selects(namespace, labels))),
            ),
            modes: one_of(
                &mut compiled.modes,
                PeerModes::compile(peer.filter(|policy| policy.selects(namespace, labels))),
            ),
        }
    }

    /// Counts what is there; of pods, only [`update_pods`] knows what has changed.
    fn count(&self, of_pods: Counts, world: &World) -> Counts {
        Counts {
            workloads: world.by_name.len(),
            enrolled: of_pods.enrolled,
            captured: of_pods.captured,
            nameless: self.pods.len() - world.by_name.len(),
            namespaces: self.namespaces.len(),
            services: self.services.len(),
            endpoint_slices: self.slices.len(),
            nodes: self.nodes.len(),
            authorization_policies: self.authorization.len(),
            peer_authentications: self.peer.len(),
            traffic_policies: self.traffic.len(),
        }
    }
}

impl Local {
    /// Whether a decision about a connection to this pod might be another one now.
    fn decides_unlike(&self, new: &Self) -> bool {
        self.workload.pod.labels != new.workload.pod.labels
            || self.workload.enrolment.is_enrolled() != new.workload.enrolment.is_enrolled()
            || self.policies != new.policies
            || self.modes != new.modes
    }
}

/// What was compiled so far, each once: pods that the same policies select share it.
#[derive(Default)]
struct Compiled {
    policies: Vec<Arc<PolicySet>>,
    modes: Vec<Arc<PeerModes>>,
}

/// The one that is equal to `new`, or `new` as a further one.
fn one_of<T: PartialEq>(known: &mut Vec<Arc<T>>, new: T) -> Arc<T> {
    if let Some(same) = known.iter().find(|known| ***known == new) {
        return Arc::clone(same);
    }
    known.push(Arc::new(new));
    Arc::clone(&known[known.len() - 1])
}

/// The skips of a pod and of its namespace.
fn both(pod: &Skip, namespace: &Skip) -> Skip {
    let mut skip = pod.clone();
    skip.outbound_ports.extend(namespace.outbound_ports.iter().cloned());
    skip.outbound_cidrs.extend(&namespace.outbound_cidrs);
    skip.inbound_ports.extend(namespace.inbound_ports.iter().cloned());
    let of_namespace =
        || namespace.invalid.as_ref().map(|invalid| format!("its namespace's {invalid}").into());
    skip.invalid = skip.invalid.or_else(of_namespace);
    skip
}

/// Puts the pods that have moved into the tables and the counts. Returns the names of the pods to whose endpoints that
/// matters.
fn update_pods(world: &mut World, moved: &Moved) -> BTreeSet<ObjectName> {
    let mut touched: BTreeSet<ObjectName> = moved.keys().cloned().collect();
    for (old, new) in moved.values() {
        let holds = |side: &Option<Arc<Workload>>, what: fn(&Workload) -> bool| {
            usize::from(side.as_deref().is_some_and(what))
        };
        let counts = &mut world.counts;
        counts.enrolled += holds(new, |workload| workload.enrolment.is_enrolled());
        counts.enrolled -= holds(old, |workload| workload.enrolment.is_enrolled());
        counts.captured += holds(new, |workload| workload.captured);
        counts.captured -= holds(old, |workload| workload.captured);
    }
    let by_name = moved.iter().map(|(name, (_, new))| (name.clone(), new.clone()));
    world.by_name.update(by_name.collect());
    let uid = |workload: &Workload| vec![workload.pod.uid.clone()];
    let by_uid = claims(moved, uid, |uid| world.by_uid.get(uid).cloned());
    world.by_uid.update(by_uid.entries(|_, claimants| claimants));
    let by_ip = claims(moved, addresses, |ip| world.by_ip.get(ip).map(|(_, held)| held.clone()));
    // Whose address it was, and whose it is now, matters to the endpoints of both.
    touched.extend(by_ip.before.iter().cloned());
    world.by_ip.update(by_ip.entries(|ip, claimants| (ip, claimants)));
    touched
}

/// The addresses by which a pod is found: none of its own for one that shares its node's network.
fn addresses(workload: &Workload) -> Vec<IpAddr> {
    if workload.pod.host_network {
        return Vec::new();
    }
    workload.pod.ips.iter().map(IpAddr::to_canonical).collect()
}

/// The claims on those keys that pods which have moved had or have.
struct Claims<K> {
    now: BTreeMap<K, Vec<Arc<Workload>>>,
    /// Who had one before.
    before: BTreeSet<ObjectName>,
}

/// Takes away the claims that moved pods held and adds those that they have now.
fn claims<K: Clone + Ord>(
    moved: &Moved,
    keys: impl Fn(&Workload) -> Vec<K>,
    held: impl Fn(&K) -> Option<Claimants>,
) -> Claims<K> {
    let mut claims = Claims { now: BTreeMap::new(), before: BTreeSet::new() };
    let sides = moved.values().flat_map(|(old, new)| [old, new]).flatten();
    for key in sides.flat_map(|workload| keys(workload)) {
        if claims.now.contains_key(&key) {
            continue;
        }
        let held = held(&key);
        let all = held.as_ref().map(Claimants::all).unwrap_or_default();
        claims.before.extend(all.iter().map(|workload| workload.pod.name.clone()));
        let others = all.iter().filter(|workload| !moved.contains_key(&workload.pod.name));
        claims.now.insert(key, others.cloned().collect());
    }
    for new in moved.values().filter_map(|(_, new)| new.as_ref()) {
        for key in keys(new) {
            claims.now.entry(key).or_default().push(Arc::clone(new));
        }
    }
    claims
}

impl<K: Clone + Ord> Claims<K> {
    /// As entries of a table.
    fn entries<E>(self, entry: impl Fn(K, Claimants) -> E) -> BTreeMap<K, Option<E>> {
        let settled = self.now.into_iter().map(|(key, claims)| {
            let claimants = Claimants::new(claims);
            (key.clone(), claimants.map(|claimants| entry(key, claimants)))
        });
        settled.collect()
    }
}
