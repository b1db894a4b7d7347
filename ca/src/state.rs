//! All that a CA must remember, as one value: what is stored is always one whole state, the old or the new.
//!
//! Says what is; [`crate::lifecycle`] says what comes next and [`crate::store`] keeps it.

use std::collections::BTreeSet;
use std::time::Duration;

use adit_proto::{SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::root::{Authority, Broken, Certificate, Facts, RootError};
use crate::serial::Serial;
use crate::stamp::Stamp;

/// The form in which a state is written. Every field that is added makes another, as a program refuses what it does
/// not know: 2 has `former`.
const VERSION: u32 = 2;
/// The oldest form that is read; what it lacks has a default. A later form than [`VERSION`] is refused.
const VERSION_OLDEST: u32 = 1;

/// How many revocations are kept. One takes about 120 bytes in `revoked.json` and 40 in each revocation list; with two
/// lists the published object stays below the 1 MiB that a ConfigMap may have. Serials leave the list when their
/// certificate has expired.
pub const REVOKED_MAX: usize = 4096;

/// Everything that outlives the process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct State {
    pub(crate) version: u32,
    /// Whose identities are issued.
    pub trust_domain: TrustDomain,
    /// `spiffe_sequence` of the bundle: grows whenever roots or revocations change.
    pub generation: u64,
    /// What signs.
    pub authority: Authority,
    /// Where a change of root stands.
    pub rotation: Rotation,
    /// The longest life that a leaf still in use may have been given, in seconds.
    pub longest_leaf_s: u64,
    /// The kill list, oldest first.
    pub revoked: Vec<Revocation>,
    /// Certificates of earlier chains that are kept no more: should a key of theirs leak, they are revoked for as long
    /// as they live.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
    /// Names of the request files that are done, as far as their files may still be there.
    pub taken: Vec<String>,
}

/// Where a change of root stands.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "step")]
pub enum Rotation {
    /// There is one root.
    Steady,
    /// The next root is published beside the present one, which still signs, until every agent knows it.
    Announced {
        /// What will sign.
        next: Box<Authority>,
        /// The bundle generation that holds both roots: what agents must have acknowledged.
        generation: u64,
        /// When the step began.
        since: Stamp,
        /// When that generation was first seen to be published. The time bound counts from here.
        published: Option<Stamp>,
    },
    /// The new root signs; the previous one stays in the bundle until the last of its leaves has expired.
    Overlap {
        /// What signed before.
        previous: Box<Authority>,
        /// When the step began.
        since: Stamp,
        /// When the last leaf of `previous` has expired.
        until: Stamp,
    },
}

/// What is remembered of a certificate that signed leaves, or led them to a root, and is kept no more.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Former {
    /// Its serial.
    pub serial: Serial,
    /// When it ends.
    pub not_after: Stamp,
}

/// An entry of the kill list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Revocation {
    /// What is revoked.
    #[serde(flatten)]
    pub subject: Subject,
    /// Since when.
    pub at: Stamp,
    /// When no certificate of the serial can be valid any more. None for an identity, which stays until it is restored;
    /// and for a serial that an earlier version stored, until the first step after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Stamp>,
}

/// What can be revoked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// One certificate.
    Serial(Serial),
    /// Every certificate of an identity, present and future.
    Identity(SpiffeId),
}

/// Why a stored state is not taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Written by a later version of this program.
    #[error("has version {0}; this program knows {VERSION_OLDEST} to {VERSION}")]
    Version(u32),
    /// It belongs to another trust domain.
    #[error("is of trust domain {found}, but {wanted} is configured")]
    TrustDomain {
        /// What is stored.
        found: TrustDomain,
        /// What is configured.
        wanted: TrustDomain,
    },
    /// Keys and certificates do not belong together.
    #[error("cannot be used")]
    Authority(#[from] RootError),
}

/// Why a text is no state.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not what this program writes.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// What another writes.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What every form of a state says of itself.
#[derive(Deserialize)]
struct Form {
    version: u32,
}

impl State {
    /// Reads a state as it is stored, whichever known form it has; it is written in the present one.
    ///
    /// Its version is read before all else, as of a later form nothing else is known.
    pub fn read(text: &[u8]) -> Result<Self, ReadError> {
        let Form { version } = serde_json::from_slice(text)?;
        if !(VERSION_OLDEST..=VERSION).contains(&version) {
            return Err(StateError::Version(version).into());
        }
        Ok(Self { version: VERSION, ..serde_json::from_slice(text)? })
    }

    /// The first state of a store.
    pub fn first(trust_domain: TrustDomain, authority: Authority, longest_leaf: Duration) -> Self {
        Self {
            version: VERSION,
            trust_domain,
            generation: 1,
            authority,
            rotation: Rotation::Steady,
            longest_leaf_s: longest_leaf.as_secs(),
            revoked: Vec::new(),
            former: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// Checks a state that was read.
    pub fn check(&self, configured: &TrustDomain) -> Result<(), StateError> {
        if self.trust_domain != *configured {
            return Err(StateError::TrustDomain {
                found: self.trust_domain.clone(),
                wanted: configured.clone(),
            });
        }
        for authority in self.authorities() {
            authority.check(configured)?;
        }
        Ok(())
    }

    /// What signs, then the other authority of a change of root.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        let other = match &self.rotation {
            Rotation::Steady => None,
            Rotation::Announced { next, .. } => Some(&**next),
            Rotation::Overlap { previous, .. } => Some(&**previous),
        };
        std::iter::once(&self.authority).chain(other)
    }

    /// Every certificate that is kept and that signs leaves, signed them, or leads them to a root.
    pub fn chains(&self) -> impl Iterator<Item = &Certificate> {
        self.authorities().flat_map(|authority| {
            let retired = authority.retired.iter().map(|retired| &retired.certificate);
            authority.chain.iter().chain(retired)
        })
    }

    /// The certificate with which leaves are signed or by which they lead to the root, if one is on the kill list.
    pub fn revoked_issuer(&self) -> Result<Option<Serial>, Broken> {
        for certificate in &self.authority.chain {
            let serial = Facts::read(certificate)?.serial;
            if self.is_revoked(&Subject::Serial(serial.clone())) {
                return Ok(Some(serial));
            }
        }
        Ok(None)
    }

    /// Whether this is on the kill list.
    pub fn is_revoked(&self, subject: &Subject) -> bool {
        self.revoked.iter().any(|revocation| revocation.subject == *subject)
    }

    /// The roots that agents shall trust, each once; the one that leads to today's leaves first.
    pub fn roots(&self) -> Vec<&Certificate> {
        let mut roots: Vec<&Certificate> = Vec::new();
        for root in self.authorities().flat_map(|authority| &authority.roots) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots
    }

    /// The identities on the kill list.
    pub fn revoked_identities(&self) -> BTreeSet<SpiffeId> {
        self.revoked
            .iter()
            .filter_map(|revocation| match &revocation.subject {
                Subject::Identity(id) => Some(id.clone()),
                Subject::Serial(_) => None,
            })
            .collect()
    }

    /// The longest life that a leaf still in use may have been given.
    pub fn longest_leaf(&self) -> Duration {
        Duration::from_secs(self.longest_leaf_s)
    }

    /// The root that signs now, for people.
    pub fn root_serial(&self) -> Result<String, Broken> {
        Facts::read(self.authority.root()?).map(|facts| facts.serial.to_string())
    }
}
