//! What the mesh says of itself: probes, metrics, access log, flows, edges, the tool, and its complaints.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use adit_proto::admin::{Edges, Flow, Flows};
use adit_tests::WAIT_MAX;
use adit_tests::apps::{
    Behaviour, Load, Server, Shape, connect, expect_reset, read_all, read_exactly, run_load,
};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, ServiceSpec, with_mesh};
use adit_tests::netns::Netns;
use adit_tests::process::{Output, program};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::until::until;

/// A client on n1, a server on n2 behind a service, which echoes.
fn pair(mesh: &mut Mesh, settings: &Value) -> Result<(Pod, Pod, Server)> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start_ca(&Value::Null)?;
    for node in ["n1", "n2"] {
        mesh.start_agent(node, settings)?;
    }
    mesh.service(ServiceSpec::new("shop", "server", 1, 80, 8080))?;
    let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
    let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    mesh.settle()?;
    Ok((client, server, serving))
}

/// GET by plain HTTP in a namespace: head and body.
fn get(netns: &Netns, to: &str, path: &str, accept: &str) -> Result<(String, String)> {
    let mut stream = connect(netns, to.parse()?)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")?;
    let answer = String::from_utf8(read_all(&mut stream)?)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer with a head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Sends `len` bytes there and back and closes.
fn exchange(client: &Pod, to: SocketAddr, len: usize) -> Result<()> {
    let mut stream = connect(&client.host.netns, to)?;
    stream.write_all(&vec![7; len])?;
    assert_eq!(read_exactly(&mut stream, len)?.len(), len);
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(read_all(&mut stream)?, b"");
    Ok(())
}

/// Runs the tool, whatever its exit.
fn adit(mesh: &Mesh, args: &[&str]) -> Result<Output> {
    let node = mesh.topology.node("n1")?;
    node.netns.command(program("adit")?).env_clear().args(args).output()
}

/// Asks until the answer is as wanted.
fn wait<T: std::fmt::Debug>(
    what: &str,
    ask: impl Fn() -> Result<T>,
    wanted: impl Fn(&T) -> bool,
) -> Result<T> {
    let mut last = None;
    let found = until(what, || {
        let answer = ask()?;
        let is_wanted = wanted(&answer);
        last = Some(format!("{answer:?}"));
        Ok(is_wanted.then_some(answer))
    });
    found.with_context(|| format!("the last answer: {last:?}"))
}

// Probes.

#[test]
fn probes_say_what_an_agent_that_starts_still_lacks() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let node = mesh.topology.node("n1")?.netns.clone();
        // A mesh whose objects are not there yet: the agent runs, and is not ready.
        let objects = mesh.directory().join("objects");
        let away = mesh.directory().join("objects-away");
        std::fs::rename(&objects, &away)?;
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| -> Result<(String, String)> {
                let live = wait(
                    "the probe",
                    || Ok(get(&node, "127.0.0.1:15021", "/healthz/live", "*/*").ok()),
                    Option::is_some,
                )?;
                assert!(live.is_some_and(|(head, _)| head.starts_with("HTTP/1.1 200 ")));
                let unready = get(&node, "127.0.0.1:15021", "/healthz/ready", "*/*")?;
                std::fs::rename(&away, &objects)?;
                Ok(unready)
            });
            mesh.start_agent("n1", &Value::Null)?;
            let (head, body) = starting.join().map_err(|_| anyhow::anyhow!("the prober panicked"))??;
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            for kind in
                ["not synced yet", "Pod", "Namespace", "Service", "EndpointSlice", "AuthorizationPolicy"]
            {
                assert!(body.contains(kind), "{kind}: {body}");
            }
            anyhow::Ok(())
        })?;
        for address in ["127.0.0.1:15021", "[::1]:15021"] {
            let (head, body) = get(&node, address, "/healthz/ready", "*/*")?;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head} {body}");
        }
        let status = mesh.agent("n1")?.status()?;
        assert!(status.ready && status.unmet.is_empty() && status.problems.is_empty(), "{status:?}");
        // The admin API is for the node alone; the metrics are not.
        let outside = mesh.topology.host("ca")?.netns.clone();
        let error = connect(&outside, "192.168.171.1:15000".parse()?).expect_err("loopback only");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let (head, _) = get(&node, "127.0.0.1:15000", "/status", "*/*")?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(())
    })
}

