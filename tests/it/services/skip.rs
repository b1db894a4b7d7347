//! What the skip annotations keep out of the mesh, and nothing more.

use std::net::SocketAddr;
use std::time::Instant;

use adit_proto::admin::Flow;
use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, Server, connect, read_all};
use adit_tests::mesh::{Mesh, Pod, PodSpec};
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{PORT, apply, ask, strict, with_shop};

/// A port in a skipped range.
const SKIPPED: u16 = 9005;

/// Adds a pod that serves both ports, each saying its number.
fn two_ports(mesh: &mut Mesh, spec: PodSpec) -> Result<(Pod, [Server; 2])> {
    let pod = mesh.add_pod(spec)?;
    mesh.wait_captured(&pod)?;
    let servers = [super::says(&pod.host, PORT, "captured")?, super::says(&pod.host, SKIPPED, "skipped")?];
    Ok((pod, servers))
}

/// How each agent carries a connection from `client`: n1's word, then n2's; `None` is never having seen it.
fn carried(mesh: &Mesh, client: &Pod, to: SocketAddr) -> Result<[Option<String>; 2]> {
    let nodes = ["n1", "n2"];
    let mut first = [0; 2];
    for (first, node) in first.iter_mut().zip(nodes) {
        *first = mesh.agent(node)?.process().next_line();
    }
    ask(&client.host, to)?;
    // Another connection, of which both agents know, and after whose reports none of the first's can come.
    let last = mesh.pod_at(to.ip()).context("a pod is there")?;
    let last = SocketAddr::new(last.host.ip_like(to.ip()), LAST);
    let witness = mesh.topology.host("shop.client-1")?;
    read_all(&mut connect(&witness.netns, last)?)?;
    let mut words = [None, None];
    for ((word, first), node) in words.iter_mut().zip(first).zip(nodes) {
        let agent = mesh.agent(node)?;
        agent.wait_for_flow(first, "the last report", |flow| flow.destination.addr == last.to_string())?;
        let lines = agent.process().lines_from(first);
        let mut flows = lines.iter().rev().filter_map(|line| serde_json::from_str::<Flow<'_>>(line).ok());
        let flow = flows.find(|flow| flow.destination.addr == to.to_string());
        *word = flow.map(|flow| flow.transport.to_string());
    }
    Ok(words)
}

/// Where every server pod also serves, for [`carried`].
const LAST: u16 = 7777;

fn words<const N: usize>(words: [&str; N]) -> [Option<String>; N] {
    words.map(|word| (!word.is_empty()).then(|| word.to_owned()))
}

/// What an agent says that a pod skips.
fn shown(mesh: &Mesh, pod: &Pod) -> Result<Vec<String>> {
    let status = mesh.agent_of(pod)?.status()?;
    let found = status.pods.into_iter().find(|status| status.uid == pod.uid).context("no such pod")?;
    Ok(found.skipped)
}

#[test]
fn skipped_outbound_ports_and_networks_are_dialled_by_the_app_itself() -> Result<()> {
    with_shop(|mesh, _| {
        let (server, _serving) = two_ports(mesh, PodSpec::new("n2", "shop", "server"))?;
        let (other, _other) = two_ports(mesh, PodSpec::new("n2", "shop", "other"))?;
        let _last = [&server, &other].map(|pod| Server::start(&pod.host.netns, LAST, Behaviour::WhoAmI));
        let spec =
            PodSpec::new("n1", "shop", "by-port").annotation("adit.dev/skip-outbound-ports", "22, 9000-9010");
        let by_port = mesh.add_pod(spec)?;
        let networks = format!("{}/32,{}/128", other.host.v4, other.host.v6);
        let spec = PodSpec::new("n1", "shop", "by-net").annotation("adit.dev/skip-outbound-cidrs", &networks);
        let by_network = mesh.add_pod(spec)?;
        mesh.wait_captured(&by_port)?;
        mesh.wait_captured(&by_network)?;
        mesh.settle()?;

        // The server's side is captured still: what reaches it in clear is plaintext there.
        let (tunnel, skipped) = (words(["mtls", "mtls"]), words(["", "plaintext"]));
        for (to, wanted) in [(server.at(SKIPPED), &skipped), (server.at_v6(SKIPPED), &skipped)] {
            assert_eq!(&carried(mesh, &by_port, to)?, wanted, "{to}");
        }
        for to in [server.at(PORT), server.at_v6(PORT)] {
            assert_eq!(carried(mesh, &by_port, to)?, tunnel, "{to}");
            assert_eq!(carried(mesh, &by_network, to)?, tunnel, "{to}");
        }
        for to in [other.at(PORT), other.at_v6(PORT)] {
            assert_eq!(carried(mesh, &by_network, to)?, skipped, "{to}");
        }
        assert_eq!(shown(mesh, &by_port)?, ["outbound port 22", "outbound ports 9000-9010"]);
        assert_eq!(
            shown(mesh, &by_network)?,
            [format!("outbound to {}/32", other.host.v4), format!("outbound to {}/128", other.host.v6)]
        );
        assert!(shown(mesh, &server)?.is_empty());
        Ok(())
    })
}

#[test]
fn a_skipped_inbound_port_is_reached_in_clear_by_everybody_and_the_others_are_not() -> Result<()> {
    with_shop(|mesh, shop| {
        let spec = PodSpec::new("n2", "shop", "server").annotation("adit.dev/skip-inbound-ports", "9005");
        let (server, _serving) = two_ports(mesh, spec)?;
        let _last = Server::start(&server.host.netns, LAST, Behaviour::WhoAmI)?;
        mesh.settle()?;
        let client = &shop.clients[0];
        for to in [server.at(SKIPPED), server.at_v6(SKIPPED)] {
            // The client's agent carries it, in clear, and says so; the server's never sees it.
            assert_eq!(carried(mesh, client, to)?, words(["plaintext", ""]), "{to}");
        }
        for to in [server.at(PORT), server.at_v6(PORT)] {
            assert_eq!(carried(mesh, client, to)?, words(["mtls", "mtls"]), "{to}");
        }
        assert_eq!(shown(mesh, &server)?, ["inbound port 9005"]);

        // STRICT does not hold there: that is seen for as long as it is so.
        let open = |mesh: &Mesh| -> Result<(Vec<String>, String)> {
            let agent = mesh.agent_of(&server)?;
            let status = agent.status()?.pods.into_iter().find(|status| status.uid == server.uid);
            let mut conditions = status.context("no such pod")?.conditions;
            conditions.retain(|condition| condition.contains("skip-inbound-ports"));
            let page = agent.admin("/metrics")?;
            let gauge = page.lines().find_map(|line| line.strip_prefix("adit_skipped_strict_pods "));
            Ok((conditions, gauge.context("the gauge")?.to_owned()))
        };
        assert_eq!(open(mesh)?, (vec![], "0".to_owned()));
        strict(mesh)?;
        mesh.settle()?;
        let deadline = Instant::now() + WAIT_MAX;
        let (conditions, gauge) = loop {
            let seen = open(mesh)?;
            if !seen.0.is_empty() {
                break seen;
            }
            ensure!(Instant::now() < deadline, "nobody says that STRICT does not hold");
        };
        assert!(conditions.len() == 1 && conditions[0].starts_with("port 9005: "), "{conditions:?}");
        assert!(conditions[0].contains("shop/strict"), "{conditions:?}");
        assert_eq!(gauge, "1");
        assert_eq!(
            carried(mesh, client, server.at(SKIPPED))?,
            words(["plaintext", ""]),
            "in clear as before"
        );
        mesh.remove_object("strict")?;
        mesh.settle()?;
        let deadline = Instant::now() + WAIT_MAX;
        while open(mesh)? != (vec![], "0".to_owned()) {
            ensure!(Instant::now() < deadline, "it is said though it is not so any more");
        }
        Ok(())
    })
}

#[test]
fn a_namespaces_annotation_holds_for_its_pods() -> Result<()> {
    with_shop(|mesh, _| {
        apply(
            mesh,
            "namespace-tools",
            &json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {
                    "name": "tools",
                    "labels": { "adit.dev/mesh": "enabled" },
                    "annotations": { "adit.dev/skip-outbound-ports": "9005" },
                },
            }),
        )?;
        mesh.settle()?;
        let (server, _serving) = two_ports(mesh, PodSpec::new("n2", "shop", "server"))?;
        let _last = Server::start(&server.host.netns, LAST, Behaviour::WhoAmI)?;
        let client = mesh.add_pod(PodSpec::new("n1", "tools", "client"))?;
        mesh.wait_captured(&client)?;
        mesh.settle()?;
        assert_eq!(carried(mesh, &client, server.at(SKIPPED))?, words(["", "plaintext"]));
        assert_eq!(carried(mesh, &client, server.at(PORT))?, words(["mtls", "mtls"]));
        Ok(())
    })
}

