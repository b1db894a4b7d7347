//! A shop in a cluster: a server on one node and a client on the other, in a namespace that is not enrolled yet; what is
//! asked of the agents that carry its calls.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use adit_proto::admin::{Flow, Flows, Status};
use adit_tests::apps::LoadReport;
use adit_tests::apps::lines::LinesReport;
use adit_tests::cluster::Cluster;
use adit_tests::mesh::admin;
use adit_tests::process::{Output, Process, Run};
use adit_tests::sniffer::{Sniffer, holds};
use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The namespace.
pub(crate) const SHOP: &str = "shop";
/// Where the server listens: HTTP, and long connections.
const HTTP: u16 = 8080;
const ECHO: u16 = 7000;

/// What the client's process is.
const CLIENT: &str = "/usr/bin/sleep 1000000";

/// The image with the applications; a shell is in it.
pub(crate) const IMAGE: &str = "localhost/adit-test-apps:0.1.0";

/// An account and a pod of it, both of this name.
pub(crate) fn pod(name: &str, node: &str, containers: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {SHOP}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {SHOP}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
{containers}"
    )
}

/// A container of the applications' image.
pub(crate) fn container(name: &str, command: &str) -> String {
    format!("    - {{name: {name}, image: \"{IMAGE}\", imagePullPolicy: Never, command: {command}}}\n")
}

/// A server with HTTP and an echo, and a client that does nothing by itself.
fn objects() -> String {
    let server = container("http", r#"["/usr/sbin/nginx"]"#)
        + &container("echo", &format!(r#"["/usr/bin/app", "echo", "0.0.0.0:{ECHO}"]"#));
    let client = container("client", r#"["/usr/bin/sleep", "1000000"]"#);
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SHOP}}}\n{}{}---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: {SHOP}}}
spec: {{selector: {{app: server}}, ports: [{{name: http, port: 80, targetPort: {HTTP}}}]}}
",
        pod("server", "node2", &server),
        pod("client", "node1", &client)
    )
}

/// The two pods, running.
pub(crate) struct Shop<'c> {
    /// Where it is.
    pub(crate) cluster: &'c Cluster,
    /// The server's address.
    pub(crate) server: String,
    /// The Service's.
    pub(crate) service: String,
}

/// Where a shop is, for as long as its cluster is changed.
#[derive(Clone)]
pub(crate) struct Place {
    server: String,
    service: String,
}

/// A client that sends a marker again and again, and a look at all that goes between the nodes.
pub(crate) struct Marking {
    sniffer: Sniffer,
    client: Process,
}

impl<'c> Shop<'c> {
    /// Makes it, and waits until both run.
    pub(crate) fn open(cluster: &'c Cluster) -> Result<Self> {
        cluster.until("the shop's objects", || cluster.apply(&objects()).map(Some))?;
        let ip = |pod: &str| {
            let path = "jsonpath={.status.phase} {.status.podIP}";
            cluster.until(&format!("that {pod} runs"), || {
                let said = cluster.kubectl(["get", "pod", "-n", SHOP, pod, "-o", path])?;
                Ok(said.strip_prefix("Running ").filter(|ip| !ip.is_empty()).map(str::to_owned))
            })
        };
        ip("client")?;
        let server = ip("server")?;
        let path = "jsonpath={.spec.clusterIP}";
        let service = cluster.kubectl(["get", "service", "-n", SHOP, "server", "-o", path])?;
        let shop = Self { cluster, server, service };
        cluster.until("a first answer", || shop.call("").map(Some))?;
        Ok(shop)
    }

    /// The same shop in a cluster of both families, called over IPv6.
    pub(crate) fn over_ipv6(&self) -> Result<Self> {
        self.cluster.apply(&format!(
            "apiVersion: v1
kind: Service
metadata: {{name: server-v6, namespace: {SHOP}}}
spec: {{ipFamilies: [IPv6], selector: {{app: server}}, ports: [{{name: http, port: 80, targetPort: {HTTP}}}]}}
"
        ))?;
        let ask = |of: &str, path: &str| {
            let said = self.cluster.kubectl(["get", of, "-n", SHOP, "-o", &format!("jsonpath={path}")])?;
            let found = said.split(' ').find(|ip| ip.contains(':'));
            found.map(|ip| format!("[{ip}]")).with_context(|| format!("{of} has no IPv6 address: {said}"))
        };
        let server = ask("pod/server", "{.status.podIPs[*].ip}")?;
        let service = ask("service/server-v6", "{.spec.clusterIP}")?;
        let shop = Self { cluster: self.cluster, server, service };
        self.cluster.until("a first answer over IPv6", || shop.call("").map(Some))?;
        Ok(shop)
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        Place { server: self.server.clone(), service: self.service.clone() }
    }

    /// The same shop, in the same cluster.
    pub(crate) fn at(cluster: &'c Cluster, place: &Place) -> Self {
        Self { cluster, server: place.server.clone(), service: place.service.clone() }
    }

