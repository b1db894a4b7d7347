use serde_json::{Value, json};

use super::*;

fn read(spec: Value, status: Value) -> (Option<service::Service>, Vec<String>) {
    let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec, "status": status});
    let service: Service = serde_json::from_value(service).unwrap();
    let translated = translate(&service).unwrap();
    let problems = translated.problems.iter().map(ToString::to_string).collect();
    match translated.change {
        Some(Change::Service(service)) => (Some(service), problems),
        None => (None, problems),
        Some(other) => panic!("{other:?}"),
    }
}

fn good(spec: Value) -> service::Service {
    let (service, problems) = read(spec, Value::Null);
    assert_eq!(problems, [""; 0]);
    service.unwrap()
}

#[test]
fn ports_name_their_targets_by_number_or_by_name() {
    let service = good(json!({"ports": [
        {"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": 8081, "nodePort": 30081},
        {"name": "c", "port": 82, "targetPort": "http"}, {"name": "d", "port": 83, "targetPort": "8083"},
        {"name": "e", "port": 84, "protocol": "UDP"}, {"name": "f", "port": 85, "protocol": "TCP", "nodePort": 0}]}));
    let ports: Vec<_> =
        service.ports.iter().map(|port| (&*port.name, port.target.clone(), port.node_port)).collect();
    assert_eq!(
        ports,
        [
            ("a", TargetPort::Number(80), None),
            ("b", TargetPort::Number(8081), Some(30081)),
            ("c", TargetPort::Name("http".into()), None),
            ("d", TargetPort::Number(8083), None),
            ("f", TargetPort::Number(85), None),
        ]
    );
}

#[test]
fn every_address_of_a_service_counts_once_and_cluster_ips_apart() {
    let spec = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1", "10.96.0.1"],
        "ports": [{"port": 80}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "x"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"ip": "192.0.2.4", "ipMode": "VIP"}]}});
    let (service, problems) = read(spec, status);
    assert_eq!(problems, [""; 0]);
    let service = service.unwrap();
    let texts = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.cluster_ips), ["10.96.0.1", "fd00::1"]);
    assert_eq!(texts(&service.external_ips), ["192.0.2.1", "192.0.2.2", "192.0.2.4"]);
}

#[test]
fn a_headless_service_has_no_vip() {
    let service = good(
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}], "selector": {"app": "web"}}),
    );
    assert!(service.headless && service.cluster_ips.is_empty() && service.external_ips.is_empty());
    assert!(service.selector.is_some());
    assert_eq!(good(json!({"ports": [{"port": 80}], "selector": {}})).selector, None);
}

#[test]
fn services_by_name_or_without_tcp_are_none_of_ours() {
    assert_eq!(
        read(json!({"type": "ExternalName", "externalName": "x", "ports": [{"port": 1}]}), Value::Null).0,
        None
    );
    assert_eq!(read(json!({"ports": [{"port": 53, "protocol": "UDP"}]}), Value::Null).0, None);
    assert_eq!(read(Value::Null, Value::Null), (None, vec![]));
}

#[test]
fn policies_of_traffic_are_read() {
    let service = good(
        json!({"ports": [{"port": 80}], "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "publishNotReadyAddresses": true}),
    );
    assert!(service.internal_local && service.publish_not_ready);
    assert_eq!(service.distribution, Distribution::SameZone);
    assert_eq!(service.affinity, Some(Duration::from_secs(60)));
    let service = good(
        json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "trafficDistribution": "PreferSameNode"}),
    );
    assert_eq!(service.affinity, Some(AFFINITY_DEFAULT));
    assert_eq!(service.distribution, Distribution::SameNode);
}

#[test]
fn what_is_not_understood_is_named_and_left_out() {
    let (service, problems) = read(
        json!({"clusterIP": "x", "ports": [{"port": 80}, {"port": 0}, {"targetPort": 1}, {"port": 1, "targetPort": 70000}],
            "internalTrafficPolicy": "x", "trafficDistribution": "y", "sessionAffinity": "z"}),
        Value::Null,
    );
    assert_eq!(service.unwrap().ports.len(), 1);
    let fields: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].targetPort",
            "spec.clusterIP",
            "spec.internalTrafficPolicy",
            "spec.trafficDistribution",
            "spec.sessionAffinity"
        ]
    );
    let (_, problems) = read(
        json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
        Value::Null,
    );
    assert_eq!(problems, ["spec.sessionAffinityConfig.clientIP.timeoutSeconds: is 0, not within 1 to 86400"]);
}
