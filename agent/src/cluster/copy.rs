//! The copy of what was accepted: an agent that starts while a file is broken, or while another agent's status file is
//! gone, goes on from its last good version.
//!
//! One file per file of `DIR/objects` or `DIR/status`, with its text as it was accepted, under RUN_DIR, which is gone
//! with the node. Holds texts, not models: a new version of the agent translates them anew. A copy that cannot be
//! written or read costs that last good version, and nothing else.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".copy";
/// The longest file name that file systems take; a longer one has no copy.
const NAME_LEN_MAX: usize = 255;

/// Where copies are kept.
#[derive(Debug)]
pub(super) struct Copy {
    dir: PathBuf,
}

impl Copy {
    /// Opens the directory, making it if it is missing; 0700: the objects may be nobody else's to read.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { dir })
    }

    /// Every file that there is a copy of.
    pub(super) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let names = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.file_name());
        let file = |name: OsString| Some(decoded(name.to_str()?.strip_suffix(SUFFIX)?));
        Ok(names.filter_map(file).collect())
    }

    /// The last accepted text of a file.
    pub(super) fn load(&self, file: &Path) -> Option<String> {
        fs::read_to_string(self.path(file)?).ok()
    }

    /// Keeps the accepted text of a file, whole or not at all.
    pub(super) fn keep(&self, file: &Path, text: &str) -> io::Result<()> {
        let Some(path) = self.path(file) else {
            return Ok(());
        };
        let fresh = self.dir.join(".fresh");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, path)
    }

    /// Forgets every file but these.
    pub(super) fn keep_only<'p>(&self, files: impl Iterator<Item = &'p Path>) -> io::Result<()> {
        let keep: std::collections::BTreeSet<_> = files.filter_map(|file| self.path(file)).collect();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == &SUFFIX[1..]) && !keep.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Forgets a file.
    pub(super) fn forget(&self, file: &Path) -> io::Result<()> {
        match self.path(file).map(fs::remove_file) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    /// One flat name for a path: `%` and `/` are written as in a URL.
    fn path(&self, file: &Path) -> Option<PathBuf> {
        let name = file.to_str()?.replace('%', "%25").replace('/', "%2F") + SUFFIX;
        (name.len() <= NAME_LEN_MAX).then(|| self.dir.join(name))
    }
}

/// The path that such a name stands for.
fn decoded(name: &str) -> PathBuf {
    // `%2F` first: what was `%2F` in the path is `%252F` in the name.
    name.replace("%2F", "/").replace("%25", "%").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_loaded_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let copy = Copy::open(dir.path().join("objects")).unwrap();
        let (a, b) = (Path::new("/mesh/objects/a.yaml"), Path::new("/mesh/objects%2Fa.yaml"));
        copy.keep(a, "one").unwrap();
        copy.keep(a, "two").unwrap();
        copy.keep(b, "other").unwrap();
        assert_eq!(copy.load(a).as_deref(), Some("two"));
        assert_eq!(copy.load(b).as_deref(), Some("other"));
        let mut files = copy.files().unwrap();
        files.sort();
        assert_eq!(files, [a, b], "by their own names");
        copy.keep_only([a].into_iter()).unwrap();
        assert_eq!((copy.load(a).is_some(), copy.load(b)), (true, None));
        copy.forget(a).unwrap();
        copy.forget(a).unwrap();
        assert_eq!(copy.load(a), None);
    }

    #[test]
    fn a_path_that_is_too_long_has_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let copy = Copy::open(dir.path().to_path_buf()).unwrap();
        let long = PathBuf::from("x".repeat(NAME_LEN_MAX));
        copy.keep(&long, "text").unwrap();
        assert_eq!(copy.load(&long), None);
    }
}
