//! Keys and certificates kept over a restart, so that a restarted agent serves without the CA.
//!
//! Only on tmpfs: a private key never reaches a disk. One file per identity, 0600 in a directory that is made with 0700
//! and is the agent's own, written beside and renamed. What is named otherwise in that directory is somebody else's and
//! never touched. What is read back is checked like the CA's answer. Nothing here logs a key.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_proto::SpiffeId;
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{Uid, geteuid};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::cert::{Certificate, Secret};

/// The longest file that is read or written. An entry is about 3 KiB (a chain of two, a P-256 key); RSA chains fit.
const FILE_LEN_MAX: usize = 64 * 1024;

/// Where the journal keeps keys, or why it does not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Keeping {
    /// In this directory, which lies on tmpfs.
    Tmpfs(PathBuf),
    /// Nowhere: the directory is not on tmpfs. A restarted agent asks the CA.
    NotTmpfs(PathBuf),
    /// Nowhere: the directory cannot be used.
    Unusable(PathBuf, io::ErrorKind),
    /// Nowhere: none is configured.
    Off,
}

/// The directory. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// Set while a successor has the directory: then it is its, and not touched.
    left: Arc<AtomicBool>,
}

/// What was kept for one identity. Not checked yet.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) secret: Secret,
    pub(crate) at: SystemTime,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    version: u32,
    id: SpiffeId,
    issued_at_ms: u64,
    chain: Vec<String>,
    key: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

const VERSION: u32 = 1;

impl Journal {
    /// Opens the directory, making it if it is missing, if it lies on tmpfs.
    pub(crate) fn open(dir: Option<&Path>) -> (Option<Self>, Keeping) {
        let Some(dir) = dir else {
            return (None, Keeping::Off);
        };
        match prepare(dir, geteuid()) {
            Ok(true) => {
                let journal = Self { dir: dir.to_owned(), left: Arc::default() };
                (Some(journal), Keeping::Tmpfs(dir.to_owned()))
            }
            Ok(false) => (None, Keeping::NotTmpfs(dir.to_owned())),
            Err(error) => (None, Keeping::Unusable(dir.to_owned(), error.kind())),
        }
    }

    /// From now on nothing is written or removed; or, not `left`, it is again.
    pub(crate) fn leave(&self, left: bool) {
        self.left.store(left, Ordering::Relaxed);
    }

    /// Keeps this certificate in place of the one kept before.
    pub(crate) fn keep(&self, certificate: &Certificate) -> io::Result<()> {
        if self.left.load(Ordering::Relaxed) {
            return Ok(());
        }
        let since = certificate.issue.at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let entry = Entry {
            version: VERSION,
            id: certificate.id.clone(),
            issued_at_ms: u64::try_from(since.as_millis()).unwrap_or(0),
            chain: certificate.chain.cert.iter().map(|der| STANDARD.encode(der)).collect(),
            key: STANDARD.encode(certificate.secret.expose()),
        };
        // Room for all of it at once: growing would leave copies of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX));
        serde_json::to_writer(&mut *text, &entry)?;
        if text.len() > FILE_LEN_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let path = self.path(&certificate.id);
        let fresh = path.with_extension("new");
        remove(&fresh)?;
        // Only as a file that is new: what may have been put there meanwhile, a link too, is not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        fs::rename(&fresh, &path)
    }

    /// What is kept for `id`; nothing if that is damaged or not private, which is then removed.
    pub(crate) fn kept(&self, id: &SpiffeId) -> Option<Kept> {
        let path = self.path(id);
        match read(&path) {
            Ok(entry) if entry.version == VERSION && entry.id == *id => entry.kept(),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => None,
        }
        .or_else(|| {
            tracing::warn!(%id, "kept certificate cannot be used and is removed");
            self.remove(id);
            None
        })
    }

    /// Removes what is kept for `id`.
    pub(crate) fn remove(&self, id: &SpiffeId) {
        if !self.left.load(Ordering::Relaxed)
            && let Err(error) = remove(&self.path(id))
        {
            tracing::warn!(%id, %error, "kept certificate cannot be removed");
        }
    }

    /// Removes all that is kept for identities that nobody needs (their pods went while no agent ran).
    pub(crate) fn sweep(&self, is_needed: impl Fn(&SpiffeId) -> bool) -> io::Result<()> {
        if self.left.load(Ordering::Relaxed) {
            return Ok(());
        }
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            if !is_own_name(&path) {
                continue;
            }
            if !read(&path).is_ok_and(|entry| is_needed(&entry.id)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Identities may be longer than file names: the name is a digest, the file says whose it is.
    fn path(&self, id: &SpiffeId) -> PathBuf {
        use std::fmt::Write as _;
        let mut name = String::with_capacity(64 + ".json".len());
        for byte in digest::digest(&digest::SHA256, id.as_str().as_bytes()).as_ref() {
            write!(name, "{byte:02x}").expect("writing to a String cannot fail");
        }
        name.push_str(".json");
        self.dir.join(name)
    }
}

impl Entry {
    fn kept(&self) -> Option<Kept> {
        let chain = self.chain.iter().map(|der| STANDARD.decode(der).ok().map(CertificateDer::from));
        Some(Kept {
            chain: chain.collect::<Option<_>>()?,
            secret: Secret::new(STANDARD.decode(&self.key).ok()?),
            at: UNIX_EPOCH.checked_add(Duration::from_millis(self.issued_at_ms))?,
        })
    }
}

/// Whether this is named as [`Journal::path`] names, or as what is written before it is renamed to that.
fn is_own_name(path: &Path) -> bool {
    let is_digest =
        |stem: &str| stem.len() == 64 && stem.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_known = |extension: &str| matches!(extension, "json" | "new");
    path.file_stem().and_then(OsStr::to_str).is_some_and(is_digest)
        && path.extension().and_then(OsStr::to_str).is_some_and(is_known)
}

/// Makes the directory if it is missing; whether it lies on tmpfs. One into which others than `me` may write is none for
/// keys: by its mode, or because it is theirs, whatever its mode. Neither is changed, as it may be somebody else's.
fn prepare(dir: &Path, me: Uid) -> io::Result<bool> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if statfs(dir)?.filesystem_type() != TMPFS_MAGIC {
        return Ok(false);
    }
    let others_write = 0o022;
    let meta = fs::metadata(dir)?;
    if meta.mode() & others_write != 0 || meta.uid() != me.as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(true)
}

fn read(path: &Path) -> io::Result<Entry> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.mode() & 0o077 != 0 || meta.uid() != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX));
    file.take(FILE_LEN_MAX as u64).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_somebody_else_holds_no_keys_though_only_its_owner_may_write_there() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mine = fs::metadata(dir.path()).unwrap().uid();
        assert!(prepare(dir.path(), Uid::from_raw(mine)).unwrap());
        // To give it away takes root; to whom it is somebody else's does not.
        let refused = prepare(dir.path(), Uid::from_raw(mine + 1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
