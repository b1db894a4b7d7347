//! Policies of group `policy.adit.dev`: read from JSON field by field, so that one bad field costs that field only.
//!
//! A policy is never dropped for what it holds. [`authorization`], [`peers`] and [`traffic`] each say what a field that
//! was not understood means; here is how fields are read, and how what was wrong with them is kept.

pub mod authorization;
pub(crate) mod parse;
pub mod peers;
pub mod traffic;

use std::sync::Arc;

use adit_core::policy::Scope;
use adit_core::workload::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::problem::{FieldPath, Problem, Wrong};

#[cfg(test)]
mod tests;

/// A policy of any kind, its spec not yet read.
#[derive(Clone, Debug, Deserialize)]
pub struct Policy {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Everything else.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Policy {
    /// `metadata.creationTimestamp` in seconds since the epoch; one without is as old as can be: of two files, the
    /// name decides.
    fn created(&self) -> i64 {
        crate::meta::created(&self.metadata)
    }

    /// Its spec, and whether anything in or beside it is unknown; no spec reads as an empty one.
    fn spec<'v>(&'v self, known: &'static [&'static str], problems: &mut Vec<Problem>) -> Spec<'v> {
        let before = problems.len();
        unknown_fields(&self.fields, &At::ROOT, &["apiVersion", "kind", "spec", "status"], problems);
        let fields = match present(&self.fields, "spec") {
            None => None,
            Some(value) => object(value, &At::ROOT.key("spec"), known, problems),
        };
        Spec { fields, is_whole: problems.len() == before }
    }
}

/// `spec` of a policy.
struct Spec<'v> {
    fields: Option<&'v Map<String, Value>>,
    /// Whether all its fields are known.
    is_whole: bool,
}

impl<'v> Spec<'v> {
    fn get(&self, key: &str) -> Option<&'v Value> {
        present(self.fields?, key)
    }
}

/// A place in the object being read. Made on the stack, turned into a [`FieldPath`] only where something is wrong.
#[derive(Clone, Copy)]
struct At<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    const ROOT: At<'static> = At { parent: None, step: Step::Root };

    fn key(&'a self, key: &'a str) -> Self {
        At { parent: Some(self), step: Step::Key(key) }
    }

    fn index(&'a self, at: usize) -> Self {
        At { parent: Some(self), step: Step::Index(at) }
    }

    fn path(&self) -> FieldPath {
        let parent = self.parent.map_or(FieldPath::ROOT, At::path);
        match self.step {
            Step::Root => parent,
            Step::Key(key) => parent.key(key),
            Step::Index(at) => parent.index(at),
        }
    }

    fn wrong(&self, wrong: Wrong, problems: &mut Vec<Problem>) {
        problems.push(Problem { field: self.path(), wrong });
    }
}

/// A field that is there; `null` is not, as everywhere in Kubernetes.
fn present<'v>(fields: &'v Map<String, Value>, key: &str) -> Option<&'v Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// What JSON calls the type of a value.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn mistyped(value: &Value, expected: &'static str, at: &At<'_>, problems: &mut Vec<Problem>) {
    let found = type_of(value);
    at.wrong(Wrong::Type { expected, found }, problems);
}

/// Fields that are decided inside HTTP, by Istio's names: refused with a better word than "unknown".
pub const HTTP_FIELDS: [&str; 12] = [
    "requestPrincipals",
    "notRequestPrincipals",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "jwtRules",
    "provider",
];

/// Reads an object and names every field of it that is not known.
fn object<'v>(
    value: &'v Value,
    at: &At<'_>,
    known: &[&str],
    problems: &mut Vec<Problem>,
) -> Option<&'v Map<String, Value>> {
    let Some(fields) = value.as_object() else {
        mistyped(value, "an object", at, problems);
        return None;
    };
    unknown_fields(fields, at, known, problems);
    Some(fields)
}

