//! The pods that started while no agent was there to be asked, as the CNI plugin wrote them down.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use adit_core::pods::PODS_MAX;
use adit_proto::cni::{self, Add, FRAME_LEN_MAX, HEADER_LEN, MISSED_DIR, Request};

/// The folder of them.
#[derive(Debug)]
pub(super) struct Missed {
    dir: PathBuf,
}

/// One file of it.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    /// What it says; none where it is none of ours, or damaged.
    pub(super) add: Option<Add>,
}

impl Missed {
    /// The folder beside the CNI socket.
    pub(super) fn beside(socket: &Path) -> Self {
        Self { dir: socket.with_file_name(MISSED_DIR) }
    }

    /// What is there now, at most [`PODS_MAX`]; each is there again until [`Note::drop_it`].
    pub(super) fn notes(&self) -> Vec<Note> {
        let Ok(files) = fs::read_dir(&self.dir) else { return Vec::new() };
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        // A temp file is being written.
        let whole = paths.filter(|path| !file_name(path).starts_with('.')).take(PODS_MAX);
        whole.map(|path| Note { add: read(&path), path }).collect()
    }
}

impl Note {
    /// Nobody needs it any more.
    pub(super) fn drop_it(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "cannot remove what the CNI plugin left");
        }
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn read(path: &Path) -> Option<Add> {
    let bound = u64::try_from(HEADER_LEN + FRAME_LEN_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(bound).read_to_end(&mut bytes).ok()?;
    match cni::decode(&bytes).ok()?? {
        (Request::Add(add), _) if add.container_id.as_str() == file_name(path) => Some(add),
        (Request::Add(_) | Request::Del(_) | Request::Check(_) | Request::Gc(_), _) => None,
        (Request::Status | Request::Removal | Request::Handover | Request::Serving(_), _) => None,
    }
}
