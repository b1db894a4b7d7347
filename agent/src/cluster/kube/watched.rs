//! What is followed, where the API server has it, and what of each object is kept: what the mesh reads, nothing else.

use adit_core::world::Kind;
use adit_objects::{POLICY_API, trust};
use serde_json::{Map, Value, json};

use super::super::model::KINDS;

/// One thing that is followed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Watched {
    /// All objects of a kind.
    Kind(Kind),
    /// The trust bundle's ConfigMap.
    Bundle,
    /// The own DaemonSet.
    DaemonSet,
    /// Adit's own namespace, for its deletion.
    OwnNamespace,
}

/// Everything of which a copy is kept.
pub(super) fn kept() -> impl Iterator<Item = Watched> {
    KINDS.into_iter().map(Watched::Kind).chain([Watched::Bundle])
}

impl Watched {
    /// Its name in metrics, files and messages.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Kind(kind) => adit_objects::word(kind),
            Self::Bundle => "TrustBundle",
            Self::DaemonSet => "DaemonSet",
            Self::OwnNamespace => "OwnNamespace",
        }
    }

    /// Its collection's path at the API server.
    pub(super) fn path(self, system_namespace: &str, daemon_set: &str) -> String {
        let named = |path: &str, name: &str| format!("{path}?fieldSelector=metadata.name%3D{name}");
        match self {
            Self::Kind(Kind::Pod) => "/api/v1/pods".into(),
            Self::Kind(Kind::Namespace) => "/api/v1/namespaces".into(),
            Self::Kind(Kind::Service) => "/api/v1/services".into(),
            Self::Kind(Kind::EndpointSlice) => "/apis/discovery.k8s.io/v1/endpointslices".into(),
            Self::Kind(Kind::Node) => "/api/v1/nodes".into(),
            Self::Kind(Kind::AuthorizationPolicy) => format!("/apis/{POLICY_API}/authorizationpolicies"),
            Self::Kind(Kind::PeerAuthentication) => format!("/apis/{POLICY_API}/peerauthentications"),
            Self::Kind(Kind::TrafficPolicy) => format!("/apis/{POLICY_API}/trafficpolicies"),
            Self::Bundle => named(&format!("/api/v1/namespaces/{system_namespace}/configmaps"), trust::NAME),
            Self::DaemonSet => {
                named(&format!("/apis/apps/v1/namespaces/{system_namespace}/daemonsets"), daemon_set)
            }
            Self::OwnNamespace => named("/api/v1/namespaces", system_namespace),
        }
    }

    /// Whether a copy of it is kept.
    pub(super) fn is_kept(self) -> bool {
        matches!(self, Self::Kind(_) | Self::Bundle)
    }

    /// How many objects a page of its list has: a policy may be as long as 1.5 MiB, a pod has 3 to 30 KiB.
    pub(super) fn page_len(self) -> u32 {
        if self.is_policy() { 40 } else { 500 }
    }

    /// Whether its list is told when all of it is there: a policy that took another's place while nobody looked must not
    /// be in force beside it. Of the others a page counts as soon as it is there.
    pub(super) fn is_told_whole(self) -> bool {
        self.is_policy()
    }

    fn is_policy(self) -> bool {
        match self {
            Self::Kind(Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::TrafficPolicy) => true,
            Self::Kind(Kind::Pod | Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Node) => {
                false
            }
            Self::Bundle | Self::DaemonSet | Self::OwnNamespace => false,
        }
    }

    /// Decodes an object, and leaves out what the mesh does not read.
    ///
    /// One that is nested more deeply than is read keeps its names alone, with a spec that is none: a policy is then in
    /// force with less allowed, and any other object is refused by name.
    pub(super) fn read(self, text: &str) -> Value {
        let read = serde_json::from_str(text).ok();
        let mut value = read.filter(Value::is_object).unwrap_or_else(|| {
            let Named { metadata } = serde_json::from_str(text).unwrap_or_default();
            json!({
                "metadata": {"namespace": metadata.namespace, "name": metadata.name, "uid": metadata.uid},
                "spec": "nested too deeply to be read",
            })
        });
        self.prune(&mut value);
        if let Some(object) = value.as_object_mut() {
            let (api, kind) = self.type_meta();
            // Items of a list do not say it.
            object.insert("apiVersion".into(), api.into());
            object.insert("kind".into(), kind.into());
        }
        value
    }

    fn type_meta(self) -> (&'static str, &'static str) {
        match self {
            Self::Kind(Kind::Pod | Kind::Namespace | Kind::Service | Kind::Node) => ("v1", self.word()),
            Self::Kind(Kind::EndpointSlice) => ("discovery.k8s.io/v1", self.word()),
            Self::Kind(Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::TrafficPolicy) => {
                (POLICY_API, self.word())
            }
            Self::Bundle => ("v1", "ConfigMap"),
            Self::DaemonSet => ("apps/v1", "DaemonSet"),
            Self::OwnNamespace => ("v1", "Namespace"),
        }
    }

    fn prune(self, value: &mut Value) {
        let Some(object) = value.as_object_mut() else { return };
        match self {
            Self::Kind(Kind::Pod) => {
                keep(object, &["metadata", "spec", "status"]);
                within(object, "spec", |spec| {
                    keep(spec, &POD_SPEC);
                    for containers in ["containers", "initContainers"] {
                        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
                        let each = containers.into_iter().flatten().filter_map(Value::as_object_mut);
                        each.for_each(|container| keep(container, &CONTAINER));
                    }
                });
                within(object, "status", |status| keep(status, &["phase", "podIP", "podIPs"]));
            }
            Self::Kind(Kind::Node) => {
                keep(object, &["metadata", "status"]);
                within(object, "status", |status| keep(status, &["addresses"]));
            }
            Self::Kind(Kind::Service) => {
                within(object, "status", |status| keep(status, &["loadBalancer"]));
            }
            Self::Kind(Kind::Namespace) | Self::DaemonSet | Self::OwnNamespace => keep(object, &["metadata"]),
            // Of a policy everything is judged, but what the CA says of it.
            Self::Kind(Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::TrafficPolicy) => {
                object.remove("status");
            }
            Self::Kind(Kind::EndpointSlice) | Self::Bundle => {}
        }
        within(object, "metadata", |metadata| {
            keep(metadata, &METADATA);
            within(metadata, "annotations", |annotations| {
                annotations.retain(|key, _| ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix)));
            });
        });
    }
}

