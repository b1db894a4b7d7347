//! What the source of truth is told and asked, and what it shows of itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use adit_core::net::PodUid;
use adit_core::world::Settings;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::trouble::Trouble;

/// Where the truth is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The mesh's directory. It must be there when the agent starts. No default.
    pub directory: PathBuf,
}

/// What the agent knows of itself.
#[derive(Clone, Debug)]
pub struct Own {
    /// What the World is made with.
    pub settings: Settings,
    /// The version that the status file shows.
    pub version: String,
    /// The admin socket that the status file shows.
    pub admin_socket: PathBuf,
    /// Where copies of accepted objects and status files are kept, in `objects` and `status`; none: no copies.
    pub copy_dir: Option<PathBuf>,
}

/// Why the source of truth cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `directory` is not set.
    #[error("cluster.directory is not set: say where the mesh's directory is")]
    NoDirectory,
    /// The mesh's directory cannot be followed.
    #[error("cannot follow the mesh's directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The status file cannot be written.
    #[error("cannot write the status file of node {node} in {dir}")]
    Status {
        /// Whose.
        node: String,
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's name cannot be a file's.
    #[error("the node's name {0:?} is no name of a Kubernetes node")]
    NodeName(String),
    /// The copies of what was accepted have no place.
    #[error("cannot keep copies of accepted objects and status files in {dir}")]
    Copy {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the driver shows of itself.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) is_synced: bool,
    pub(super) troubles: Vec<Trouble>,
}

#[derive(Debug)]
pub(super) enum Command {
    /// A pod is captured, or not any more.
    Captured { uid: PodUid, captured: bool, done: Done },
    /// A sandbox of this pod is gone: nothing is said of it any more once its object is gone too.
    SandboxGone(PodUid),
    /// The trust bundle that is in use.
    Acknowledge(u64),
    /// Look at everything again.
    Refresh(oneshot::Sender<()>),
}

pub(super) type Done = oneshot::Sender<Result<(), Arc<io::Error>>>;
