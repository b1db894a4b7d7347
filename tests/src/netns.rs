//! Network namespaces by name, on the sandbox's own `/run/netns`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::Run;

/// Where iproute2 and CNI runtimes look for namespaces.
const FOLDER: &str = "/run/netns";

/// A network namespace. Its name goes with the last clone; itself with its last process and socket.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
}

impl Netns {
    /// Makes one, with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        File::create_new(&path).with_context(|| format!("namespace {name}"))?;
        let made = thread::scope(|scope| scope.spawn(|| bind_new(&path)).join());
        let made = made.map_err(|_| anyhow!("the thread that makes {name} panicked"))?;
        made.with_context(|| format!("cannot make namespace {name}"))?;
        let file = File::open(&path).with_context(|| format!("cannot open namespace {name}"))?;
        let netns = Self(Arc::new(Inner { name: name.to_owned(), path, file }));
        // Addresses are usable at once, not after a second of looking for duplicates.
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The path that a CNI runtime would name.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs `work` on a thread inside the namespace, and waits for it. Sockets that it makes stay in the namespace,
    /// processes that it starts are born there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let inside = || -> Result<T> {
            setns(&self.0.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", self.name()))?;
            Ok(work())
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command to be run in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        Run::new(Some(self.clone()), program.as_ref())
    }

    /// Runs `ip` with each line of `batch`, all in one process.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let lines: String = batch.lines().map(|line| format!("{}\n", line.trim())).collect();
        self.command("ip").args(["-batch", "-"]).stdin(lines.into_bytes()).ok().map(drop)
    }

    /// Sets a sysctl of the namespace: `key` is its path below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::write(&path, value))?.with_context(|| format!("cannot set {key} in {}", self.name()))
    }
}

/// Gives the calling thread a new network namespace and binds that to `path`. The thread must end after it.
fn bind_new(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is left in case of an error is the sandbox's, and goes with it.
        let unmounted = umount2(&self.path, MntFlags::MNT_DETACH);
        let removed = fs::remove_file(&self.path);
        if unmounted.is_err() || removed.is_err() {
            eprintln!("cannot remove namespace {}: {unmounted:?} {removed:?}", self.name);
        }
    }
}
