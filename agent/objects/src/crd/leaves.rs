//! What single values may look like, as OpenAPI: patterns, formats and bounds, each saying what its reader in
//! [`crate::policies`] understands. No CEL here: at leaves, which may be many, it exceeds the API server's budget.

use adit_proto::spiffe::SPIFFE_ID_LEN_MAX;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::policies::authorization::KEYS;

/// An identity without wildcard, or with one star first, last or alone; with or without its scheme. No segment of an
/// identity's path is `.` or `..`, which the last alternative spells out: there is no look-ahead in RE2.
pub const PRINCIPAL: &str = r"^(spiffe://)?(\*|\*[A-Za-z0-9._/-]+|[A-Za-z0-9._/-]+\*|[A-Za-z0-9._-]{1,255}(/(\.{0,2}[A-Za-z0-9_-][A-Za-z0-9._-]*|\.{3}[A-Za-z0-9._-]*))+)$";
/// A namespace, with one star first, last or alone.
pub const NAMESPACE: &str = r"^(\*|\*?[A-Za-z0-9._-]+|[A-Za-z0-9._-]+\*)$";
/// `NAMESPACE/ACCOUNT` or `ACCOUNT`.
pub const SERVICE_ACCOUNT: &str = r"^([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+$";
/// What the formats let through and the reader does not: leading zeros, which some read as octal.
pub const ADDRESS: &str =
    r"^([0-9A-Fa-f:]*:)?([0-9A-Fa-f]*|((0|[1-9][0-9]{0,2})\.){3}(0|[1-9][0-9]{0,2}))(/(0|[1-9][0-9]{0,2}))?$";
/// 1 to 65535 without leading zero.
pub const PORT: &str =
    "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
/// GEP-2257. That it is above zero and up to 1h no pattern can say: that is left to admission.
pub const SPAN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// A label's value.
pub const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
/// A label's key. Keys of a map are out of OpenAPI's reach in a definition: that is left to admission.
pub const LABEL_KEY: &str = "^([A-Za-z0-9._-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$";

/// A list of which one value must match; absent where it asks nothing, never empty.
fn one_of(value: Value) -> Schema {
    json_schema!({"type": "array", "nullable": true, "minItems": 1, "items": value})
}

/// No identity is longer, and so no part of one.
fn words(pattern: &str) -> Schema {
    one_of(json!({"type": "string", "maxLength": SPIFFE_ID_LEN_MAX, "pattern": pattern}))
}

/// `principals`.
pub(super) fn principals(_: &mut SchemaGenerator) -> Schema {
    words(PRINCIPAL)
}

/// `namespaces`.
pub(super) fn namespaces(_: &mut SchemaGenerator) -> Schema {
    words(NAMESPACE)
}

/// `serviceAccounts`.
pub(super) fn service_accounts(_: &mut SchemaGenerator) -> Schema {
    words(SERVICE_ACCOUNT)
}

/// `ipBlocks`.
pub(super) fn ip_blocks(_: &mut SchemaGenerator) -> Schema {
    let mut block = address();
    block["type"] = "string".into();
    one_of(block)
}

fn address() -> Value {
    json!({"pattern": ADDRESS, "anyOf": [{"format": "cidr"}, {"format": "ipv4"}, {"format": "ipv6"}]})
}

/// `ports`: 80, or "80" as Istio writes it.
pub(super) fn ports(_: &mut SchemaGenerator) -> Schema {
    let mut port = port();
    port["x-kubernetes-int-or-string"] = true.into();
    one_of(port)
}

fn port() -> Value {
    json!({"minimum": 1, "maximum": 65535, "pattern": PORT})
}

/// `when[].values`: which of them are good depends on the key, see [`condition`].
pub(super) fn condition_values(_: &mut SchemaGenerator) -> Schema {
    one_of(json!({"x-kubernetes-int-or-string": true}))
}

/// `when[].key`.
pub(super) fn condition_key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": KEYS.split(", ").collect::<Vec<_>>()})
}

/// What holds between the fields of a `when[]`, as its `allOf`: there are values, and they are of the key's kind. The
/// derive would mistake the alternatives for those of an enum, so that this is added to what it gives.
pub fn condition() -> Value {
    let of_key = |keys: &[&str], value: Value| {
        let list = json!({"items": value});
        json!({"properties": {"key": {"enum": keys}, "values": list, "notValues": list}})
    };
    json!([
        {"anyOf": [{"required": ["values"]}, {"required": ["notValues"]}]},
        {"anyOf": [
            of_key(&["source.principal"], json!({"maxLength": SPIFFE_ID_LEN_MAX, "pattern": PRINCIPAL})),
            of_key(&["source.namespace"], json!({"maxLength": SPIFFE_ID_LEN_MAX, "pattern": NAMESPACE})),
            of_key(&["source.ip", "destination.ip"], address()),
            of_key(&["destination.port"], port()),
        ]},
    ])
}

/// `matchLabels`.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
    })
}

/// `targetRefs[].group`.
pub(super) fn core_group(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["", "core"], "default": ""})
}

/// A duration.
pub(super) fn span() -> Schema {
    json_schema!({"type": "string", "pattern": SPAN})
}
