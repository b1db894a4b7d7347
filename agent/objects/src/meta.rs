//! What all kinds of objects have in common: their names, their labels, and what reading one gives.

use std::sync::Arc;

use adit_core::net::ObjectName;
use adit_core::workload::Labels;
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::problem::{FieldPath, ObjectRef, Problem, Rejected, Wrong};

/// What an object means, and what in it was not understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Translated {
    /// What the World should know; none where the object is none of the mesh's business (any more).
    pub change: Option<Change>,
    /// What was not understood. `change` stands all the same: it allows less and denies more.
    pub problems: Vec<Problem>,
}

/// `kind` of an object.
pub fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Pod => "Pod",
        Kind::Namespace => "Namespace",
        Kind::Service => "Service",
        Kind::EndpointSlice => "EndpointSlice",
        Kind::Node => "Node",
        Kind::AuthorizationPolicy => "AuthorizationPolicy",
        Kind::PeerAuthentication => "PeerAuthentication",
        Kind::TrafficPolicy => "TrafficPolicy",
    }
}

/// `metadata.namespace` (`default` where absent) and `metadata.name`.
pub(crate) fn namespaced_name(kind: Kind, metadata: &ObjectMeta) -> Result<ObjectName, Rejected> {
    let name = cluster_name(kind, metadata)?.name;
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    Ok(ObjectName::new(namespace.unwrap_or("default"), name))
}

/// `metadata.name` of a kind without namespaces.
pub(crate) fn cluster_name(kind: Kind, metadata: &ObjectMeta) -> Result<ObjectName, Rejected> {
    match metadata.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(ObjectName::new("", name)),
        Some(_) | None => Err(missing(kind, metadata, FieldPath::of(["metadata", "name"]))),
    }
}

/// `metadata.creationTimestamp` in seconds since the epoch; one without is as old as can be: of two files, the lesser
/// name wins.
pub(crate) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// A field without which the object means nothing.
pub(crate) fn missing(kind: Kind, metadata: &ObjectMeta, field: FieldPath) -> Rejected {
    Rejected {
        object: Box::new(ObjectRef {
            kind: word(kind).to_owned(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }),
        field,
        rule: Wrong::Missing.into(),
    }
}

/// Labels as the core keeps them.
pub(crate) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Labels {
    Labels(
        pairs.into_iter().map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str()))).collect(),
    )
}

/// Reads `null` as the default: Kubernetes' JSON takes both for absent.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
