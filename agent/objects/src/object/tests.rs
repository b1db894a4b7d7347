use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rejected(value: Value) -> String {
    match Object::read(&value) {
        Err(rejected) => rejected.to_string(),
        Ok(found) => match found.map(|(_, object)| object.translate("adit-system")) {
            Some(Err(rejected)) => rejected.to_string(),
            other => panic!("{other:?}"),
        },
    }
}

#[test]
fn kinds_of_others_are_none_of_ours() {
    for value in [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap"}),
    ] {
        assert!(Object::read(&value).unwrap().is_none());
    }
}

#[test]
fn a_rejected_object_is_named_with_the_field_and_the_rule() {
    assert_eq!(rejected(json!({"metadata": {"name": "x"}})), " x: kind: is missing");
    assert_eq!(rejected(json!([])), " : kind: is missing");
    assert_eq!(
        rejected(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a"}})),
        "Pod a/: metadata.name: is missing"
    );
    assert_eq!(
        rejected(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "namespace": "a"}})),
        "Pod a/b: metadata.uid: is missing"
    );
    let typed = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"},
        "spec": {"containers": [{"ports": [{"containerPort": "http"}]}]}});
    let text = rejected(typed);
    assert!(text.starts_with("Pod b: spec.containers[0].ports[0].containerPort: invalid type"), "{text}");
}

#[test]
fn a_policy_from_elsewhere_is_an_error_not_a_silence() {
    assert_eq!(
        rejected(
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "x"}})
        ),
        "AuthorizationPolicy x: apiVersion: is \"security.istio.io/v1\"; adit reads this kind from policy.adit.dev/v1alpha1"
    );
    assert_eq!(
        rejected(
            json!({"apiVersion": "policy.adit.dev/v1alpha1", "kind": "AuthorisationPolicy", "metadata": {"name": "x"}})
        ),
        "AuthorisationPolicy x: kind: is \"AuthorisationPolicy\", which is no kind of policy.adit.dev/v1alpha1"
    );
}

#[test]
fn an_object_without_a_namespace_is_in_default() {
    let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    let (key, object) = Object::read(&value).unwrap().unwrap();
    assert_eq!(key.name, ObjectName::new("default", "web"));
    assert!(
        matches!(object.translate("adit-system").unwrap().change, Some(Change::Service(service)) if service.name == key.name)
    );
    assert_eq!(key.gone(), Change::ServiceGone(ObjectName::new("default", "web")));
}

#[test]
fn namespaces_and_nodes_are_read() {
    let read = |value: Value| {
        let (_, object) = Object::read(&value).unwrap().unwrap();
        object.translate("adit-system").unwrap()
    };
    let namespace = read(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
        "labels": {"adit.dev/mesh": "enabled"}, "annotations": {"adit.dev/skip-inbound-ports": "9000-9010, 22"}}}));
    let Some(Change::Namespace(namespace)) = namespace.change else { panic!() };
    assert_eq!(namespace.mesh, Some(adit_core::workload::MeshLabel::Enabled));
    assert_eq!(namespace.skip.inbound_ports, [9000..=9010, 22..=22]);
    let node = read(json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1"},
            {"type": "ExternalIP", "address": "bad"}]}}));
    assert_eq!(node.problems[0].to_string(), "status.addresses[2].address: is \"bad\", not an IP address");
    let Some(Change::Node(node)) = node.change else { panic!() };
    assert_eq!((node.zone.as_deref(), node.addresses.len()), (Some("z1"), 1));
}

/// Any JSON, with words that our kinds use, so that it gets beyond the first field.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "Pod",
        "Service",
        "EndpointSlice",
        "Node",
        "Namespace",
        "AuthorizationPolicy",
        "PeerAuthentication",
        "TrafficPolicy",
        "v1",
        "ALLOW",
        "DENY",
        "STRICT",
        "10.0.0.0/8",
        "::ffff:1.2.3.4/97",
        "80",
        "*",
        "a*",
        "1s",
        "TCP",
        "Running",
        "source.ip",
        "adit-system",
        "Always",
        "ClientIP",
        "None",
        "",
    ]);
    let key = prop::sample::select(vec![
        "metadata",
        "name",
        "namespace",
        "uid",
        "labels",
        "annotations",
        "spec",
        "status",
        "selector",
        "matchLabels",
        "action",
        "rules",
        "from",
        "to",
        "when",
        "source",
        "operation",
        "principals",
        "notPrincipals",
        "namespaces",
        "serviceAccounts",
        "ipBlocks",
        "ports",
        "notPorts",
        "key",
        "values",
        "notValues",
        "mtls",
        "mode",
        "portLevelMtls",
        "targetRefs",
        "kind",
        "group",
        "retry",
        "retryConstraint",
        "budget",
        "percent",
        "interval",
        "minRetryRate",
        "count",
        "ejection",
        "containers",
        "initContainers",
        "livenessProbe",
        "httpGet",
        "port",
        "containerPort",
        "podIPs",
        "ip",
        "phase",
        "endpoints",
        "addresses",
        "conditions",
        "ready",
        "clusterIPs",
        "targetPort",
        "80",
        "dryRun",
        "creationTimestamp",
        "sessionAffinity",
        "adit.dev/skip-inbound-ports",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_000).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        word.prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 80, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn garbage_never_panics(mut spec in any_json(), mut status in any_json(), mut metadata in any_json(), at in 0_usize..8) {
        let (api, kind) = [
            ("v1", "Pod"), ("v1", "Namespace"), ("v1", "Service"), ("discovery.k8s.io/v1", "EndpointSlice"),
            ("v1", "Node"), (POLICY_API, "AuthorizationPolicy"), (POLICY_API, "PeerAuthentication"),
            (POLICY_API, "TrafficPolicy"),
        ][at];
        // Whole garbage first; then with names, so that it gets beyond them.
        for named in [false, true] {
            if named {
                metadata = json!({"name": "x", "uid": "u"});
            }
            let mut value = json!({"apiVersion": api, "kind": kind});
            value["spec"] = spec.take();
            value["status"] = status.take();
            value["metadata"] = metadata.clone();
            if let Ok(Some((key, object))) = Object::read(&value) {
                let _ = key.gone();
                if let Ok(translated) = object.translate("adit-system") {
                    for problem in translated.problems {
                        prop_assert!(!problem.to_string().is_empty());
                    }
                }
            }
            spec = value["spec"].take();
            status = value["status"].take();
        }
    }
}
