//! A shop in a cluster: a server on one node and a client on the other, in a namespace that is not enrolled yet; what is
//! asked of the agents that carry its calls.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use adit_proto::admin::{Flow, Flows};
use adit_tests::apps::LoadReport;
use adit_tests::apps::lines::LinesReport;
use adit_tests::cluster::Cluster;
use adit_tests::mesh::admin;
use adit_tests::process::{Output, Process};
use adit_tests::sniffer::Sniffer;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

/// The namespace.
pub(crate) const SHOP: &str = "shop";
/// Where the server listens: HTTP, and long connections.
const HTTP: u16 = 8080;
const ECHO: u16 = 7000;

/// The image with the applications; a shell is in it.
const IMAGE: &str = "localhost/adit-test-apps:0.1.0";

/// A server with HTTP and an echo, and a client that does nothing by itself.
fn objects() -> String {
    let pod = |name: &str, node: &str, containers: &str| {
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
    };
    let container = |name: &str, command: &str| {
        format!("    - {{name: {name}, image: \"{IMAGE}\", imagePullPolicy: Never, command: {command}}}\n")
    };
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
    cluster: &'c Cluster,
    /// The server's address.
    pub(crate) server: String,
    /// The Service's.
    pub(crate) service: String,
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

    /// Runs a command in the client.
    pub(crate) fn client(&self, command: &[&str]) -> Result<Output> {
        self.cluster.try_kubectl([&["exec", "-n", SHOP, "client", "--"][..], command].concat())
    }

    /// Starts a command in the client.
    pub(crate) fn start(&self, command: &[&str]) -> Result<Process> {
        self.cluster.kubectl_command([&["exec", "-n", SHOP, "client", "--"][..], command].concat()).spawn()
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

    /// Sets or takes off the namespace's label; returns how long it took until the pods' annotations said so.
    pub(crate) fn label(&self, enrolled: bool) -> Result<Duration> {
        let label = if enrolled { "adit.dev/mesh=enabled" } else { "adit.dev/mesh-" };
        let begun = Instant::now();
        self.cluster.kubectl(["label", "namespace", SHOP, label])?;
        let path = "jsonpath={.items[*].metadata.annotations.adit\\.dev/capture}";
        let wanted = if enrolled { "enabled enabled" } else { "" };
        self.cluster.until("that both pods are captured, or none", || {
            let said = self.cluster.kubectl(["get", "pods", "-n", SHOP, "-o", path])?;
            Ok((said.trim() == wanted).then_some(()))
        })?;
        Ok(begun.elapsed())
    }

    /// The last flows of a node's agent.
    pub(crate) fn flows(&self, node: &str) -> Result<Vec<Flow<'static>>> {
        Ok(admin::json::<Flows<'static>>(&self.admin(node)?, "/flows")?.flows)
    }

    fn admin(&self, node: &str) -> Result<PathBuf> {
        self.cluster.node(node)?.file("/run/adit/admin.sock")
    }
}

/// What a program in a pod reports when it has done its work.
fn report<T: DeserializeOwned>(program: &Process) -> Result<T> {
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
