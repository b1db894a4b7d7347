//! The schemas and the readers agree: what is refused when it is applied is what a reader does not understand, and
//! nothing else. Each good policy is broken in every place by every value below.

use adit_objects::Object;
use serde_json::{Value, json};

use crate::{definition, schema};

/// Policies that have every field.
fn good() -> [Value; 3] {
    let policy = |kind: &str, spec: Value| {
        json!({
            "apiVersion": "policy.adit.dev/v1alpha1", "kind": kind,
            "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
        })
    };
    [
        policy(
            "AuthorizationPolicy",
            json!({
                "selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "dryRun": true,
                "rules": [{
                    "from": [{"source": {
                        "principals": ["cluster.local/ns/a/sa/b"], "notPrincipals": ["*"],
                        "namespaces": ["a"], "notNamespaces": ["b"],
                        "serviceAccounts": ["a/b"], "notServiceAccounts": ["b"],
                        "ipBlocks": ["10.0.0.0/8"], "notIpBlocks": ["10.0.0.1"],
                    }}],
                    "to": [{"operation": {"ports": [80], "notPorts": ["81"]}}],
                    "when": [
                        {"key": "source.principal", "values": ["*"], "notValues": ["td/a"]},
                        {"key": "source.namespace", "values": ["a"], "notValues": ["b"]},
                        {"key": "source.ip", "values": ["::1"], "notValues": ["::2"]},
                        {"key": "destination.ip", "values": ["::1"], "notValues": ["::2"]},
                        {"key": "destination.port", "values": [80], "notValues": ["81"]},
                    ],
                }, {}],
            }),
        ),
        policy(
            "PeerAuthentication",
            json!({
                "selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}},
            }),
        ),
        policy(
            "TrafficPolicy",
            json!({
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "connectTimeout": "5s", "attemptTimeout": "500ms",
                "retry": {"attempts": 3, "backoff": "10ms", "maxBackoff": "1s"},
                "retryConstraint": {
                    "budget": {"percent": 20, "interval": "20s"}, "minRetryRate": {"count": 4, "interval": "2s"},
                },
                "ejection": {"consecutiveFailures": 3, "baseTime": "2s", "maxTime": "1m", "maxPercent": 10},
            }),
        ),
    ]
}

/// Words of the fields that have a few.
const ENUMS: &str = "ALLOW DENY AUDIT allow CUSTOM STRICT PERMISSIVE UNSET DISABLE Service Gateway core \
    apps source.principal source.namespace source.ip destination.ip destination.port request.headers[x] \
    connection.sni source.port";
/// Identities, namespaces, accounts, labels, and what is nearly one.
const PATTERNS: &str = "* ** a* *a *a* a*b a a.b . .. ... ä a/b a/ /a a//b a/b/c a/* */a a/. a/.. a/... \
    a/.b a/..b a/../b spiffe://a/b spiffe://* spiffe:// SPIFFE://a/b spiffe://a/b/* \
    Cluster.Local/ns/a/sa/b -x x- x_ x:y";
/// Addresses and blocks, and what is nearly one.
const ADDRESSES: &str = "10.0.0.1 10.0.0.1/8 10.0.0.0/33 10.0.0.0/08 10.0.0.0/ 10.0.0.0/-1 10.0.0/8 \
    01.2.3.4 1.2.3.256 1.2.3.4.5 :: ::1/128 ::1/129 fd00::/64 FD00::1 ::ffff:1.2.3.4 ::ffff:10.0.0.0/104 \
    ::ffff:1.2.3.4/24 ::ffff:01.2.3.4 1::2::3 fe80::1%eth0 12345:: /8";
/// Ports and durations, and what is nearly one.
const PORTS_AND_SPANS: &str = "0 1 80 080 65535 65536 70000 +80 -1 80.5 http 1s 0s 0h0m 1h 1h1ms 60m 61m \
    1.5s 1d 1s1s1s1s 1s1s1s1s1s 99999h 100000ms 3600000ms 1m30s";

/// What is put in every place.
fn values() -> Vec<Value> {
    let words = [ENUMS, PATTERNS, ADDRESSES, PORTS_AND_SPANS].join(" ");
    let mut values: Vec<Value> = words.split_whitespace().map(Value::from).collect();
    values.extend(["", "a b", " 80", "a/b\n"].map(Value::from));
    values.push("a".repeat(63).into());
    values.push("a".repeat(64).into());
    values.push(format!("{}/a", "a".repeat(255)).into());
    values.push(format!("{}/a", "a".repeat(256)).into());
    values.extend([-1, 0, 1, 10, 11, 80, 100, 101, 65_535, 65_536, 1_000_000, 1_000_001].map(Value::from));
    values.extend([json!(80.5), json!(5_000_000_000_i64), json!(true), json!(null), json!([]), json!({})]);
    values.extend([
        json!([null]),
        json!([{}]),
        json!(["a"]),
        json!([80]),
        json!({"a": null}),
        json!({"a": "b"}),
    ]);
    values.extend([
        json!({"mode": null}),
        json!({"80": {}}),
        json!({"0": {}}),
        json!({"a/b/c": "d"}),
        json!({"/a": "d"}),
    ]);
    values.extend([
        json!({"source": null}),
        json!({"source": {"principals": null}}),
        json!({"operation": {"ports": null}}),
    ]);
    values.extend([
        json!({"key": "source.ip", "values": null}),
        json!({"key": "source.ip", "notValues": ["::1"], "values": null}),
    ]);
    values
}

/// Every way to break a value in one place: replaced, taken out, or with something unknown beside it.
fn broken(value: &Value) -> Vec<Value> {
    let mut all = values();
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let with = |new: Option<Value>| {
                    let mut fields = fields.clone();
                    match new {
                        Some(new) => fields.insert(key.clone(), new),
                        None => fields.remove(key),
                    };
                    Value::Object(fields)
                };
                all.extend(broken(inner).into_iter().map(|inner| with(Some(inner))));
                all.push(with(None));
            }
            for key in ["x", "paths", "0", "65536", "a/b", "-a"] {
                let mut fields = fields.clone();
                fields.insert(key.into(), fields.values().next().cloned().unwrap_or_default());
                all.push(Value::Object(fields));
            }
        }
        Value::Array(list) => {
            for (at, inner) in list.iter().enumerate() {
                all.extend(broken(inner).into_iter().map(|inner| {
                    let mut list = list.clone();
                    list[at] = inner;
                    Value::Array(list)
                }));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

#[test]
fn what_is_refused_when_it_is_applied_is_what_a_reader_does_not_understand() {
    let mut differences = Vec::new();
    for (definition, policy) in definition::all().iter().zip(good()) {
        let schema = &definition::schema(definition)["properties"]["spec"];
        let specs = broken(&policy["spec"]);
        assert!(specs.len() > 1000);
        for spec in [vec![policy["spec"].clone()], specs].concat() {
            let mut policy = policy.clone();
            policy["spec"] = spec;
            differences.extend(difference(schema, &policy));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// What the schema and the reader say of a policy, where they do not agree.
fn difference(schema: &Value, policy: &Value) -> Option<String> {
    let (_, object) = Object::read(policy).unwrap().unwrap();
    let problems: Vec<_> =
        object.translate("adit-system").unwrap().problems.iter().map(ToString::to_string).collect();
    let refusal = schema::refusal(schema, &policy["spec"], "spec");
    (refusal.is_none() != problems.is_empty())
        .then(|| format!("{refusal:?}, but {problems:?} in {}", policy["spec"]))
}