fn unknown_fields(fields: &Map<String, Value>, at: &At<'_>, known: &[&str], problems: &mut Vec<Problem>) {
    for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
        let wrong = match HTTP_FIELDS.contains(&key.as_str()) {
            true => Wrong::Http,
            false => Wrong::UnknownField { known: known.join(", ") },
        };
        at.key(key).wrong(wrong, problems);
    }
}

/// Reads a list; `None` if it is none. An empty one is a problem, as it could mean all or nothing, but is given.
fn list<'v>(value: &'v Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Option<&'v [Value]> {
    let Some(values) = value.as_array() else {
        mistyped(value, "a list", at, problems);
        return None;
    };
    if values.is_empty() {
        at.wrong(Wrong::Empty, problems);
    }
    Some(values)
}

/// Reads a list whose values are ORed. With one bad value none is given: what it would have matched is unknown.
fn values<T>(
    fields: &Map<String, Value>,
    key: &str,
    at: &At<'_>,
    read: impl Fn(&Value) -> Result<T, Wrong>,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let at = at.key(key);
    let Some(raw) = present(fields, key).and_then(|value| list(value, &at, problems)) else {
        return Vec::new();
    };
    let before = problems.len();
    let mut read_ones = Vec::with_capacity(raw.len());
    for (index, value) in raw.iter().enumerate() {
        match read(value) {
            Ok(value) => read_ones.push(value),
            Err(wrong) => at.index(index).wrong(wrong, problems),
        }
    }
    if problems.len() == before { read_ones } else { Vec::new() }
}

/// A reader of strings from one of parsed text.
fn text<T>(read: impl Fn(&str) -> Result<T, Wrong>) -> impl Fn(&Value) -> Result<T, Wrong> {
    move |value| match value.as_str() {
        Some(text) => read(text),
        None => Err(Wrong::Type { expected: "a string", found: type_of(value) }),
    }
}

/// A port, as a number or as a string of digits.
fn port(value: &Value) -> Result<u16, Wrong> {
    match value {
        Value::String(text) => parse::port(text),
        Value::Number(number) => parse::port(&number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(Wrong::Type { expected: "a port", found: type_of(value) })
        }
    }
}

/// Reads `spec.selector`. One that was not understood selects every workload of the policy's namespace (of all, in the
/// system namespace), and does so by selector: it keeps the precedence that it would have had.
fn scope(
    spec: &Spec<'_>,
    namespace: &Arc<str>,
    system_namespace: &str,
    problems: &mut Vec<Problem>,
) -> Scope {
    let is_system = &**namespace == system_namespace;
    let everywhere = || match is_system {
        true => Scope::Mesh,
        false => Scope::Namespace(Arc::clone(namespace)),
    };
    let Some(selector) = spec.get("selector") else {
        return everywhere();
    };
    let before = problems.len();
    let labels = match_labels(selector, problems);
    if problems.len() == before && labels.0.is_empty() {
        return everywhere();
    }
    Scope::Selected {
        namespace: (!is_system).then(|| Arc::clone(namespace)),
        labels: if problems.len() == before { labels } else { Labels::default() },
    }
}

fn match_labels(selector: &Value, problems: &mut Vec<Problem>) -> Labels {
    let spec = At::ROOT.key("spec");
    let at = spec.key("selector");
    let mut labels = Labels::default();
    let pairs =
        object(selector, &at, &["matchLabels"], problems).and_then(|fields| present(fields, "matchLabels"));
    let Some(pairs) = pairs else { return labels };
    let at = at.key("matchLabels");
    let Some(pairs) = pairs.as_object() else {
        mistyped(pairs, "an object", &at, problems);
        return labels;
    };
    for (key, value) in pairs {
        match value.as_str() {
            None => mistyped(value, "a string", &at.key(key), problems),
            Some(text) => match parse::label(key, text) {
                Ok((key, value)) => {
                    labels.0.insert(key, value);
                }
                Err(wrong) => at.key(key).wrong(wrong, problems),
            },
        }
    }
    labels
}
