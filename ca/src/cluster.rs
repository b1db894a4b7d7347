//! The CA in a Kubernetes cluster: where its state lies, how it learns who calls and what runs where, and how it tells
//! the agents and the users. Only here is the API server spoken to.
//!
//! Two replicas run at once and know nothing of each other: whatever both write is written by compare-and-swap on the
//! object's resourceVersion, and the Secret `adit-ca` decides.

pub(crate) mod accepted;
pub(crate) mod answer;
pub(crate) mod backoff;
pub(crate) mod callers;
pub(crate) mod client;
pub(crate) mod jwt;
pub(crate) mod leader;
pub(crate) mod leases;
pub(crate) mod pods;
pub(crate) mod published;
pub(crate) mod review;
pub(crate) mod secrets;
pub(crate) mod shared;
pub(crate) mod statuses;
pub(crate) mod watch;

#[cfg(test)]
pub(crate) mod scripted;

use std::path::PathBuf;

use crate::root::PemError;
use crate::state::StateError;

pub use client::{ApiError, ConnectError};

/// `store.kubernetes`: which cluster, and the names of things in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// `kubeconfig`: how to reach the API server from outside. Default: none; the pod's own ServiceAccount is used.
    pub kubeconfig: Option<PathBuf>,
    /// `namespace`: where the Secret, the ConfigMap and the Leases are. Default `adit-system`.
    pub namespace: String,
    /// `secret`: the Secret that holds the CA's keys and state. Default `adit-ca`.
    pub secret: String,
    /// `given-secret`: a Secret with `tls.crt`, `tls.key` and `ca.crt` that is used instead of an own root while it is
    /// there, made by hand or by cert-manager. Default `adit-ca-root`.
    pub given_secret: String,
    /// `agent`: the agents' ServiceAccount, as `NAMESPACE/NAME`. Default `adit-system/adit-agent`.
    pub agent: Account,
    /// `audience`: for whom agents' tokens have to be made. Default `adit-ca`.
    pub audience: String,
    /// `replica`: this process's name in the Lease of who writes statuses. Default: the environment's `HOSTNAME`.
    pub replica: Option<String>,
}

/// A ServiceAccount.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: crate::bundle::NAMESPACE.to_owned(),
            secret: "adit-ca".to_owned(),
            given_secret: "adit-ca-root".to_owned(),
            agent: Account { namespace: "adit-system".to_owned(), name: "adit-agent".to_owned() },
            audience: "adit-ca".to_owned(),
            replica: None,
        }
    }
}

/// Why the CA's objects in the cluster cannot be used. Every text names the object.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica was faster: what it wrote is taken up first.
    #[error("{object} was changed by another replica")]
    Conflict {
        /// The object.
        object: String,
    },
    /// Not what this program writes.
    #[error("{object} is broken; no new root is made in its place: restore it from a backup")]
    Json {
        /// The object.
        object: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The Secret is there, but not the key in it that this program writes.
    #[error(
        "{object} has no {key}; no new root is made in its place: restore it from a backup, or delete it"
    )]
    NoState {
        /// The object.
        object: String,
        /// The key.
        key: &'static str,
    },
    /// Readable, but wrong.
    #[error("{object} {source}")]
    State {
        /// The object.
        object: String,
        /// Why.
        source: StateError,
    },
    /// There was a state, and it is gone.
    #[error(
        "{secret} is missing, although {bundle} shows that a CA was begun here; no new root is made in its place: \
         restore the Secret from a backup, or delete {bundle} to begin anew"
    )]
    Lost {
        /// The missing Secret.
        secret: String,
        /// The ConfigMap that is there.
        bundle: String,
    },
    /// What agents were told is newer than what is to be told now.
    #[error(
        "{object} holds generation {found}, newer than {own}: was the CA's Secret restored from an older copy? Delete \
         the ConfigMap to publish the older one (agents take it when they are restarted)"
    )]
    Newer {
        /// The ConfigMap.
        object: String,
        /// What it holds.
        found: u64,
        /// What would be written.
        own: u64,
    },
    /// A root given in a Secret is incomplete.
    #[error("{object} has no {key}: tls.crt, tls.key and ca.crt are used together or not at all")]
    GivenInPart {
        /// The Secret.
        object: String,
        /// The missing key.
        key: &'static str,
    },
    /// A root given in a Secret cannot be read.
    #[error("{object}: {key} {source}")]
    Given {
        /// The Secret.
        object: String,
        /// Which key.
        key: &'static str,
        /// Why.
        source: PemError,
    },
}

impl ClusterError {
    /// Whether nothing is wrong but the moment: another replica wrote first.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether the API server could not be asked, so that the next attempt may go otherwise.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Api(_) | Self::Conflict { .. })
    }
}
