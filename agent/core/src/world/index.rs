//! How things are found in a [`super::World`]: sharded tables that snapshots share, and Services by address.
//!
//! Does not know what they mean: [`super::builder`] fills it, [`crate::resolve`] asks.

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
    vips: BTreeMap<SocketAddr, (ObjectName, u16)>,
    /// By node port, at every address of a node.
    node_ports: BTreeMap<u16, (ObjectName, u16)>,
    /// The nodes' addresses.
    nodes: BTreeSet<IpAddr>,
}

impl VipIndex {
    /// Indexes all Services.
    ///
    /// Where two claim one address and port, the one that lists the address earlier among those of its family wins
    /// (cluster IPs come first, and are unique), then the lesser name.
    pub(crate) fn new<'s>(
        services: impl Iterator<Item = &'s Arc<Service>>,
        nodes: impl Iterator<Item = IpAddr>,
    ) -> Self {
        let mut claims: BTreeMap<SocketAddr, (usize, &ObjectName, u16)> = BTreeMap::new();
        let mut node_ports: BTreeMap<u16, (&ObjectName, u16)> = BTreeMap::new();
        for service in services {
            for (rank, vip) in ranked(&service.vips) {
                for port in &service.ports {
                    let claim = (rank, &service.name, port.port);
                    let held = claims.entry(SocketAddr::new(vip, port.port)).or_insert(claim);
                    *held = claim.min(*held);
                }
            }
            for port in &service.ports {
                let Some(node_port) = port.node_port else { continue };
                let claim = (&service.name, port.port);
                let held = node_ports.entry(node_port).or_insert(claim);
                *held = claim.min(*held);
            }
        }
        let owned = |(name, port): (&ObjectName, u16)| (name.clone(), port);
        Self {
            vips: claims.into_iter().map(|(at, (_, name, port))| (at, owned((name, port)))).collect(),
            node_ports: node_ports.into_iter().map(|(at, claim)| (at, owned(claim))).collect(),
            nodes: nodes.map(|ip| ip.to_canonical()).collect(),
        }
    }

    /// The Service at an address, which of its ports, and by which kind of address.
    pub(crate) fn at(&self, dst: SocketAddr) -> Option<(&ObjectName, u16, Front)> {
        if let Some((name, port)) = self.vips.get(&SocketAddr::new(dst.ip(), dst.port())) {
            return Some((name, *port, Front::Vip));
        }
        let (name, port) = self.node_ports.get(&dst.port())?;
        self.nodes.contains(&dst.ip()).then_some((name, *port, Front::NodePort))
    }
}

/// By which kind of address a Service was reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Front {
    /// An address of its own.
    Vip,
    /// A node's address and its node port; `internalTrafficPolicy` says nothing about these.
    NodePort,
}

/// Addresses with their place among those of their own family.
fn ranked(vips: &[IpAddr]) -> impl Iterator<Item = (usize, IpAddr)> {
    let (mut v4, mut v6) = (0, 0);
    vips.iter().map(move |vip| {
        let vip = vip.to_canonical();
        let next = if vip.is_ipv4() { &mut v4 } else { &mut v6 };
        *next += 1;
        (*next - 1, vip)
    })
}
