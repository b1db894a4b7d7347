use adit_core::workload::MeshLabel;
use serde_json::{Value, json};

use super::*;

fn base() -> Value {
    json!({"metadata": {"name": "web-6d4cf-x1", "namespace": "shop", "uid": "u1"}, "spec": {}, "status": {"phase": "Running"}})
}

fn read(value: Value) -> (Option<workload::Pod>, Vec<String>) {
    let pod: Pod = serde_json::from_value(value).unwrap();
    let translated = translate(&pod).unwrap();
    let problems = translated.problems.iter().map(ToString::to_string).collect();
    match translated.change {
        Some(Change::Pod(pod)) => (Some(pod), problems),
        None => (None, problems),
        Some(other) => panic!("{other:?}"),
    }
}

fn good(value: Value) -> workload::Pod {
    let (pod, problems) = read(value);
    assert_eq!(problems, [""; 0]);
    pod.unwrap()
}

#[test]
fn a_bare_pod_is_read() {
    let pod = good(base());
    assert_eq!(&*pod.service_account, "default");
    assert_eq!((pod.node, pod.mesh, pod.captured, pod.terminating), (None, None, false, false));
    assert_eq!((&*pod.owner.kind, &*pod.owner.name), ("Pod", "web-6d4cf-x1"));
}

#[test]
fn a_full_pod_is_read() {
    let mut value = base();
    value["metadata"]["labels"] = json!({"app": "web", "adit.dev/mesh": "disabled"});
    value["metadata"]["annotations"] = json!({"adit.dev/capture": "enabled"});
    value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    value["spec"] = json!({"nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true, "containers": [
        {"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 9}]}]});
    value["status"] = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"},
        {"ip": "::ffff:10.0.0.2"}]});
    let pod = good(value);
    assert_eq!(pod.node, Some(NodeName("n1".into())));
    assert_eq!(&*pod.service_account, "web");
    assert_eq!(pod.mesh, Some(MeshLabel::Disabled));
    assert!(pod.host_network && pod.captured && pod.terminating && !pod.is_static);
    let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1", "fd00::1", "10.0.0.2"]);
    assert_eq!(pod.ports, [NamedPort { name: "http".into(), port: 8080 }]);
}

#[test]
fn finished_pods_are_gone() {
    for phase in ["Succeeded", "Failed"] {
        let mut value = base();
        value["status"]["phase"] = json!(phase);
        assert_eq!(read(value), (None, vec![]));
    }
    for phase in ["Pending", "Running", "Unknown", ""] {
        let mut value = base();
        value["status"]["phase"] = json!(phase);
        good(value);
    }
}

#[test]
fn ports_of_probes_and_hooks_are_found_by_number_and_by_name() {
    let mut value = base();
    value["status"]["podIP"] = json!("10.0.0.1");
    value["spec"] = json!({
        "containers": [{
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"port": "http"}},
            "readinessProbe": {"tcpSocket": {"port": 8081}},
            "startupProbe": {"grpc": {"port": 8082, "service": "x"}},
            "lifecycle": {"postStart": {"httpGet": {"port": "8083"}}, "preStop": {"tcpSocket": {"port": 8084, "host": "10.0.0.1"}}}
        }, {
            "livenessProbe": {"exec": {"command": ["true"]}},
            "readinessProbe": {"httpGet": {"port": 9999, "host": "elsewhere.example"}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}
        }],
        "initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 7070}], "startupProbe": {"httpGet": {"port": "side"}}},
            {"ports": [{"name": "once", "containerPort": 6060}], "lifecycle": {"preStop": {"tcpSocket": {"port": 6061}}}}
        ]
    });
    let pod = good(value);
    assert_eq!(pod.probe_ports, [7070, 8080, 8081, 8082, 8083, 8084]);
    let named: Vec<_> = pod.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(named, [("http", 8080), ("side", 7070)]);
}

