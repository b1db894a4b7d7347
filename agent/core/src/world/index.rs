//! How things are found in a [`super::World`]: sharded tables that snapshots share, and Services by address.
//!
//! Does not know what they mean: [`super::builder`] fills it, [`crate::resolve`] asks.

use std::collections::btree_map::Entry;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::net::{ObjectName, PodUid};
use crate::service::Service;
use crate::workload::{Pod, Workload};

/// Shards of a table. 20,000 pods make 80 entries a shard: a change copies 3 KiB of each table, a look-up takes 7
/// comparisons, and an empty table costs 4 KiB.
const SHARDS: usize = 256;

/// The pods that claim one address or uid, the one that counts first. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Claimants {
    /// The rule.
    One(Arc<Workload>),
    /// Two or more: an address that was handed on before its old owner was gone. Behind one pointer, as it is rare.
    Several(Arc<Vec<Arc<Workload>>>),
}

impl Claimants {
    /// Sorts claims; `None` where there are none.
    pub(crate) fn new(mut claims: Vec<Arc<Workload>>) -> Option<Self> {
        claims.sort_by(|a, b| standing(b).cmp(&standing(a)));
        match claims.len() {
            0 | 1 => claims.pop().map(Self::One),
            _ => Some(Self::Several(Arc::new(claims))),
        }
    }

    /// The one that counts.
    pub(crate) fn winner(&self) -> &Arc<Workload> {
        &self.all()[0]
    }

    /// All of them, the one that counts first.
    pub(crate) fn all(&self) -> &[Arc<Workload>] {
        match self {
            Self::One(workload) => std::slice::from_ref(workload),
            Self::Several(workloads) => workloads,
        }
    }
}

/// Whose address this is.
pub(crate) fn winner_at(by_ip: &Table<(IpAddr, Claimants)>, ip: IpAddr) -> Option<&Arc<Workload>> {
    by_ip.get(&ip.to_canonical()).map(|(_, claimants)| claimants.winner())
}

/// Who wins an address: the greatest.
fn standing(workload: &Workload) -> (bool, bool, &PodUid, &ObjectName) {
    let pod = &workload.pod;
    (!pod.terminating, workload.captured, &pod.uid, &pod.name)
}

/// What a [`Table`] holds: it knows by what it is found, so that a table holds nothing twice.
pub(crate) trait Keyed: Clone {
    /// By what it is found.
    type Key: Hash + Ord;

    /// The one of this entry.
    fn key(&self) -> &Self::Key;
}

/// By name.
impl Keyed for Arc<Pod> {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.name
    }
}

/// By name.
impl Keyed for Arc<Workload> {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.pod.name
    }
}

/// By uid.
impl Keyed for Claimants {
    type Key = PodUid;

    fn key(&self) -> &PodUid {
        &self.winner().pod.uid
    }
}

/// By address.
impl Keyed for (IpAddr, Claimants) {
    type Key = IpAddr;

    fn key(&self) -> &IpAddr {
        &self.0
    }
}

/// A map of which copies share what is equal: cut by the key's hash into sorted, exactly sized shards.
///
/// The hash only spreads the keys. It has no secret: keys that were made to collide fall into one shard, where they
/// are still found by binary search.
#[derive(Clone, Debug)]
pub(crate) struct Table<E> {
    shards: Vec<Arc<[E]>>,
    len: usize,
}

impl<E> Default for Table<E> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::from([])).collect(), len: 0 }
    }
}

