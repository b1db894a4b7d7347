//! The source of truth: follows the mesh's objects, and hands every change on as a new `World`.
//!
//! DRIVER. [`directory`] is the embedded default, a directory of the same YAML that a cluster would be given; what its
//! files say is `adit-objects`' to judge, what follows from it the World's. Changes are gathered for 20 ms or
//! until 256 of them are there, and become one snapshot. Also says to the outside what this agent has
//! captured, which trust bundle it uses and what it makes of each policy. Knows no socket of the data path.

mod copy;
mod directory;
mod driver;
mod files;
mod model;
mod publish;
mod statuses;
mod trouble;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use adit_core::net::PodUid;
use adit_core::world::Kind;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::driver::Driver;
use self::model::{Command, Shown};
pub use self::model::{Config, Own, StartError};
pub use self::trouble::{Trouble, Wrong};
use crate::clock::Clock;
use crate::shutdown::vital;
use crate::view::Publisher;

/// Commands that wait. Each pod has one at a time, and a node a few hundred pods; a sender beyond waits.
const COMMANDS_MAX: usize = 256;

/// Why an announcement did not reach the others.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The status file cannot be written. It is tried again; the announcement will be in it.
    #[error("cannot write the status file")]
    Write(#[source] Arc<io::Error>),
    /// The source of truth has ended.
    #[error("the source of truth has ended")]
    Ended,
}

/// The running source of truth. Ends when the last handle is dropped. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
    shown: Arc<ArcSwap<Shown>>,
    _driver: Arc<AbortOnDropHandle<()>>,
}

/// Says to the other agents what this one has captured, for who captures pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Announcer {
    commands: mpsc::Sender<Command>,
}

/// Reads everything once, publishes the first World, and begins to follow changes.
///
/// Must be called on the control runtime. The World is published at once if the directory of objects is there: broken
/// files keep the version of an earlier life, or count as not yet written.
pub fn start(config: Config, own: Own, clock: Clock, publisher: Publisher) -> Result<Cluster, StartError> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let shown = Arc::new(ArcSwap::default());
    let mut driver = Driver::open(config, own, clock, publisher, Arc::clone(&shown))?;
    driver.flush();
    let driver = AbortOnDropHandle::new(tokio::spawn(vital("the source of truth", driver.run(inbox))));
    Ok(Cluster { commands, shown, _driver: Arc::new(driver) })
}

impl Cluster {
    /// The handle of who captures pods.
    pub fn announcer(&self) -> Announcer {
        Announcer { commands: self.commands.clone() }
    }

    /// Says which trust bundle is in use (`spiffe_sequence`): the CA waits for it before it signs with a new root.
    pub async fn acknowledge_bundle(&self, generation: u64) {
        // A driver that has ended has nobody to tell.
        let _ = self.commands.send(Command::Acknowledge(generation)).await;
    }

    /// [`Announcer::refresh`].
    pub async fn refresh(&self) {
        self.announcer().refresh().await;
    }

    /// What is wrong with the files now, by file and line.
    pub fn problems(&self) -> Vec<Trouble> {
        self.shown.load().troubles.clone()
    }

    /// The kinds of objects that have not been read yet; none: the World is whole.
    pub fn kinds_missing(&self) -> Vec<&'static str> {
        if self.shown.load().is_synced {
            return Vec::new();
        }
        KINDS.into_iter().map(adit_objects::word).collect()
    }
}

/// A directory is read as one: all kinds are there, or none.
const KINDS: [Kind; 8] = [
    Kind::Pod,
    Kind::Namespace,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::TrafficPolicy,
];

impl Announcer {
    /// Looks at every file again, and returns when what was found is published: for a pod that an ADD names and the
    /// World does not know.
    pub async fn refresh(&self) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Refresh(done)).await.is_ok() {
            // A driver that has ended has nothing to add.
            let _ = is_done.await;
        }
    }

    /// Says that the runtime removed a pod's sandbox. What is said of the pod goes with its object: another sandbox may
    /// be made for it.
    pub async fn sandbox_gone(&self, uid: PodUid) {
        // A driver that has ended says nothing any more.
        let _ = self.commands.send(Command::SandboxGone(uid)).await;
    }

    /// Says that a pod is captured, or not any more. Returns when every reader of the status file can know.
    ///
    /// The own World shows it too by then. After an error it is announced as soon as the file can be written again.
    pub async fn set_captured(&self, uid: PodUid, captured: bool) -> Result<(), AnnounceError> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Captured { uid, captured, done };
        self.commands.send(command).await.map_err(|_| AnnounceError::Ended)?;
        match is_done.await {
            Ok(result) => result.map_err(AnnounceError::Write),
            Err(_) => Err(AnnounceError::Ended),
        }
    }
}
