//! Connections as each side reports them, and as the tool shows them.

use super::*;

/// The report of the closed connection to `to`, from a node's access log.
fn closed(mesh: &Mesh, node: &str, first: u64, to: &str) -> Result<Flow<'static>> {
    mesh.agent(node)?
        .wait_for_flow(first, "the report", |flow| flow.destination.addr == to && flow.state == "closed")
}

#[test]
fn both_sides_tell_the_same_story_of_a_connection() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &Value::Null)?;
        for (to, len) in [
            ("10.96.0.1:80".to_owned(), 100_000),
            (server.at_v6(8080).to_string(), 1),
            (server.at(8080).to_string(), 0),
        ] {
            let first = [mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line()];
            exchange(&client, to.parse()?, len)?;
            let sent = closed(mesh, "n1", first[0], &to)?;
            let dialled = sent.target.clone().context("what was dialled")?.into_owned();
            let got = closed(mesh, "n2", first[1], &dialled)?;
            assert_eq!(sent.trace, got.trace);
            assert_eq!(sent.trace.len(), 32);
            assert_eq!((&*sent.direction, &*got.direction), ("outbound", "inbound"));
            for flow in [&sent, &got] {
                assert_eq!(
                    (flow.bytes_to_server, flow.bytes_to_client),
                    (len as u64, len as u64),
                    "{flow:?}"
                );
                assert_eq!(
                    (flow.source.identity.as_deref(), flow.destination.identity.as_deref()),
                    (Some(&*client.identity()), Some(&*server.identity()))
                );
                assert_eq!(
                    (flow.source.pod.as_deref(), flow.destination.pod.as_deref()),
                    (Some("client"), Some("server"))
                );
                assert_eq!(&*flow.transport, "mtls");
                assert!(flow.reason.is_none() && flow.duration_us > 0, "{flow:?}");
                let tls = flow.tls.as_ref().context("a handshake")?;
                assert_eq!((&*tls.version, &*tls.group), ("TLSv1.3", "X25519MLKEM768"));
                assert!(
                    flow.rtt_us.is_some_and(|rtt| rtt > 0) && flow.min_rtt_us.is_some_and(|rtt| rtt > 0),
                    "{flow:?}"
                );
            }
            let service = to.starts_with("10.96").then_some("shop/server:80");
            assert_eq!(sent.service.as_deref(), service);
            assert_eq!(sent.attempts, 1);
            assert!(sent.stages_us.contains_key("connect"), "{sent:?}");
            assert!(got.decision.as_ref().is_some_and(|decision| decision.allowed), "{got:?}");
            // A line of the log is an entry of the ring.
            for (node, flow) in [("n1", &sent), ("n2", &got)] {
                let path = format!("/flows?trace={}", flow.trace);
                let text =
                    wait("the ring", || mesh.agent(node)?.admin(&path), |text| text.contains("\"closed\""))?;
                let ring: Flows<'_> = serde_json::from_str(&text)?;
                assert_eq!(ring.flows, std::slice::from_ref(flow));
                assert_eq!((ring.dropped, &*ring.node), (0, node));
            }
        }
        Ok(())
    })
}

#[test]
fn a_long_connection_is_reported_while_it_lasts_and_its_edge_leaves_when_idle() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &json!({ "telemetry": { "interim-interval": "1s" } }))?;
        let to = server.at(8080).to_string();
        let first = [mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line()];
        let mut open = connect(&client.host.netns, server.at(8080))?;
        for round in 1..=2 {
            open.write_all(b"12345")?;
            read_exactly(&mut open, 5)?;
            for (node, first) in ["n1", "n2"].into_iter().zip(first) {
                // The sum so far, not what was new; one may be made between the word and its echo.
                let flow = mesh.agent(node)?.wait_for_flow(first, "an interim report", |flow| {
                    let bytes = (flow.bytes_to_server, flow.bytes_to_client);
                    flow.destination.addr == to && flow.state == "open" && bytes == (5 * round, 5 * round)
                })?;
                assert!(flow.reason.is_none() && flow.tls.is_some(), "{flow:?}");
            }
        }
        let edge = |node: &str, window: u32| -> Result<Option<adit_proto::admin::Edge>> {
            let text = mesh.agent(node)?.admin(&format!("/edges?window_s={window}"))?;
            let edges: Edges = serde_json::from_str(&text)?;
            Ok(edges
                .edges
                .into_iter()
                .find(|edge| edge.destination.identity.as_deref() == Some(&*server.identity())))
        };
        let shown = edge("n1", 600)?.context("the edge")?;
        assert_eq!((shown.opened, shown.active), (1, 1), "{shown:?}");
        drop(open);
        for (node, first) in ["n1", "n2"].into_iter().zip(first) {
            let flow = closed(mesh, node, first, &to)?;
            assert_eq!((flow.bytes_to_server, flow.bytes_to_client), (10, 10));
            let over = wait(
                "the edge at rest",
                || edge(node, 600),
                |edge| edge.as_ref().is_some_and(|edge| edge.active == 0),
            )?;
            let over = over.context("the edge")?;
            assert_eq!((over.opened, over.bytes_to_server, over.bytes_to_client), (1, 10, 10), "{over:?}");
            assert!(over.tls.as_deref().is_some_and(|tls| tls.contains("X25519MLKEM768")), "{over:?}");
        }
        // A window in which nothing happened has no edge.
        wait("no edge in an idle window", || edge("n1", 10), Option::is_none).map(drop)
    })
}

