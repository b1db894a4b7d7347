//! The source of truth: follows the mesh's objects, and hands every change on as a new [`World`].
//!
//! DRIVER. [`directory`] is the embedded default, a directory of the same YAML that a cluster would be given; what its
//! files say is `adit-objects`' to judge, what follows from it the World's. Changes are gathered for [`FLUSH_AFTER`] or
//! until [`FLUSH_AT`] of them are there, and become one snapshot. Also says to the outside what this agent has
//! captured, which trust bundle it uses and what it makes of each policy. Knows no socket of the data path.

mod copy;
mod directory;
mod files;
mod publish;
mod statuses;
mod trouble;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::PodUid;
use adit_core::time::Mono;
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Kind, Settings};
use adit_proto::status::NodeStatus;
use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use self::copy::Copy;
use self::directory::{Directory, Readings};
use self::files::{Files, Reading};
use self::publish::StatusFile;
use self::statuses::{Bundle, Statuses};
pub use self::trouble::{Trouble, Wrong};
use crate::clock::Clock;
use crate::view::Publisher;

/// How long changes are gathered: longer than an editor takes from rename to rename, shorter than anybody notices.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// How many changes are gathered at most: reading that many files takes about as long as [`FLUSH_AFTER`].
const FLUSH_AT: usize = 256;
/// Commands that wait. Each pod has one at a time, and a node a few hundred pods; a sender beyond waits.
const COMMANDS_MAX: usize = 256;
/// How long after a failure the status file is tried again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where the truth is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The mesh's directory. It must be there when the agent starts. No default.
    pub directory: PathBuf,
}

/// What the agent knows of itself.
#[derive(Clone, Debug)]
pub struct Own {
    /// What the World is made with.
    pub settings: Settings,
    /// The version that the status file shows.
    pub version: String,
    /// The admin socket that the status file shows.
    pub admin_socket: PathBuf,
    /// Where the copy of accepted objects is kept; none: no copy.
    pub copy_dir: Option<PathBuf>,
}

/// Why the source of truth cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `directory` is not set.
    #[error("cluster.directory is not set: say where the mesh's directory is")]
    NoDirectory,
    /// The mesh's directory cannot be followed.
    #[error("cannot follow the mesh's directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The status file cannot be written.
    #[error("cannot write the status file of node {node} in {dir}")]
    Status {
        /// Whose.
        node: String,
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's name cannot be a file's.
    #[error("the node's name {0:?} is no name of a Kubernetes node")]
    NodeName(String),
    /// The copy of accepted objects has no place.
    #[error("cannot keep a copy of the objects in {dir}")]
    Copy {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

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

/// What the driver shows of itself.
#[derive(Debug, Default)]
struct Shown {
    is_synced: bool,
    troubles: Vec<Trouble>,
}

/// Says to the other agents what this one has captured. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Announcer {
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Command {
    /// A pod is captured, or not any more.
    Captured { uid: PodUid, captured: bool, done: Done },
    /// The trust bundle that is in use.
    Acknowledge(u64),
    /// Look at everything again.
    Refresh(oneshot::Sender<()>),
}

type Done = oneshot::Sender<Result<(), Arc<io::Error>>>;

/// Reads everything once, publishes the first World, and begins to follow changes.
///
/// Must be called on the control runtime. The World is published at once if the directory of objects is there: broken
/// files keep the version of an earlier life, or count as not yet written.
pub fn start(config: Config, own: Own, clock: Clock, publisher: Publisher) -> Result<Cluster, StartError> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let shown = Arc::new(ArcSwap::default());
    let mut driver = Driver::open(config, own, clock, publisher, Arc::clone(&shown))?;
    driver.flush();
    let driver = AbortOnDropHandle::new(tokio::spawn(driver.run(inbox)));
    Ok(Cluster {
        commands,
        shown,
        _driver: Arc::new(driver),
    })
}

impl Cluster {
    /// The handle of who captures pods.
    pub fn announcer(&self) -> Announcer {
        Announcer {
            commands: self.commands.clone(),
        }
    }

    /// Says which trust bundle is in use (`spiffe_sequence`): the CA waits for it before it signs with a new root.
    pub async fn acknowledge_bundle(&self, generation: u64) {
        // A driver that has ended has nobody to tell.
        let _ = self.commands.send(Command::Acknowledge(generation)).await;
    }

    /// Looks at every file again, and returns when what was found is published: for a pod that an ADD names and the
    /// World does not know.
    pub async fn refresh(&self) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Refresh(done)).await.is_ok() {
            // A driver that has ended has nothing to add.
            let _ = is_done.await;
        }
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
    /// Says that a pod is captured, or not any more. Returns when every reader of the status file can know.
    ///
    /// The own World shows it too by then. After an error it is announced as soon as the file can be written again.
    pub async fn set_captured(&self, uid: PodUid, captured: bool) -> Result<(), AnnounceError> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Captured { uid, captured, done };
        self.commands
            .send(command)
            .await
            .map_err(|_| AnnounceError::Ended)?;
        match is_done.await {
            Ok(result) => result.map_err(AnnounceError::Write),
            Err(_) => Err(AnnounceError::Ended),
        }
    }
}

