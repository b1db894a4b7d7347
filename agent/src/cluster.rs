//! The source of truth: follows the mesh's objects, and hands every change on as a new `World`.
//!
//! DRIVER. Two sources behind one pair of handles, by configuration: [`kube`] follows an API server; [`directory`] is the
//! embedded default, a directory of the same YAML that a cluster would be given. What objects say is `adit-objects`' to
//! judge, what follows from it the World's. Changes are gathered for 20 ms and become one snapshot. Also says to the
//! outside what this agent has captured and which trust bundle it uses. Knows no socket of the data path.

mod copy;
mod directory;
mod driver;
mod events;
mod files;
pub mod kube;
mod model;
mod publish;
mod statuses;
mod trouble;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use adit_core::draw::Seed;
use adit_core::net::{ObjectName, PodUid};
use adit_proto::cni::Removal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use self::driver::Driver;
pub use self::events::{Events, Gravity, PodEvent};
pub use self::model::{AnnounceError, Config, Own, StartError};
use self::model::{Command, Shown};
use crate::clock::Clock;
use crate::shutdown::vital;
use crate::view::Publisher;

/// Commands that wait. Each pod has one at a time, and a node a few hundred pods; a sender beyond waits.
const COMMANDS_MAX: usize = 256;

/// The running source of truth. Ends when the last handle is dropped. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
    shown: watch::Receiver<Shown>,
    removal: watch::Receiver<Removal>,
    events: Events,
    _driver: Arc<AbortOnDropHandle<()>>,
}

/// Says to the other agents what this one has captured, for who captures pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Announcer {
    commands: mpsc::Sender<Command>,
}

/// Begins to follow the truth.
///
/// Must be called on the control runtime. The World of a directory is published at once if the directory of objects is
/// there: broken files keep the version of an earlier life, or count as not yet written. That of a cluster is published
/// at once if an earlier life kept all of it, else when everything was listed.
pub fn start(
    config: Config,
    own: Own,
    clock: Clock,
    publisher: Publisher,
    seed: Seed,
) -> Result<Cluster, StartError> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (show, shown) = watch::channel(Shown::default());
    if let Some(config) = config.kube {
        let started = kube::start(&config, own, clock, publisher, show, inbox, seed)?;
        let kube::Started { driver, removal, events } = started;
        let driver = Arc::new(AbortOnDropHandle::new(driver));
        return Ok(Cluster { commands, shown, removal, events, _driver: driver });
    }
    let (says, removal) = watch::channel(Removal::Stays);
    let mut driver = Driver::open(config.directory, own, clock, publisher, show, says)?;
    driver.flush();
    let driver = AbortOnDropHandle::new(tokio::spawn(vital("the source of truth", driver.run(inbox))));
    Ok(Cluster { commands, shown, removal, events: Events::logged(), _driver: Arc::new(driver) })
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

    /// Whether Adit leaves the cluster, as far as is known: its DaemonSet or its namespace was deleted, or is being
    /// deleted. What cannot be asked changes nothing, and one that comes back takes it back. With a directory: whether a
    /// file `DIR/uninstall` is there, looked at every 5 s and at each event there.
    ///
    /// The value that is there at first is read by [`watch::Receiver::borrow`]; in a cluster it is
    /// [`Removal::Undecided`] until both were seen. It ends with the last handle.
    pub fn removal(&self) -> watch::Receiver<Removal> {
        self.removal.clone()
    }

    /// Where what happens to pods is said to their owners.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// What is wrong now: in a directory by file and line, in a cluster by object and field.
    pub fn problems(&self) -> Vec<String> {
        self.shown.borrow().problems.clone()
    }

    /// The kinds of objects that have not been read yet; none: the World is whole.
    pub fn kinds_missing(&self) -> Vec<&'static str> {
        self.shown.borrow().missing.clone()
    }

    /// The kinds of objects that are not followed at the moment, as the API server is away or refuses: what is known of
    /// them stays in force.
    pub fn unfollowed(&self) -> Vec<&'static str> {
        self.shown.borrow().unfollowed.clone()
    }

    /// Is told when what [`Cluster::problems`], [`Cluster::kinds_missing`] or [`Cluster::unfollowed`] say has changed.
    pub fn changes(&self) -> watch::Receiver<impl Sized + use<>> {
        self.shown.clone()
    }
}

#[cfg(test)]
impl Announcer {
    /// One that stands aside at once, and never comes to an end with anything else.
    pub(crate) fn that_finds_nobody() -> Self {
        let (commands, mut inbox) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(command) = inbox.recv().await {
                if let Command::StandAside { done, .. } = command {
                    let _ = done.send(());
                } else {
                    waiting.push(command);
                }
            }
        });
        Self { commands }
    }
}

impl Announcer {
    /// Looks for a pod that an ADD names and the World does not know: in a directory at every file again, in a cluster by
    /// one GET of it, of 10 s at most. Returns when what was found is published.
    pub async fn refresh(&self, pod: &ObjectName) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Refresh { pod: pod.clone(), done }).await.is_ok() {
            // A driver that has ended has nothing to add.
            let _ = is_done.await;
        }
    }

    /// Leaves what is said of this node to another agent that runs beside this one, or, not `aside`, takes it over again
    /// from where that one left it. What is under way before it is said first; all else goes on. Resolves when it is so.
    pub async fn stand_aside(&self, aside: bool) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::StandAside { aside, done }).await.is_ok() {
            // A driver that has ended says nothing any more.
            let _ = is_done.await;
        }
    }

    /// Says that the runtime removed a pod's sandbox. What is said of the pod goes with its object: another sandbox may
    /// be made for it.
    pub async fn sandbox_gone(&self, uid: PodUid) {
        // A driver that has ended says nothing any more.
        let _ = self.commands.send(Command::SandboxGone(uid)).await;
    }

    /// Says that a pod is captured, or not any more. Returns when every other agent can know: it is in the status file, or
    /// the API server has acknowledged the annotation, or the pod was seen to carry it before.
    ///
    /// The own World shows it too by then. After an error it is still announced, as soon as that is possible and unless
    /// the opposite is said first. In a cluster it takes 15 s at most.
    pub async fn set_captured(&self, uid: PodUid, captured: bool) -> Result<(), AnnounceError> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Captured { uid, captured, done };
        self.commands.send(command).await.map_err(|_| AnnounceError::Ended)?;
        match is_done.await {
            Ok(result) => result,
            Err(_) => Err(AnnounceError::Ended),
        }
    }
}
