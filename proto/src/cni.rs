//! The CNI socket: what `adit-cni` asks of the agent, what the agent answers, and how both are framed.
//!
//! One connection carries one [`Request`] and one [`Reply`]. A frame is a header of [`HEADER_LEN`] bytes (version
//! and length of the body, both big-endian) and a body of JSON. [`encode`] and [`decode`] work on byte slices and
//! are total: no input panics, none is read beyond [`FRAME_LEN_MAX`].
//!
//! A version is raised only for a change that an older reader would misread. Within one, fields are only ever added,
//! and readers ignore those that they do not know: the plugin on the disk and the agent may be of different releases.
//! A new [`Request`] is no such change either: a reader that does not know it answers nothing, and who asks it must know
//! what to do then. A new [`Reply`] answers new requests only.
//!
//! Two agents of one node, as in an upgrade, speak over it too: [`Request::Handover`], [`Request::Serving`].
//!
//! Also here: the file [`Namespaces`], which the agent writes and the plugin reads where the agent does not answer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version that this release writes, and the only one that it reads.
pub const VERSION: u16 = 1;
/// Bytes before the body: two of version, four of length.
pub const HEADER_LEN: usize = 6;
/// The longest body, in bytes. An Add is ~1 KiB and a Gc of 1,000 attachments ~110 KiB; 256 KiB is twice that, and
/// bounds what a writer can make the other side hold.
pub const FRAME_LEN_MAX: usize = 256 * 1024;
/// The longest container id, in bytes. Runtimes use 64 hex digits; the agent names a file after it (255 at most).
pub const CONTAINER_ID_LEN_MAX: usize = 128;
/// The longest interface name, in bytes (IFNAMSIZ - 1).
pub const IFNAME_LEN_MAX: usize = 15;
/// Where the agent listens.
pub const SOCKET: &str = "/run/adit/cni.sock";
/// How long an Add waits for the agent and its answer, in seconds, unless the plugin's configuration says otherwise.
/// The kubelet's limit for a sandbox is 4 minutes; a refused one costs a new sandbox and 10 to 15 s.
pub const ADD_WAIT_SECONDS: u64 = 30;
/// The longest that the plugin's configuration may say, in seconds: the kubelet gives a sandbox 4 minutes in all.
pub const ADD_WAIT_SECONDS_MAX: u64 = 180;
/// Which of a pod's annotations the plugin passes on: those with one of these prefixes. The rest is none of the
/// agent's business, and `last-applied-configuration` alone may be 256 KiB.
pub const ANNOTATION_PREFIXES: [&str; 2] = ["adit.dev/", "kubernetes.io/config."];
/// Namespaces that are never enrolled, unless configured otherwise. The first is Adit's own: its pods are let through
/// in any case, or the agent would wait for itself.
pub const NAMESPACES_EXCLUDED: [&str; 4] = ["adit-system", "kube-system", "kube-node-lease", "kube-public"];

/// What the plugin asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Request {
    /// A sandbox has its network: capture it if its pod is enrolled, and answer when that is done.
    Add(Add),
    /// A sandbox goes: release all of it. Comes repeatedly, and for sandboxes never added.
    Del(Del),
    /// Is a sandbox still as Add left it?
    Check(Check),
    /// These attachments are all there are: release every other.
    Gc(Gc),
    /// Who listens?
    Status,
    /// The installer was told to end: does Adit leave this node? An agent from before this question, as one that is gone,
    /// does not answer it; then all stays as it is.
    Removal,
    /// An agent that starts asks the one that listens to rest: nothing of the node is changed by it any more once this is
    /// answered. The asker keeps the connection until it listens itself; should it end before, it is as if it had never
    /// asked. An agent from before this question does not answer it.
    Handover,
    /// What an agent still serves says so to the one that listens now, its successor; again and again until it ends.
    Serving(Serving),
}

/// What an agent that has a successor serves still.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Serving {
    /// Tells one such agent from another; the same for its whole life.
    pub agent: String,
    /// How many connections of each sandbox it carries. Empty where it ends.
    pub open: BTreeMap<ContainerId, u64>,
}

/// The most sandboxes in one [`Serving`]: at 140 bytes each, what a frame holds.
pub const SERVING_MAX: usize = 1800;

