//! Namespaces: whether they are enrolled, and what their pods skip.

use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::meta::{Translated, cluster_name};
use crate::problem::Rejected;
use crate::skip;

/// A Namespace, as far as the mesh reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct Namespace {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

/// What a Namespace means. One that terminates still has pods.
pub fn translate(namespace: &Namespace) -> Result<Translated, Rejected> {
    let name = cluster_name(Kind::Namespace, &namespace.metadata)?.name;
    let mut problems = Vec::new();
    let mesh = skip::mesh_label(&namespace.metadata, &mut problems);
    let skip = skip::skip(&namespace.metadata, &mut problems);
    Ok(Translated {
        change: Some(Change::Namespace(adit_core::workload::Namespace { name, mesh, skip })),
        problems,
    })
}
