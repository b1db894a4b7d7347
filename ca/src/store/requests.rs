//! Request files: how `adit-ca rotate` and `adit-ca revoke` reach the CA that holds the store.
//!
//! A request is one file in `requests/`, written whole and named so that the order of names is the order of asking.
//! Who may write there owns the CA's keys anyway.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Secret, Store, StoreError, failed, read};
use crate::disk::{Access, Disk};
use crate::lifecycle::Request;
use crate::serial::{NoRandomness, Serial};
use crate::state::Subject;

const DIR: &str = "requests";
const EXTENSION: &str = "json";

/// How many requests are taken up at a time. More stay where they are until these are done.
const TAKEN_AT_ONCE_MAX: usize = 64;

/// A request that lies in the store.
#[derive(Debug)]
pub struct Left {
    /// The file's name.
    pub name: String,
    /// What it asks for, or why it cannot be read.
    pub request: Result<Request, RequestError>,
}

/// Why a request cannot be left or read.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not what `adit-ca rotate` or `adit-ca revoke` write.
    #[error("is no request")]
    Json(#[from] serde_json::Error),
    /// No random numbers for its name.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The directory is no store.
    #[error("{path} is no store: no adit-ca has begun one there", path = .0.display())]
    NoStore(PathBuf),
}

impl RequestError {
    /// Whether the next attempt may go otherwise: then the request is neither refused nor forgotten.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Store(StoreError::Io { source, .. }) => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Store(_) | Self::Json(_) | Self::NoRandomness(_) | Self::NoStore(_) => false,
        }
    }
}

/// The form of a request in its file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "ask")]
enum Written {
    RotateRoot {},
    Revoke { subject: Subject },
    Restore { subject: Subject },
}

/// Leaves a request in the store at `dir`, for the CA that holds it or the next one that does; returns its name.
pub fn leave(dir: &Path, request: Request, now: SystemTime) -> Result<String, RequestError> {
    if super::peek(dir)?.is_none() {
        return Err(RequestError::NoStore(dir.to_owned()));
    }
    let requests = dir.join(DIR);
    DirBuilder::new().recursive(true).mode(0o700).create(&requests).map_err(failed("make", &requests))?;
    let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let name = format!("{millis:015}-{}.{EXTENSION}", Serial::draw()?);
    let written = match request {
        Request::RotateRoot => Written::RotateRoot {},
        Request::Revoke(subject) => Written::Revoke { subject },
        Request::Restore(subject) => Written::Restore { subject },
    };
    let text = serde_json::to_vec(&written)?;
    Disk::real()
        .replace(&requests, &name, &text, Access::Owner)
        .map_err(failed("write", &requests.join(&name)))?;
    Ok(name)
}

/// How many requests lie in the store at `dir`.
pub fn pending(dir: &Path) -> Result<usize, StoreError> {
    names(&dir.join(DIR)).map(|names| names.len())
}

impl Store {
    /// The requests that lie in the store, oldest first, at most 64.
    pub fn requests(&self) -> Result<Vec<Left>, StoreError> {
        let dir = self.dir().join(DIR);
        let mut left = Vec::new();
        for name in names(&dir)?.into_iter().take(TAKEN_AT_ONCE_MAX) {
            let request = match read(&dir.join(&name), Secret::Yes) {
                Ok(None) => continue,
                Ok(Some(text)) => parse(&text).map_err(RequestError::from),
                Err(error) => Err(error.into()),
            };
            left.push(Left { name, request });
        }
        Ok(left)
    }

    /// Removes a request that is done or refused.
    pub fn forget_request(&self, name: &str) -> Result<(), StoreError> {
        let dir = self.dir().join(DIR);
        let failed = failed("remove", &dir.join(name));
        self.disk().remove(&dir, name).map_err(failed)
    }
}

fn parse(text: &[u8]) -> Result<Request, serde_json::Error> {
    Ok(match serde_json::from_slice(text)? {
        Written::RotateRoot {} => Request::RotateRoot,
        Written::Revoke { subject } => Request::Revoke(subject),
        Written::Restore { subject } => Request::Restore(subject),
    })
}

/// The names of request files, sorted. Temporary files begin with a dot and are none.
fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", dir))?.file_name();
        let name = name.to_string_lossy();
        let is_request = Path::new(&*name).extension().is_some_and(|ext| ext == EXTENSION);
        if is_request && !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}
