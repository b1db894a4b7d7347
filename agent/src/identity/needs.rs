//! What is asked of the driver, what it is given, and what it shows of each identity.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use adit_core::rotation::Failure;
use adit_core::time::Validity;
use adit_core::trust::TrustBundle;
use adit_proto::SpiffeId;
use tokio::sync::watch;

use super::journal::Journal;

/// Where the bundle comes from: the last one that was read (`adit_objects::trust`). Its sender is the source of truth's.
/// Whether its roots and lists can be used is judged here; until one can, the last good one is used.
pub type TrustInput = watch::Receiver<Arc<TrustBundle>>;

/// Says which identities are needed. Cheap to clone; the caller counts its pods.
///
/// A set, not a queue: nothing is lost or piled up, however fast needs come and go.
#[derive(Clone, Debug)]
pub struct Needs {
    pub(super) needed: Arc<watch::Sender<BTreeSet<SpiffeId>>>,
    pub(super) journal: Option<Journal>,
}

impl Needs {
    /// A pod needs `id`. Idempotent.
    pub fn need(&self, id: SpiffeId) {
        self.needed.send_if_modified(|needed| needed.insert(id));
    }

    /// Leaves the journal to an agent that runs beside this one, or, not `aside`, takes it up again. While it is left,
    /// nothing in it is written or removed; everything else goes on.
    pub fn stand_aside(&self, aside: bool) {
        if let Some(journal) = &self.journal {
            journal.leave(aside);
        }
    }

    /// No pod needs `id` any more: it is withdrawn and its key deleted everywhere. Idempotent.
    pub fn forget(&self, id: SpiffeId) {
        self.needed.send_if_modified(|needed| needed.remove(&id));
    }
}

/// What one needed identity is in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityStatus {
    /// Which.
    pub id: SpiffeId,
    /// The serial of the certificate served.
    pub serial: Option<Arc<str>>,
    /// Its dates.
    pub validity: Option<Validity>,
    /// When its renewal is due.
    pub renew_at: Option<SystemTime>,
    /// Whether a request is in flight.
    pub requesting: bool,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure since then: its kind, and what went wrong.
    pub last_failure: Option<(Failure, Arc<str>)>,
}