    /// A command in the client's container. Not by `kubectl exec`: that goes with the API server.
    fn in_client(&self, command: &[&str]) -> Result<Run> {
        let node = self.cluster.node("node1")?;
        let (program, args) = command.split_first().context("a command")?;
        let [process] = node.processes(CLIENT)?[..] else { bail!("node1 runs one client") };
        Ok(node.inside(process, program).args(args))
    }

    /// Runs a command in the client.
    pub(crate) fn client(&self, command: &[&str]) -> Result<Output> {
        self.in_client(command)?.output()
    }

    /// Starts a command in the client.
    pub(crate) fn start(&self, command: &[&str]) -> Result<Process> {
        self.in_client(command)?.spawn()
    }

    /// The client calls the Service; what the server says.
    pub(crate) fn call(&self, path: &str) -> Result<String> {
        let url = format!("http://{}/{path}", self.service);
        let said = self.client(&["curl", "-sS", "-m", "10", &url])?;
        ensure!(said.status.success(), "{url}: {}", said.stderr);
        Ok(said.stdout)
    }

    /// The client sends a marker; in how many packets on the links between the nodes it can be read.
    pub(crate) fn marked(&self) -> Result<usize> {
        let marker = marker()?;
        let sniffer = Sniffer::start(self.cluster.network().control())?;
        self.call(&marker)?;
        sniffer.stop()?.count_of(marker.as_bytes())
    }

    /// The client begins to send a marker to the Service, one call after the other.
    pub(crate) fn start_marking(&self) -> Result<Marking> {
        let marker = marker()?;
        let calls = format!("while :; do curl -s -m 2 http://{}/{marker}; done", self.service);
        let has_it = move |packet: &[u8]| holds(packet, marker.as_bytes());
        let sniffer = Sniffer::start_where(self.cluster.network().control(), has_it)?;
        Ok(Marking { client: self.start(&["sh", "-c", &calls])?, sniffer })
    }

    /// Which containers the two pods have: others, once one was started again.
    pub(crate) fn containers(&self) -> Result<String> {
        let path = "jsonpath={.items[*].status.containerStatuses[*].containerID}";
        self.cluster.kubectl(["get", "pods", "-n", SHOP, "-o", path])
    }

    /// 20 connections that carry 20 numbered lines a second each, there and back; returns when all are open.
    pub(crate) fn start_lines(&self, seconds: u32) -> Result<Process> {
        let to = format!("{}:{ECHO}", self.server);
        let lines = self.start(&["app", "lines", &to, "20", &seconds.to_string(), "20"])?;
        lines.wait_for_line("that all long connections are open", |line| line == "open")?;
        Ok(lines)
    }

    /// 100 new connections a second.
    pub(crate) fn start_load(&self, seconds: u32) -> Result<Process> {
        let to = format!("{}:{HTTP}", self.server);
        self.start(&["app", "load", &to, "per-request", "10", &seconds.to_string(), "100"])
    }

    /// What the annotation of each pod of the pair says, `POD=VALUE`, from now on and at every change of the pod.
    pub(crate) fn annotations(&self) -> Result<Process> {
        let path = "jsonpath={.metadata.name}={.metadata.annotations.adit\\.dev/capture}{\"\\n\"}";
        let watch = ["get", "pods", "-n", SHOP, "-l", "app in (server, client)", "--watch", "-o", path];
        self.cluster.kubectl_command(watch).spawn()
    }

    /// Sets or takes off the namespace's label; returns how long after `kubectl` had said so the last pod's annotation did,
    /// as a watch shows it.
    pub(crate) fn label(&self, enrolled: bool) -> Result<Duration> {
        let watch = self.annotations()?;
        let (label, before, after) = if enrolled {
            ("adit.dev/mesh=enabled", "", "enabled")
        } else {
            ("adit.dev/mesh-", "enabled", "")
        };
        let until_all_say = |said: &str| {
            ["server", "client"].iter().try_for_each(|pod| {
                let line = format!("{pod}={said}");
                watch.wait_for_line(&format!("that {pod} says {said:?}"), |seen| seen == line).map(drop)
            })
        };
        until_all_say(before)?;
        self.cluster.kubectl(["label", "namespace", SHOP, label])?;
        let labelled = Instant::now();
        until_all_say(after).with_context(|| self.cluster.mesh_words())?;
        Ok(labelled.elapsed())
    }

    /// Where the server's echo listens.
    pub(crate) fn echo(&self) -> String {
        format!("{}:{ECHO}", self.server)
    }

    /// Whether a process of a node itself, no pod, gets a page of the server's.
    pub(crate) fn page_from_node(&self, node: &str) -> Result<bool> {
        let url = format!("http://{}:{HTTP}/", self.server);
        let asked = self.cluster.node(node)?.netns().command("curl").args([
            "-sS",
            "-o",
            "/dev/null",
            "-m",
            "10",
            &url,
        ]);
        Ok(asked.output()?.status.success())
    }