// Metrics.

/// One page: values by series, and the type of each family.
#[derive(Debug, Default)]
struct Page {
    values: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Page {
    /// Reads either format; anything that neither allows is an error.
    fn parse(text: &str, is_openmetrics: bool) -> Result<Self> {
        let mut page = Self::default();
        let mut lines = text.lines().peekable();
        let mut ended = false;
        let mut explained = BTreeSet::new();
        while let Some(line) = lines.next() {
            if line == "# EOF" {
                ensure!(is_openmetrics && lines.peek().is_none(), "# EOF is the last line of OpenMetrics");
                ended = true;
            } else if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<&str> = comment.splitn(3, ' ').collect();
                match words[..] {
                    ["TYPE", name, kind] => {
                        let before = page.types.insert(name.to_owned(), kind.to_owned());
                        ensure!(before.is_none(), "{name} has two types");
                    }
                    ["HELP", name, _] => drop(explained.insert(name.to_owned())),
                    ["UNIT", _, _] => {}
                    _ => bail!("no comment of the format: {line}"),
                }
            } else {
                page.sample(line).with_context(|| format!("line {line:?}"))?;
            }
        }
        ensure!(ended == is_openmetrics, "the end");
        ensure!(text.ends_with('\n'), "the last line has an end");
        let bare: Vec<_> = page.types.keys().filter(|name| !explained.contains(*name)).collect();
        ensure!(bare.is_empty(), "no word of what these count: {bare:?}");
        Ok(page)
    }

    fn sample(&mut self, line: &str) -> Result<()> {
        // An exemplar is after " # ", and of OpenMetrics' buckets only.
        let (line, exemplar) =
            line.split_once(" # ").map_or((line, None), |(line, exemplar)| (line, Some(exemplar)));
        let (series, value) = line.rsplit_once(' ').context("a value")?;
        let name = series.split('{').next().unwrap_or(series);
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        };
        ensure!(is_name(name), "{name} is no name");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            let inner =
                labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}')).context("labels")?;
            let mut rest = inner;
            while !rest.is_empty() {
                let (label, after) = rest.split_once("=\"").context("a label")?;
                ensure!(is_name(label), "{label} is no label");
                let mut end = None;
                let mut escaped = false;
                for (index, c) in after.char_indices() {
                    match (escaped, c) {
                        (true, _) => escaped = false,
                        (false, '\\') => escaped = true,
                        (false, '"') => {
                            end = Some(index);
                            break;
                        }
                        (false, _) => {}
                    }
                }
                let end = end.context("a label's end")?;
                rest = after[end + 1..].trim_start_matches(',');
            }
        }
        if let Some(exemplar) = exemplar {
            ensure!(name.ends_with("_bucket") && exemplar.starts_with('{'), "an exemplar of a bucket");
        }
        let kind = self.types.iter().find(|(family, _)| {
            let rest = name.strip_prefix(family.as_str());
            rest.is_some_and(|rest| ["", "_total", "_bucket", "_sum", "_count"].contains(&rest))
        });
        ensure!(kind.is_some(), "{name} has no type");
        let value: f64 = if value == "+Inf" { f64::INFINITY } else { value.parse()? };
        ensure!(self.values.insert(series.to_owned(), value).is_none(), "{series} is there twice");
        Ok(())
    }

    /// The sum of all series of this name with all of these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let wanted = |series: &str| {
            series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label))
        };
        self.values.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| value).sum()
    }
}

