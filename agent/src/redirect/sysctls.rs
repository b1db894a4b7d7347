//! Reads and writes sysctls of a pod's network namespace.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens a file there. Where `/proc/sys` is mounted read-only,
//! as in an unprivileged container, a thread of its own mounts a fresh proc in a mount namespace of its own, and ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use adit_core::redirect::Sysctl;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::error::RedirectError;
use crate::netns::{Netns, NetnsError};

/// What writing did.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// What was changed, with its value before.
    pub(super) before: Vec<(Sysctl, String)>,
    /// What could not be written.
    pub(super) refused: Vec<Sysctl>,
}

/// Every sysctl with the value that capture wants.
pub(super) fn wanted() -> Vec<(Sysctl, String)> {
    Sysctl::ALL.map(|sysctl| (sysctl, sysctl.wanted().to_owned())).to_vec()
}

/// The sysctls that are not as wanted, with what stands; what cannot be read cannot be changed either.
pub(super) fn standing(netns: &Netns) -> Result<Vec<(Sysctl, String)>, RedirectError> {
    let differs = |sysctl: Sysctl| {
        let value = read(sysctl).ok().filter(|value| value != sysctl.wanted())?;
        Some((sysctl, value))
    };
    Ok(netns.run(|| Sysctl::ALL.into_iter().filter_map(differs).collect())?)
}

/// Writes those values that differ from what stands. One that cannot be written does not keep the others back.
pub(super) async fn write(netns: &Netns, values: Vec<(Sysctl, String)>) -> Result<Written, RedirectError> {
    let (done, result) = tokio::sync::oneshot::channel();
    let netns = netns.clone();
    // A thread of its own, as it may end in a mount namespace of its own.
    let helper = move || {
        let _caller_gone = done.send(write_here(&netns, &values));
    };
    std::thread::Builder::new()
        .name("adit-sysctl".to_owned())
        .spawn(helper)
        .map_err(RedirectError::Thread)?;
    match result.await {
        Ok(written) => Ok(written?),
        Err(_) => Err(RedirectError::Thread(io::Error::other("the sysctl thread panicked"))),
    }
}

/// The sysctls that can be read and are not as wanted; 10 µs.
pub(super) fn changed(netns: &Netns) -> Result<Vec<Sysctl>, RedirectError> {
    Ok(standing(netns)?.into_iter().map(|(sysctl, _)| sysctl).collect())
}

fn write_here(netns: &Netns, values: &[(Sysctl, String)]) -> Result<Written, NetnsError> {
    let mut written = Written::default();
    netns.run(|| {
        for (sysctl, value) in values {
            written.set(*sysctl, value);
        }
    })?;
    let refused: Vec<Sysctl> = std::mem::take(&mut written.refused);
    if refused.is_empty() {
        return Ok(written);
    }
    let fresh = fresh_proc(netns)?.is_ok();
    netns.run(|| {
        for (sysctl, value) in values.iter().filter(|(sysctl, _)| refused.contains(sysctl)) {
            if fresh {
                written.set(*sysctl, value);
            } else {
                written.refused.push(*sysctl);
            }
        }
    })?;
    Ok(written)
}

impl Written {
    fn set(&mut self, sysctl: Sysctl, value: &str) {
        match read(sysctl) {
            Ok(stands) if stands == value => {}
            Ok(stands) if fs::write(path(sysctl), value).is_ok() => self.before.push((sysctl, stands)),
            Ok(_) | Err(_) => self.refused.push(sysctl),
        }
    }
}

/// Moves this thread to a mount namespace of its own with a proc that may be written to. Refused in a user namespace
/// whose own proc is partly hidden.
fn fresh_proc(netns: &Netns) -> Result<io::Result<()>, NetnsError> {
    let moved = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let none = None::<&Path>;
        mount(none, Path::new("/"), none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(Path::new("proc")), Path::new("/proc"), Some(Path::new("proc")), flags, none)
    };
    netns.run(|| moved().map_err(io::Error::from))
}

fn path(sysctl: Sysctl) -> PathBuf {
    Path::new("/proc/sys").join(sysctl.path())
}

fn read(sysctl: Sysctl) -> io::Result<String> {
    fs::read_to_string(path(sysctl)).map(|value| value.trim().to_owned())
}
