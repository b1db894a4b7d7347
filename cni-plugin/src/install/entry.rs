//! What the installer writes for the plugin: its type, what the runtime shall tell it, and the keys of `spec::Config`.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// Our `type`, and so the file's name in the runtime's folder of plugins.
pub(crate) const TYPE: &str = "adit-cni";
/// Beside the agent's socket: made by the plugin when the runtime calls it through a drop-in.
const CALLED_FILE: &str = "called";

/// What differs from one installation to another. A key that was not given is not written: the plugin has its default.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) socket: String,
    pub(crate) exclude_namespaces: Option<Vec<String>>,
    pub(crate) unreachable: Option<String>,
    pub(crate) timeout: Option<u64>,
    /// Set in drop-ins.
    pub(crate) mark_calls: Option<PathBuf>,
}

/// In the order in which people read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'e> {
    r#type: &'static str,
    capabilities: Capabilities,
    socket: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exclude_namespaces: Option<&'e [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreachable: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark_calls: Option<&'e Path>,
}

/// What the runtime passes only to plugins that declare it.
#[derive(Serialize)]
struct Capabilities {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: bool,
    #[serde(rename = "cgroupPath")]
    cgroup: bool,
    #[serde(rename = "portMappings")]
    ports: bool,
}

impl Entry {
    /// As one line of JSON, the same for the same entry.
    pub(crate) fn json(&self) -> String {
        let written = Written {
            r#type: TYPE,
            capabilities: Capabilities { annotations: true, cgroup: true, ports: true },
            socket: &self.socket,
            exclude_namespaces: self.exclude_namespaces.as_deref(),
            unreachable: self.unreachable.as_deref(),
            timeout: self.timeout,
            mark_calls: self.mark_calls.as_deref(),
        };
        serde_json::to_string(&written).expect("an entry has only keys and values that JSON can express")
    }

    /// The entry for a drop-in, which the runtime may or may not chain: with word of being called.
    pub(crate) fn with_mark(&self) -> Self {
        Self { mark_calls: Some(called_file(Path::new(&self.socket))), ..self.clone() }
    }
}

/// The file that tells that the runtime calls the plugin through a drop-in: beside the agent's socket.
pub(crate) fn called_file(socket: &Path) -> PathBuf {
    socket.with_file_name(CALLED_FILE)
}
