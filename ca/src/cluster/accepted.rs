//! What the condition `Accepted` of each policy has to say, and which of them do not say it yet. Pure: knows the policies
//! as they are told, and judges them as agents do ([`adit_objects::accepted`]).

use std::collections::BTreeMap;

use adit_objects::accepted::{Judged, statuses};
use adit_objects::{Key, Object, Translated};
use adit_proto::status::PolicyStatus;
use serde_json::{Map, Value, json};

use super::watch::Versioned;
use crate::stamp::Stamp;

/// The type of the condition.
const TYPE: &str = "Accepted";
/// The longest message, in bytes: what the schema of a condition allows, in characters.
const MESSAGE_LEN_MAX: usize = 32 * 1024;

/// A policy as the API server told it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    value: Value,
    version: String,
}

impl<'de> serde::Deserialize<'de> for Told {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        let version = version.to_owned();
        // Who wrote which field when: more than the rest of a policy, and of no use here.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        Ok(Self { value, version })
    }
}

impl Versioned for Told {
    fn version(&self) -> &str {
        &self.version
    }
}

/// One of our kinds of policies, as the API server names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PolicyKind {
    /// `kind`.
    pub(super) kind: &'static str,
    /// In paths.
    pub(super) path: &'static str,
    /// In the log.
    pub(super) what: &'static str,
}

/// All three.
pub(super) const KINDS: [PolicyKind; 3] = [
    PolicyKind {
        kind: "AuthorizationPolicy",
        path: "/apis/policy.adit.dev/v1alpha1/authorizationpolicies",
        what: "AuthorizationPolicies",
    },
    PolicyKind {
        kind: "PeerAuthentication",
        path: "/apis/policy.adit.dev/v1alpha1/peerauthentications",
        what: "PeerAuthentications",
    },
    PolicyKind {
        kind: "TrafficPolicy",
        path: "/apis/policy.adit.dev/v1alpha1/trafficpolicies",
        what: "TrafficPolicies",
    },
];

/// Every policy of the cluster.
#[derive(Debug)]
pub(super) struct Policies {
    system_namespace: String,
    known: BTreeMap<Place, Known>,
}

/// Where a policy is: its kind, namespace and name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Debug)]
struct Known {
    version: String,
    generation: i64,
    /// What its status says, conditions of others included.
    conditions: Vec<Value>,
    judged: Result<(Key, Translated), String>,
}

/// A status that has to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Due {
    /// Of which policy.
    pub(super) place: Place,
    /// Of which version of it.
    pub(super) version: String,
    /// The change, by RFC 7386; fails if the policy is another by then.
    pub(super) patch: Value,
}

impl Policies {
    /// None yet. `system_namespace` is where policies are mesh-wide.
    pub(super) fn new(system_namespace: String) -> Self {
        Self { system_namespace, known: BTreeMap::new() }
    }

    /// These are all of `kind`.
    pub(super) fn replace(&mut self, kind: PolicyKind, all: Vec<Told>) {
        self.known.retain(|place, _| place.kind != kind.kind);
        all.into_iter().for_each(|told| self.put(kind, told));
    }

    /// This is what a status was written to. Unless the watch was faster: what it has told meanwhile is newer.
    pub(super) fn written(&mut self, due: &Due, told: Told) {
        let is_known = self.known.get(&due.place).is_some_and(|known| known.version == due.version);
        if let Some(kind) = KINDS.into_iter().find(|kind| is_known && kind.kind == due.place.kind) {
            self.put(kind, told);
        }
    }

    /// This one is there, or has changed.
    pub(super) fn put(&mut self, kind: PolicyKind, told: Told) {
        let place = place(kind, &told);
        let known = self.judge(kind, told);
        self.known.insert(place, known);
    }

    /// This one is gone.
    pub(super) fn remove(&mut self, kind: PolicyKind, told: &Told) {
        self.known.remove(&place(kind, told));
    }

