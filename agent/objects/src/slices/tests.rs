use serde_json::{Value, json};

use super::*;

fn read(mut value: Value) -> (Option<service::EndpointSlice>, Vec<String>) {
    value["metadata"] = json!({"name": "web-1", "namespace": "shop", "labels": value["labels"].take()});
    let slice: EndpointSlice = serde_json::from_value(value).unwrap();
    let translated = translate(&slice).unwrap();
    let problems = translated.problems.iter().map(ToString::to_string).collect();
    match translated.change {
        Some(Change::EndpointSlice(slice)) => (Some(slice), problems),
        None => (None, problems),
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn endpoints_are_read_with_kubernetes_defaults() {
    let (slice, problems) = read(
        json!({"labels": {"kubernetes.io/service-name": "web"}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "all"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z1", "targetRef": {"kind": "Pod", "name": "web-x"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}, "targetRef": {"kind": "Node", "name": "n"}}
        ]}),
    );
    assert_eq!(problems, [""; 0]);
    let slice = slice.unwrap();
    assert_eq!(slice.service, ObjectName::new("shop", "web"));
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", Some(8080)), ("all", None)]);
    let states: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, true, true), (false, false, false)]);
    assert_eq!(slice.endpoints[0].pod, Some(ObjectName::new("shop", "web-x")));
    assert_eq!(slice.endpoints[0].node, Some(NodeName("n1".into())));
    assert_eq!(slice.endpoints[2].pod, None);
}

#[test]
fn slices_of_names_or_of_no_service_are_none_of_ours() {
    assert_eq!(read(json!({"labels": {"kubernetes.io/service-name": "web"}, "addressType": "FQDN"})).0, None);
    assert_eq!(read(json!({"addressType": "IPv4"})).0, None);
}

#[test]
fn a_bad_address_or_port_is_named_and_left_out() {
    let (slice, problems) =
        read(json!({"labels": {"kubernetes.io/service-name": "web"}, "addressType": "IPv6",
        "ports": [{"port": 0}], "endpoints": [{"addresses": ["fd00::1", "x"]}]}));
    assert_eq!(
        problems,
        [
            "endpoints[0].addresses[1]: is \"x\", not an IP address",
            "ports[0].port: is \"0\", not a port (1 to 65535)"
        ]
    );
    let slice = slice.unwrap();
    assert_eq!((slice.ports.len(), slice.endpoints[0].addresses.len()), (0, 1));
}