impl<E: Keyed> Table<E> {
    /// The entry of a key.
    pub(crate) fn get(&self, key: &E::Key) -> Option<&E> {
        let shard = &self.shards[shard_of(key)];
        let at = shard.binary_search_by(|entry| entry.key().cmp(key)).ok()?;
        Some(&shard[at])
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Every entry; by shard, then by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &E> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Sets the entry of each of these keys, or removes it (`None`). Copies the shards concerned, no other.
    pub(crate) fn update(&mut self, changes: BTreeMap<E::Key, Option<E>>) {
        let mut by_shard: BTreeMap<usize, Changes<E>> = BTreeMap::new();
        for (key, entry) in changes {
            by_shard.entry(shard_of(&key)).or_default().push((key, entry));
        }
        for (at, changes) in by_shard {
            let merged = merge(&self.shards[at], changes);
            self.len = self.len + merged.len() - self.shards[at].len();
            self.shards[at] = merged.into();
        }
    }

    /// Sets or removes one entry; the one that was there before.
    pub(crate) fn set(&mut self, key: E::Key, entry: Option<E>) -> Option<E> {
        let old = self.get(&key).cloned();
        if old.is_none() && entry.is_none() {
            return None;
        }
        self.update(BTreeMap::from([(key, entry)]));
        old
    }
}

/// New entries by key; `None` removes.
type Changes<E> = Vec<(<E as Keyed>::Key, Option<E>)>;

/// Merges changes, sorted by key, into a shard.
fn merge<E: Keyed>(shard: &[E], changes: Changes<E>) -> Vec<E> {
    let mut merged = Vec::with_capacity(shard.len() + changes.len());
    let mut kept = shard.iter().peekable();
    for (key, entry) in changes {
        while let Some(before) = kept.next_if(|kept| *kept.key() < key) {
            merged.push(before.clone());
        }
        kept.next_if(|kept| *kept.key() == key);
        merged.extend(entry);
    }
    merged.extend(kept.cloned());
    merged
}

fn shard_of<K: Hash>(key: &K) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let low = hasher.finish().to_le_bytes()[0];
    // One byte chooses among exactly 256 shards.
    usize::from(low) % SHARDS
}

/// Where Services answer. Rebuilt when a Service's addresses or ports change, which is rare.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct VipIndex {
    /// By address and port.
    vips: BTreeMap<SocketAddr, Answering>,
    /// By node port, at every address of a node.
    node_ports: BTreeMap<u16, Answering>,
    /// The nodes' addresses.
    nodes: BTreeSet<IpAddr>,
}

/// The Service that answers, which of its ports, and by which kind of address.
type Answering = (ObjectName, u16, Front);

impl VipIndex {
    /// Indexes all Services.
    ///
    /// Where two claim one address and port, the one whose cluster IP it is has it, then the older, then the one with
    /// the lesser name: nobody takes another's cluster IP by calling it external, nor an external address by coming
    /// later. Likewise node ports, which the API server gives out once.
    pub(crate) fn new<'s>(
        services: impl Iterator<Item = &'s Arc<Service>>,
        nodes: impl Iterator<Item = IpAddr>,
    ) -> Self {
        let mut claims: BTreeMap<SocketAddr, Claim<'_>> = BTreeMap::new();
        let mut node_ports: BTreeMap<u16, Claim<'_>> = BTreeMap::new();
        for service in services {
            for port in &service.ports {
                let by =
                    |front| Claim { front, created: service.created, name: &service.name, port: port.port };
                let addressed =
                    |ips: &'s [IpAddr], front| ips.iter().map(move |ip| (ip.to_canonical(), by(front)));
                let own = addressed(&service.cluster_ips, Front::ClusterIp);
                for (ip, claim) in own.chain(addressed(&service.external_ips, Front::External)) {
                    claim.stake(claims.entry(SocketAddr::new(ip, port.port)));
                }
                if let Some(node_port) = port.node_port {
                    by(Front::External).stake(node_ports.entry(node_port));
                }
            }
        }
        Self {
            vips: claims.into_iter().map(|(at, claim)| (at, claim.owned())).collect(),
            node_ports: node_ports.into_iter().map(|(at, claim)| (at, claim.owned())).collect(),
            nodes: nodes.map(|ip| ip.to_canonical()).collect(),
        }
    }

    /// The Service at an address, which of its ports, and by which kind of address.
    pub(crate) fn at(&self, dst: SocketAddr) -> Option<(&ObjectName, u16, Front)> {
        let at_vip = self.vips.get(&SocketAddr::new(dst.ip(), dst.port()));
        let by_node_port = || self.node_ports.get(&dst.port()).filter(|_| self.nodes.contains(&dst.ip()));
        at_vip.or_else(by_node_port).map(|(name, port, front)| (name, *port, *front))
    }
}

/// A Service's claim to an address or node port. The least wins.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Claim<'s> {
    front: Front,
    created: i64,
    name: &'s ObjectName,
    port: u16,
}

impl Claim<'_> {
    fn owned(self) -> Answering {
        (self.name.clone(), self.port, self.front)
    }
}

impl<'s> Claim<'s> {
    /// Takes the place where it is free or held by a weaker claim.
    fn stake<K: Ord>(self, place: Entry<'_, K, Self>) {
        let held = place.or_insert(self);
        *held = self.min(*held);
    }
}

/// By which kind of address a Service was reached.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Front {
    /// One of its cluster IPs.
    ClusterIp,
    /// An external address, a load balancer's, or a node's with its node port; `internalTrafficPolicy` says nothing about
    /// these.
    External,
}
