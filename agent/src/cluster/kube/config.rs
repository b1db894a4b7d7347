//! Where the API server is.

use std::path::PathBuf;

use serde::Deserialize;

/// Where the API server is, and who the agent is to it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// A kubeconfig, for an agent that runs in no pod. Default: none, the token that is projected into the agent's pod.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address, `https://HOST:PORT`, in place of the one that the kubeconfig or the pod's environment
    /// says. One with `http://` is shown no token. No default.
    pub api_server: Option<String>,
    /// The DaemonSet in Adit's own namespace whose deletion means that Adit leaves. Default `adit-agent`.
    pub daemon_set: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { kubeconfig: None, api_server: None, daemon_set: "adit-agent".into() }
    }
}

impl Config {
    /// Whether the API server's address is one.
    pub(crate) fn has_api_server(&self) -> bool {
        self.api_server.as_deref().is_none_or(|address| {
            address.parse::<http::Uri>().is_ok_and(|address| {
                matches!(address.scheme_str(), Some("http" | "https")) && address.host().is_some()
            })
        })
    }
}
