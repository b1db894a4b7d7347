//! Which of a service's endpoints a client is given.

use adit_tests::mesh::PodSpec;
use anyhow::{Context, Result};
use serde_json::json;

use super::vips::node;
use super::{MANY, apply, ask, ask_often, at, is_refused, only_answer, web, with_shop};

#[test]
fn a_service_without_an_endpoint_resets_its_clients_and_says_why() -> Result<()> {
    with_shop(|mesh, shop| {
        mesh.service(web(json!({})))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            is_refused(mesh, &shop.clients[0], vip, "no_endpoint")?;
        }
        shop.serve_web(mesh)?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["web-1", "web-2"])?;
        }
        Ok(())
    })
}

#[test]
fn an_endpoint_that_is_not_ready_gets_no_connection_unless_the_service_publishes_such() -> Result<()> {
    with_shop(|mesh, shop| {
        let [_, web_2] = shop.serve_web(mesh)?;
        mesh.service(web(json!({})))?;
        mesh.change_pod(&web_2, |spec| spec.ready = false)?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["web-1"])?;
        }
        mesh.service(web(json!({ "publishNotReadyAddresses": true })))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["web-1", "web-2"])?;
        }
        Ok(())
    })
}

#[test]
fn a_terminating_endpoint_gets_new_connections_only_while_no_other_serves() -> Result<()> {
    with_shop(|mesh, shop| {
        let [web_1, web_2] = shop.serve_web(mesh)?;
        mesh.service(web(json!({})))?;
        let web_2 = mesh.change_pod(&web_2, |spec| spec.terminating = true)?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["web-1"]).context("one lives")?;
        }
        mesh.change_pod(&web_1, |spec| spec.ready = false)?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(shop.client(), vip, ["web-2"]).context("nothing else serves")?;
        }
        mesh.change_pod(&web_2, |spec| spec.ready = false)?;
        mesh.settle()?;
        is_refused(mesh, &shop.clients[0], at(1, 80)[0], "no_endpoint")
    })
}

#[test]
fn a_local_internal_traffic_policy_keeps_clients_on_their_node() -> Result<()> {
    with_shop(|mesh, shop| {
        let [web_1, _] = shop.serve_web(mesh)?;
        mesh.service(web(json!({ "internalTrafficPolicy": "Local" })))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(&shop.clients[0].host, vip, ["web-1"])?;
            only_answer(&shop.clients[1].host, vip, ["web-2"])?;
        }
        mesh.change_pod(&web_1, |spec| spec.ready = false)?;
        mesh.settle()?;
        // Never another node's, though one is there.
        for vip in at(1, 80) {
            is_refused(mesh, &shop.clients[0], vip, "no_endpoint")?;
            assert_eq!(ask(&shop.clients[1].host, vip)?, "web-2", "{vip}");
        }
        Ok(())
    })
}

#[test]
fn a_preferred_node_is_left_only_when_nothing_there_serves() -> Result<()> {
    with_shop(|mesh, shop| {
        let [web_1, _] = shop.serve_web(mesh)?;
        mesh.service(web(json!({ "trafficDistribution": "PreferSameNode" })))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(&shop.clients[0].host, vip, ["web-1"])?;
            only_answer(&shop.clients[1].host, vip, ["web-2"])?;
        }
        mesh.change_pod(&web_1, |spec| spec.ready = false)?;
        mesh.settle()?;
        for vip in at(1, 80) {
            only_answer(&shop.clients[0].host, vip, ["web-2"])?;
        }
        Ok(())
    })
}

#[test]
fn a_preferred_zone_is_left_only_when_nothing_there_serves() -> Result<()> {
    with_shop(|mesh, shop| {
        let [web_1, _] = shop.serve_web(mesh)?;
        for distribution in ["PreferSameZone", "PreferClose"] {
            let web_1 = mesh.change_pod(&web_1, |spec| spec.ready = true)?;
            mesh.service(web(json!({ "trafficDistribution": distribution })))?;
            apply(mesh, "node-1", &node(1, "a"))?;
            apply(mesh, "node-2", &node(2, "b"))?;
            mesh.settle()?;
            for vip in at(1, 80) {
                only_answer(&shop.clients[0].host, vip, ["web-1"])?;
                only_answer(&shop.clients[1].host, vip, ["web-2"])?;
            }
            // In one zone all are near.
            apply(mesh, "node-2", &node(2, "a"))?;
            mesh.settle()?;
            only_answer(shop.client(), at(1, 80)[0], ["web-1", "web-2"])?;
            apply(mesh, "node-2", &node(2, "b"))?;
            mesh.change_pod(&web_1, |spec| spec.ready = false)?;
            mesh.settle()?;
            for vip in at(1, 80) {
                only_answer(&shop.clients[0].host, vip, ["web-2"])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint_until_that_goes() -> Result<()> {
    with_shop(|mesh, shop| {
        let pods = shop.serve_web(mesh)?;
        let affinity = json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 3600 } },
        });
        mesh.service(web(affinity))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            for client in &shop.clients {
                let counts = ask_often(&client.host, vip, MANY)?;
                assert_eq!(counts.len(), 1, "{vip} from {}: {counts:?}", client.spec.name);
            }
        }
        let vip = at(1, 80)[0];
        let chosen = ask(shop.client(), vip)?;
        let [gone, left] = if chosen == "web-1" { [0, 1] } else { [1, 0] };
        let back = mesh.change_pod(&pods[gone], |spec| spec.ready = false)?;
        mesh.settle()?;
        only_answer(shop.client(), vip, [pods[left].spec.name.as_str()])?;
        mesh.change_pod(&back, |spec| spec.ready = true)?;
        mesh.settle()?;
        // It does not move again.
        only_answer(shop.client(), vip, [pods[left].spec.name.as_str()])?;
        Ok(())
    })
}

#[test]
fn connections_are_spread_over_endpoints_in_and_out_of_the_mesh() -> Result<()> {
    with_shop(|mesh, shop| {
        shop.serve_web(mesh)?;
        let spec = PodSpec::new("n2", "shop", "web-3").label("app", "web").label("adit.dev/mesh", "disabled");
        let bare = mesh.add_pod(spec)?;
        let _serving = super::says(&bare.host, super::PORT, "web-3")?;
        mesh.service(web(json!({})))?;
        mesh.settle()?;
        for vip in at(1, 80) {
            let first = mesh.agent("n1")?.process().next_line();
            only_answer(shop.client(), vip, ["web-1", "web-2", "web-3"])?;
            for (pod, transport) in [("web-2", "mtls"), ("web-3", "plaintext")] {
                let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                    flow.destination.pod.as_deref() == Some(pod) && flow.direction == "outbound"
                })?;
                assert_eq!(flow.transport, transport, "{flow:?}");
            }
        }
        Ok(())
    })
}
