//! What the source of truth is told and asked, and what it shows of itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use adit_core::net::{ObjectName, PodUid};
use adit_core::world::{Kind, Settings};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::kube::client::AccessError;
use super::kube::config;

/// Where the truth is: exactly one of these.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The mesh's directory. It must be there when the agent starts. No default.
    pub directory: PathBuf,
    /// A Kubernetes cluster; `kube: {}` is the one in which the agent's pod runs. No default.
    pub kube: Option<config::Config>,
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
    /// Neither `directory` nor `kube` is set.
    #[error("cluster.directory is not set, and neither is cluster.kube: say where the truth is")]
    NoDirectory,
    /// There is no way to the API server.
    #[error("the API server")]
    Access(#[from] AccessError),
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
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Shown {
    /// The kinds of objects of which not all was read yet.
    pub(super) missing: Vec<&'static str>,
    /// What is wrong, in words.
    pub(super) problems: Vec<String>,
    /// The kinds of objects that are not followed at the moment: what is known of them stays.
    pub(super) unfollowed: Vec<&'static str>,
}

impl Default for Shown {
    fn default() -> Self {
        Self { missing: kinds(), problems: Vec::new(), unfollowed: Vec::new() }
    }
}

/// All kinds: before anything was read, they are all missing.
pub(super) fn kinds() -> Vec<&'static str> {
    KINDS.into_iter().map(adit_objects::word).collect()
}

/// Everything that a World is made of.
pub(super) const KINDS: [Kind; 8] = [
    Kind::Pod,
    Kind::Namespace,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::TrafficPolicy,
];

#[derive(Debug)]
pub(super) enum Command {
    /// A pod is captured, or not any more.
    Captured { uid: PodUid, captured: bool, done: Done },
    /// A sandbox of this pod is gone: nothing is said of it any more once its object is gone too.
    SandboxGone(PodUid),
    /// The trust bundle that is in use.
    Acknowledge(u64),
    /// Look for this pod, and at whatever costs no more to look at.
    Refresh { pod: ObjectName, done: oneshot::Sender<()> },
    /// Another agent of the node speaks for it from now on, or does not any more.
    StandAside { aside: bool, done: oneshot::Sender<()> },
}

pub(super) type Done = oneshot::Sender<Result<(), AnnounceError>>;

/// Why an announcement did not reach the others.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The status file cannot be written. It is tried again; the announcement will be in it.
    #[error("cannot write the status file")]
    Write(#[source] Arc<io::Error>),
    /// The API server did not take it. It is tried again, for as long as the pod is there.
    #[error("the annotation adit.dev/capture is not on the pod: {0}")]
    Api(Arc<str>),
    /// The pod is not known, or not any more.
    #[error("the API server knows no such pod on this node")]
    NoPod,
    /// Another agent of this node has taken over, and says by itself what is captured.
    #[error("another agent of this node has taken over")]
    Succeeded,
    /// The source of truth has ended.
    #[error("the source of truth has ended")]
    Ended,
}