struct Driver {
    own: Own,
    clock: Clock,
    publisher: Publisher,
    shown: Arc<ArcSwap<Shown>>,
    root: PathBuf,
    directory: Directory,
    files: Files,
    statuses: Statuses,
    bundle: Bundle,
    copy: Option<Copy>,
    builder: WorldBuilder,
    status: NodeStatus,
    status_file: StatusFile,
    /// When the status file is tried again.
    write_again: Option<Mono>,
    is_synced: bool,
}

impl Driver {
    fn open(
        config: Config,
        own: Own,
        clock: Clock,
        publisher: Publisher,
        shown: Arc<ArcSwap<Shown>>,
    ) -> Result<Self, StartError> {
        let root = config.directory;
        if root.as_os_str().is_empty() {
            return Err(StartError::NoDirectory);
        }
        let node = own.settings.node.clone();
        if node.0.is_empty() || node.0.starts_with('.') || node.0.contains(['/', '\0']) {
            return Err(StartError::NodeName(node.0.to_string()));
        }
        let directory = Directory::open(&root).map_err(|source| StartError::Directory {
            path: root.clone(),
            source,
        })?;
        let dir = Directory::status_dir(&root);
        let (status_file, earlier) =
            StatusFile::open(&dir, &node.0).map_err(|source| StartError::Status {
                node: node.0.to_string(),
                dir,
                source,
            })?;
        let copy = own
            .copy_dir
            .clone()
            .map(|dir| Copy::open(dir.clone()).map_err(|source| StartError::Copy { dir, source }));
        let copy = copy.transpose()?;
        let status = NodeStatus {
            node: node.0.to_string(),
            version: own.version.clone(),
            admin_socket: own.admin_socket.display().to_string(),
            // Not the generation: what the agent before used is not yet what this one uses.
            bundle_generation: 0,
            // The rules of an earlier life are still in place, so its pods are still captured.
            captured: earlier.captured,
            policies: Vec::new(),
        };
        Ok(Self {
            files: Files::new(Arc::clone(&own.settings.system_namespace)),
            statuses: Statuses::new(node),
            bundle: Bundle::default(),
            builder: WorldBuilder::new(own.settings.clone()),
            own,
            clock,
            publisher,
            shown,
            root,
            directory,
            copy,
            status,
            status_file,
            write_again: None,
            is_synced: false,
        })
    }

