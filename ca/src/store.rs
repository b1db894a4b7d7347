//! Keeps the CA's [`State`] in a directory.
//!
//! One file, `state.json` (0600), replaced as a whole; so a process that is killed at any point leaves the old state
//! or the new. A store that was begun and cannot be read is an error: a new root is made only where there was never
//! one. Knows nothing of what a state means.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use adit_proto::TrustDomain;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::cluster::ClusterError;
use crate::disk::{Access, Disk};
use crate::root::PemError;
use crate::state::{ReadError, State, StateError};
use crate::status::Progress;

mod given;
mod requests;

pub use requests::{Left, RequestError, leave, pending};

const STATE: &str = "state.json";
const PROGRESS: &str = "status.json";
const LOCK: &str = "lock";
/// Says that a state was stored once: without `state.json` beside it, the state was lost.
const BEGUN: &str = "begun";

/// The longest file that is read, in bytes. A state with a full kill list and two authorities has about 600 KiB.
pub const FILE_LEN_MAX: u64 = 4 * 1024 * 1024;

/// Why the store cannot be used. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another process holds the store.
    #[error("{path} is held by another adit-ca (process {pid}): two on one store would issue under two truths", path = path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as it has said.
        pid: String,
    },
    /// A file with keys is open to others.
    #[error("{path} has mode {mode:04o}: only its owner may have access (chmod {wanted:04o})", path = path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be at most.
        wanted: u32,
    },
    /// Longer than [`FILE_LEN_MAX`].
    #[error("{path} is longer than {FILE_LEN_MAX} bytes", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Not what this program writes.
    #[error("{path} is broken; no new root is made in its place: restore it from a backup", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Readable, but wrong.
    #[error("{path} {source}", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: StateError,
    },
    /// There was a state, and it is gone.
    #[error(
        "{path} is missing, although this store was begun; no new root is made in its place: restore it from a \
         backup, or use another directory to begin anew",
        path = path.display()
    )]
    Lost {
        /// The missing file.
        path: PathBuf,
    },
    /// The objects in the cluster cannot be used.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A root given by hand is incomplete.
    #[error("{path} is missing: tls.crt, tls.key and ca.crt are used together or not at all", path = path.display())]
    GivenInPart {
        /// The missing file.
        path: PathBuf,
    },
    /// A root given by hand cannot be read.
    #[error("{path} {source}", path = path.display())]
    Given {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PemError,
    },
}

/// A store held by this process.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    disk: Disk,
    /// Held as long as the store is.
    _lock: Lock,
}

impl Store {
    /// Opens a store, makes its directory if need be, and locks it against other CAs.
    pub fn open(dir: &Path, disk: Disk) -> Result<Self, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))?;
        let mode = fs::metadata(dir).map_err(failed("look at", dir))?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            let path = dir.to_owned();
            return Err(StoreError::Open { path, mode, wanted: 0o700 });
        }
        Ok(Self { _lock: lock(dir)?, dir: dir.to_owned(), disk })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How this store writes.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The stored state; `None` if there never was one.
    pub fn load(&self, domain: &TrustDomain) -> Result<Option<State>, StoreError> {
        let state = peek(&self.dir)?;
        if let Some(state) = &state {
            state.check(domain).map_err(|source| StoreError::State { path: self.dir.join(STATE), source })?;
        }
        Ok(state)
    }

    /// Replaces the stored state. When this returns, the new one is on disk; when it fails, the old or the new is.
    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        let path = self.dir.join(STATE);
        let text = serde_json::to_vec_pretty(state)
            .map_err(|source| StoreError::Json { path: path.clone(), source })?;
        let failed = failed("write", &path);
        self.disk.replace(&self.dir, STATE, &text, Access::Owner).map_err(failed)?;
        let begun = self.dir.join(BEGUN);
        if begun.exists() {
            return Ok(());
        }
        let note = b"This store was begun. Without state.json beside it, the CA's keys are lost.\n";
        self.disk.replace(&self.dir, BEGUN, note, Access::Owner).map_err(self::failed("write", &begun))
    }
}

impl Store {
    /// Shows how the CA stands to `adit-ca status`.
    pub fn save_progress(&self, progress: &Progress) -> Result<(), StoreError> {
        let path = self.dir.join(PROGRESS);
        let text = serde_json::to_vec_pretty(progress)
            .map_err(|source| StoreError::Json { path: path.clone(), source })?;
        let failed = failed("write", &path);
        self.disk.replace(&self.dir, PROGRESS, &text, Access::Owner).map_err(failed)
    }
}

/// How the CA that holds, or last held, the store at `dir` stands; `None` if it has not said.
pub fn progress(dir: &Path) -> Result<Option<Progress>, StoreError> {
    let path = dir.join(PROGRESS);
    let Some(text) = read(&path, Secret::No)? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| StoreError::Json { path, source })
}

/// Reads a store's state without holding it; `None` if there never was one.
pub fn peek(dir: &Path) -> Result<Option<State>, StoreError> {
    let path = dir.join(STATE);
    let Some(text) = read(&path, Secret::Yes)? else {
        return if dir.join(BEGUN).exists() { Err(StoreError::Lost { path }) } else { Ok(None) };
    };
    State::read(&text).map(Some).map_err(|error| match error {
        ReadError::Json(source) => StoreError::Json { path, source },
        ReadError::State(source) => StoreError::State { path, source },
    })
}

/// Whether a CA holds this store now. Only looks: a lock taken to find out could keep a CA from starting just then.
pub fn is_held(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else {
        return false;
    };
    let mut found = whole_file(libc::F_WRLCK);
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.is_ok() && i32::from(found.l_type) != libc::F_UNLCK
}

/// Whether a file holds keys, and so must not be open to others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Secret {
    Yes,
    No,
}

/// Reads a file of at most [`FILE_LEN_MAX`]; `None` if there is none.
fn read(path: &Path, secret: Secret) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", path))?,
    };
    let metadata = file.metadata().map_err(failed("look at", path))?;
    let mode = metadata.mode() & 0o7777;
    if secret == Secret::Yes && mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(StoreError::Open { path, mode, wanted: 0o600 });
    }
    let mut content = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut content).map_err(failed("read", path))?;
    if u64::try_from(content.len()).is_ok_and(|len| len <= FILE_LEN_MAX) {
        Ok(Some(content))
    } else {
        Err(StoreError::TooLong { path: path.to_owned() })
    }
}

/// The locked file. The lock is the open file's, so the kernel ends it with the process, however that ends.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    /// Said, not left to the close: a process that another thread has just made has the file open too, until it has
    /// become its program.
    fn drop(&mut self) {
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }
}

fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => {
            // Only for the message that another process gives.
            let _ = file.set_len(0);
            let _ = write!(file, "{}", std::process::id());
            Ok(Lock(file))
        }
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let mut pid = String::new();
            let _ = file.take(20).read_to_string(&mut pid);
            Err(StoreError::Held { path, pid })
        }
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// A lock of this kind on a whole file, however long. `l_pid` must be 0 (fcntl(2), open file description locks).
fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("the kinds of locks are 0, 1 and 2"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

#[cfg(test)]
mod tests;
