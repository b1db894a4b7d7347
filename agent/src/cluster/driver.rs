//! The loop that reads what changed, publishes what follows, and writes what this agent says.

mod aside;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::PodUid;
use adit_core::time::Mono;
use adit_core::world::Change;
use adit_core::world::builder::WorldBuilder;
use adit_proto::cni::Removal;
use adit_proto::status::NodeStatus;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::copy::Copy;
use super::directory::{self, Directory, Readings};
use super::files::{Files, Reading};
use super::model::{AnnounceError, Command, Own, Shown, StartError, kinds};
use super::publish::StatusFile;
use super::statuses::{Bundle, Statuses};
use super::trouble::Trouble;
use crate::clock::Clock;
use crate::view::Publisher;

/// How long changes are gathered: longer than an editor takes from rename to rename, shorter than anybody notices.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// How many changes are gathered at most: reading that many files takes about as long as [`FLUSH_AFTER`].
const FLUSH_AT: usize = 256;
/// How much text of files is held at once: a pod's is 1 to 10 KiB, so this is up to some hundred pods; a longer file
/// alone. What is read in between costs 10 times as much.
const READ_LEN: usize = 256 * 1024;
/// How often it is looked whether the directory and its objects are still those that are followed: two system calls.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long after a failure the status file is tried again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// DRIVER of the source of truth.
pub(super) struct Driver {
    own: Own,
    clock: Clock,
    publisher: Publisher,
    shown: watch::Sender<Shown>,
    root: PathBuf,
    directory: Directory,
    files: Files,
    statuses: Statuses,
    bundle: Bundle,
    copy: Option<Copy>,
    /// Of the other agents' status files.
    status_copy: Option<Copy>,
    builder: WorldBuilder,
    status: NodeStatus,
    status_file: StatusFile,
    /// When the status file is tried again.
    write_again: Option<Mono>,
    /// Captured pods of which a sandbox is gone, and whose object is still there: at most one a pod of the node.
    ended: BTreeSet<PodUid>,
    is_synced: bool,
    /// What is wrong with files and directories, as it was shown last.
    troubles: Vec<Trouble>,
    /// Another agent of the node writes the status file and the copies.
    aside: bool,
    removal: watch::Sender<Removal>,
}

impl Driver {
    pub(super) fn open(
        root: PathBuf,
        own: Own,
        clock: Clock,
        publisher: Publisher,
        shown: watch::Sender<Shown>,
        removal: watch::Sender<Removal>,
    ) -> Result<Self, StartError> {
        if root.as_os_str().is_empty() {
            return Err(StartError::NoDirectory);
        }
        let node = own.settings.node.clone();
        if node.0.is_empty() || node.0.starts_with('.') || node.0.contains(['/', '\0']) {
            return Err(StartError::NodeName(node.0.to_string()));
        }
        let directory =
            Directory::open(&root).map_err(|source| StartError::Directory { path: root.clone(), source })?;
        let dir = Directory::status_dir(&root);
        let (status_file, earlier) = StatusFile::open(&dir, &node.0)
            .map_err(|source| StartError::Status { node: node.0.to_string(), dir, source })?;
        let copy = |name| {
            let dir = own.copy_dir.as_ref().map(|dir| dir.join(name));
            dir.map(|dir| Copy::open(dir.clone()).map_err(|source| StartError::Copy { dir, source }))
                .transpose()
        };
        let (copy, status_copy) = (copy("objects")?, copy("status")?);
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
        let mut driver = Self {
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
            status_copy,
            status,
            status_file,
            write_again: None,
            ended: BTreeSet::new(),
            is_synced: false,
            troubles: Vec::new(),
            aside: false,
            removal,
        };
        driver.look_for_removal();
        driver.recall_statuses();
        Ok(driver)
    }

