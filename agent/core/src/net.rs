//! Names and addresses that must not be swapped for one another.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a captured connection came from: the client's true address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SourceAddr(pub SocketAddr);

/// The address a pod's process tried to reach, read with SO_ORIGINAL_DST before redirection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OriginalDst(pub SocketAddr);

/// `metadata.uid` of a pod.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodUid(pub Arc<str>);

/// A pod's sandbox: the container id that the runtime names in CNI_CONTAINERID.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SandboxId(pub Arc<str>);

/// One life of a pod's network namespace: a re-made sandbox keeps the pod's uid but not the namespace.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PodKey {
    /// The pod.
    pub uid: PodUid,
    /// Its sandbox.
    pub sandbox: SandboxId,
}

/// A node's name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeName(pub Arc<str>);

/// `namespace/name` of an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name in the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of an object in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SourceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
