//! At which addresses and ports a service is found.

use std::net::SocketAddr;

use adit_tests::mesh::{PodSpec, ServicePort, ServiceSpec};
use anyhow::Result;
use serde_json::json;

use super::{PORT, apply, ask, at, is_refused, only_answer, says, slice, web, with_shop};

#[test]
fn a_service_is_reached_at_its_virtual_addresses_and_every_endpoint_answers() -> Result<()> {
    with_shop(|mesh, shop| {
        shop.serve_web(mesh)?;
        mesh.service(web(json!({})))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            let first = mesh.agent("n1")?.process().next_line();
            only_answer(shop.client(), vip, ["web-1", "web-2"])?;
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                flow.destination.addr == vip.to_string() && flow.state == "closed"
            })?;
            assert_eq!(flow.service.as_deref(), Some("shop/web:80"), "{flow:?}");
            assert_eq!(flow.transport, "mtls");
            let target: SocketAddr = flow.target.as_deref().unwrap_or_default().parse()?;
            assert!(
                mesh.pod_at(target.ip()).is_some_and(|pod| pod.spec.name.starts_with("web-")),
                "{target}"
            );
            assert_eq!(
                (target.port(), target.is_ipv4()),
                (PORT, vip.is_ipv4()),
                "in the client's own family"
            );
        }
        Ok(())
    })
}

#[test]
fn a_service_of_one_family_is_found_by_that_family_only() -> Result<()> {
    with_shop(|mesh, shop| {
        shop.serve_web(mesh)?;
        let mut service = web(json!({ "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack" }));
        service.ips.retain(std::net::IpAddr::is_ipv6);
        mesh.service(service)?;
        mesh.settle()?;
        let [v4, v6] = at(1, 80);
        only_answer(shop.client(), v6, ["web-1", "web-2"])?;
        // To the network, the other address is nobody's.
        mesh.topology.node("n1")?.netns.ip("route add unreachable 10.96.0.0/16")?;
        is_refused(mesh, &shop.clients[0], v4, "unreachable")
    })
}

#[test]
fn each_port_of_a_service_has_its_own_target() -> Result<()> {
    with_shop(|mesh, shop| {
        let [web_1, _] = shop.serve_web(mesh)?;
        let _other = says(&web_1.host, 9090, "metrics of web-1")?;
        let mut service = web(json!({}));
        service.selector = PodSpec::new("", "", "web-1").label("app", "web").labels;
        service.ports.push(ServicePort { name: "metrics".to_owned(), port: 81, target: 9090 });
        mesh.service(service)?;
        mesh.settle()?;
        for (main, metrics) in at(1, 80).into_iter().zip(at(1, 81)) {
            only_answer(shop.client(), main, ["web-1", "web-2"])?;
            // web-2 has nothing there: the connect phase goes on to the one that has.
            assert_eq!(ask(shop.client(), metrics)?, "metrics of web-1");
        }
        Ok(())
    })
}

#[test]
fn a_named_target_port_is_what_each_pod_calls_so() -> Result<()> {
    with_shop(|mesh, shop| {
        // As during a roll-out that moves the port: the endpoint controller then writes a slice for each number.
        let mut pods = Vec::new();
        for (node, name, port) in [("n1", "old", 8080), ("n2", "new", 9090)] {
            let mut spec = PodSpec::new(node, "shop", name).label("app", "web");
            spec.ports = vec![("http".to_owned(), port)];
            pods.push((shop.serve(mesh, spec, port)?, port));
        }
        let mut service = web(json!({
            "ports": [{ "name": "main", "port": 80, "targetPort": "http", "protocol": "TCP" }],
        }));
        service.selector.clear();
        mesh.service(service)?;
        for (pod, port) in &pods {
            for (family, ip) in ["v4", "v6"].into_iter().zip(pod.host.ips()) {
                let name = format!("web-{}-{family}", pod.spec.name);
                let ports = json!([{ "name": "main", "port": port, "protocol": "TCP" }]);
                apply(mesh, &name, &slice("web", &name, &[ip], &ports))?;
            }
        }
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["new", "old"])?;
        }
        Ok(())
    })
}

#[test]
fn pods_of_a_headless_service_are_reached_by_their_own_addresses_under_their_identities() -> Result<()> {
    with_shop(|mesh, shop| {
        let pods = shop.serve_web(mesh)?;
        let mut service = web(json!({}));
        service.ips.clear();
        mesh.service(service)?;
        mesh.settle()?;
        for pod in &pods {
            for to in [pod.at(PORT), pod.at_v6(PORT)] {
                let first = mesh.agent("n1")?.process().next_line();
                assert_eq!(ask(shop.client(), to)?, pod.spec.name);
                let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                    flow.destination.addr == to.to_string() && flow.direction == "outbound"
                })?;
                assert_eq!(flow.transport, "mtls", "{flow:?}");
                assert_eq!(flow.destination.identity.as_deref(), Some(pod.identity().as_str()));
            }
        }
        Ok(())
    })
}