    /// Every branch is cancel-safe: events stay with the kernel and commands in their queue until they are taken.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut flush_at = None;
        let mut look_at = self.clock.now().mono + LOOK_EVERY;
        loop {
            tokio::select! {
                () = self.clock.sleep_until(Some(look_at)) => {
                    look_at = self.clock.now().mono + LOOK_EVERY;
                    self.directory.look();
                    self.look_for_removal();
                    flush_at = self.flush_at(flush_at);
                }
                changed = self.directory.changed() => {
                    if let Err(error) = changed {
                        // inotify itself fails only if its descriptor is gone; what is known stays in force.
                        warn!(%error, "the mesh's directory is not followed any more");
                        return self.serve_commands(inbox).await;
                    }
                    flush_at = self.flush_at(flush_at);
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

    /// When what is pending by now is read, where it was to be done at `before`.
    fn flush_at(&self, before: Option<Mono>) -> Option<Mono> {
        let now = self.clock.now().mono;
        match self.directory.pending() {
            0 => None,
            1..FLUSH_AT => before.or(Some(now + FLUSH_AFTER)),
            FLUSH_AT.. => Some(now),
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
                        self.ended.remove(&uid);
                        self.status.captured.insert(uid.0.to_string());
                    } else {
                        self.status.captured.remove(&*uid.0);
                    }
                    written.push(done);
                }
                Command::SandboxGone(uid) => {
                    self.ended.insert(uid);
                    self.forget_ended();
                }
                Command::Acknowledge(generation) => {
                    self.status.bundle_generation = generation;
                    self.bundle.acknowledge(generation);
                }
                Command::Refresh { done, pod: _ } => refreshed.push(done),
                Command::StandAside { aside, done } => {
                    // What was said before must be there for who reads it now.
                    let _ = self.write_status();
                    self.stand_aside(aside);
                    // Who asked may be gone.
                    let _ = done.send(());
                }
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
            self.directory.look();
            self.directory.mark_all();
            self.flush();
        }
        let result = self.write_status().map_err(AnnounceError::Write);
        // Who asked may be gone: the answer is for nobody then.
        for done in written {
            let _ = done.send(result.clone());
        }
        for done in refreshed {
            let _ = done.send(());
        }
    }

    /// Reads what changed, and publishes what follows.
    pub(super) fn flush(&mut self) {
        self.look_for_removal();
        let known = || self.files.paths().chain(self.statuses.paths()).map(ToOwned::to_owned).collect();
        let Readings { objects, status, bundle } = self.directory.read(known);
        let is_first = !self.is_synced && self.directory.has_objects();
        let mut has_changed = false;
        if is_first {
            self.tidy_copy(&objects);
        }
        // No snapshot is published in between: an object that goes from one file to another has not gone.
        let mut objects = objects.into_iter().peekable();
        while objects.peek().is_some() {
            let changes = self.take_objects(read_some(&mut objects), is_first);
            has_changed |= !changes.is_empty();
            changes.into_iter().for_each(|change| self.builder.apply(change));
            if is_first {
                // For nobody: a first snapshot of 20,000 pods at once would take 10 MiB to make, which the allocator
                // then keeps.
                drop(self.builder.freeze());
            }
        }
        let mut changes = Vec::new();
        changes.extend(status.iter().filter_map(|(path, reading)| self.take_status(path, reading)));
        if let Some(reading) = bundle {
            let path = self.root.join("trust-bundle.yaml");
            changes.extend(self.bundle.update(&path, reading, &self.own.settings.trust_domain));
        }
        has_changed |= !changes.is_empty();
        changes.into_iter().for_each(|change| self.builder.apply(change));
        if is_first {
            self.is_synced = true;
            self.forget_strangers();
            self.show_captured();
        }
        if self.is_synced && (has_changed || is_first) {
            self.forget_gone();
            self.publisher.publish(self.builder.freeze());
            self.forget_ended();
        }
        self.show();
        self.status.policies = self.files.policies();
        // What went wrong was said when it did, and is tried again.
        let _ = self.write_status();
    }

    /// Forgets copies of files that are no more.
    fn tidy_copy(&self, objects: &[PathBuf]) {
        let Some(copy) = self.copy.as_ref().filter(|_| !self.aside) else { return };
        if let Err(error) = copy.keep_only(objects.iter().map(PathBuf::as_path)) {
            warn!(%error, "cannot tidy the copy of the objects");
        }
    }

    /// Takes what was read, and keeps a copy of what is good. The first time, what the copies say comes before it: a
    /// file that is broken now goes on from when it was last good, in an earlier life.
    fn take_objects(&mut self, objects: Vec<(PathBuf, Reading)>, is_first: bool) -> Vec<Change> {
        let Some(copy) = self.copy.as_ref().filter(|_| !self.aside) else { return self.update(objects) };
        let mut earlier = Vec::new();
        let mut fresh = Vec::new();
        for (path, reading) in &objects {
            let kept = copy.load(path);
            match reading {
                Reading::Gone => {
                    note(copy.forget(path), path);
                    continue;
                }
                Reading::Text(text) if kept.as_ref() == Some(text) => continue,
                Reading::Text(text) => fresh.push((path.clone(), text.clone())),
                Reading::Unreadable(_) => {}
            }
            earlier.extend(kept.filter(|_| is_first).map(|kept| (path.clone(), Reading::Text(kept))));
        }
        let mut changes = self.update(earlier);
        changes.extend(self.update(objects));
        for (path, text) in fresh {
            if let Some(copy) = self.copy.as_ref().filter(|_| self.files.is_good(&path)) {
                note(copy.keep(&path, &text), &path);
            }
        }
        changes
    }

    /// Takes what the other agents said last in an earlier life: the file of one that is away may be gone since then, and
    /// its pods would be dialled in clear. All of these files are read next, and what is there counts.
    fn recall_statuses(&mut self) {
        let Some(copy) = &self.status_copy else { return };
        let dir = Directory::status_dir(&self.root);
        let files = copy.files().unwrap_or_else(|error| {
            warn!(%error, "cannot read the copies of status files");
            Vec::new()
        });
        for file in files.iter().filter(|file| file.parent() == Some(&*dir)) {
            let reading = copy.load(file).map(Reading::Text);
            let change = reading.and_then(|reading| self.statuses.update(file, &reading));
            change.into_iter().for_each(|change| self.builder.apply(change));
        }
    }

    /// Takes what was read of another agent's status file, and keeps a copy of what is news and good.
    fn take_status(&mut self, path: &Path, reading: &Reading) -> Option<Change> {
        let change = self.statuses.update(path, reading)?;
        let copy = self.status_copy.as_ref().filter(|_| !self.aside);
        if let (Some(copy), Reading::Text(text)) = (copy, reading) {
            // That nothing is captured is assumed of a node without a file.
            let is_needless = matches!(&change, Change::Captured { pods, .. } if pods.is_empty());
            note(if is_needless { copy.forget(path) } else { copy.keep(path, text) }, path);
        }
        Some(change)
    }

    /// Takes what was read, and reads those files again whose version of an object counts now.
    fn update(&mut self, objects: Vec<(PathBuf, Reading)>) -> Vec<Change> {
        let mut update = self.files.update(objects);
        if !update.again.is_empty() {
            let again = update.again.iter().map(|path| (path.to_path_buf(), directory::read(path)));
            let again = self.files.update(again.collect::<Vec<_>>());
            // A file that changed in this instant has its own event, and comes by it.
            update.changes.extend(again.changes);
        }
        update.changes
    }

    /// Forgets pods that an earlier life had captured and that are no more.
    fn forget_strangers(&mut self) {
        let world = self.builder.freeze();
        self.status.captured.retain(|uid| world.workload(&PodUid(uid.as_str().into())).is_some());
    }

    /// Forgets nodes whose status file and whose pods are gone.
    fn forget_gone(&mut self) {
        if self.statuses.has_gone() {
            let world = self.builder.freeze();
            for (file, change) in self.statuses.forget_gone(|uid| world.workload(uid).is_some()) {
                self.builder.apply(change);
                if let Some(copy) = self.status_copy.as_ref().filter(|_| !self.aside) {
                    note(copy.forget(&file), &file);
                }
            }
        }
    }

    /// Forgets pods whose sandbox and whose object are gone.
    fn forget_ended(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let world = self.builder.freeze();
        let (still, over) =
            std::mem::take(&mut self.ended).into_iter().partition(|uid| world.workload(uid).is_some());
        self.ended = still;
        let over: BTreeSet<PodUid> = over;
        for uid in over {
            self.status.captured.remove(&*uid.0);
        }
    }

    /// Lets the own World see what the status file says of the own node.
    fn show_captured(&mut self) {
        if self.aside {
            return;
        }
        let pods = self.status.captured.iter().map(|uid| PodUid(uid.as_str().into()));
        self.builder.apply(Change::Captured { node: self.own.settings.node.clone(), pods: pods.collect() });
    }

    /// Shows what is wrong; what was not wrong before is logged and counted, once.
    fn show(&mut self) {
        let mut troubles = self.files.troubles();
        troubles.extend(self.directory.troubles());
        troubles.extend(self.statuses.troubles());
        troubles.extend(self.bundle.troubles());
        let before = self.shown.borrow().problems.clone();
        let said: BTreeSet<_> = before.iter().collect();
        for trouble in troubles.iter().filter(|trouble| !said.contains(&trouble.to_string())) {
            warn!("{trouble}");
            metrics::counter!("adit_object_errors_total", "error" => trouble.what.label()).increment(1);
        }
        let broken: BTreeSet<_> = troubles.iter().map(|trouble| &trouble.file).collect();
        let were_broken: BTreeSet<_> = self.troubles.iter().map(|trouble| &trouble.file).collect();
        for file in were_broken.difference(&broken) {
            info!("{}: mended", file.display());
        }
        // Where no recorder is installed, as in a test, nobody counts.
        metrics::gauge!("adit_object_errors")
            .set(f64::from(u32::try_from(troubles.len()).unwrap_or(u32::MAX)));
        let missing = if self.is_synced { Vec::new() } else { kinds() };
        let problems = troubles.iter().map(ToString::to_string).collect();
        self.shown.send_replace(Shown { missing, problems, unfollowed: Vec::new() });
        self.troubles = troubles;
    }

    fn write_status(&mut self) -> Result<(), Arc<io::Error>> {
        if self.aside {
            return Ok(());
        }
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

/// Reads files until there is enough to work on.
fn read_some(paths: &mut impl Iterator<Item = PathBuf>) -> Vec<(PathBuf, Reading)> {
    let mut read = Vec::new();
    let mut len = 0;
    while read.len() < FLUSH_AT && len < READ_LEN {
        let Some(path) = paths.next() else { break };
        let reading = directory::read(&path);
        if let Reading::Text(text) = &reading {
            len += text.len();
        }
        read.push((path, reading));
    }
    read
}

/// Says that a copy could not be kept or forgotten.
fn note(kept: io::Result<()>, file: &Path) {
    if let Err(error) = kept {
        warn!(%error, file = %file.display(), "cannot keep a copy");
    }
}
