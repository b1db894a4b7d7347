//! By which root each peer proved itself, for as long as its certificate is valid: asked again when a root goes.
//!
//! Written at each handshake, on the data plane's threads; read when the bundle changes. A certificate that has expired is
//! forgotten: its connections outlive it, and so they outlive the orderly end of a root, which is dropped only after the
//! last leaf under it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use adit_proto::SpiffeId;

use super::leaf::Leaf;

/// Certificates that are remembered, at some 400 B each 26 MB: those of 30,000 workloads, each renewed at half its life.
/// One beyond is not asked about again.
const PROOFS_MAX: usize = 65_536;

/// By certificate.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    by_leaf: Mutex<HashMap<(SpiffeId, Arc<str>), Proof>>,
}

#[derive(Debug)]
struct Proof {
    /// The public keys of the roots that it led to: one, but for a serial that was given out twice.
    roots: Vec<Box<[u8]>>,
    not_after: SystemTime,
}

impl Proofs {
    /// Notes that a leaf led to the root with this public key.
    pub(crate) fn note(&self, leaf: &Leaf, root: &[u8], now: SystemTime) {
        let mut by_leaf = self.lock();
        let key = (leaf.id.clone(), Arc::clone(&leaf.serial));
        if by_leaf.len() >= PROOFS_MAX && !by_leaf.contains_key(&key) {
            by_leaf.retain(|_, proof| proof.not_after > now);
            if by_leaf.len() >= PROOFS_MAX {
                return;
            }
        }
        let not_after = leaf.validity.not_after;
        let proof = by_leaf.entry(key).or_insert_with(|| Proof { roots: Vec::new(), not_after });
        if !proof.roots.iter().any(|known| **known == *root) {
            proof.roots.push(root.into());
        }
    }

    /// Whether every root that this leaf led to is one of those; a leaf of which nothing is known counts as one.
    pub(crate) fn leads_to(&self, id: &SpiffeId, serial: &str, is_root: impl Fn(&[u8]) -> bool) -> bool {
        let by_leaf = self.lock();
        let proof = by_leaf.get(&(id.clone(), serial.into()));
        proof.is_none_or(|proof| proof.roots.iter().all(|root| is_root(root)))
    }

    /// Forgets certificates that have expired.
    pub(crate) fn forget_expired(&self, now: SystemTime) {
        self.lock().retain(|_, proof| proof.not_after > now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SpiffeId, Arc<str>), Proof>> {
        self.by_leaf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