#[test]
fn external_and_load_balancer_addresses_lead_to_the_services_endpoints_without_a_detour() -> Result<()> {
    with_shop(|mesh, shop| {
        shop.serve_web(mesh)?;
        mesh.service(web(json!({ "externalIPs": ["203.0.113.7", "2001:db8::7"] })))?;
        apply(
            mesh,
            "service-balanced",
            &json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": "balanced", "namespace": "shop" },
                "spec": {
                    "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                    "ports": [{ "name": "main", "port": 80, "targetPort": PORT, "protocol": "TCP" }],
                },
                "status": { "loadBalancer": { "ingress": [
                    { "ip": "203.0.113.8", "ipMode": "VIP" }, { "ip": "203.0.113.9", "ipMode": "Proxy" },
                ] } },
            }),
        )?;
        let [web_1, _] = [&shop.servers[0].0, &shop.servers[1].0];
        let ports = json!([{ "name": "main", "port": PORT, "protocol": "TCP" }]);
        apply(mesh, "slice-balanced", &slice("balanced", "balanced-1", &[web_1.host.v4.into()], &ports))?;
        mesh.settle()?;
        for external in ["203.0.113.7:80", "[2001:db8::7]:80"] {
            only_answer(shop.client(), external.parse()?, ["web-1", "web-2"])?;
        }
        assert_eq!(ask(shop.client(), "203.0.113.8:80".parse()?)?, "web-1");
        // A load balancer that works as a proxy is not left out: the connection goes to it.
        mesh.topology.node("n1")?.netns.ip("route add unreachable 203.0.113.0/24")?;
        is_refused(mesh, &shop.clients[0], "203.0.113.9:80".parse()?, "unreachable")
    })
}

#[test]
fn a_node_port_at_any_nodes_address_is_resolved_like_the_services_own() -> Result<()> {
    with_shop(|mesh, shop| {
        shop.serve_web(mesh)?;
        let port = json!({
            "name": "main", "port": 80, "targetPort": PORT, "nodePort": 30080, "protocol": "TCP",
        });
        mesh.service(web(json!({ "type": "NodePort", "ports": [port] })))?;
        for number in [1, 2] {
            apply(mesh, &format!("node-{number}"), &node(number, "a"))?;
        }
        mesh.settle()?;
        for to in ["192.168.171.1:30080", "192.168.171.2:30080", "[fd00:171::2]:30080"] {
            only_answer(shop.client(), to.parse()?, ["web-1", "web-2"])?;
        }
        Ok(())
    })
}

/// The Node object of a node of the topology.
pub(super) fn node(number: u8, zone: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("n{number}"), "labels": { "topology.kubernetes.io/zone": zone } },
        "status": { "addresses": [
            { "type": "InternalIP", "address": format!("192.168.171.{number}") },
            { "type": "InternalIP", "address": format!("fd00:171::{number}") },
        ] },
    })
}

#[test]
fn a_service_without_a_selector_leads_to_the_addresses_written_for_it() -> Result<()> {
    with_shop(|mesh, shop| {
        let outside = mesh.topology.add_outside("database")?;
        let _serving = says(&outside, 5432, "the database outside")?;
        let mut service = ServiceSpec::new("shop", "database", 3, 5432, 5432);
        service.selector.clear();
        mesh.service(service)?;
        let ports = json!([{ "name": "main", "port": 5432, "protocol": "TCP" }]);
        for (family, ip) in ["v4", "v6"].into_iter().zip(outside.ips()) {
            let name = format!("database-by-hand-{family}");
            apply(mesh, &name, &slice("database", &name, &[ip], &ports))?;
        }
        mesh.settle()?;
        for vip in at(3, 5432) {
            let first = mesh.agent("n1")?.process().next_line();
            assert_eq!(ask(shop.client(), vip)?, "the database outside", "{vip}");
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                flow.destination.addr == vip.to_string()
            })?;
            assert_eq!(flow.transport, "passthrough", "{flow:?}");
            assert_eq!(flow.service.as_deref(), Some("shop/database:5432"));
            let own = SocketAddr::new(outside.ip_like(vip.ip()), 5432).to_string();
            assert_eq!(flow.target.as_deref(), Some(own.as_str()));
        }
        Ok(())
    })
}