#[test]
fn a_bad_port_is_named_and_left_out() {
    let mut value = base();
    value["spec"] = json!({"containers": [{
        "ports": [{"name": "a", "containerPort": 0}, {"name": "b", "containerPort": 65536}],
        "livenessProbe": {"httpGet": {"port": "nobody"}}, "readinessProbe": {"httpGet": {"port": -1}}, "startupProbe": {"httpGet": {}}
    }]});
    let (pod, problems) = read(value);
    assert_eq!(
        problems,
        [
            "spec.containers[0].ports[0].containerPort: is \"0\", not a port (1 to 65535)",
            "spec.containers[0].ports[1].containerPort: is \"65536\", not a port (1 to 65535)",
            "spec.containers[0].livenessProbe.httpGet.port: names the port \"nobody\", which its container does not declare",
            "spec.containers[0].readinessProbe.httpGet.port: is \"-1\", not a port (1 to 65535)",
            "spec.containers[0].startupProbe.httpGet.port: is missing",
        ]
    );
    let pod = pod.unwrap();
    assert!(pod.ports.is_empty() && pod.probe_ports.is_empty());
}

#[test]
fn skip_annotations_hold_together_or_not_at_all() {
    let mut value = base();
    value["metadata"]["annotations"] = json!({
        "adit.dev/skip-outbound-ports": "25, 8000-8999,", "adit.dev/skip-outbound-cidrs": "10.1.2.3/8,fd00::/8",
        "adit.dev/skip-inbound-ports": "22"});
    let skip = good(value.clone()).skip;
    assert_eq!(skip.outbound_ports, [25..=25, 8000..=8999]);
    assert_eq!(skip.outbound_cidrs, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert_eq!(skip.inbound_ports, [22..=22]);
    for (key, bad) in [
        ("skip-inbound-ports", "0"),
        ("skip-inbound-ports", "9-8"),
        ("skip-inbound-ports", "http"),
        ("skip-inbound-ports", "1-70000"),
        ("skip-outbound-cidrs", "10.0.0.0/33"),
        ("skip-outbound-port", "80"),
    ] {
        let key = format!("adit.dev/{key}");
        let mut value = value.clone();
        value["metadata"]["annotations"][&key] = json!(bad);
        let (pod, problems) = read(value);
        let skip = pod.unwrap().skip;
        assert!(
            skip.is_empty() && skip.invalid.is_some_and(|invalid| invalid.contains(&key)),
            "{key}: {bad}"
        );
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&format!("metadata.annotations[{key:?}]: ")), "{problems:?}");
    }
}

#[test]
fn a_deployment_owns_its_replica_sets_pods() {
    let owner = |kind: &str, name: &str, hash: Option<&str>| {
        let mut value = base();
        value["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Other", "name": "other", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "2", "controller": true}
        ]);
        if let Some(hash) = hash {
            value["metadata"]["labels"] = json!({"pod-template-hash": hash});
        }
        let owner = good(value).owner;
        format!("{}/{}", owner.kind, owner.name)
    };
    assert_eq!(owner("ReplicaSet", "web-6d4cf", Some("6d4cf")), "Deployment/web");
    assert_eq!(owner("ReplicaSet", "web-6d4cf", None), "ReplicaSet/web-6d4cf");
    assert_eq!(owner("ReplicaSet", "-6d4cf", Some("6d4cf")), "ReplicaSet/-6d4cf");
    assert_eq!(owner("StatefulSet", "db", Some("x")), "StatefulSet/db");
    assert_eq!(owner("Job", "once", None), "Job/once");
}

#[test]
fn pods_that_the_kubelet_made_from_a_file_are_static() {
    for (key, value, is_static) in [
        ("kubernetes.io/config.source", "file", true),
        ("kubernetes.io/config.source", "api", false),
        ("kubernetes.io/config.mirror", "1", true),
    ] {
        let mut pod = base();
        pod["metadata"]["annotations"] = json!({key: value});
        assert_eq!(good(pod).is_static, is_static, "{key}={value}");
    }
}

#[test]
fn an_unknown_mesh_label_enrols_nothing_and_says_so() {
    let mut value = base();
    value["metadata"]["labels"] = json!({"adit.dev/mesh": "true"});
    let (pod, problems) = read(value);
    assert_eq!(pod.unwrap().mesh, None);
    assert_eq!(problems, ["metadata.labels[\"adit.dev/mesh\"]: is \"true\", not one of enabled, disabled"]);
}

#[test]
fn nulls_are_absent_fields() {
    let mut value = base();
    value["spec"] = json!({"nodeName": null, "containers": [{"ports": null, "livenessProbe": null}], "initContainers": null});
    value["status"] = Value::Null;
    good(value);
}
