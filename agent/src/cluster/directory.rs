//! Reads a mesh's directory and follows its changes with inotify. Knows files, not what they say.
//!
//! | path | what |
//! |---|---|
//! | `DIR/objects/**.yaml` | the user's objects |
//! | `DIR/status/NODE.yaml` | what one agent says of itself |
//! | `DIR/trust-bundle.yaml` | the CA's |
//! | `DIR/uninstall` | the user's word that Adit leaves the nodes whose agents are ended |
//!
//! A file counts when its writer has closed it, or has put it in place by rename or link; names that begin with a dot
//! are nobody's. A directory is watched before it is listed, so that nothing falls between. DIR and `objects` may be
//! symbolic links, and may be switched, as may any link on the way to them; other directories reached by a link are not
//! followed. Files are, also those that change by a switch of `..data` (a mounted ConfigMap).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use adit_objects::yaml::TEXT_LEN_MAX;
use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::files::Reading;
use super::trouble::{Trouble, Wrong};

/// The most directories below `objects`: one inotify watch each, of the 8,192 that a user may have by the kernel's
/// oldest default.
const DIRS_MAX: usize = 4096;
/// The most files that are read: of a pod each, ten times what one directory mesh is for.
const FILES_MAX: usize = 65_536;
/// One read of events: an event is 16 bytes and its name, so at least 60 of them.
const EVENTS_LEN: usize = 16 * 1024;

const OBJECTS: &str = "objects";
const STATUS: &str = "status";
const BUNDLE: &str = "trust-bundle.yaml";
/// The file that says that Adit leaves the nodes whose agents are ended. What is in it is no matter.
const UNINSTALL: &str = "uninstall";
/// The link that the kubelet switches when a mounted ConfigMap changes.
const DATA_LINK: &str = "..data";

/// What a file is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Purpose {
    /// The user's objects.
    Objects,
    /// An agent's status.
    Status,
    /// The trust bundle.
    Bundle,
}

/// A mesh's directory, followed.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    /// The directory that is followed; none while none is watched.
    root_id: Option<DirId>,
    /// The directory of objects that is followed; none while none is watched.
    objects_id: Option<DirId>,
    events: EventStream<Vec<u8>>,
    watched: BTreeMap<WatchDescriptorKey, (WatchDescriptor, PathBuf)>,
    /// What changed since it was last taken.
    dirty: Dirty,
    troubles: BTreeMap<PathBuf, Wrong>,
}

/// inotify's number of a watch.
type WatchDescriptorKey = i32;

/// What tells one directory from another, as long as both are there: one that is made later may have the number of one
/// that is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct DirId {
    device: u64,
    inode: u64,
}

/// What must be read again.
#[derive(Debug, Default)]
struct Dirty {
    files: BTreeSet<PathBuf>,
    /// Directories to list again, with all that is below them.
    trees: BTreeSet<PathBuf>,
    /// Whether what cannot be followed has changed, which is to be shown.
    troubles: bool,
    /// Whether the word that Adit leaves may have come or gone.
    uninstall: bool,
}

/// What was found: every file that may have changed.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// Files of objects, not yet read: all of them at once would be a mesh in memory.
    pub(super) objects: Vec<PathBuf>,
    pub(super) status: Vec<(PathBuf, Reading)>,
    pub(super) bundle: Option<Reading>,
}

