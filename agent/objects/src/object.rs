//! Tells which of our kinds an object is, and translates it by that kind's rules.

use adit_core::net::{NodeName, ObjectName};
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::meta::{Translated, cluster_name, namespaced_name, word};
use crate::problem::{FieldPath, ObjectRef, Rejected, Unreadable, Wrong};
use crate::{namespaces, nodes, pods, policies, services, slices};

#[cfg(test)]
mod tests;

/// Which object of which kind: what a source tracks, and what it says is gone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its names; those of kinds without namespaces have an empty one.
    pub name: ObjectName,
}

impl Key {
    /// The change that says that this object is no more.
    pub fn gone(&self) -> Change {
        let name = self.name.clone();
        match self.kind {
            Kind::Pod => Change::PodGone(name),
            Kind::Namespace => Change::NamespaceGone(name.name),
            Kind::Service => Change::ServiceGone(name),
            Kind::EndpointSlice => Change::EndpointSliceGone(name),
            Kind::Node => Change::NodeGone(NodeName(name.name)),
            Kind::AuthorizationPolicy => Change::AuthorizationPolicyGone(name),
            Kind::PeerAuthentication => Change::PeerAuthenticationGone(name),
            Kind::TrafficPolicy => Change::TrafficPolicyGone(name),
        }
    }

    /// Whether a message's object is this one; a namespace that was not written is `default`.
    pub fn is(&self, object: &ObjectRef) -> bool {
        let namespace = match object.namespace.as_str() {
            "" if !matches!(self.kind, Kind::Namespace | Kind::Node) => "default",
            written => written,
        };
        let is_clusters = matches!(self.kind, Kind::Namespace | Kind::Node);
        word(self.kind) == object.kind
            && *self.name.name == object.name
            && (is_clusters || &*self.name.namespace == namespace)
    }

    /// The object as messages name it.
    pub fn object(&self) -> ObjectRef {
        ObjectRef {
            kind: word(self.kind).to_owned(),
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
        }
    }
}

/// `apiVersion` of our policies.
pub const POLICY_API: &str = "policy.adit.dev/v1alpha1";

/// An object of one of our kinds, decoded but not yet judged.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Pod.
    Pod(Box<pods::Pod>),
    /// A Namespace.
    Namespace(namespaces::Namespace),
    /// A Service.
    Service(Box<services::Service>),
    /// An EndpointSlice.
    EndpointSlice(slices::EndpointSlice),
    /// A Node.
    Node(nodes::Node),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(policies::Policy),
    /// A PeerAuthentication.
    PeerAuthentication(policies::Policy),
    /// A TrafficPolicy.
    TrafficPolicy(policies::Policy),
}

impl Object {
    /// Decodes an object of one of our kinds; `None` for a kind that is none of ours.
    pub fn read(value: &Value) -> Result<Option<(Key, Self)>, Rejected> {
        let object = named(value);
        let Some((kind, api)) = kind_of(value, &object)? else {
            return Ok(None);
        };
        let found = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        if found != api {
            let rule = Unreadable::ApiVersion { found: found.to_owned(), wanted: api };
            return Err(reject(&object, FieldPath::of(["apiVersion"]), rule));
        }
        let decoded = match kind {
            Kind::Pod => decode(value).map(Box::new).map(Self::Pod),
            Kind::Namespace => decode(value).map(Self::Namespace),
            Kind::Service => decode(value).map(Box::new).map(Self::Service),
            Kind::EndpointSlice => decode(value).map(Self::EndpointSlice),
            Kind::Node => decode(value).map(Self::Node),
            Kind::AuthorizationPolicy => decode(value).map(Self::AuthorizationPolicy),
            Kind::PeerAuthentication => decode(value).map(Self::PeerAuthentication),
            Kind::TrafficPolicy => decode(value).map(Self::TrafficPolicy),
        };
        let decoded = decoded.map_err(|(field, rule)| reject(&object, field, rule))?;
        let name = match kind {
            Kind::Namespace | Kind::Node => cluster_name(kind, decoded.metadata()),
            Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::TrafficPolicy => namespaced_name(kind, decoded.metadata()),
        }?;
        Ok(Some((Key { kind, name }, decoded)))
    }

    /// What it means. `system_namespace` is where policies are mesh-wide.
    pub fn translate(&self, system_namespace: &str) -> Result<Translated, Rejected> {
        match self {
            Self::Pod(pod) => pods::translate(pod),
            Self::Namespace(namespace) => namespaces::translate(namespace),
            Self::Service(service) => services::translate(service),
            Self::EndpointSlice(slice) => slices::translate(slice),
            Self::Node(node) => nodes::translate(node),
            Self::AuthorizationPolicy(policy) => policies::authorization::translate(policy, system_namespace),
            Self::PeerAuthentication(policy) => policies::peers::translate(policy, system_namespace),
            Self::TrafficPolicy(policy) => policies::traffic::translate(policy),
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Pod(pod) => &pod.metadata,
            Self::Namespace(namespace) => &namespace.metadata,
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Node(node) => &node.metadata,
            Self::AuthorizationPolicy(policy)
            | Self::PeerAuthentication(policy)
            | Self::TrafficPolicy(policy) => &policy.metadata,
        }
    }
}

/// Which of our kinds it says to be, and the API that has it. A kind of ours from elsewhere is an error at the caller's:
/// left out, it would be a policy that nobody enforces.
fn kind_of(value: &Value, object: &ObjectRef) -> Result<Option<(Kind, &'static str)>, Rejected> {
    let kind = match object.kind.as_str() {
        "Pod" => (Kind::Pod, "v1"),
        "Namespace" => (Kind::Namespace, "v1"),
        "Service" => (Kind::Service, "v1"),
        "EndpointSlice" => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
        "Node" => (Kind::Node, "v1"),
        "AuthorizationPolicy" => (Kind::AuthorizationPolicy, POLICY_API),
        "PeerAuthentication" => (Kind::PeerAuthentication, POLICY_API),
        "TrafficPolicy" => (Kind::TrafficPolicy, POLICY_API),
        "" => return Err(reject(object, FieldPath::of(["kind"]), Wrong::Missing.into())),
        other => {
            let api = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
            return match api.starts_with("policy.adit.dev/") {
                true => Err(reject(object, FieldPath::of(["kind"]), Unreadable::Kind(other.to_owned()))),
                false => Ok(None),
            };
        }
    };
    Ok(Some(kind))
}

/// The object's names, as far as they can be read.
pub(crate) fn named(value: &Value) -> ObjectRef {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = value.get("metadata");
    ObjectRef {
        kind: text(value.get("kind")),
        namespace: text(metadata.and_then(|metadata| metadata.get("namespace"))),
        name: text(metadata.and_then(|metadata| metadata.get("name"))),
    }
}

fn reject(object: &ObjectRef, field: FieldPath, rule: Unreadable) -> Rejected {
    Rejected { object: Box::new(object.clone()), field, rule }
}

/// Decodes one of the pruned types, and says in which field that failed.
fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, (FieldPath, Unreadable)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().iter().fold(FieldPath::ROOT, |field, segment| match segment {
            serde_path_to_error::Segment::Seq { index } => field.index(*index),
            serde_path_to_error::Segment::Map { key } => field.key(key),
            serde_path_to_error::Segment::Enum { variant } => field.key(variant),
            serde_path_to_error::Segment::Unknown => field,
        });
        (field, Unreadable::Shape(error.into_inner().to_string()))
    })
}
