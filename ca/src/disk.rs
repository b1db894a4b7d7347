//! Writes files so that whoever reads them, at any moment and after any crash, finds the old content or the new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc::O_NOFOLLOW;

/// Where files are written: the real disk, or one on which the writer dies after so many steps (for tests).
#[derive(Debug)]
pub struct Disk {
    steps_left: Option<AtomicU64>,
}

/// Who may read a written file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Its owner: 0600.
    Owner,
    /// Everybody: 0644.
    Everybody,
}

impl Disk {
    /// The real one.
    pub const fn real() -> Self {
        Self { steps_left: None }
    }

    /// One on which nothing happens any more after `steps` steps, as if the process had been killed there.
    pub const fn dying_after(steps: u64) -> Self {
        Self { steps_left: Some(AtomicU64::new(steps)) }
    }

    /// Replaces `dir/name` by `content`: temporary file in the same directory, fsync, rename, fsync of the directory.
    ///
    /// At most one writer at a time may write a given name.
    pub fn replace(&self, dir: &Path, name: &str, content: &[u8], access: Access) -> io::Result<()> {
        let mode = match access {
            Access::Owner => 0o600,
            Access::Everybody => 0o644,
        };
        let temporary = dir.join(format!(".{name}.tmp"));
        self.step()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(O_NOFOLLOW)
            .open(&temporary)?;
        // Whatever the umask, and whatever a dead writer left behind.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        let (first, second) = content.split_at(content.len() / 2);
        self.step()?;
        file.write_all(first)?;
        self.step()?;
        file.write_all(second)?;
        self.step()?;
        file.sync_all()?;
        self.step()?;
        fs::rename(&temporary, dir.join(name))?;
        self.step()?;
        File::open(dir)?.sync_all()
    }

    /// Removes `dir/name`; that it is gone already is no error.
    pub fn remove(&self, dir: &Path, name: &str) -> io::Result<()> {
        self.step()?;
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Counts one step down.
    fn step(&self) -> io::Result<()> {
        let Some(left) = &self.steps_left else {
            return Ok(());
        };
        match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("killed here by the test")),
        }
    }
}