impl Directory {
    /// Begins to follow the directory; everything in it counts as changed.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        // Without it there would be nothing to follow, and no way to hear of its coming.
        let root_id = DirId::of(root)?;
        let mut directory = Self {
            root: root.to_path_buf(),
            root_id: Some(root_id),
            objects_id: None,
            events: Inotify::init()?.into_event_stream(vec![0; EVENTS_LEN])?,
            watched: BTreeMap::new(),
            dirty: Dirty::default(),
            troubles: BTreeMap::new(),
        };
        directory.watch(root)?;
        directory.follow_objects();
        directory.mark_all();
        Ok(directory)
    }

    /// Where the status files are.
    pub(super) fn status_dir(root: &Path) -> PathBuf {
        root.join(STATUS)
    }

    /// Everything must be read again.
    pub(super) fn mark_all(&mut self) {
        self.dirty.trees.insert(self.root.join(OBJECTS));
        self.dirty.trees.insert(self.root.join(STATUS));
        self.dirty.files.insert(self.root.join(BUNDLE));
    }

    /// Looks whether the directory's path or that of its objects leads to another one by now: it was replaced, or there
    /// is a link on the way that was switched, of which no event tells. If so, that one is followed, and everything in it
    /// counts as changed. While the path leads nowhere, what is known stays.
    pub(super) fn look(&mut self) {
        self.follow_root();
        self.follow_objects();
    }

    fn follow_root(&mut self) {
        let root = self.root.clone();
        let id = match DirId::of(&root) {
            Ok(id) if self.root_id == Some(id) => return,
            Ok(id) => id,
            Err(error) => {
                // What its watches would say is not found by its path. When that leads to it again, all is read again.
                self.unwatch_below(&root);
                return self.cannot_follow(&root, &error);
            }
        };
        self.unwatch_below(&root);
        if let Err(error) = self.watch(&root) {
            return self.cannot_follow(&root, &error);
        }
        self.root_id = Some(id);
        self.dirty.troubles |= self.troubles.remove(&root).is_some();
        self.mark_all();
    }

    fn follow_objects(&mut self) {
        let objects = self.root.join(OBJECTS);
        let id = DirId::of(&objects).ok();
        if self.objects_id == id {
            return;
        }
        self.unwatch_below(&objects);
        if id.is_none() {
            return;
        }
        if let Err(error) = self.watch(&objects) {
            return self.cannot_follow(&objects, &error);
        }
        self.objects_id = id;
        self.dirty.trees.insert(objects);
    }

    fn cannot_follow(&mut self, dir: &Path, error: &io::Error) {
        let what = Wrong::Unwatched(error.to_string());
        let before = self.troubles.insert(dir.to_path_buf(), what.clone());
        self.dirty.troubles |= before != Some(what);
    }

    /// How much there is to be read again, or to be shown.
    pub(super) fn pending(&self) -> usize {
        self.dirty.files.len()
            + self.dirty.trees.len()
            + usize::from(self.dirty.troubles || self.dirty.uninstall)
    }

    /// Whether the directory of objects is there. While it is not, what is known stays: an unmounted volume is not a
    /// mesh without policies.
    pub(super) fn has_objects(&self) -> bool {
        self.root.join(OBJECTS).is_dir()
    }

    /// Whether the user says that Adit leaves.
    pub(super) fn says_uninstall(&self) -> bool {
        self.root.join(UNINSTALL).exists()
    }

    /// What cannot be followed or listed.
    pub(super) fn troubles(&self) -> impl Iterator<Item = Trouble> {
        self.troubles.iter().map(|(file, what)| Trouble { file: file.clone(), at: None, what: what.clone() })
    }

    /// Returns once an event was taken in. Cancel-safe: an event is taken in whole or not at all.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        self.take_in(&event.wd, event.mask, event.name.as_deref());
        Ok(())
    }

    /// Reads what changed. `known` gives the files of objects and status that were there before.
    pub(super) fn read(&mut self, known: impl FnOnce() -> Vec<PathBuf>) -> Readings {
        let Dirty { mut files, trees, troubles: _, uninstall: _ } = std::mem::take(&mut self.dirty);
        let has_objects = self.has_objects();
        if !has_objects {
            // What is passed over now is read when they are there again.
            self.unwatch_below(&self.root.join(OBJECTS));
        }
        let known = if trees.is_empty() { Vec::new() } else { known() };
        for tree in trees {
            if tree == self.root.join(OBJECTS) && !has_objects {
                continue;
            }
            files.extend(known.iter().filter(|file| file.starts_with(&tree)).cloned());
            self.troubles.retain(|path, _| !path.starts_with(&tree));
            self.list(&tree, &mut files);
        }
        let mut readings = Readings::default();
        for file in files {
            match self.purpose(&file) {
                Some(Purpose::Objects) if has_objects => readings.objects.push(file),
                Some(Purpose::Objects) => {}
                Some(Purpose::Status) => readings.status.push((file.clone(), read(&file))),
                Some(Purpose::Bundle) => readings.bundle = Some(read(&file)),
                None => {}
            }
        }
        readings
    }

    fn take_in(&mut self, watch: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            // Events were lost, and nobody knows which.
            return self.mark_all();
        }
        let Some((_, dir)) = self.watched.get(&watch.get_watch_descriptor_id()) else {
            return;
        };
        let dir = dir.clone();
        if mask.intersects(EventMask::MOVE_SELF | EventMask::DELETE_SELF | EventMask::IGNORED) {
            return self.take_in_end(watch, &dir, mask);
        }
        let Some(name) = name else { return };
        let path = dir.join(name);
        // `objects` may be a link to a directory: that comes and goes as a file does.
        if mask.contains(EventMask::ISDIR) || path == self.root.join(OBJECTS) {
            return self.take_in_dir(&path, mask);
        }
        if name == DATA_LINK && dir == self.root {
            self.mark_all();
            self.follow_objects();
        } else if name == UNINSTALL && dir == self.root {
            self.dirty.uninstall = true;
        } else if name == DATA_LINK {
            self.dirty.trees.insert(dir);
        } else if self.purpose(&path).is_some() && (!mask.contains(EventMask::CREATE) || is_whole(&path)) {
            self.dirty.files.insert(path);
        }
    }

    /// A watched directory has gone, or has gone elsewhere. Of those below `objects`, the directory above says so too.
    fn take_in_end(&mut self, watch: &WatchDescriptor, dir: &Path, mask: EventMask) {
        if dir == self.root || dir == self.root.join(OBJECTS) {
            // Not even the same number means that the path leads to the same directory.
            self.unwatch_below(dir);
            self.look();
        } else if mask.contains(EventMask::IGNORED) {
            self.watched.remove(&watch.get_watch_descriptor_id());
        }
    }

    fn take_in_dir(&mut self, path: &Path, mask: EventMask) {
        if is_hidden(path) || !self.is_ours(path) {
            return;
        }
        if path == self.root.join(OBJECTS) {
            self.unwatch_below(path);
            return self.follow_objects();
        }
        if mask.contains(EventMask::MOVED_FROM) {
            // The watches went with it, to where nobody follows.
            self.unwatch_below(path);
        }
        self.dirty.trees.insert(path.to_path_buf());
    }

    /// Follows nothing any more that was at this path or below it.
    fn unwatch_below(&mut self, path: &Path) {
        if self.root.starts_with(path) {
            self.root_id = None;
        }
        if self.root.join(OBJECTS).starts_with(path) {
            self.objects_id = None;
        }
        for (_, (watch, _)) in self.watched.extract_if(.., |_, (_, dir)| dir.starts_with(path)) {
            // It may be gone by now, which is what is wanted.
            let _ = self.events.watches().remove(watch);
        }
    }

    /// Watches a directory, then lists it, and so on below it.
    fn list(&mut self, dir: &Path, files: &mut BTreeSet<PathBuf>) {
        let is_link = fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_symlink());
        if is_link && dir != self.root.join(OBJECTS) {
            // A tree is entered once, by its own name.
            return;
        }
        if self.watched.len() >= DIRS_MAX {
            self.troubles.insert(dir.to_path_buf(), Wrong::TooMany(DIRS_MAX));
            return;
        }
        let entries = self.watch(dir).and_then(|()| fs::read_dir(dir));
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                self.troubles.insert(dir.to_path_buf(), Wrong::Unwatched(error.to_string()));
                return;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && !is_hidden(&path) && path.starts_with(self.root.join(OBJECTS)) {
                self.list(&path, files);
            } else if !is_dir && self.purpose(&path).is_some() {
                if files.len() >= FILES_MAX {
                    self.troubles.insert(dir.to_path_buf(), Wrong::TooMany(FILES_MAX));
                    return;
                }
                files.insert(path);
            }
        }
    }

    fn watch(&mut self, dir: &Path) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::MOVE_SELF
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::EXCL_UNLINK;
        let watch = self.events.watches().add(dir, mask)?;
        // The same directory has the same number, and this is where it is now.
        self.watched.insert(watch.get_watch_descriptor_id(), (watch, dir.to_path_buf()));
        Ok(())
    }

    /// What a file is for, by its name and place.
    fn purpose(&self, file: &Path) -> Option<Purpose> {
        let below = file.strip_prefix(&self.root).ok()?;
        if below == Path::new(BUNDLE) {
            return Some(Purpose::Bundle);
        }
        let is_yaml = below.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if !is_yaml || below.components().any(|part| is_hidden(Path::new(part.as_os_str()))) {
            return None;
        }
        let parts: Vec<_> = below.iter().collect();
        match parts.first()?.to_str()? {
            OBJECTS if parts.len() > 1 => Some(Purpose::Objects),
            STATUS if parts.len() == 2 => Some(Purpose::Status),
            _ => None,
        }
    }

    /// Whether a directory is one of those that are followed.
    fn is_ours(&self, dir: &Path) -> bool {
        dir.starts_with(self.root.join(OBJECTS)) || dir == self.root.join(STATUS)
    }
}

/// Whether a file that has just been made is whole: a link to one that is. Any other is being written, and is heard of
/// again when its writer closes it.
fn is_whole(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

impl DirId {
    /// The directory that a path leads to.
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Reads one file.
pub(super) fn read(path: &Path) -> Reading {
    match read_text(path) {
        Ok(text) => Reading::Text(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Gone,
        Err(error) => Reading::Unreadable(error.to_string()),
    }
}

/// Reads a regular file; one byte more than is allowed, so that the reader of YAML refuses it by its length.
fn read_text(path: &Path) -> io::Result<String> {
    // A pipe would block for ever, and a device has no end.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let limit = u64::try_from(TEXT_LEN_MAX).unwrap_or(u64::MAX);
    let mut text = String::new();
    file.take(limit.saturating_add(1)).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