    /// The last flows of a node's agent.
    pub(crate) fn flows(&self, node: &str) -> Result<Vec<Flow<'static>>> {
        Ok(admin::json::<Flows<'static>>(&self.admin(node)?, "/flows?limit=10000")?.flows)
    }

    /// The last flows of a node's agent that were accepted since an instant.
    pub(crate) fn flows_since(
        &self,
        node: &str,
        since: SystemTime,
    ) -> Result<Vec<(SystemTime, Flow<'static>)>> {
        let flows = self.flows(node)?.into_iter().map(|flow| Ok((accepted(&flow)?, flow)));
        flows.filter(|flow| flow.as_ref().map_or(true, |(at, _)| *at > since)).collect()
    }

    /// Waits for a flow of a node's agent, as reports follow a moment later; of several the one accepted last.
    pub(crate) fn until_flow(
        &self,
        node: &str,
        what: &str,
        wanted: impl Fn(&Flow<'_>) -> bool,
    ) -> Result<Flow<'static>> {
        let found = self.cluster.until(what, || {
            let flows = self.flows(node)?.into_iter().filter(&wanted);
            Ok(flows.max_by(|one, other| one.time.cmp(&other.time)))
        });
        found.with_context(|| format!("{node}: {:?}", self.flows(node)))
    }

    /// Waits until the server runs in other containers than before, captured.
    pub(crate) fn until_again(&self, before: &str) -> Result<()> {
        let path = "jsonpath={.status.containerStatuses[*].ready} {.metadata.annotations.adit\\.dev/capture}";
        self.cluster.until("that the server runs again, captured", || {
            let said = self.cluster.kubectl(["get", "pod", "-n", SHOP, "server", "-o", path])?;
            Ok((said == "true true enabled" && self.containers()? != before).then_some(()))
        })
    }

    /// The Events about an object of the shop, a line each.
    pub(crate) fn events(&self, of: &str) -> Result<String> {
        let field = format!("involvedObject.name={of}");
        let path = "jsonpath={range .items[*]}{.count} x {.reason}: {.message}{\"\\n\"}{end}";
        self.cluster.kubectl(["get", "events", "-n", SHOP, "--field-selector", &field, "-o", path])
    }

    /// What a node's agent says of itself.
    pub(crate) fn status(&self, node: &str) -> Result<Status> {
        admin::json(&self.admin(node)?, "/status")
    }

    /// The metrics page of a node's agent, as Prometheus reads it.
    pub(crate) fn metrics(&self, node: &str) -> Result<String> {
        let (pod, path) = (self.cluster.agent_pod(node)?, "jsonpath={.status.podIP}");
        let ip = self.cluster.kubectl(["get", "pod", "-n", "adit-system", &pod, "-o", path])?;
        let url = format!("http://{ip}:15020/metrics");
        self.cluster.node(node)?.netns().command("curl").args(["-sS", "-m", "10", &url]).ok()
    }

    fn admin(&self, node: &str) -> Result<PathBuf> {
        self.cluster.node(node)?.file("/run/adit/admin.sock")
    }
}

impl Place {
    /// The Service's address.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }
}

impl Marking {
    /// How many answers came so far.
    pub(crate) fn answers(&self) -> usize {
        self.client.log().len()
    }

    /// Ends it: how many answers came, and in how many packets the marker could be read.
    pub(crate) fn stop(self) -> Result<(usize, usize)> {
        let answers = self.answers();
        drop(self.client);
        Ok((answers, self.sniffer.stop()?.whole()?.len()))
    }
}

/// What a program in a pod reports when it has done its work.
pub(crate) fn report<T: DeserializeOwned>(program: &Process) -> Result<T> {
    let said = program.wait_for_line("a program's report", |line| line.starts_with('{'))?;
    serde_json::from_str(&said).with_context(|| format!("{said} is no report"))
}

/// Every line of every long connection came back, and every new connection was answered; says how many.
pub(crate) fn nothing_failed(lines: &Process, load: &Process) -> Result<String> {
    let lines: LinesReport = report(lines)?;
    let load: LoadReport = report(load)?;
    let said = format!(
        "{} of 20 long connections whole, {} lines; {} new connections answered, {} failed, p99 {} us",
        lines.whole,
        lines.lines,
        load.ok,
        load.failures(),
        load.p99_us
    );
    ensure!(lines.whole == 20 && lines.failures() == 0, "{lines:?}");
    ensure!(load.ok > 0 && load.failures() == 0, "{load:?}");
    Ok(said)
}

/// 32 random bytes, as hex.
fn marker() -> Result<String> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes))
        .context("no randomness")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// When a flow was accepted.
pub(crate) fn accepted(flow: &Flow<'_>) -> Result<SystemTime> {
    Ok(OffsetDateTime::parse(&flow.time, &Rfc3339).with_context(|| flow.time.to_string())?.into())
}
