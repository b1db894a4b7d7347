//! Whose turn it is where several installers are on a node, as in an upgrade: the newest one's. An older one stands by,
//! and takes over again if the newer is gone; it never undoes what a newer does.
//!
//! The turn is a lock on a file beside the agent's socket. Who takes it makes a file of their own, locks it and renames
//! it into place: the former holder finds another file there. The kernel lets go of the lock of a killed one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use adit_proto::cni::{INSTALLER_FILE as FILE, INSTALLER_UNINSTALLED as UNINSTALLED};

use super::disk;

/// A turn that was taken.
#[derive(Debug)]
pub(crate) struct Turn {
    path: PathBuf,
    held: File,
}

impl Turn {
    /// Takes it, from whoever has it.
    pub(crate) fn take(socket: &Path) -> io::Result<Self> {
        let path = socket.with_file_name(FILE);
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(dir)?;
        let temp = dir.join(disk::temp_name());
        let held = OpenOptions::new().write(true).create_new(true).open(&temp)?;
        held.lock()?;
        fs::rename(&temp, &path)?;
        Ok(Self { path, held })
    }

    /// Whether it is still ours; and takes it again from a newer installer that is gone.
    pub(crate) fn is_ours(&mut self) -> io::Result<bool> {
        let mut there = match File::open(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.take_again(),
            Err(error) => return Err(error),
        };
        let id = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
        if id(&there)? == id(&self.held)? {
            return Ok(true);
        }
        match there.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut said = Vec::new();
        Read::by_ref(&mut there).take(64).read_to_end(&mut said)?;
        if said == UNINSTALLED { Ok(false) } else { self.take_again() }
    }

    fn take_again(&mut self) -> io::Result<bool> {
        *self = Self::take(&self.path)?;
        Ok(true)
    }

    /// Leaves word that Adit was taken off the node.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.held.write_all(UNINSTALLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_has_the_turn_and_an_older_one_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/cni.sock");
        let mut old = Turn::take(&socket).unwrap();
        assert!(old.is_ours().unwrap());
        let mut new = Turn::take(&socket).unwrap();
        assert_eq!((old.is_ours().unwrap(), new.is_ours().unwrap()), (false, true));
        drop(new);
        assert!(old.is_ours().unwrap());
    }

    #[test]
    fn nobody_who_stood_by_takes_over_after_an_uninstall_but_a_new_installer_does() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cni.sock");
        let mut old = Turn::take(&socket).unwrap();
        Turn::take(&socket).unwrap().end().unwrap();
        assert!(!old.is_ours().unwrap());
        assert!(Turn::take(&socket).unwrap().is_ours().unwrap());
        assert!(old.is_ours().unwrap(), "the new one is gone, and Adit is installed again");
    }

    #[test]
    fn a_lost_file_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cni.sock");
        let mut turn = Turn::take(&socket).unwrap();
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(turn.is_ours().unwrap());
        assert!(dir.path().join(FILE).exists());
    }
}
