//! The mesh directory, seen from the CA: writes `trust-bundle.yaml`, reads what agents say in `status/`.
//!
//! Writes nothing else there. Who is behind is decided by [`crate::lifecycle`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::disk::{Access, Disk};
use crate::lifecycle::Agents;

/// The bundle's file in the mesh directory.
pub const BUNDLE: &str = "trust-bundle.yaml";
/// Where agents write, one file each.
pub const STATUS: &str = "status";

/// The longest status file that is read, in bytes. One captured pod takes about 100; 4 MiB are 40,000 pods on a node.
const STATUS_LEN_MAX: u64 = 4 * 1024 * 1024;
/// How many agents' files are read. With more, acknowledgement is not known and only the time bound counts.
pub(crate) const AGENTS_MAX: usize = 10_000;

/// A mesh directory.
#[derive(Debug)]
pub struct Mesh {
    dir: PathBuf,
    disk: Disk,
}

/// The part of an agent's status that matters here.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    bundle_generation: Option<u64>,
}

impl Mesh {
    /// The mesh at `dir`, which need not exist yet.
    pub fn new(dir: PathBuf, disk: Disk) -> Self {
        Self { dir, disk }
    }

    /// Where the bundle is written.
    pub fn bundle_path(&self) -> PathBuf {
        self.dir.join(BUNDLE)
    }

    /// Makes `trust-bundle.yaml` hold `manifest`; says whether it had to be written.
    pub fn publish(&self, manifest: &str) -> io::Result<bool> {
        if fs::read(self.bundle_path()).is_ok_and(|found| found == manifest.as_bytes()) {
            return Ok(false);
        }
        fs::create_dir_all(&self.dir)?;
        self.disk.replace(&self.dir, BUNDLE, manifest.as_bytes(), Access::Everybody)?;
        Ok(true)
    }

    /// Which bundle generation each agent has acknowledged. No `status` directory: no agents.
    pub fn agents(&self) -> Agents {
        let dir = self.dir.join(STATUS);
        match read_all(&dir) {
            Ok(known) if known.len() <= AGENTS_MAX => Agents::Known(known),
            Ok(_) => Agents::Unknown(format!("more than {AGENTS_MAX} files in {}", dir.display())),
            Err(error) => Agents::Unknown(format!("cannot list {}: {error}", dir.display())),
        }
    }
}

fn read_all(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut known = Vec::new();
    for entry in entries.take(AGENTS_MAX + 1) {
        let path = entry?.path();
        let is_status = path.extension().is_some_and(|extension| extension == "yaml");
        let node = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        if let Some(node) = node.filter(|node| is_status && !node.starts_with('.')) {
            // A file that cannot be read is an agent that has not acknowledged anything.
            known.push((node, acknowledged(&path).unwrap_or(0)));
        }
    }
    known.sort();
    Ok(known)
}

fn acknowledged(path: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.take(STATUS_LEN_MAX).read_to_string(&mut text).ok()?;
    serde_saphyr::from_str::<Status>(&text).ok()?.bundle_generation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> (tempfile::TempDir, Mesh) {
        let dir = tempfile::tempdir().unwrap();
        let mesh = Mesh::new(dir.path().join("mesh"), Disk::real());
        (dir, mesh)
    }

    #[test]
    fn the_bundle_is_written_once_and_mended_when_changed() {
        let (_dir, mesh) = mesh();
        assert!(mesh.publish("one").unwrap());
        assert!(!mesh.publish("one").unwrap());
        fs::write(mesh.bundle_path(), "scribble").unwrap();
        assert!(mesh.publish("one").unwrap());
        assert_eq!(fs::read_to_string(mesh.bundle_path()).unwrap(), "one");
    }

    #[test]
    fn a_writer_that_dies_anywhere_leaves_the_old_bundle_or_the_new() {
        for steps in 0..8 {
            let (_dir, mesh) = mesh();
            mesh.publish("old").unwrap();
            let dying = Mesh::new(mesh.dir.clone(), Disk::dying_after(steps));
            let done = dying.publish("a new one").is_ok();
            let found = fs::read_to_string(mesh.bundle_path()).unwrap();
            assert!(found == "a new one" || (found == "old" && !done), "{steps}: {found}");
            assert!(mesh.publish("a new one").is_ok());
        }
    }

    #[test]
    fn agents_say_what_they_know_and_silence_is_not_knowing() {
        let (_dir, mesh) = mesh();
        assert_eq!(mesh.agents(), Agents::Known(Vec::new()));
        let status = mesh.dir.join(STATUS);
        fs::create_dir_all(&status).unwrap();
        for (name, text) in [
            ("a.yaml", "bundle-generation: 7\ncaptured: [x]\nconditions: {y: {z: 1}}\n"),
            ("b.yaml", "captured: []\n"),
            ("c.yaml", "bundle-generation: [broken\n"),
            (".d.yaml", "bundle-generation: 1\n"),
            (".e.yaml.tmp", "bundle-generation: 1\n"),
            ("notes.txt", "bundle-generation: 1\n"),
        ] {
            fs::write(status.join(name), text).unwrap();
        }
        let known = [("a", 7), ("b", 0), ("c", 0)].map(|(node, known)| (node.to_owned(), known));
        assert_eq!(mesh.agents(), Agents::Known(known.into()));
        assert_eq!(mesh.agents().behind(7), Some(vec!["b", "c"]));
        assert_eq!(mesh.agents().behind(8), Some(vec!["a", "b", "c"]));
    }
}