/// A sandbox that has its network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Add {
    /// CNI_CONTAINERID: the sandbox's.
    pub container_id: ContainerId,
    /// CNI_NETNS: path of the network namespace, in the node's mount namespace.
    pub netns: String,
    /// CNI_IFNAME.
    pub ifname: IfName,
    /// Whose sandbox it is, from CNI_ARGS.
    pub pod: PodRef,
    /// The sandbox's addresses, from the result of the plugins before.
    pub ips: Vec<IpAddr>,
    /// The pod's annotations with one of [`ANNOTATION_PREFIXES`]; `None` where the runtime does not pass them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The pod's cgroup path, where the runtime passes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// A sandbox that goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Del {
    /// CNI_CONTAINERID.
    pub container_id: ContainerId,
    /// CNI_IFNAME.
    pub ifname: IfName,
}

/// A sandbox to look at.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// CNI_CONTAINERID.
    pub container_id: ContainerId,
    /// CNI_NETNS.
    pub netns: String,
    /// CNI_IFNAME.
    pub ifname: IfName,
}

/// All attachments that are still valid.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gc {
    /// Every other one goes.
    pub valid: Vec<Attachment>,
}

/// One interface of one sandbox.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attachment {
    /// The sandbox.
    pub container_id: ContainerId,
    /// Its interface.
    pub ifname: IfName,
}

/// A pod as CNI_ARGS names it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodRef {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    pub uid: String,
}

/// What the agent answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Reply {
    /// Done, or nothing to do.
    Ok,
    /// Not done; the plugin hands this to the runtime as it is.
    Failed(Failure),
    /// To [`Request::Status`].
    Status {
        /// The agent's release.
        release: String,
    },
    /// To [`Request::Removal`].
    Removal {
        /// What becomes of the installation.
        adit: Removal,
    },
    /// To [`Request::Serving`].
    Successor {
        /// It serves every pod, so that who was before it need take no new connections.
        ready: bool,
        /// Sandboxes in which nothing of ours stands any more: what is open in them must end.
        over: Vec<ContainerId>,
    },
}

/// Whether Adit leaves a node whose installer was told to end: only then may entry and binary go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Removal {
    /// It stays, as in an upgrade or after a restart: leave all as it is.
    Stays,
    /// Nothing says so yet, but the agent still looks: ask again.
    Undecided,
    /// It was uninstalled: take out the entry, then the binary.
    Leaves,
}

/// Why a request failed, as the CNI specification wants it told.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// One line for the pod's Event.
    pub message: String,
    /// What to do about it.
    pub details: String,
}

/// The error codes of the CNI specification (1.1.0, "Error"), by name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// 1: the protocol version is not supported.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported.
    UnsupportedField,
    /// 3: the container is unknown; nothing is left to clean up.
    UnknownContainer,
    /// 4: an environment variable is missing or bad.
    BadEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: the input is no JSON of the expected form.
    Decode,
    /// 7: the configuration is not valid.
    InvalidConfig,
    /// 11: try again later.
    TryAgainLater,
    /// 50: the plugin cannot serve an ADD.
    NotAvailable,
}

impl Code {
    /// The number on the wire to the runtime.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::BadEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
        }
    }
}

/// Why a name of the CNI wire is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Not a letter or digit and then letters, digits, `_`, `.` and `-`, at most [`CONTAINER_ID_LEN_MAX`] bytes.
    #[error("container id is not a letter or digit followed by letters, digits, '_', '.' and '-'")]
    ContainerId,
    /// Empty, `.`, `..`, longer than [`IFNAME_LEN_MAX`], or with a slash, a colon, white space or a control character.
    #[error("interface name is none that the kernel accepts")]
    IfName,
}

