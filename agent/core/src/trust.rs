//! What is trusted: the roots of each trust domain, and the kill list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use adit_proto::{SpiffeId, TrustDomain};

/// The trust bundle ConfigMap, read and checked. Bundles of different trust domains are never merged.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TrustBundle {
    /// The roots of each trust domain (DER). An empty list means that all its certificates are revoked.
    pub roots: BTreeMap<TrustDomain, Vec<Arc<[u8]>>>,
    /// `spiffe_sequence` of the own trust domain: grows with every change.
    pub generation: u64,
    /// Certificate revocation lists (DER).
    pub crls: Vec<Arc<[u8]>>,
    /// Revoked certificate serials, lower-case hex without leading zeros.
    pub revoked_serials: BTreeSet<Arc<str>>,
    /// Revoked identities: a CRL cannot name them.
    pub revoked_identities: BTreeSet<SpiffeId>,
}
