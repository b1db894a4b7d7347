//! The custom resources of group `policy.adit.dev`, as types: what their definitions are generated from, and what a
//! tool writes. Reading goes another way ([`crate::policies`]), field by field: a type would fail as a whole.
//!
//! Every object level keeps unknown fields. Pruned, a misspelt `form:` would leave a rule that matches everything. What
//! a value may look like is said by [`leaves`], so that the API server refuses what the readers would not understand.
//! `null` is absent everywhere, as for the readers: templates write it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policies::traffic::{FAILURES_MOST, RATE_MOST, RETRIES_MOST};

pub mod leaves;
#[cfg(test)]
mod tests;

/// Who may connect to the selected workloads.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.adit.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "adap",
    category = "adit",
    doc = "Who may connect to the selected workloads, by identity, address and port",
    printcolumn = r#"{"name":"Action","type":"string","jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Dry-Run","type":"boolean","jsonPath":".spec.dryRun"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct AuthorizationPolicySpec {
    /// Which workloads. Absent: all of the namespace; in adit-system: all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What is done with what a rule matches. Default ALLOW.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "ALLOW"))]
    pub action: Option<PolicyAction>,
    /// Judge and count, but enforce nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// Any of them matches. An empty rule matches everything, no rule nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PolicyRule>>,
}

/// What is done with what a rule matches. Default ALLOW.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// Let it in, and nothing else.
    Allow,
    /// Refuse it, whatever allows it.
    Deny,
    /// Count it.
    Audit,
}

/// Which workloads a policy is for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Selector {
    /// Those with all of these labels. Empty or absent: as without a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::labels")]
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// All of its parts must hold.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PolicyRule {
    /// One of these sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub from: Option<Vec<RuleFrom>>,
    /// One of these destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub to: Option<Vec<RuleTo>>,
    /// All of these conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<RuleCondition>>,
}

/// One of a rule's sources.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RuleFrom {
    /// The source.
    pub source: RuleSource,
}

/// A source: all of its fields must hold; of a field one value; of a not… field none.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "minProperties" = 1))]
pub struct RuleSource {
    /// Identities, like cluster.local/ns/shop/sa/web; a star first, last or alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::principals")]
    pub principals: Option<Vec<String>>,
    /// None of these identities. Holds for plaintext, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::principals")]
    pub not_principals: Option<Vec<String>>,
    /// Namespaces of identities; a star first, last or alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::namespaces")]
    pub namespaces: Option<Vec<String>>,
    /// None of these namespaces. Holds for plaintext, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::namespaces")]
    pub not_namespaces: Option<Vec<String>>,
    /// Service accounts: NAMESPACE/ACCOUNT, or ACCOUNT of the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::service_accounts")]
    pub service_accounts: Option<Vec<String>>,
    /// None of these service accounts. Holds for plaintext, which has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::service_accounts")]
    pub not_service_accounts: Option<Vec<String>>,
    /// Addresses and blocks of them, like 10.0.0.0/8: the client's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::ip_blocks")]
    pub ip_blocks: Option<Vec<String>>,
    /// None of these addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::ip_blocks")]
    pub not_ip_blocks: Option<Vec<String>>,
}

/// One of a rule's destinations.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RuleTo {
    /// The destination.
    pub operation: RuleOperation,
}

/// A destination, by the pod's own port.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "minProperties" = 1))]
pub struct RuleOperation {
    /// One of these ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::ports")]
    pub ports: Option<Vec<Port>>,
    /// None of these ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::ports")]
    pub not_ports: Option<Vec<Port>>,
}

/// A port: 80, or "80" as Istio writes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Port {
    /// A number.
    Number(u16),
    /// Digits.
    Text(String),
}

/// A value of a condition: text, or the number of a port.
pub type ConditionValue = Port;

/// One condition of a rule.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RuleCondition {
    /// source.principal, source.namespace, source.ip, destination.ip or destination.port.
    #[schemars(schema_with = "leaves::condition_key")]
    pub key: String,
    /// One of these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::condition_values")]
    pub values: Option<Vec<ConditionValue>>,
    /// None of these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::condition_values")]
    pub not_values: Option<Vec<ConditionValue>>,
}

/// Whether plaintext may enter the selected workloads.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.adit.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    namespaced,
    status = "PolicyStatus",
    shortname = "adpa",
    category = "adit",
    doc = "Whether plaintext may enter the selected workloads",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mtls.mode"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct PeerAuthenticationSpec {
    /// Which workloads. Absent: all of the namespace; in adit-system: all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// For single ports of the pod, by number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, Mtls>>,
}

/// Whether plaintext may enter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Mtls {
    /// STRICT, PERMISSIVE, or UNSET: as the next level says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "UNSET"))]
    pub mode: Option<MtlsMode>,
}

/// STRICT, PERMISSIVE, or UNSET: as the next level says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the next level says.
    Unset,
    /// It may.
    Permissive,
    /// It may not.
    Strict,
}

/// How connections to Services are tried.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.adit.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "adtp",
    category = "adit",
    doc = "How connections to Services are tried: deadlines, retries, their budget, ejection",
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TrafficPolicySpec {
    /// Services of the policy's namespace.
    #[schemars(length(min = 1))]
    pub target_refs: Vec<TargetRef>,
    /// The whole connect phase may take this long. Default 3s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Span>,
    /// One attempt may take this long while another endpoint exists. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_timeout: Option<Span>,
    /// How often and when a connect is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How many retries all connects together may make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_constraint: Option<RetryConstraint>,
    /// When an endpoint is left out for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
}

/// What a TrafficPolicy is for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TargetRef {
    /// Empty, or core: the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "leaves::core_group")]
    pub group: Option<String>,
    /// Service.
    #[schemars(extend("enum" = ["Service"]))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// How often and when a connect is tried again (HTTPRoute's `retry`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Retry {
    /// Retries after the first attempt, at most 10. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = RETRIES_MOST))]
    pub attempts: Option<u32>,
    /// Full jitter's base. Default 25ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Span>,
    /// Full jitter's cap. Default 250ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Span>,
}

/// How many retries all connects together may make (XBackendTrafficPolicy's `retryConstraint`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RetryConstraint {
    /// What first attempts earn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
    /// What is allowed all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_retry_rate: Option<RetryRate>,
}

/// What first attempts earn.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RetryBudget {
    /// Retries in percent of first attempts. Default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// How long an earned retry lasts. Default 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
}

/// So many in so long.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RetryRate {
    /// How many. Default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = RATE_MOST))]
    pub count: Option<u32>,
    /// In how long. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Ejection {
    /// Connect failures in a row that eject it; 0: never. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = FAILURES_MOST))]
    pub consecutive_failures: Option<u32>,
    /// The first ejection's length, doubled by each further one. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_time: Option<Span>,
    /// The longest ejection. Default 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time: Option<Span>,
    /// How many of a Service's endpoints may be ejected at once, in percent. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_percent: Option<u32>,
}

/// A duration in Gateway API's format, like 1m30s (GEP-2257), above zero and up to 1h.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Span(pub String);

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        leaves::span()
    }
}

/// `status` of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// `Accepted`: False where a field was not understood, with that field in the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
