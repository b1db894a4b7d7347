//! What an agent counts, in both formats, and that the counts agree.

use super::*;

/// One page: values by series, and the type of each family.
#[derive(Debug, Default)]
pub(super) struct Page {
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
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
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

pub(super) fn page(mesh: &Mesh, node: &str, accept: &str) -> Result<Page> {
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
