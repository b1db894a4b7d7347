//! What the agents have acknowledged: the Leases `adit-node-NODE`, each written by its node's agent.
//!
//! Listed only while a change of root waits for them, and then now and again: a cluster has as many as nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::client::{ApiError, ApiServer};
use super::pods::KnownPods;
use super::watch::{self, Which};
use super::{Account, Settings};
use crate::lifecycle::Agents;
use crate::publish::AGENTS_MAX;
use crate::stamp::Stamp;

/// A Lease's name before its node's.
const PREFIX: &str = "adit-node-";
/// The `spiffe_sequence` of the bundle that the agent uses.
const GENERATION: &str = "adit.dev/bundle-generation";
/// How often they are listed. Agents take up a bundle within seconds, and a change of root may wait for a day.
const LISTED_EVERY: Duration = Duration::from_secs(10);

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

/// The agents' Leases, as they were listed last.
#[derive(Debug)]
pub(super) struct Leases {
    api: ApiServer,
    namespace: String,
    agent: Account,
    pods: KnownPods,
    /// When, and what came.
    listed: Option<(Stamp, Result<Vec<Lease>, String>)>,
}

impl Leases {
    pub(super) fn new(api: ApiServer, settings: &Settings, pods: KnownPods) -> Self {
        let Settings { namespace, agent, .. } = settings.clone();
        Self { api, namespace, agent, pods, listed: None }
    }

    /// Which generation each agent has acknowledged, by a list of less than [`LISTED_EVERY`] ago. What is missed by
    /// then is only that more have.
    pub(super) async fn agents(&mut self, now: Stamp) -> Agents {
        let listed = self.listed.take().filter(|(at, _)| *at <= now && now < at.plus(LISTED_EVERY));
        let (at, leases) = match listed {
            Some(listed) => listed,
            None => (now, self.list().await.map_err(|error| crate::report(&error))),
        };
        let agents = match &leases {
            Err(error) => Agents::Unknown(error.clone()),
            Ok(leases) => match self.pods.ask(|pods| pods.nodes_with(&self.agent)) {
                None => Agents::Unknown("the pods of the agents are not known".to_owned()),
                Some(nodes) => known(leases, nodes.iter().map(|node| &**node)),
            },
        };
        self.listed = Some((at, leases));
        agents
    }

    async fn list(&self) -> Result<Vec<Lease>, ApiError> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        Ok(watch::list(&self.api, "the agents' Leases", &path, Which::Names).await?.0)
    }
}

/// Every node of which there is a Lease, or on which an agent runs that has not made one yet. Also one whose Lease was
/// not renewed for long: cut off from the API server, it goes on serving its pods, and they would refuse every peer with
/// a certificate below a root that it has not heard of. A node that is gone has no Lease: that goes with its Node.
fn known<'a>(list: &[Lease], running: impl Iterator<Item = &'a str>) -> Agents {
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
        let list: Vec<Lease> = serde_json::from_value(serde_json::json!([
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
        let agents = known(&list, ["node1", "node4"].into_iter());
        let of = [("node1", 7), ("node2", 0), ("node3", 0), ("node4", 0)];
        assert_eq!(agents, Agents::Known(of.map(|(node, known)| (node.to_owned(), known)).into()));
        let none = known(&[], std::iter::empty());
        assert_eq!(none, Agents::Known(Vec::new()));
    }
}
