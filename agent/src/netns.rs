//! Runs a piece of synchronous work with the calling thread inside a pod's network namespace.
//!
//! A socket belongs for ever to the namespace in which it was made, so only its making needs this; and since the work
//! is a plain closure, no `.await` can leave a task behind in a foreign namespace.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// Why a namespace could not be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Its file cannot be opened: the pod is gone, or it lies in a mount namespace that we do not see.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// Of the namespace.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is an ordinary one: a runtime makes it before it mounts the namespace on it.
    #[error("{} is no namespace", path.display())]
    NotNamespace {
        /// Of the file.
        path: PathBuf,
    },
    /// The thread may not enter it.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// Of the namespace.
        path: PathBuf,
        /// What the kernel said: EPERM without CAP_SYS_ADMIN, EINVAL where it is no network namespace.
        #[source]
        source: io::Error,
    },
    /// The thread is inside another one already.
    #[error("a thread inside a network namespace cannot enter another")]
    Nested,
}

/// A network namespace, held open: it lives at least as long as this handle. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: OwnedFd,
    inode: u64,
    path: PathBuf,
}

/// Where a thread belongs: opened once, at its first visit elsewhere.
struct Home {
    file: OwnedFd,
    inode: u64,
}

thread_local! {
    static HOME: OnceCell<Home> = const { OnceCell::new() };
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

impl Netns {
    /// Opens the namespace that is mounted at `path`, or that a `/proc/PID/ns/net` names.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotNamespace { path: path.to_owned() });
        }
        let inode = file.metadata().map_err(failed)?.ino();
        Ok(Self { inner: Arc::new(Inner { file: file.into(), inode, path: path.to_owned() }) })
    }

    /// Names the namespace among those that exist now. A later one may have the number of one that is gone.
    pub fn inode(&self) -> u64 {
        self.inner.inode
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs `work` with this thread inside the namespace, and returns afterwards, also when `work` panics.
    ///
    /// Costs two system calls (4 µs), none when the thread's own namespace is meant. `work` must not spawn threads:
    /// they would stay in the namespace (a child process is meant to). The thread's own namespace is the one in which
    /// it first called this; a thread that calls setns or unshare by itself must do so before.
    ///
    /// Aborts the process if the way back fails: a thread in the wrong namespace would leak traffic.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        if AWAY.get() {
            return Err(NetnsError::Nested);
        }
        let home = home_inode()?;
        if home == self.inner.inode {
            return Ok(work());
        }
        setns(&self.inner.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { path: self.inner.path.clone(), source: errno.into() })?;
        let _way_back = WayBack::begin();
        Ok(work())
    }
}

impl AsFd for Netns {
    /// The namespace file, for system calls that take one.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

/// The inode of the thread's own namespace, which is opened at the first call.
fn home_inode() -> Result<u64, NetnsError> {
    HOME.with(|home| {
        if let Some(home) = home.get() {
            return Ok(home.inode);
        }
        let own = Netns::open(Path::new("/proc/thread-self/ns/net"))?;
        let failed = |source| NetnsError::Open { path: own.inner.path.clone(), source };
        let file = own.inner.file.try_clone().map_err(failed)?;
        Ok(home.get_or_init(|| Home { file, inode: own.inner.inode }).inode)
    })
}

/// Brings the thread back when it goes out of scope, by return or by panic.
struct WayBack;

impl WayBack {
    fn begin() -> Self {
        AWAY.set(true);
        Self
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        let back = HOME.with(|home| home.get().map(|home| setns(&home.file, CloneFlags::CLONE_NEWNET)));
        if back != Some(Ok(())) {
            tracing::error!(
                "cannot leave a pod's network namespace ({back:?}): aborting, as this thread would leak traffic"
            );
            std::process::abort();
        }
        AWAY.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_file_or_none_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Netns::open(file.path()), Err(NetnsError::NotNamespace { .. })));
        assert!(matches!(Netns::open(Path::new("/nonexistent/net")), Err(NetnsError::Open { .. })));
    }

    #[test]
    fn work_for_the_thread_s_own_namespace_needs_no_privilege() {
        let own = Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap();
        assert_eq!(own.run(|| own.inode()).unwrap(), own.inode());
    }
}