/// The trace id of the newest connection in a bucket of a series with this label.
fn exemplar_of(page: &str, name: &str, label: &str) -> Result<String> {
    let with = |line: &str| line.starts_with(name) && line.contains(label);
    let exemplar = page.lines().filter(|line| with(line)).find_map(|line| line.split_once(" # "));
    let (_, exemplar) = exemplar.with_context(|| format!("no exemplar of {name}"))?;
    let trace = exemplar.strip_prefix("{trace_id=\"").and_then(|rest| rest.get(..32));
    Ok(trace.with_context(|| exemplar.to_owned())?.to_owned())
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

fn page(mesh: &Mesh, node: &str, accept: &str) -> Result<Page> {
    let netns = &mesh.topology.node(node)?.netns;
    let (head, body) = get(netns, "[::1]:15020", "/metrics", accept)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let is_openmetrics = head.contains("application/openmetrics-text");
    ensure!(is_openmetrics == accept.contains("openmetrics"), "{head}");
    Page::parse(&body, is_openmetrics).with_context(|| body.clone())
}

#[test]
#[expect(clippy::float_cmp, reason = "counts are whole numbers far below 2^53")]
fn metrics_are_valid_in_both_formats_and_their_counts_agree() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &Value::Null)?;
        let http = Server::start(&server.host.netns, 8081, Behaviour::Http { body: b"yes".to_vec() })?;
        let load = Load {
            to: server.at(8081),
            shape: Shape::PerRequest,
            clients: 4,
            rate: Some(100),
            duration: std::time::Duration::from_millis(500),
            give_up: WAIT_MAX,
        };
        let report = client.host.netns.run(|| run_load(&load))??;
        assert_eq!(report.failures(), 0, "{report:?}");
        let carried = http.accepted().len() as f64;
        // Refused by the app: counted as failed, by its reason.
        expect_reset(&client.host.netns, server.at(9))?;
        let mut open = connect(&client.host.netns, "10.96.0.1:80".parse()?)?;
        open.write_all(b"x")?;
        read_exactly(&mut open, 1)?;
        let mut before: BTreeMap<String, f64> = BTreeMap::new();
        for (node, direction) in [("n1", "direction=\"outbound\""), ("n2", "direction=\"inbound\"")] {
            let of = |page: &Page, name: &str| page.sum(name, &[direction]);
            let settled = |page: &Page| {
                of(page, "adit_connections_active") == 1.0
                    && of(page, "adit_connections_opened_total") == carried + 1.0
                    && of(page, "adit_connections_closed_total") == carried
            };
            wait("opened = closed + active", || page(mesh, node, OPENMETRICS), settled)?;
            let text =
                wait("the same in Prometheus' own format", || page(mesh, node, "text/plain"), settled)?;
            assert!(of(&text, "adit_connections_failed_total") >= 1.0, "{text:?}");
            assert!(of(&text, "adit_bytes_to_client_total") > carried * 3.0, "{text:?}");
            assert!(of(&text, "adit_connect_duration_seconds_count") >= carried, "{text:?}");
            for (name, kind) in [
                ("adit_connections_opened_total", "counter"),
                ("adit_connections_active", "gauge"),
                ("adit_connect_duration_seconds", "histogram"),
                ("adit_pods", "gauge"),
                ("adit_build_info", "gauge"),
                ("process_resident_memory_bytes", "gauge"),
                ("process_open_fds", "gauge"),
                ("process_cpu_seconds_total", "counter"),
                ("adit_certificate_expiry_timestamp_seconds", "gauge"),
                ("adit_inbound_tunnels_open", "gauge"),
                ("adit_sysctls_refused", "gauge"),
            ] {
                assert_eq!(text.types.get(name).map(String::as_str), Some(kind), "{name}");
            }
            assert_eq!(text.sum("adit_pods", &["state=\"captured\""]), 1.0);
            let handshakes = of(&text, "adit_tls_handshake_duration_seconds_count");
            assert!(handshakes >= 1.0, "{handshakes} on {node}");
            let side = if node == "n1" { "side=\"client\"" } else { "side=\"server\"" };
            let well = text.sum("adit_tls_handshakes_total", &[side, "result=\"ok\""]);
            assert!(well >= handshakes, "{well} on {node}");
            // Buckets only grow, and the last of them is the count.
            let buckets: Vec<(&String, &f64)> = text
                .values
                .iter()
                .filter(|(series, _)| {
                    series.starts_with("adit_connect_duration_seconds_bucket")
                        && series.contains("le=\"+Inf\"")
                })
                .collect();
            assert_eq!(
                buckets.iter().map(|(_, value)| **value).sum::<f64>(),
                of(&text, "adit_connect_duration_seconds_count")
            );
            before.extend(text.values.into_iter().map(|(series, value)| (format!("{node} {series}"), value)));
        }
        let tunnels = |page: &Page| page.sum("adit_inbound_tunnels_open", &[]) >= 1.0;
        wait("the tunnel that n1 opened", || page(mesh, "n2", OPENMETRICS), tunnels)?;
        exchange(&client, server.at(8080), 1000)?;
        drop(open);
        for (node, direction) in [("n1", "direction=\"outbound\""), ("n2", "direction=\"inbound\"")] {
            let after = wait(
                "all is closed",
                || page(mesh, node, "text/plain"),
                |page| {
                    page.sum("adit_connections_active", &[direction]) == 0.0
                        && page.sum("adit_connections_closed_total", &[direction]) == carried + 2.0
                },
            )?;
            for (series, value) in &after.values {
                let name = series.split('{').next().unwrap_or(series);
                if ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)) {
                    let was = before.get(&format!("{node} {series}")).copied().unwrap_or_default();
                    assert!(*value >= was, "{series} went from {was} to {value}");
                }
            }
            // A bucket's exemplar is one of the connections that were told.
            let netns = &mesh.topology.node(node)?.netns;
            let (_, openmetrics) = get(netns, "[::1]:15020", "/metrics", OPENMETRICS)?;
            let trace = exemplar_of(&openmetrics, "adit_connect_duration_seconds_bucket", direction)?;
            let is_told = |flows: &Flows<'_>| flows.flows.iter().any(|flow| *flow.trace == *trace);
            wait("the exemplar's flow", || mesh.agent(node)?.flows(), is_told)?;
        }
        Ok(())
    })
}