// The tool.

#[test]
fn the_tool_shows_edges_and_flows_and_names_who_does_not_answer() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &Value::Null)?;
        exchange(&client, "10.96.0.1:80".parse()?, 2048)?;
        expect_reset(&client.host.netns, server.at(9))?;
        let dir = mesh.directory().display().to_string();
        let shows = |args: &[&str], wanted: &[&str]| {
            let ask = || {
                let output = adit(mesh, &[&["--mesh", &dir], args].concat())?;
                ensure!(output.status.code() == Some(0), "{args:?}: {output:?}");
                Ok(output.stdout)
            };
            wait(&format!("{args:?}"), ask, |text| wanted.iter().all(|wanted| text.contains(wanted)))
        };
        let names = ["cluster.local/ns/shop/sa/client", "cluster.local/ns/shop/sa/server", "shop/server:80"];
        let table = shows(
            &["edges", "-n", "shop"],
            &[&names[..], &["n1 (client)", "n2 (server)", "mTLS", "2.0 KiB"]].concat(),
        )?;
        assert!(
            table.lines().next().is_some_and(|head| head.contains("SOURCE") && head.contains("SECURED")),
            "{table}"
        );
        let none = shows(&["edges", "-n", "elsewhere"], &["SOURCE"])?;
        assert!(!none.contains("shop"), "{none}");
        let text = shows(&["edges", "-o", "json"], &names)?;
        let edges: Vec<Edges> = serde_json::from_str(&text)?;
        assert_eq!(edges.iter().map(|edges| &*edges.node).collect::<Vec<_>>(), ["n1", "n2"]);

        shows(
            &["flows"],
            &[
                "shop/client",
                "shop/server",
                "mtls TLSv1.3 X25519MLKEM768",
                "closed",
                "\npeer_app_unreachable: ",
            ],
        )?;
        let text = shows(&["flows", "-o", "json", "--failed"], &["\"failed\""])?;
        for line in text.lines() {
            let flow: Flow<'_> = serde_json::from_str(line)?;
            assert!(flow.reason.is_some() && flow.hint.is_some(), "a failure says what to do: {line}");
        }
        let text = shows(&["flows", "-o", "json", "--limit", "1"], &["trace"])?;
        assert!(text.lines().count() <= 2, "one of each agent: {text}");
        // One connection, by its trace: both sides of it, and nothing else.
        let both = mesh.agent("n1")?.flows()?;
        let trace =
            both.flows.iter().find(|flow| flow.state == "closed").context("a flow")?.trace.to_string();
        let text = shows(&["flows", "--trace", &trace], &[&trace, "client", "server"])?;
        assert_eq!(text.matches(&trace).count(), 2, "{text}");

        // Bad usage.
        for args in [
            &["edges"][..],
            &["--mesh", &dir],
            &["--mesh", &dir, "nodes"],
            &["--mesh", &dir, "edges", "--window", "0"],
            &["--mesh", &dir, "flows", "--reason", "bad_luck"],
        ] {
            let output = adit(mesh, args)?;
            assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
        }
        assert_eq!(adit(mesh, &["--help"])?.status.code(), Some(0));
        assert_eq!(adit(mesh, &["--mesh", "/nowhere", "edges"])?.status.code(), Some(1));
        // Every reason can be asked for, and an unknown one is told all of them.
        let said = adit(mesh, &["--mesh", &dir, "flows", "--reason", "bad_luck"])?.stderr;
        assert!(said.contains("policy_denied") && said.contains("peer_identity"), "{said}");

        mesh.take_agent("n2")?.kill()?;
        for command in ["edges", "flows"] {
            let output = adit(mesh, &["--mesh", &dir, command])?;
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(output.stderr.contains("the agent of node n2 did not answer"), "{output:?}");
            assert!(output.stdout.contains("client"), "and shows what the others say: {output:?}");
        }
        Ok(())
    })
}