    fn judge(&self, kind: PolicyKind, Told { mut value, version }: Told) -> Known {
        let at = |path: &str| value.pointer(path);
        let generation = at("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
        let conditions = at("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        // A list's items do not say what they are.
        if let Some(object) = value.as_object_mut() {
            object.insert("kind".to_owned(), json!(kind.kind));
            object.insert("apiVersion".to_owned(), json!(adit_objects::POLICY_API));
        }
        let judged = match Object::read(&value) {
            Ok(None) => Err("is no policy".to_owned()),
            Err(rejected) => Err(format!("{}: {}", rejected.field, rejected.rule)),
            Ok(Some((key, object))) => match object.translate(&self.system_namespace) {
                Err(rejected) => Err(format!("{}: {}", rejected.field, rejected.rule)),
                Ok(translated) => Ok((key, translated)),
            },
        };
        Known { version, generation, conditions, judged }
    }

    /// The policies whose status does not say what it has to.
    pub(super) fn due(&self, now: Stamp) -> Vec<Due> {
        let read = self.known.values().filter_map(|known| known.judged.as_ref().ok());
        let read = read.map(|(key, translated)| Judged {
            key,
            problems: translated.problems.iter().map(ToString::to_string).collect(),
            change: translated.change.as_ref(),
        });
        let mut said: BTreeMap<(String, String, String), PolicyStatus> = BTreeMap::new();
        for status in statuses(read) {
            said.insert((status.kind.clone(), status.namespace.clone(), status.name.clone()), status);
        }
        let mut due = Vec::new();
        for (place, known) in &self.known {
            let problems = match &known.judged {
                Err(problem) => vec![problem.clone()],
                Ok(_) => {
                    let of = (place.kind.to_owned(), place.namespace.clone(), place.name.clone());
                    match said.remove(&of) {
                        Some(status) => status.problems,
                        None => continue,
                    }
                }
            };
            due.extend(known.patch(place, &problems, now));
        }
        due
    }
}

impl Known {
    /// What makes the status say this; none if it does.
    fn patch(&self, place: &Place, problems: &[String], now: Stamp) -> Option<Due> {
        let found = self.conditions.iter().find(|condition| condition["type"] == TYPE);
        let status = if problems.is_empty() { "True" } else { "False" };
        let (reason, message) = match problems {
            [] => ("Accepted", "all of it is understood and in force".to_owned()),
            [one] if one.contains("does not count: ") => ("Conflicted", one.clone()),
            problems => ("Invalid", shortened(problems.join("; "))),
        };
        let mut wanted = Map::new();
        wanted.insert("type".to_owned(), json!(TYPE));
        wanted.insert("status".to_owned(), json!(status));
        wanted.insert("reason".to_owned(), json!(reason));
        wanted.insert("message".to_owned(), json!(message));
        wanted.insert("observedGeneration".to_owned(), json!(self.generation));
        let says = |key: &str| found.and_then(|found| found.get(key));
        if wanted.iter().all(|(key, value)| says(key) == Some(value)) {
            return None;
        }
        let since = match says("lastTransitionTime") {
            Some(since) if says("status") == Some(&json!(status)) => since.clone(),
            Some(_) | None => json!(now),
        };
        wanted.insert("lastTransitionTime".to_owned(), since);
        let others = self.conditions.iter().filter(|condition| condition["type"] != TYPE);
        let conditions: Vec<Value> = others.cloned().chain([Value::Object(wanted)]).collect();
        let patch = json!({
            "metadata": {"resourceVersion": self.version},
            "status": {"conditions": conditions},
        });
        Some(Due { place: place.clone(), version: self.version.clone(), patch })
    }
}

impl Place {
    /// Where its status is written.
    pub(super) fn status_path(&self) -> String {
        let plural = KINDS.iter().find(|kind| kind.kind == self.kind);
        let plural = plural.and_then(|kind| kind.path.rsplit('/').next()).unwrap_or_default();
        let Self { namespace, name, .. } = self;
        format!("/apis/{}/namespaces/{namespace}/{plural}/{name}/status", adit_objects::POLICY_API)
    }
}

fn place(kind: PolicyKind, told: &Told) -> Place {
    let of = |path: &str| told.value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    Place { kind: kind.kind, namespace: of("/metadata/namespace"), name: of("/metadata/name") }
}

fn shortened(mut text: String) -> String {
    if text.len() > MESSAGE_LEN_MAX {
        let end = (0..=MESSAGE_LEN_MAX - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
