use kube::CustomResourceExt as _;
use serde_json::Value;

use super::*;
use crate::policies::{authorization, peers, traffic};

/// The schema of `spec`.
fn spec_of(crd: impl Serialize) -> Value {
    let crd = serde_json::to_value(crd).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// Asserts that a level of the schema has exactly the fields that are read, and keeps those that are not.
fn check(schema: &Value, pointer: &str, known: &[&str]) {
    let level = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer} in {schema:#}"));
    let mut fields: Vec<_> = level["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, known, "{pointer}");
    assert_eq!(level["x-kubernetes-preserve-unknown-fields"], true, "{pointer}");
}

#[test]
fn the_schema_of_authorization_policies_has_the_fields_that_are_read() {
    let spec = spec_of(AuthorizationPolicy::crd());
    let rule = "/properties/rules/items";
    check(&spec, "", authorization::SPEC);
    check(&spec, "/properties/selector", &["matchLabels"]);
    check(&spec, rule, authorization::RULE);
    check(&spec, &format!("{rule}/properties/from/items"), authorization::FROM);
    check(&spec, &format!("{rule}/properties/from/items/properties/source"), authorization::SOURCE);
    check(&spec, &format!("{rule}/properties/to/items"), authorization::TO);
    check(&spec, &format!("{rule}/properties/to/items/properties/operation"), authorization::OPERATION);
    check(&spec, &format!("{rule}/properties/when/items"), authorization::WHEN);
}

#[test]
fn the_schema_of_peer_authentications_has_the_fields_that_are_read() {
    let spec = spec_of(PeerAuthentication::crd());
    check(&spec, "", peers::SPEC);
    check(&spec, "/properties/mtls", peers::MTLS);
    check(&spec, "/properties/portLevelMtls/additionalProperties", peers::MTLS);
}

#[test]
fn the_schema_of_traffic_policies_has_the_fields_that_are_read() {
    let spec = spec_of(TrafficPolicy::crd());
    check(&spec, "", traffic::SPEC);
    check(&spec, "/properties/targetRefs/items", traffic::TARGET);
    check(&spec, "/properties/retry", traffic::RETRY);
    check(&spec, "/properties/retryConstraint", traffic::CONSTRAINT);
    check(&spec, "/properties/retryConstraint/properties/budget", traffic::BUDGET);
    check(&spec, "/properties/retryConstraint/properties/minRetryRate", traffic::RATE);
    check(&spec, "/properties/ejection", traffic::EJECTION);
}

#[test]
fn kubectl_knows_the_kinds_by_short_names_and_as_one_category() {
    let names =
        |crd: Value| (crd["spec"]["names"]["shortNames"].clone(), crd["spec"]["names"]["categories"].clone());
    for (crd, short) in [
        (serde_json::to_value(AuthorizationPolicy::crd()), "adap"),
        (serde_json::to_value(PeerAuthentication::crd()), "adpa"),
        (serde_json::to_value(TrafficPolicy::crd()), "adtp"),
    ] {
        assert_eq!(names(crd.unwrap()), (serde_json::json!([short]), serde_json::json!(["adit"])));
    }
}

#[test]
fn a_status_is_written_apart_and_shown_as_a_column() {
    let crd = serde_json::to_value(AuthorizationPolicy::crd()).unwrap();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"], serde_json::json!({"status": {}}));
    let columns: Vec<_> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["name"])
        .collect();
    assert_eq!(columns, ["Action", "Dry-Run", "Accepted", "Age"]);
}

#[test]
fn what_the_types_write_is_read_without_a_problem() {
    let policy = AuthorizationPolicy::new(
        "p",
        AuthorizationPolicySpec {
            action: Some(PolicyAction::Deny),
            rules: Some(vec![PolicyRule {
                from: Some(vec![RuleFrom {
                    source: RuleSource { principals: Some(vec!["*/sa/web".into()]), ..RuleSource::default() },
                }]),
                to: Some(vec![RuleTo {
                    operation: RuleOperation {
                        ports: Some(vec![Port::Number(80), Port::Text("443".into())]),
                        not_ports: None,
                    },
                }]),
                ..PolicyRule::default()
            }]),
            ..AuthorizationPolicySpec::default()
        },
    );
    let value = serde_json::to_value(policy).unwrap();
    let (_, object) = crate::Object::read(&value).unwrap().unwrap();
    assert_eq!(object.translate("adit-system").unwrap().problems, []);
}