const METADATA: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
];
/// The annotations that are read begin so. `last-applied-configuration` alone may have 256 KiB.
const ANNOTATIONS: [&str; 2] = ["adit.dev/", "kubernetes.io/config."];
const POD_SPEC: [&str; 5] = ["nodeName", "serviceAccountName", "hostNetwork", "containers", "initContainers"];
const CONTAINER: [&str; 6] =
    ["restartPolicy", "ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];

fn keep(object: &mut Map<String, Value>, keys: &[&str]) {
    object.retain(|key, _| keys.contains(&key.as_str()));
}

fn within(object: &mut Map<String, Value>, key: &str, prune: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(inner) = object.get_mut(key).and_then(Value::as_object_mut) {
        prune(inner);
    }
}

/// The names of an object of which nothing else can be read.
#[derive(Default, serde::Deserialize)]
struct Named {
    #[serde(default)]
    metadata: NamedMetadata,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct NamedMetadata {
    namespace: String,
    name: String,
    uid: String,
}

#[cfg(test)]
mod tests {
    use adit_objects::Object;

    use super::*;

    /// A pod as an API server gives it, shortened.
    const POD: &str = r#"{"metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
        "managedFields": [{"manager": "kubelet"}], "labels": {"app": "web", "adit.dev/mesh": "enabled"},
        "annotations": {"adit.dev/capture": "enabled", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "volumes": [{"name": "v"}], "containers": [
            {"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
             "ports": [{"name": "http", "containerPort": 80}],
             "readinessProbe": {"httpGet": {"port": "http"}}}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{}]}}"#;

    fn judged(value: &Value) -> String {
        let (_, object) = Object::read(value).unwrap().unwrap();
        format!("{:?}", object.translate("adit-system").unwrap())
    }

    #[test]
    fn what_is_left_out_is_nothing_that_the_mesh_reads() {
        let of = Watched::Kind(Kind::Pod);
        let mut whole: Value = serde_json::from_str(POD).unwrap();
        whole["apiVersion"] = "v1".into();
        whole["kind"] = "Pod".into();
        let pruned = of.read(POD);
        assert_eq!(judged(&pruned), judged(&whole));
        let text = pruned.to_string();
        for gone in ["managedFields", "last-applied", "volumes", "env", "image", "conditions"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
        assert_eq!(of.read(&text), pruned, "what was kept is read as it was");
    }

    #[test]
    fn every_kind_is_read_as_what_it_is() {
        for of in kept() {
            let value = of.read(r#"{"metadata": {"name": "a", "uid": "u"}, "status": {"x": 1}}"#);
            let (_, kind) = of.type_meta();
            assert_eq!(value["kind"], kind);
            match of {
                Watched::Kind(wanted) => {
                    let (key, _) = Object::read(&value).unwrap().unwrap();
                    assert_eq!(key.kind, wanted);
                }
                Watched::Bundle | Watched::DaemonSet | Watched::OwnNamespace => {}
            }
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_a_policy_that_allows_nothing_and_any_other_object_refused_by_name() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(500), "}".repeat(500));
        let text = format!(r#"{{"metadata": {{"name": "p", "namespace": "shop"}}, "spec": {deep}}}"#);
        let policy = Watched::Kind(Kind::AuthorizationPolicy).read(&text);
        let (_, object) = Object::read(&policy).unwrap().unwrap();
        let translated = object.translate("adit-system").unwrap();
        assert!(translated.change.is_some() && !translated.problems.is_empty(), "{translated:?}");
        let error = Object::read(&Watched::Kind(Kind::Pod).read(&text)).unwrap_err();
        assert!(error.to_string().starts_with("Pod shop/p: spec: "), "{error}");
    }
}