    /// Every branch is cancel-safe: events stay with the kernel and commands in their queue until they are taken.
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut flush_at = None;
        loop {
            tokio::select! {
                changed = self.directory.changed() => {
                    if let Err(error) = changed {
                        // inotify itself fails only if its descriptor is gone; what is known stays in force.
                        warn!(%error, "the mesh's directory is not followed any more");
                        return self.serve_commands(inbox).await;
                    }
                    let now = self.clock.now().mono;
                    flush_at = match self.directory.pending() {
                        0 => None,
                        1..FLUSH_AT => flush_at.or(Some(now + FLUSH_AFTER)),
                        FLUSH_AT.. => Some(now),
                    };
                }
                () = self.clock.sleep_until(flush_at) => {
                    flush_at = None;
                    self.flush();
                }
                () = self.clock.sleep_until(self.write_again) => {
                    // What went wrong was said when it did.
                    let _ = self.write_status();
                }
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command, &mut inbox),
                    None => return,
                },
            }
        }
    }

    /// Announces and acknowledges, as long as somebody asks.
    async fn serve_commands(mut self, mut inbox: mpsc::Receiver<Command>) {
        while let Some(command) = inbox.recv().await {
            self.obey(command, &mut inbox);
        }
    }

    /// Does this command and all that wait behind it, and writes the status file once for all of them.
    fn obey(&mut self, first: Command, inbox: &mut mpsc::Receiver<Command>) {
        let mut written = Vec::new();
        let mut refreshed = Vec::new();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Captured { uid, captured, done } => {
                    if captured {
                        self.status.captured.insert(uid.0.to_string());
                    } else {
                        self.status.captured.remove(&*uid.0);
                    }
                    written.push(done);
                }
                Command::Acknowledge(generation) => self.status.bundle_generation = generation,
                Command::Refresh(done) => refreshed.push(done),
            }
            next = inbox.try_recv().ok();
        }
        if !written.is_empty() {
            self.show_captured();
            if self.is_synced {
                self.publisher.publish(self.builder.freeze());
            }
        }
        if !refreshed.is_empty() {
            self.directory.mark_all();
            self.flush();
        }
        let result = self.write_status();
        // Who asked may be gone: the answer is for nobody then.
        for done in written {
            let _ = done.send(result.clone());
        }
        for done in refreshed {
            let _ = done.send(());
        }
    }

    /// Reads what changed, and publishes what follows.
    fn flush(&mut self) {
        let known = || {
            self.files
                .paths()
                .chain(self.statuses.paths())
                .map(ToOwned::to_owned)
                .collect()
        };
        let Readings {
            objects,
            status,
            bundle,
        } = self.directory.read(known);
        let is_first = !self.is_synced && self.directory.has_objects();
        let mut changes = Vec::new();
        if is_first {
            changes.extend(self.recall(&objects));
        }
        changes.extend(self.take_objects(objects));
        changes.extend(
            status
                .into_iter()
                .filter_map(|(path, reading)| self.statuses.update(&path, reading)),
        );
        if let Some(reading) = bundle {
            let path = self.root.join("trust-bundle.yaml");
            changes.extend(
                self.bundle
                    .update(&path, reading, &self.own.settings.trust_domain),
            );
        }
        let has_changed = !changes.is_empty();
        for change in changes {
            self.builder.apply(change);
        }
        if is_first {
            self.is_synced = true;
            self.forget_strangers();
            self.show_captured();
        }
        if self.is_synced && (has_changed || is_first) {
            self.publisher.publish(self.builder.freeze());
        }
        self.show();
        self.status.policies = self.files.policies();
        // What went wrong was said when it did, and is tried again.
        let _ = self.write_status();
    }

    /// What the files said that are broken now, when they were last good, in an earlier life.
    fn recall(&mut self, objects: &[(PathBuf, Reading)]) -> Vec<Change> {
        let Some(copy) = &self.copy else { return Vec::new() };
        let earlier = objects
            .iter()
            .filter(|(_, reading)| !matches!(reading, Reading::Gone));
        let earlier = earlier.filter_map(|(path, _)| Some((path.clone(), Reading::Text(copy.load(path)?))));
        let changes = self.files.update(earlier.collect::<Vec<_>>());
        let there = objects.iter().map(|(path, _)| path.as_path());
        if let Err(error) = copy.keep_only(there) {
            warn!(%error, "cannot tidy the copy of the objects");
        }
        changes
    }

    /// Takes what was read, and keeps a copy of what is good.
    fn take_objects(&mut self, objects: Vec<(PathBuf, Reading)>) -> Vec<Change> {
        let Some(copy) = &self.copy else {
            return self.files.update(objects);
        };
        let changes = self.files.update(objects.clone());
        for (path, reading) in objects {
            let kept = match reading {
                Reading::Text(text) if self.files.is_good(&path) => copy.keep(&path, &text),
                Reading::Text(_) | Reading::Unreadable(_) => Ok(()),
                Reading::Gone => copy.forget(&path),
            };
            if let Err(error) = kept {
                warn!(%error, file = %path.display(), "cannot keep a copy of the objects");
            }
        }
        changes
    }

    /// Forgets pods that an earlier life had captured and that are no more.
    fn forget_strangers(&mut self) {
        let world = self.builder.freeze();
        self.status
            .captured
            .retain(|uid| world.workload(&PodUid(uid.as_str().into())).is_some());
    }

    /// Lets the own World see what the status file says of the own node.
    fn show_captured(&mut self) {
        let pods = self.status.captured.iter().map(|uid| PodUid(uid.as_str().into()));
        self.builder.apply(Change::Captured {
            node: self.own.settings.node.clone(),
            pods: pods.collect(),
        });
    }

    /// Shows what is wrong; what was not wrong before is logged and counted, once.
    fn show(&self) {
        let mut troubles = self.files.troubles();
        troubles.extend(self.directory.troubles());
        troubles.extend(self.statuses.troubles());
        troubles.extend(self.bundle.troubles());
        let before = self.shown.load();
        let said: BTreeSet<_> = before.troubles.iter().map(ToString::to_string).collect();
        for trouble in troubles
            .iter()
            .filter(|trouble| !said.contains(&trouble.to_string()))
        {
            warn!("{trouble}");
            metrics::counter!("adit_object_errors_total", "error" => trouble.what.label()).increment(1);
        }
        let broken: BTreeSet<_> = troubles.iter().map(|trouble| &trouble.file).collect();
        let were_broken: BTreeSet<_> = before.troubles.iter().map(|trouble| &trouble.file).collect();
        for file in were_broken.difference(&broken) {
            info!("{}: mended", file.display());
        }
        self.shown.store(Arc::new(Shown {
            is_synced: self.is_synced,
            troubles,
        }));
    }

    fn write_status(&mut self) -> Result<(), Arc<io::Error>> {
        let result = self.status_file.write(&self.status);
        match &result {
            Ok(()) => self.write_again = None,
            Err(error) => {
                if self.write_again.is_none() {
                    warn!(%error, "cannot write the status file; trying again");
                }
                self.write_again = Some(self.clock.now().mono + WRITE_AGAIN_AFTER);
            }
        }
        result.map_err(Arc::new)
    }
}
