//! The custom resources of group `policy.adit.dev`, as types: what their definitions are generated from, and what a
//! tool writes. Reading goes another way ([`crate::policies`]), field by field: a type would fail as a whole.
//!
//! Every object level keeps unknown fields. Pruned, a misspelt `form:` would leave a rule that matches everything.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    shortname = "aap",
    doc = "Who may connect to the selected workloads, by identity"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct AuthorizationPolicySpec {
    /// Which workloads. Absent: all of the namespace; in adit-system: all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What is done with what a rule matches. Default ALLOW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<PolicyAction>,
    /// Judge and count, but enforce nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// Any of them matches. An empty rule matches everything, no rule nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub rules: Vec<PolicyRule>,
}

/// What is done with what a rule matches.
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
    /// Those with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        inner(length(min = 1, max = 320), regex(pattern = r"^(\*|\*?[^*]+|[^*]+\*)$"))
    )]
    pub principals: Option<Vec<String>>,
    /// None of these identities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        inner(length(min = 1, max = 320), regex(pattern = r"^(\*|\*?[^*]+|[^*]+\*)$"))
    )]
    pub not_principals: Option<Vec<String>>,
    /// Namespaces of identities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        inner(length(min = 1, max = 64), regex(pattern = r"^(\*|\*?[^*]+|[^*]+\*)$"))
    )]
    pub namespaces: Option<Vec<String>>,
    /// None of these namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        inner(length(min = 1, max = 64), regex(pattern = r"^(\*|\*?[^*]+|[^*]+\*)$"))
    )]
    pub not_namespaces: Option<Vec<String>>,
    /// Service accounts: NAMESPACE/ACCOUNT, or ACCOUNT of the policy's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 1, max = 320), regex(pattern = r"^([^*/]+/)?[^*/]+$")))]
    pub service_accounts: Option<Vec<String>>,
    /// None of these service accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 1, max = 320), regex(pattern = r"^([^*/]+/)?[^*/]+$")))]
    pub not_service_accounts: Option<Vec<String>>,
    /// Addresses and blocks of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 2, max = 64)))]
    pub ip_blocks: Option<Vec<String>>,
    /// None of these addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(length(min = 2, max = 64)))]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub ports: Option<Vec<Port>>,
    /// None of these ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
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

impl JsonSchema for Port {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Port".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": 65535,
            "pattern": "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
        })
    }
}

/// One condition of a rule.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RuleCondition {
    /// source.principal, source.namespace, source.ip, destination.ip or destination.port.
    pub key: String,
    /// One of these values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub values: Option<Vec<String>>,
    /// None of these values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub not_values: Option<Vec<String>>,
}

/// Whether plaintext may enter the selected workloads.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "policy.adit.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    namespaced,
    status = "PolicyStatus",
    shortname = "apa",
    doc = "Whether plaintext may enter the selected workloads"
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
    /// For single ports of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// Whether plaintext may enter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Mtls {
    /// STRICT, PERMISSIVE, or UNSET: as the next level says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
}

/// Whether plaintext may enter.
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
    shortname = "atp",
    doc = "How connections to Services are tried: deadlines, retries, their budget, ejection"
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
    /// Empty: the core group.
    #[serde(default)]
    pub group: String,
    /// Service.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// How often and when a connect is tried again (HTTPRoute's `retry`).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Retry {
    /// Retries after the first attempt, at most 10. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
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
    #[schemars(range(max = 1_000_000))]
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
    #[schemars(range(max = 1_000_000))]
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

/// A duration in Gateway API's format, like 1m30s (GEP-2257).
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
        schemars::json_schema!({"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"})
    }
}

/// `status` of a policy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicyStatus {
    /// `Accepted`: False where a field was not understood, with that field in the message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
