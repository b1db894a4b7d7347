//! What is wrong with the files of a mesh's directory, as the log and the admin API show it.

use std::fmt;
use std::path::PathBuf;

use adit_objects::trust::{BadRevocation, TrustError};
use adit_objects::yaml::Position;
use adit_objects::{ObjectRef, Problem, Rejected};

/// One thing that is wrong, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Trouble {
    /// The file, or the directory.
    pub(super) file: PathBuf,
    /// The line and column in it, where there is one.
    pub(super) at: Option<Position>,
    /// What is wrong.
    pub(super) what: Wrong,
}

/// What is wrong with a file or with something in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Wrong {
    /// It is not YAML. Its objects keep their last good version.
    Yaml(String),
    /// It cannot be read. Its objects keep their last good version.
    Unreadable(String),
    /// One object of it cannot be read; it keeps its last good version.
    Rejected(Rejected),
    /// A field was not understood; the object is in force all the same, with less allowed.
    Field(ObjectRef, Problem),
    /// The object is in another file, too, and that one counts.
    Twice(ObjectRef, PathBuf),
    /// The trust bundle is not taken; the last one stays in force.
    Trust(TrustError),
    /// The trust bundle is older than the one in force, which stays.
    OlderTrust {
        /// Its `spiffe_sequence`.
        found: u64,
        /// That of the one in force.
        newest: u64,
    },
    /// The trust bundle's file has no ConfigMap.
    NoConfigMap,
    /// An entry of the kill list was not understood.
    Revocation(BadRevocation),
    /// A status file does not say what its name says.
    Status(String),
    /// More files, or directories, than are read.
    TooMany(usize),
    /// Changes in a directory cannot be followed.
    Unwatched(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(at) = self.at {
            write!(f, ":{at}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yaml(message) => f.write_str(message),
            Self::Unreadable(message) => write!(f, "cannot be read: {message}"),
            Self::Rejected(rejected) => write!(f, "{rejected}"),
            Self::Field(object, problem) => write!(f, "{object}: {problem}"),
            Self::Twice(object, other) => write!(f, "{object}: is in {} too, which counts", other.display()),
            Self::Trust(error) => write!(f, "{error}"),
            Self::OlderTrust { found, newest } => {
                write!(f, "spiffe_sequence {found} is older than {newest}, which stays in force")
            }
            Self::NoConfigMap => f.write_str("has no ConfigMap"),
            Self::Revocation(bad) => write!(f, "{bad}"),
            Self::Status(message) => f.write_str(message),
            Self::TooMany(most) => write!(f, "has more than the {most} that are read"),
            Self::Unwatched(message) => write!(f, "changes cannot be followed: {message}"),
        }
    }
}

impl Wrong {
    /// The metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Yaml(_) => "yaml",
            Self::Unreadable(_) => "unreadable",
            Self::Rejected(_) => "rejected",
            Self::Field(..) => "field",
            Self::Twice(..) => "twice",
            Self::Trust(_) | Self::NoConfigMap | Self::Revocation(_) => "trust",
            Self::OlderTrust { .. } => "trust_stale",
            Self::Status(_) => "status",
            Self::TooMany(_) => "too_many",
            Self::Unwatched(_) => "unwatched",
        }
    }
}
