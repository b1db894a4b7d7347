//! Nodes: their zone and addresses.

use adit_core::net::NodeName;
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::meta::{Translated, cluster_name, or_default};
use crate::policies::parse;
use crate::problem::{FieldPath, Problem, Rejected};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A Node, as far as the mesh reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `status`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: Status,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    address: String,
}

/// What a Node means. Only its IP addresses count, not its names.
pub fn translate(node: &Node) -> Result<Translated, Rejected> {
    let name = cluster_name(Kind::Node, &node.metadata)?.name;
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty());
    let mut problems = Vec::new();
    let mut addresses = Vec::new();
    for (at, address) in node.status.addresses.iter().enumerate() {
        if !matches!(address.kind.as_str(), "InternalIP" | "ExternalIP") {
            continue;
        }
        match parse::address(&address.address) {
            Ok(ip) => addresses.push(ip),
            Err(wrong) => problems.push(Problem {
                field: FieldPath::of(["status", "addresses"]).index(at).key("address"),
                wrong,
            }),
        }
    }
    Ok(Translated {
        change: Some(Change::Node(adit_core::workload::Node {
            name: NodeName(name),
            zone: zone.map(|zone| zone.as_str().into()),
            addresses,
        })),
        problems,
    })
}
