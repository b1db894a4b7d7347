//! Keeps packages from starting their services while they are installed, and the host as it was afterwards.
//!
//! Debian's maintainer scripts ask the file [`POLICY`] whether a service may start. The file that is put there names the
//! process that did it, so that a run that was killed is cleared up after by the next one.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// Where Debian looks for it.
pub(super) const POLICY: &str = "/usr/sbin/policy-rc.d";

/// How the line begins that says whose the file is; the process's id and the time of its start follow.
const MARK: &str = "# of `cargo xtask`, process ";

/// While this lives, Debian's maintainer scripts start no service (policy-rc.d answers 101, "action forbidden"), and
/// the signals that would end this process wait, in its children too, until the file is gone.
pub(super) struct NoServices {
    /// The file, if it is ours to remove; one that was there stays as it was.
    ours: Option<PathBuf>,
    /// Dropped after the file was removed: fields go after the drop of their owner.
    _signals: Held,
}

impl NoServices {
    /// Puts the file at `policy`, unless another's is there.
    pub(super) fn begin(policy: &Path) -> Result<Self> {
        let signals = Held::begin()?;
        remove_stale(policy)?;
        let is_ours = put(policy).context("cannot make policy-rc.d, without which services would start")?;
        Ok(Self { ours: is_ours.then(|| policy.to_owned()), _signals: signals })
    }
}

impl NoServices {
    /// Removes the file, if it is ours.
    fn end(&mut self) {
        if let Some(policy) = self.ours.take()
            && let Err(error) = fs::remove_file(&policy)
        {
            let policy = policy.display();
            eprintln!("cannot remove {policy}: {error}; remove it by hand, it keeps services from starting");
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes the file beside its place and links it there, so that it is never there in part; `false` if another's is there.
fn put(policy: &Path) -> io::Result<bool> {
    let fresh = policy.with_extension(format!("d.{}", process::id()));
    let text = format!("#!/bin/sh\n{}\nexit 101\n", mark(process::id()));
    let mut options = OpenOptions::new();
    let put = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::hard_link(&fresh, policy));
    let removed = fs::remove_file(&fresh);
    match put {
        Ok(()) => removed.map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the file at `policy` if a run of ours that is over has left it; any other stays.
pub(super) fn remove_stale(policy: &Path) -> Result<()> {
    let text = match fs::read(policy) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", policy.display())),
    };
    let text = String::from_utf8_lossy(&text);
    let Some(line) = text.lines().find(|line| line.starts_with(MARK)) else {
        return Ok(());
    };
    let id = line[MARK.len()..].split(' ').next().and_then(|id| id.parse().ok());
    if id.is_some_and(|id| mark(id) == line) {
        return Ok(());
    }
    println!("removing {}: a run that was killed has left it", policy.display());
    fs::remove_file(policy).with_context(|| format!("cannot remove {}", policy.display()))
}

/// The line that names a process as it runs now; of one that does not, a line that no file holds.
fn mark(id: u32) -> String {
    format!("{MARK}{id} of {}", started(id).unwrap_or_default())
}

/// When a process started, in the kernel's ticks since boot: an id alone may be another's by now.
fn started(id: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in brackets, may hold anything; the time is field 22 of all.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19).map(str::to_owned)
}

/// Holds up the signals that end a process, in this thread, which is the only one, and in the children that it starts
/// meanwhile. What has come is delivered when this is dropped.
struct Held;

const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

impl Held {
    fn begin() -> Result<Self> {
        SigSet::from_iter(ENDING).thread_block().context("cannot hold up signals")?;
        Ok(Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It fails for a wrong argument only; then a signal that has come ends nothing, and the next does.
        let _ = SigSet::from_iter(ENDING).thread_unblock();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use nix::sys::signal::raise;

    use super::*;

    /// A place for the file, empty and of this test's own.
    fn place(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("adit-policy-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder.join("policy-rc.d")
    }

    fn clear(policy: &Path) {
        fs::remove_dir_all(policy.parent().unwrap()).unwrap();
    }

    #[test]
    fn no_service_starts_meanwhile_and_nothing_is_left() {
        let policy = place("ours");
        let begun = NoServices::begin(&policy).unwrap();
        // Read by a shell, as nobody may run a file that is open for writing, and another test's child has copies of all.
        assert_eq!(Command::new("sh").arg(&policy).status().unwrap().code(), Some(101));
        assert_ne!(fs::metadata(&policy).unwrap().permissions().mode() & 0o111, 0, "it can be run");
        let beside: Vec<_> = fs::read_dir(policy.parent().unwrap()).unwrap().collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
        drop(begun);
        assert!(!policy.exists());
        clear(&policy);
    }

    #[test]
    fn what_a_killed_run_left_is_replaced_and_removed() {
        let policy = place("stale");
        let mut ended = Command::new("true").spawn().unwrap();
        let of_it = mark(ended.id());
        ended.wait().unwrap();
        // The same id again, of a process that began at another time.
        let reused = format!("{MARK}{} of 1", process::id());
        for line in [of_it, reused, MARK.to_owned()] {
            fs::write(&policy, format!("#!/bin/sh\n{line}\nexit 101\n")).unwrap();
            drop(NoServices::begin(&policy).unwrap());
            assert!(!policy.exists(), "{line}");
        }
        clear(&policy);
    }

    #[test]
    fn a_strangers_file_and_that_of_a_run_that_goes_on_stay() {
        let policy = place("theirs");
        for theirs in ["#!/bin/sh\nexit 101\n".to_owned(), format!("#!/bin/sh\n{}\n", mark(process::id()))] {
            fs::write(&policy, &theirs).unwrap();
            drop(NoServices::begin(&policy).unwrap());
            assert_eq!(fs::read_to_string(&policy).unwrap(), theirs);
        }
        clear(&policy);
    }

    #[test]
    fn a_signal_waits_until_the_file_is_gone() {
        let policy = place("signal");
        let mut begun = NoServices::begin(&policy).unwrap();
        for signal in ENDING {
            raise(signal).unwrap();
        }
        assert!(policy.exists());
        begun.end();
        assert!(!policy.exists());
        // They are there, and taken now: what follows would deliver them.
        for _ in ENDING {
            SigSet::from_iter(ENDING).wait().unwrap();
        }
        drop(begun);
        clear(&policy);
    }
}
