//! What the agents have acknowledged: the Leases `adit-node-NODE`, each written by its node's agent.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Settings;
use super::client::{ApiError, ApiServer};
use super::pods::KnownPods;
use super::watch::{self, Which};
use crate::lifecycle::Agents;
use crate::publish::AGENTS_MAX;

/// A Lease's name before its node's.
const PREFIX: &str = "adit-node-";
/// The `spiffe_sequence` of the bundle that the agent uses.
const GENERATION: &str = "adit.dev/bundle-generation";

#[derive(Debug, Deserialize)]
struct Lease {
    metadata: Meta,
}

#[derive(Debug, Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Asks which generation each agent has acknowledged.
pub(super) async fn agents(api: &ApiServer, settings: &Settings, pods: &KnownPods) -> Agents {
    match list(api, &settings.namespace).await {
        Err(error) => Agents::Unknown(crate::report(&error)),
        Ok(list) => match pods.ask(|pods| pods.nodes_with(&settings.agent)) {
            None => Agents::Unknown("the pods of the agents are not known".to_owned()),
            Some(nodes) => known(list, nodes.iter().map(|node| &**node)),
        },
    }
}

async fn list(api: &ApiServer, namespace: &str) -> Result<Vec<Lease>, ApiError> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    Ok(watch::list(api, "the agents' Leases", &path, Which::Names).await?.0)
}

/// Every node of which there is a Lease, or on which an agent runs that has not made one yet. Also one whose Lease was
/// not renewed for long: cut off from the API server, it goes on serving its pods, and they would refuse every peer with
/// a certificate below a root that it has not heard of. A node that is gone has no Lease: that goes with its Node.
fn known<'a>(list: Vec<Lease>, running: impl Iterator<Item = &'a str>) -> Agents {
    let mut known: BTreeMap<String, u64> = running.map(|node| (node.to_owned(), 0)).collect();
    for Lease { metadata } in list {
        let Some(node) = metadata.name.strip_prefix(PREFIX).filter(|node| !node.is_empty()) else {
            continue;
        };
        let said = metadata.annotations.as_ref().and_then(|annotations| annotations.get(GENERATION));
        // What is no number is an agent that has not acknowledged anything.
        let generation = said.and_then(|said| said.parse().ok()).unwrap_or(0);
        known.insert(node.to_owned(), generation);
    }
    if known.len() > AGENTS_MAX {
        return Agents::Unknown(format!("more than {AGENTS_MAX} agents"));
    }
    Agents::Known(known.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_a_lease_or_without_a_word_has_acknowledged_nothing() {
        let list = serde_json::from_value(serde_json::json!([
            {"metadata": {"name": "adit-node-node1", "annotations": {"adit.dev/bundle-generation": "7"}}},
            {"metadata": {"name": "adit-node-node2", "annotations": {"adit.dev/bundle-generation": "x"}}},
            // Not renewed for long: cut off, it serves its pods all the same.
            {
                "metadata": {"name": "adit-node-node3"},
                "spec": {"renewTime": "2020-01-01T00:00:00.000000Z", "leaseDurationSeconds": 120},
            },
            {"metadata": {"name": "adit-ca-status", "annotations": {"adit.dev/bundle-generation": "1"}}},
            {"metadata": {"name": "adit-node-", "annotations": {"adit.dev/bundle-generation": "1"}}},
        ]))
        .unwrap();
        let agents = known(list, ["node1", "node4"].into_iter());
        let of = [("node1", 7), ("node2", 0), ("node3", 0), ("node4", 0)];
        assert_eq!(agents, Agents::Known(of.map(|(node, known)| (node.to_owned(), known)).into()));
        let none = known(Vec::new(), std::iter::empty());
        assert_eq!(none, Agents::Known(Vec::new()));
    }
}