/// CNI_CONTAINERID: safe as a file name.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;

    fn try_from(id: String) -> Result<Self, NameError> {
        let first_is_word = id.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest_is_safe = id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if first_is_word && rest_is_safe && id.len() <= CONTAINER_ID_LEN_MAX {
            Ok(Self(id))
        } else {
            Err(NameError::ContainerId)
        }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// CNI_IFNAME.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct IfName(String);

impl IfName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IfName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        let bad_char = name.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
        let named = !matches!(name.as_str(), "" | "." | "..");
        if named && !bad_char && name.len() <= IFNAME_LEN_MAX {
            Ok(Self(name))
        } else {
            Err(NameError::IfName)
        }
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

/// Why bytes are no frame, or a message makes none.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A version that this release does not read.
    #[error("frame has version {0}, this release reads {VERSION}")]
    Version(u16),
    /// The body is longer than [`FRAME_LEN_MAX`].
    #[error("frame of {0} bytes is longer than {FRAME_LEN_MAX}")]
    TooLong(usize),
    /// The body is not the JSON of such a message.
    #[error("frame is no message of the expected form")]
    Body(#[source] serde_json::Error),
}

/// Makes one frame of a [`Request`] or a [`Reply`].
///
/// Fails only with [`FrameError::TooLong`]: neither type holds anything that JSON cannot express.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message).map_err(FrameError::Body)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= FRAME_LEN_MAX => length,
        Ok(_) | Err(_) => return Err(FrameError::TooLong(body.len())),
    };
    let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
    frame.extend_from_slice(&VERSION.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Reads the frame at the start of `bytes`: the message and the frame's length, or `None` while it is not whole.
///
/// A bad version or length is an error as soon as the header is there, so that a reader never holds more than
/// [`HEADER_LEN`] + [`FRAME_LEN_MAX`] bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [v0, v1, l0, l1, l2, l3] = *header;
    let version = u16::from_be_bytes([v0, v1]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > FRAME_LEN_MAX {
        return Err(FrameError::TooLong(length));
    }
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let message = serde_json::from_slice(body).map_err(FrameError::Body)?;
    Ok(Some((message, HEADER_LEN + length)))
}

/// The file beside [`SOCKET`] by which the plugin's installers of a node know whose turn it is.
pub const INSTALLER_FILE: &str = "installer";
/// What is in it once the plugin was taken out, and nothing puts it in again.
pub const INSTALLER_UNINSTALLED: &[u8] = b"uninstalled\n";

/// The folder beside [`SOCKET`] in which the plugin leaves each [`Add`] that it answered without the agent: a frame of
/// [`Request::Add`] in a file named as the sandbox. The agent takes them in and removes them; DEL removes its own.
pub const MISSED_DIR: &str = "missed";

/// The file's name in STATE_DIR.
pub const NAMESPACES_FILE: &str = "namespaces.json";
/// Where the agent keeps what must outlive a reboot.
pub const STATE_DIR: &str = "/var/lib/adit";
/// The longest such file, in bytes: 10,000 namespaces of the longest name (63) need 0.9 MiB.
pub const NAMESPACES_LEN_MAX: usize = 1024 * 1024;

/// `STATE_DIR/namespaces.json`: which namespaces the agent knows, and what the plugin may do without it.
///
/// Written by the agent (temp file and rename), whenever it differs from what World says. Read by the plugin only
/// where the agent cannot be reached. `{"version":1,"namespaces":{"shop":"enrolled","kube-system":"excluded"}}`
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Namespaces {
    /// [`VERSION`]; a file of another one tells nothing.
    pub version: u16,
    /// By name.
    pub namespaces: BTreeMap<String, Membership>,
}

/// What is known of a namespace.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// It, or a pod in it, is enrolled: its pods wait for the agent.
    Enrolled,
    /// Nothing in it is enrolled: its pods pass.
    Unenrolled,
    /// It is never enrolled: its pods pass.
    Excluded,
}

impl Namespaces {
    /// These namespaces, in this release's form.
    pub fn new(namespaces: BTreeMap<String, Membership>) -> Self {
        Self { version: VERSION, namespaces }
    }

    /// Reads the file's bytes; `None` for anything but a file of this version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > NAMESPACES_LEN_MAX {
            return None;
        }
        let read: Self = serde_json::from_slice(bytes).ok()?;
        (read.version == VERSION).then_some(read)
    }

    /// Whether a new pod of this namespace may start without the agent. Unknown ones may not.
    pub fn passes(&self, namespace: &str) -> bool {
        match self.namespaces.get(namespace) {
            Some(Membership::Unenrolled | Membership::Excluded) => true,
            Some(Membership::Enrolled) | None => false,
        }
    }
}

#[cfg(test)]
mod tests;
