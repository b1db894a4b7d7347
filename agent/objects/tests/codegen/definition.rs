//! The definition of a custom resource, made from its Rust types and brought to what the readers do.

use adit_objects::crd::{AuthorizationPolicy, PeerAuthentication, TrafficPolicy, leaves};
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// The definitions of all three kinds.
pub(crate) fn all() -> [Value; 3] {
    [definition::<AuthorizationPolicy>(), definition::<PeerAuthentication>(), definition::<TrafficPolicy>()]
}

/// The schema of the one version that a definition has.
pub(crate) fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

fn definition<K: CustomResourceExt>() -> Value {
    let mut definition = serde_json::to_value(K::crd()).unwrap();
    let root = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    // A misspelt `spec` must not vanish either.
    root["x-kubernetes-preserve-unknown-fields"] = true.into();
    let spec = &root["properties"]["spec"];
    if spec.get("required").is_none() {
        // No spec reads as an empty one, and an empty one is good.
        root.as_object_mut().unwrap().remove("required");
        root["properties"]["spec"]["nullable"] = true.into();
    }
    let rules = "/properties/spec/properties/rules/items/properties/when/items";
    if let Some(condition) = root.pointer_mut(rules) {
        condition["allOf"] = leaves::condition();
    }
    plain(root);
    definition
}

/// Says what the derived schema means in the API server's words: of integers it knows fewer formats, and warns of others;
/// and it takes no `null` for an enum but where a default stands in for it.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("format").is_some_and(|format| format == "uint32") {
                fields.insert("format".into(), json!("int32"));
            }
            if fields.get("enum").is_some_and(Value::is_array) && fields.remove("nullable").is_some() {
                assert!(fields.contains_key("default"), "null would be refused: {fields:?}");
                fields["enum"].as_array_mut().unwrap().retain(|value| !value.is_null());
            }
            for bound in ["minimum", "maximum"] {
                if let Some(bound) = fields.get_mut(bound) {
                    *bound = whole(bound).into();
                }
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A bound as it was written: the API's type has them as floating point numbers.
fn whole(bound: &Value) -> i64 {
    format!("{:.0}", bound.as_f64().unwrap()).parse().unwrap()
}