// Flows.

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

// Configuration and files.

#[test]
fn sighup_takes_the_log_level_and_names_what_needs_a_restart() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &json!({ "telemetry": { "log-level": "info" } }))?;
        let file = mesh.folder().join("agents/n1/config.yaml");
        let text = std::fs::read_to_string(&file)?;
        let agent = mesh.agent("n1")?;
        let reload = |text: &str, says: &str| -> Result<()> {
            let first = agent.process().next_line();
            std::fs::write(&file, text)?;
            agent.process().signal(Signal::SIGHUP)?;
            agent.process().wait_for_line_after(first, says, |line| line.contains(says)).map(drop)
        };
        let changed = text.replace("log-level: info", "log-level: adit_agent=debug");
        assert_ne!(changed, text);
        reload(&changed, "the log level is reloaded")?;
        reload(
            &format!("{changed}health: {{ address: '[::]:15099' }}\n"),
            "health differs from what the agent was started with",
        )?;
        reload("node: [", "not reloaded")?;
        reload(&text.replace("log-level: info", "log-level: '=='"), "telemetry.log-level: is no filter")?;
        reload(&text, "the log level is reloaded")?;
        assert!(agent.status()?.ready);
        Ok(())
    })
}

#[test]
fn a_change_of_the_file_is_taken_without_a_signal() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &json!({ "telemetry": { "log-level": "info" } }))?;
        let file = mesh.folder().join("agents/n1/config.yaml");
        let text = std::fs::read_to_string(&file)?;
        let process = mesh.agent("n1")?.process();
        let first = process.next_line();
        // As an editor, or a ConfigMap, does it: another file by that name.
        let fresh = file.with_extension("new");
        std::fs::write(&fresh, text.replace("log-level: info", "log-level: adit_agent=debug"))?;
        std::fs::rename(&fresh, &file)?;
        process
            .wait_for_line_after(first, "the reload", |line| line.contains("the log level is reloaded"))?;
        Ok(())
    })
}

#[test]
fn a_renamed_access_log_is_opened_anew_at_sighup() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let log = mesh.folder().join("access.log");
        let old = mesh.folder().join("access.log.1");
        mesh.start_agent("n1", &json!({ "telemetry": { "access-log": { "path": log } } }))?;
        std::fs::rename(&log, &old)?;
        let process = mesh.agent("n1")?.process();
        let first = process.next_line();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_line_after(first, "the new file", |line| line.contains("is opened anew"))?;
        assert!(log.exists() && old.exists());
        Ok(())
    })
}

