//! Says who a bearer token belongs to. Standalone: from the token file, read again whenever it changes.
//!
//! What the caller may have is [`crate::attest`]'s decision. Tokens are kept as digests and never logged.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokens::digest_of;

use crate::attest::Caller;

mod tokens;

pub use tokens::{Mistake, TOKEN_LEN_MAX, TOKEN_LEN_MIN, Tokens};

/// The longest token file that is read, in bytes: 10,000 nodes at 400 bytes, 4 MiB.
pub const FILE_LEN_MAX: u64 = 4 * 1024 * 1024;

/// Why a token file is not taken. Every text names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error("{path} has mode {mode:04o}: only its owner may have access (chmod 0600)", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Longer than [`FILE_LEN_MAX`].
    #[error("{path} is longer than {FILE_LEN_MAX} bytes", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// What it says is wrong; every mistake that was found.
    #[error("{}", tokens::lines(path, mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// The mistakes, by line.
        mistakes: Vec<Mistake>,
    },
}

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unauthenticated {
    /// No `authorization` in the request's metadata.
    #[error("the request carries no authorization")]
    Absent,
    /// Not of the form `Bearer TOKEN`.
    #[error("the authorization is no bearer token")]
    NotBearer,
    /// A token that is not in the file.
    #[error("the token is not known")]
    Unknown,
}

/// The callers that are known now. Cheap to clone; all clones see the same file.
#[derive(Clone, Debug)]
pub struct Callers {
    path: Arc<Path>,
    current: Arc<Mutex<Current>>,
    /// Held by whoever reads the file, until what it says is in force. Taken before `current`.
    reading: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Current {
    tokens: Arc<Tokens>,
    /// Digest of the text that was last judged, or of why it could not be read. Not the text: it holds tokens.
    seen: [u8; 32],
    /// The file's mark just before it was read.
    mark: Option<Mark>,
}

/// What changes with a file's content, but for a second change within one tick of the kernel's clock (some ms).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mark {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// What reading the token file again brought.
#[derive(Debug)]
pub enum Reloaded {
    /// It says what it said before.
    Same,
    /// It was taken: so many callers.
    New(usize),
    /// It is wrong; the last good version stays in force.
    Refused(TokensError),
}

impl Callers {
    /// Reads the token file; every mistake in it is reported at once.
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let mark = Mark::of(path);
        let text = read(path)?;
        let tokens = Arc::new(parse(path, &text)?);
        let seen = digest_of(&text);
        let current = Arc::new(Mutex::new(Current { tokens, seen, mark }));
        Ok(Self { path: path.into(), current, reading: Arc::default() })
    }

    /// Who sends this `authorization`.
    pub fn authenticate(&self, authorization: Option<&[u8]>) -> Result<Caller, Unauthenticated> {
        let header = authorization.ok_or(Unauthenticated::Absent)?;
        let token = bearer(header).ok_or(Unauthenticated::NotBearer)?;
        let tokens = Arc::clone(&self.lock().tokens);
        tokens.caller(token).ok_or(Unauthenticated::Unknown)
    }

    /// Reads the file again. A file that is wrong, or cannot be read, changes nothing: the last good version stays.
    ///
    /// A mistake is returned, and logged, once for each content of the file.
    pub fn reload(&self) -> Reloaded {
        let reading = self.reading();
        self.read_again(&reading, Mark::of(&self.path))
    }

    /// Makes sure that what the file says now is in force: reads it as [`Callers::reload`] does, unless it looks as it
    /// did, for whoever is refused makes us look, and a file of the longest sort takes milliseconds to read. Waits for
    /// whoever is reading it.
    pub fn reload_if_changed(&self) {
        let reading = self.reading();
        let mark = Mark::of(&self.path);
        let is_known = mark.is_some() && self.lock().mark == mark;
        if !is_known {
            self.read_again(&reading, mark);
        }
    }

    fn read_again(&self, _reading: &MutexGuard<'_, ()>, mark: Option<Mark>) -> Reloaded {
        self.lock().mark = mark;
        let read = read(&self.path);
        let seen = match &read {
            Ok(text) => digest_of(text),
            Err(error) => digest_of(error.to_string().as_bytes()),
        };
        if self.lock().seen == seen {
            return Reloaded::Same;
        }
        let parsed = read.and_then(|text| parse(&self.path, &text));
        let mut current = self.lock();
        current.seen = seen;
        match parsed {
            Ok(tokens) => {
                let callers = tokens.len();
                current.tokens = Arc::new(tokens);
                tracing::info!(callers, "token file taken up");
                Reloaded::New(callers)
            }
            Err(error) => {
                let text = crate::report(&error);
                tracing::error!(error = text, "token file refused; the last good version stays in force");
                Reloaded::Refused(error)
            }
        }
    }

    fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // Every update is one assignment, so a panic elsewhere cannot have left half of one.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of an `authorization: Bearer TOKEN`.
pub(crate) fn bearer(header: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = header.split_at_checked(SCHEME.len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME) && !token.is_empty()).then_some(token)
}

fn read(path: &Path) -> Result<Vec<u8>, TokensError> {
    let failed = |source| TokensError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokensError::Open { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).is_ok_and(|len| len <= FILE_LEN_MAX) {
        Ok(text)
    } else {
        Err(TokensError::TooLong { path: path.to_owned() })
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Tokens, TokensError> {
    Tokens::parse(text).map_err(|mistakes| TokensError::Mistakes { path: path.to_owned(), mistakes })
}

#[cfg(test)]
mod tests;
