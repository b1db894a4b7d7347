//! A file of ours, and which there are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::lexer::Text;

/// A file of ours.
#[derive(Clone, Debug)]
pub struct File {
    /// Relative to the top of the checkout.
    pub path: PathBuf,
    /// Its text, code and comments apart.
    pub text: Text,
}

impl File {
    /// Reads the file at `path`, relative to `root`.
    pub fn read(root: &Path, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), text: Text::split(&text) })
    }

    /// Whether all of it is test code: `tests.rs`, or anything under a folder of tests.
    pub fn is_test(&self) -> bool {
        let folder = |name: &str| self.path.components().any(|part| part.as_os_str() == name);
        self.path.ends_with("tests.rs") || folder("tests")
    }

    /// Whether a program wrote it.
    pub fn is_generated(&self) -> bool {
        self.path.components().any(|part| part.as_os_str() == "gen")
    }
}

/// All files below `folder` (relative to `root`) with this ending, sorted; no folder named target or `.git`.
pub fn files(root: &Path, folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(root.join(&folder)).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let path = folder.join(entry.file_name());
            let name = entry.file_name();
            if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