#[test]
fn all_mistakes_of_a_configuration_come_in_one_report_with_their_lines() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let file = mesh.folder().join("bad.yaml");
        let text = "node: n1\nrun-dirs: /run\ncluster:\n  directory: /mesh\n  source: kube\npods:\n  add-deadline: soon\ntelemetry:\n  access-log:\n    sample: often\n";
        std::fs::write(&file, text)?;
        let node = mesh.topology.node("n1")?.netns.clone();
        let run = |args: &[&str]| node.command(program("adit-agent")?).args(args).output();
        let path = file.display().to_string();
        let output = run(&["--config", &path])?;
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        for (line, field) in [
            (2, "run-dirs"),
            (5, "cluster.source"),
            (7, "pods.add-deadline"),
            (10, "telemetry.access-log.sample"),
        ] {
            let found = output
                .stderr
                .lines()
                .any(|said| said.contains(&format!("{path}:{line}:")) && said.contains(field));
            assert!(found, "{field} at line {line}:\n{}", output.stderr);
        }
        for args in [&[][..], &["--conf", &path], &["--config", "/nowhere.yaml"]] {
            assert_eq!(run(args)?.status.code(), Some(64), "{args:?}");
        }
        for name in ["adit-agent", "adit-ca", "adit-cni", "adit"] {
            let said = node.command(program(name)?).args(["--version"]).output()?;
            assert_eq!(said.status.code(), Some(0), "{said:?}");
            // `name 0.1.0 (1f2e3d4c5b6a)`
            let rest = said.stdout.trim_end().strip_prefix(name).context("its name")?;
            let commit =
                rest.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')')).context("a commit")?;
            let is_hex = commit.len() == 12 && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
            assert!(is_hex || commit == "unknown", "{said:?}");
        }
        // Good, but what it needs is taken: that is no usage error.
        let taken = Server::start(&node, 15021, Behaviour::Hold)?;
        mesh.start_ca(&Value::Null)?;
        let error = mesh.start_agent("n1", &Value::Null).expect_err("its port is taken");
        assert!(format!("{error:#}").contains("cannot answer health probes on [::]:15021"), "{error:#}");
        drop(taken);
        Ok(())
    })
}

#[test]
fn a_broken_file_keeps_its_last_good_version_and_is_named_until_it_is_mended() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &Value::Null)?;
        let denies = "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                      metadata: { name: nobody, namespace: shop }\nspec:\n  selector: { matchLabels: { app: server } }\n";
        mesh.apply("policies", denies)?;
        mesh.wait_for_status("n2", "the policy", |text| text.contains("nobody"))?;
        // The reset may come at any of the three.
        let refused = || -> Result<bool> {
            let talk =
                |mut stream: TcpStream| stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
            Ok(connect(&client.host.netns, server.at(8080)).and_then(talk).is_err())
        };
        assert!(refused()?);
        let problems = |mesh: &Mesh, node: &str| Ok(mesh.agent(node)?.status()?.problems);
        // A bracket that is not closed, in line 5.
        let first = mesh.agent("n2")?.process().next_line();
        mesh.apply("policies", &denies.replace("{ app: server } }", "{ app: server }"))?;
        let named =
            |problems: &Vec<String>| problems.iter().any(|problem| problem.contains("policies.yaml:"));
        for node in ["n1", "n2"] {
            let said = wait("the broken file", || problems(mesh, node), named)?;
            let problem = said.iter().find(|problem| problem.contains("policies.yaml:")).context("it")?;
            let place = problem.split("policies.yaml:").nth(1).context("a place")?;
            let numbers: Vec<&str> = place.split(':').take(2).collect();
            let line: u32 = numbers[0].parse().with_context(|| problem.clone())?;
            numbers[1].trim().parse::<u32>().with_context(|| problem.clone())?;
            assert!((5..=6).contains(&line), "{problem}");
        }
        let said_once = |line: &str| line.contains("policies.yaml:") && line.contains("WARN");
        mesh.agent("n2")?.process().wait_for_line_after(first, "its line in the log", said_once)?;
        assert!(refused()?, "it is in force as it last was");
        // The others go on.
        let other = mesh.add_pod(PodSpec::new("n2", "shop", "other"))?;
        let _other = Server::start(&other.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        exchange(&client, other.at(8080), 5)?;
        let said = mesh.agent("n2")?.process().log().iter().filter(|line| said_once(line)).count();
        assert_eq!(said, 1, "not again at each change");
        let page = page(mesh, "n2", "text/plain")?;
        assert!(page.sum("adit_object_errors_total", &[]) >= 1.0, "{page:?}");

        mesh.apply("policies", denies)?;
        wait("it is mended", || problems(mesh, "n2"), |problems| problems.is_empty())?;
        mesh.remove_object("policies")?;
        wait("the policy is gone", refused, |refused| !refused).map(drop)
    })
}
