//! How pods are captured, what that is done with, and why it cannot be.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use adit_core::pods::Limits;
use adit_proto::cni::{self, Removal};
use serde::Deserialize;
use tokio::sync::watch;

use super::server::ListenError;
use crate::clock::Clock;
use crate::cluster::{Announcer, Events};
use crate::dataplane::Dataplane;
use crate::identity::{CertSource, Needs};
use crate::units;
use crate::view::View;

/// Requests that may wait for the driver; further clients wait in their own tasks, of which there is a bound.
pub(super) const ASKS_MAX: usize = 64;
/// Names the kernel's present boot: nothing in the journal outlives it.
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How pods are captured.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the CNI plugin asks. Default `/run/adit/cni.sock`.
    pub socket: PathBuf,
    /// What a restarted agent must know of its pods; on tmpfs, a folder of its own. Default `/run/adit/journal`.
    pub journal: PathBuf,
    /// What the CNI plugin reads while the agent is away; on disk. Default `/var/lib/adit`.
    pub state_dir: PathBuf,
    /// Where the processes of the node are seen, for pods that started before the plugin was there. Default `/proc`: the
    /// agent's pod has hostPID.
    pub proc: PathBuf,
    /// Where the container runtime keeps its CNI results (libcni's cache), in all of these. Default
    /// `/var/lib/cni/results`.
    pub cni_results: Vec<PathBuf>,
    /// Where namespaces are bound to files. Default `/run/netns` and, for Docker, `/run/docker/netns`.
    pub netns_dirs: Vec<PathBuf>,
    /// How long an ADD may take: less than the plugin waits, 30 s unless its own `timeout` says otherwise. Default `25s`.
    #[serde(deserialize_with = "units::duration")]
    pub add_deadline: Duration,
    /// How long connections of a pod that leaves the mesh may go on. Default `1h`.
    #[serde(deserialize_with = "units::duration")]
    pub drain_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            socket: cni::SOCKET.into(),
            journal: "/run/adit/journal".into(),
            state_dir: cni::STATE_DIR.into(),
            proc: "/proc".into(),
            cni_results: vec!["/var/lib/cni/results".into()],
            netns_dirs: vec!["/run/netns".into(), "/run/docker/netns".into()],
            add_deadline: limits.add,
            drain_deadline: limits.drain,
        }
    }
}

/// What the driver works with.
#[derive(Clone)]
pub struct Links {
    /// Serves the pods.
    pub dataplane: Dataplane,
    /// Takes what identities are needed.
    pub needs: Needs,
    /// Says when a certificate is there.
    pub certs: CertSource,
    /// Says who is enrolled.
    pub view: View,
    /// Says on the pod objects who is captured.
    pub announcer: Announcer,
    /// Says on pods what became of their capture.
    pub events: Events,
    /// The number of the node's own network namespace.
    pub node_inode: u64,
    /// The clock.
    pub clock: Clock,
    /// Whether this agent is ready: one before it then takes nothing new.
    pub ready: watch::Receiver<bool>,
    /// What the installer of the CNI plugin is answered.
    pub removal: watch::Receiver<Removal>,
}

/// Why pods cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no CNI socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The journal cannot be made or read.
    #[error("cannot use the journal {}", path.display())]
    Journal {
        /// Its folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not name its boot.
    #[error("cannot read {BOOT_ID}")]
    Boot(#[source] io::Error),
}