#[test]
fn a_bad_value_skips_nothing_and_is_shown_until_it_is_mended() -> Result<()> {
    with_shop(|mesh, _| {
        let (server, _serving) = two_ports(mesh, PodSpec::new("n2", "shop", "server"))?;
        let _last = Server::start(&server.host.netns, LAST, Behaviour::WhoAmI)?;
        // The good part of a bad annotation, and the pod's other annotations, count for nothing either.
        let spec = PodSpec::new("n1", "shop", "typo")
            .annotation("adit.dev/skip-outbound-ports", "9005,90O6")
            .annotation("adit.dev/skip-outbound-cidrs", "10.0.0.0/8");
        let client = mesh.add_pod(spec)?;
        mesh.wait_captured(&client)?;
        mesh.settle()?;
        for to in [server.at(SKIPPED), server.at(PORT)] {
            assert_eq!(carried(mesh, &client, to)?, words(["mtls", "mtls"]), "{to}");
        }
        assert!(shown(mesh, &client)?.is_empty());
        let problem = |mesh: &Mesh| -> Result<Option<String>> {
            let problems = mesh.agent("n1")?.status()?.problems;
            Ok(problems.into_iter().find(|problem| problem.contains("adit.dev/skip-outbound-ports")))
        };
        let said = problem(mesh)?.context("a bad annotation is among the problems")?;
        assert!(said.contains("90O6") && said.contains("typo"), "{said}");

        mesh.change_pod(&client, |spec| {
            spec.annotations =
                PodSpec::new("", "", "").annotation("adit.dev/skip-outbound-ports", "9005").annotations;
        })?;
        mesh.settle()?;
        assert_eq!(problem(mesh)?, None);
        // The rules of a running pod follow.
        let deadline = Instant::now() + WAIT_MAX;
        while carried(mesh, &client, server.at(SKIPPED))? != words(["", "plaintext"]) {
            ensure!(Instant::now() < deadline, "the mended annotation is not in force");
        }
        assert_eq!(shown(mesh, &client)?, ["outbound port 9005"]);
        Ok(())
    })
}
