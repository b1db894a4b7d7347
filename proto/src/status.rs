//! `DIR/status/NODE.yaml` of a directory mesh: what one agent tells the other agents, the CA and `adit`.
//!
//! One file per agent, written whole and by rename, by that agent alone.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// One agent's status file.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeStatus {
    /// The agent's node.
    pub node: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Where its admin API listens: the path of a unix socket.
    #[serde(default)]
    pub admin_socket: String,
    /// `spiffe_sequence` of the trust bundle that it uses; 0 before the first.
    #[serde(default)]
    pub bundle_generation: u64,
    /// The uids of the pods that it has captured.
    #[serde(default)]
    pub captured: BTreeSet<String>,
    /// What it makes of each policy.
    #[serde(default)]
    pub policies: Vec<PolicyStatus>,
}

/// The condition `Accepted` of one policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyStatus {
    /// `AuthorizationPolicy`, `PeerAuthentication` or `TrafficPolicy`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether all of it was understood and is in force.
    pub accepted: bool,
    /// Why not: the field's path and what is wrong with it, one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}
