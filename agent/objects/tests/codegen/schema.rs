//! What the API server refuses, so far as it is needed to compare it with the readers: the part of OpenAPI that the
//! definitions use, and what `admission` adds to it. That a real API server agrees is a test of the cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex};

use adit_objects::crd::leaves;
use adit_objects::durations;
use regex::Regex;
use serde_json::{Map, Value};

/// The first thing in a value that is refused, with its place.
pub(crate) fn refusal(schema: &Value, value: &Value, place: &str) -> Option<String> {
    let says = |what: &str| Some(format!("{place}: {what}"));
    if value.is_null() {
        // A default takes its place. (In a map, a client that is not server-side apply has it dropped instead.)
        let is_good = schema["nullable"] == true || schema.get("default").is_some();
        return if is_good { None } else { says("null") };
    }
    if !is_of_type(schema, value) {
        return says("type");
    }
    if let Some(wrong) = leaf(schema, value) {
        return says(wrong);
    }
    let inside = match value {
        Value::Object(fields) => object(schema, fields, place),
        Value::Array(values) => values
            .iter()
            .enumerate()
            .find_map(|(at, value)| refusal(schema.get("items")?, value, &format!("{place}[{at}]"))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    inside.or_else(|| combined(schema, value, place))
}

fn is_of_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64();
    }
    match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some(other) => panic!("the type {other}"),
    }
}

/// What is wrong with a single value, or with how many there are.
fn leaf(schema: &Value, value: &Value) -> Option<&'static str> {
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        return Some("enum");
    }
    let bound = |name: &str| schema[name].as_i64();
    match value {
        Value::String(text) => {
            let length = i64::try_from(text.chars().count()).unwrap();
            let pattern = schema["pattern"].as_str();
            if pattern.is_some_and(|pattern| !matches(pattern, text)) {
                return Some("pattern");
            }
            if schema["format"].as_str().is_some_and(|format| !is_of_format(text, format)) {
                return Some("format");
            }
            if bound("minLength").is_some_and(|least| length < least)
                || bound("maxLength").is_some_and(|most| length > most)
            {
                return Some("length");
            }
            // Admission's.
            let is_span = pattern == Some(leaves::SPAN);
            let ms = durations::parse(text).map_or(0, |span| span.as_millis());
            (is_span && !(1..=3_600_000).contains(&ms)).then_some("span")
        }
        Value::Number(number) => {
            let number = number.as_i64()?;
            let is_out = bound("minimum").is_some_and(|least| number < least)
                || bound("maximum").is_some_and(|most| number > most);
            is_out.then_some("range")
        }
        Value::Array(values) => (schema["minItems"] == 1 && values.is_empty()).then_some("minItems"),
        // Admission counts no nulls.
        Value::Object(fields) => {
            (schema["minProperties"] == 1 && fields.values().all(Value::is_null)).then_some("minProperties")
        }
        Value::Null | Value::Bool(_) => None,
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: LazyLock<Mutex<BTreeMap<String, Regex>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap();
    let regex = compiled.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).unwrap());
    regex.is_match(text)
}

/// The formats as sloppy as the API server has them.
fn is_of_format(text: &str, format: &str) -> bool {
    let plain = |text: &str| {
        let octets: Vec<_> = text.split('.').map(|octet| octet.trim_start_matches('0')).collect();
        let octets = octets.into_iter().map(|octet| if octet.is_empty() { "0" } else { octet });
        let text = if text.contains('.') && !text.contains(':') {
            octets.collect::<Vec<_>>().join(".")
        } else {
            text.to_owned()
        };
        text.parse::<IpAddr>().ok()
    };
    match format {
        "ipv4" => plain(text).is_some() && text.contains('.'),
        "ipv6" => plain(text).is_some() && text.contains(':'),
        "cidr" => text.split_once('/').is_some_and(|(ip, length)| {
            let most = if ip.contains(':') { 128 } else { 32 };
            plain(ip).is_some() && length.parse::<u32>().is_ok_and(|length| length <= most)
        }),
        "int32" => true,
        other => panic!("the format {other}"),
    }
}

fn object(schema: &Value, fields: &Map<String, Value>, place: &str) -> Option<String> {
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(missing) =
        required.map(|name| name.as_str().unwrap()).find(|name| !fields.contains_key(*name))
    {
        return Some(format!("{place}.{missing}: required"));
    }
    let properties = schema["properties"].as_object();
    let is_condition =
        schema["type"] == "object" && properties.is_some_and(|all| all.contains_key("notValues"));
    if is_condition && let Some(wrong) = condition(fields) {
        return Some(format!("{place}: {wrong}"));
    }
    fields.iter().find_map(|(key, value)| {
        let place = format!("{place}.{key}");
        if let Some(inner) = properties.and_then(|all| all.get(key)) {
            return refusal(inner, value, &place);
        }
        let Some(inner) = schema.get("additionalProperties") else {
            // Admission's; the combined ones have no levels of their own.
            return (schema["type"] == "object").then(|| format!("{place}: unknown"));
        };
        // Admission's.
        let keys = if inner["type"] == "string" { leaves::LABEL_KEY } else { leaves::PORT };
        match matches(keys, key) {
            true => refusal(inner, value, &place),
            false => Some(format!("{place}: key")),
        }
    })
}

/// Admission's part of a condition.
fn condition(fields: &Map<String, Value>) -> Option<&'static str> {
    let lists: Vec<_> = ["values", "notValues"]
        .iter()
        .filter_map(|name| fields.get(*name))
        .filter(|list| !list.is_null())
        .collect();
    if lists.is_empty() {
        return Some("no values");
    }
    let has_number = lists.iter().filter_map(|list| list.as_array()).flatten().any(Value::is_number);
    let is_port = fields.get("key").is_some_and(|key| key == "destination.port");
    (has_number && !is_port).then_some("number")
}

/// `allOf` and `anyOf`, whose parts have only conditions on values.
fn combined(schema: &Value, value: &Value, place: &str) -> Option<String> {
    let branch = |schema: &Value| {
        let mut schema = schema.clone();
        nullable(&mut schema);
        refusal(&schema, value, place)
    };
    if let Some(wrong) = schema["allOf"].as_array().into_iter().flatten().find_map(branch) {
        return Some(wrong);
    }
    let any = schema["anyOf"].as_array()?;
    if any.iter().any(|schema| branch(schema).is_none()) {
        return None;
    }
    Some(format!("{place}: anyOf"))
}

/// A part of a combination does not judge null: the whole has done that.
fn nullable(schema: &mut Value) {
    schema["nullable"] = true.into();
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(nullable);
}
