//! Drives [`adit_core::pods`]: every sandbox of this node, from the CNI socket, World and the journal to listeners,
//! rules, certificate and annotation.
//!
//! Decides nothing: what a sandbox needs next is the machine's, who is enrolled is World's. This file starts the driver
//! and shows it; the loop is in `driver`, the socket in `server`, what survives a restart in `journal`.

mod answer;
mod driver;
mod enrolment;
mod journal;
mod missed;
mod perform;
mod sandbox;
mod server;
mod show;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::{PodKey, PodUid, SandboxId};
use adit_core::pods::Limits;
use adit_proto::admin::PodStatus;
use adit_proto::cni;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::cluster::Announcer;
use crate::dataplane::Dataplane;
use crate::identity::{CertSource, Needs};
use crate::shutdown::vital;
use crate::units;
use crate::view::View;
use driver::Driver;
use enrolment::NamespacesFile;
use journal::Journal;
use missed::Missed;
use perform::Performer;
pub use server::ListenError;
pub use show::Shown;

/// Requests that may wait for the driver; further clients wait in their own tasks, of which there is a bound.
const ASKS_MAX: usize = 64;
/// Names the kernel's present boot: nothing in the journal outlives it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
            add_deadline: limits.add,
            drain_deadline: limits.drain,
        }
    }
}

/// What the driver works with.
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
    /// The clock.
    pub clock: Clock,
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

/// The running driver. Dropping it stops it; rules, annotations and journal stay as they are, for the next agent.
pub struct Pods {
    shown: watch::Receiver<Shown>,
    dataplane: Dataplane,
    _driver: AbortOnDropHandle<()>,
    _server: AbortOnDropHandle<()>,
}

/// Takes up what the journal knows, then listens for the CNI plugin. Call it inside the control thread's runtime.
pub fn start(config: Config, links: Links, seed: Seed) -> Result<Pods, StartError> {
    let boot = fs::read_to_string(BOOT_ID).map_err(StartError::Boot)?;
    let unusable = |source| StartError::Journal { path: config.journal.clone(), source };
    let journal = Journal::open(&config.journal, boot.trim()).map_err(unusable)?;
    let loaded = journal.load().map_err(unusable)?;
    // Last of what can fail: from here on the plugin gets answers from us, not from an agent before us.
    let listener = server::listen(&config.socket)?;
    let limits = Limits { add: config.add_deadline, drain: config.drain_deadline, ..Limits::default() };
    let dataplane = links.dataplane.clone();
    let performer = Performer { dataplane: links.dataplane, announcer: links.announcer, clock: links.clock };
    let namespaces = NamespacesFile::open(&config.state_dir);
    let (show, shown) = watch::channel(Shown { pods: Arc::from(Vec::new()), adopting: 0 });
    let (asks, requests) = mpsc::channel(ASKS_MAX);
    show::describe();
    let missed = Missed::beside(&config.socket);
    let mut driver = Driver::new(driver::Parts {
        limits,
        performer,
        needs: links.needs,
        certs: links.certs,
        view: links.view,
        journal,
        unread: loaded.unread,
        missed,
        namespaces,
        show,
        seed,
    });
    // Before the caller asks for readiness.
    driver.adopt(loaded.entries);
    Ok(Pods {
        shown,
        dataplane,
        _driver: AbortOnDropHandle::new(tokio::spawn(vital("pods", driver.run(requests)))),
        _server: AbortOnDropHandle::new(tokio::spawn(vital("the CNI socket", server::serve(listener, asks)))),
    })
}

impl Pods {
    /// Every sandbox, as the admin API shows it.
    pub fn status(&self) -> Vec<PodStatus> {
        let mut pods = self.shown.borrow().pods.to_vec();
        for pod in &mut pods {
            let key = PodKey {
                uid: PodUid(pod.uid.as_str().into()),
                sandbox: SandboxId(pod.sandbox.as_str().into()),
            };
            pod.connections = u64::try_from(self.dataplane.live(&key)).unwrap_or(u64::MAX);
        }
        pods
    }

    /// Pods of the journal that are not verified yet and have had no trouble, for readiness.
    pub fn adopting(&self) -> usize {
        self.shown.borrow().adopting
    }

    /// Changes whenever [`Pods::status`] does, but for numbers of connections.
    pub fn changes(&self) -> watch::Receiver<Shown> {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests;
