//! What users run: probes under STRICT, node ports, Jobs, StatefulSets, and a pod that gets the address of another.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;

use adit_tests::cluster::Cluster;
use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::shop::{IMAGE, SHOP, Shop};

const STRICT: &str = "apiVersion: policy.adit.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// A pod of the shop with one container on the second node; `more` are further fields of the container.
fn pod(name: &str, command: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {SHOP}, labels: {{app: {name}}}}}
spec:
  nodeName: node2
  serviceAccountName: server
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: it, image: \"{IMAGE}\", imagePullPolicy: Never, command: {command}{more}}}
---
"
    )
}

/// A probe of each second, as readiness and as liveness. One that is slow is none that fails: a refusal is a reset.
fn probes(how: &str) -> String {
    let probe = format!("{{{how}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 3}}");
    format!(", readinessProbe: {probe}, livenessProbe: {probe}")
}

/// Whether a pod says that it is ready, and how often its container was started again.
fn readiness(cluster: &Cluster, pod: &str) -> Result<String> {
    let path = "jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}";
    cluster.kubectl(["get", "pod", "-n", SHOP, pod, "-o", path])
}

fn until_ready(cluster: &Cluster, pod: &str) -> Result<()> {
    let ready = || Ok((readiness(cluster, pod)? == "true 0").then_some(()));
    cluster
        .until(&format!("that {pod} is ready"), ready)
        .with_context(|| cluster.kubectl(["describe", "pod", "-n", SHOP, pod]).unwrap_or_default())
}

#[test]
fn probes_pass_under_strict_and_a_stranger_through_a_node_port_does_not() -> Result<()> {
    const NODE_PORT: u16 = 30080;
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    cluster.apply(STRICT)?;
    let echo = r#"[/usr/bin/app, echo, "0.0.0.0:7000"]"#;
    let health = r#"[/usr/bin/app, health, "0.0.0.0:9000"]"#;
    let sleep = r#"[/usr/bin/sleep, "4000000"]"#;
    let http = probes("httpGet: {path: /, port: 8080}");
    let with_probes = [
        pod("by-http", "[/usr/sbin/nginx]", &http),
        pod("by-tcp", echo, &probes("tcpSocket: {port: 7000}")),
        pod("by-grpc", health, &probes("grpc: {port: 9000}")),
        pod("by-exec", sleep, &probes("exec: {command: [/usr/bin/true]}")),
        pod(
            "by-nothing",
            r#"[/usr/bin/sleep, "4000001"]"#,
            ", readinessProbe: {tcpSocket: {port: 7999}, periodSeconds: 1}",
        ),
    ];
    cluster.apply(&with_probes.concat())?;
    for pod in ["by-http", "by-tcp", "by-grpc", "by-exec"] {
        until_ready(cluster, pod)?;
    }
    cluster.until("that a probe of a port on which nothing listens fails", || {
        Ok(shop.events("by-nothing")?.contains("Unhealthy").then_some(()))
    })?;
    ensure!(readiness(cluster, "by-nothing")?.starts_with("false"), "nothing listens there");

    // Some may have failed before it listened.
    let unhealthy = |shop: &Shop<'_>| -> Result<Vec<String>> {
        let all = shop.events("by-http")?;
        Ok(all.lines().filter(|line| line.contains("Unhealthy")).map(str::to_owned).collect())
    };
    let before = unhealthy(&shop)?;

    // From a machine outside, through either node, to the very port that is probed.
    cluster.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: by-http, namespace: {SHOP}}}
spec:
  type: NodePort
  selector: {{app: by-http}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}]
"
    ))?;
    let from_outside = |node: u8| -> Result<bool> {
        let url = format!("http://10.99.0.1{node}:{NODE_PORT}/");
        let curl = cluster.network().control().command("curl");
        Ok(curl.args(["-sS", "-o", "/dev/null", "-m", "5", &url]).output()?.status.success())
    };
    cluster.kubectl(["delete", "adpa", "-n", SHOP, "strict"])?;
    for node in [1, 2] {
        cluster.until("that it is let in without STRICT", || Ok(from_outside(node)?.then_some(())))?;
    }
    cluster.apply(STRICT)?;
    for node in [1, 2] {
        cluster.until("that it is refused under STRICT", || Ok((!from_outside(node)?).then_some(())))?;
        ensure!(!from_outside(node)?, "and stays so");
    }
    // More probes than would be allowed to fail came since.
    let again = unhealthy(&shop)?;
    ensure!(again == before && readiness(cluster, "by-http")? == "true 0", "{before:?} became {again:?}");
    Ok(())
}

/// The identity that the newest call to an address met there, as the client's agent reports it.
fn identity_at(shop: &Shop<'_>, ip: &str) -> Result<String> {
    let to = format!("{ip}:8080");
    let flow = shop.until_flow("node1", &format!("a call to {to} over mTLS"), |flow| {
        flow.destination.addr == to && flow.tls.is_some()
    })?;
    flow.destination.identity.map(std::borrow::Cow::into_owned).context("who it was over mTLS is known")
}

#[test]
fn jobs_complete_and_a_stateful_set_keeps_its_identity() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    cluster.apply(STRICT)?;
    let call = format!(r#"[/usr/bin/curl, -sS, -f, -m, "10", "http://{}/"]"#, shop.service);
    let template = format!(
        "template:
      metadata: {{labels: {{app: job}}}}
      spec:
        restartPolicy: Never
        serviceAccountName: client
        automountServiceAccountToken: false
        initContainers: [{{name: first, image: \"{IMAGE}\", imagePullPolicy: Never, command: {call}}}]
        containers: [{{name: it, image: \"{IMAGE}\", imagePullPolicy: Never, command: {call}}}]"
    );
    cluster.apply(&format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: once, namespace: {SHOP}}}
spec:
    backoffLimit: 0
    {template}
---
apiVersion: batch/v1
kind: CronJob
metadata: {{name: often, namespace: {SHOP}}}
spec:
  schedule: \"0 0 1 1 *\"
  jobTemplate:
   spec:
    backoffLimit: 0
    {template}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {SHOP}}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: db, namespace: {SHOP}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {SHOP}}}
spec:
  serviceName: db
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: node2}}
      serviceAccountName: db
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers: [{{name: db, image: \"{IMAGE}\", imagePullPolicy: Never, command: [/usr/sbin/nginx]}}]
"
    ))?;
    cluster.kubectl(["create", "job", "-n", SHOP, "--from=cronjob/often", "by-hand"])?;
    for job in ["job/once", "job/by-hand"] {
        cluster
            .kubectl(["wait", "-n", SHOP, "--for=condition=complete", job, "--timeout=50s"])
            .with_context(|| {
                cluster.kubectl(["describe", "pods", "-n", SHOP, "-l", "app=job"]).unwrap_or_default()
            })?;
    }
    let mut uids = BTreeSet::new();
    for _ in 0..2 {
        let path = "jsonpath={.status.phase} {.metadata.uid} {.status.podIP}";
        let (uid, ip) = cluster.until("that db-0 runs", || {
            let said = cluster.try_kubectl(["get", "pod", "-n", SHOP, "db-0", "-o", path])?.stdout;
            let mut words = said.split_whitespace().map(str::to_owned);
            let runs = words.next().as_deref() == Some("Running");
            Ok(words.next().zip(words.next()).filter(|(uid, _)| runs && !uids.contains(uid)))
        })?;
        cluster.until("that it answers", || {
            let asked = shop.client(&["curl", "-sS", "-m", "10", &format!("http://{ip}:8080/")])?;
            Ok(asked.stdout.starts_with("db-0 from").then_some(()))
        })?;
        ensure!(identity_at(&shop, &ip)? == "spiffe://cluster.local/ns/shop/sa/db");
        uids.insert(uid);
        cluster.kubectl(["delete", "pod", "-n", SHOP, "db-0"])?;
    }
    Ok(())
}

#[test]
fn a_pod_with_the_address_of_another_gets_none_of_that_ones_traffic() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: old, namespace: shop}\nspec: {selector: {app: old}, ports: [{port: 80, targetPort: 8080}]}\n---\n";
    let of = |name: &str| {
        pod(name, "[/usr/sbin/nginx]", "")
            .replace("serviceAccountName: server", &format!("serviceAccountName: {name}"))
    };
    let accounts: String = ["old", "new"]
        .map(|name| {
            format!(
                "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {SHOP}}}\n---\n"
            )
        })
        .concat();
    cluster.apply(&(accounts + service + &of("old")))?;
    let address = |pod: &str| {
        cluster.until(&format!("that {pod} runs"), || {
            let path = "jsonpath={.status.phase} {.status.podIP}";
            let said = cluster.kubectl(["get", "pod", "-n", SHOP, pod, "-o", path])?;
            Ok(said.strip_prefix("Running ").and_then(|ip| ip.parse::<Ipv4Addr>().ok()))
        })
    };
    let ip = address("old")?;
    let path = "jsonpath={.spec.clusterIP}";
    let vip = cluster.kubectl(["get", "service", "-n", SHOP, "old", "-o", path])?;
    let calls = format!("while :; do curl -s -m 2 http://{vip}/; curl -s -m 2 http://{vip}/; done");
    let calling = shop.start(&["sh", "-c", &calls])?;
    calling.wait_for_line("that the old one answers", |line| line.starts_with("old from"))?;

    cluster.kubectl(["delete", "pod", "-n", SHOP, "old"])?;
    let given = cluster.node("node2")?.file(&format!("/var/lib/cni/networks/bridge/{ip}"))?;
    cluster.until("that its address is free again", || Ok((!given.exists()).then_some(())))?;
    // The plugin gives the address after the last one that it gave (host-local).
    let last = cluster.node("node2")?.file("/var/lib/cni/networks/bridge/last_reserved_ip.0")?;
    fs::write(&last, Ipv4Addr::from_bits(ip.to_bits() - 1).to_string())
        .context("cannot choose an address")?;
    cluster.apply(&of("new"))?;
    ensure!(address("new")? == ip, "it has the address of the old one");
    let direct = format!("http://{ip}:8080/");
    cluster.until("that it answers by its address", || {
        let asked = shop.client(&["curl", "-sS", "-m", "10", &direct])?;
        Ok(asked.stdout.starts_with("new from").then_some(()))
    })?;
    cluster.until("that the client's agent names the new one", || {
        Ok((identity_at(&shop, &ip.to_string())? == "spiffe://cluster.local/ns/shop/sa/new").then_some(()))
    })?;
    let answers = calling.log();
    ensure!(answers.iter().all(|said| said.starts_with("old from")), "{answers:?}");
    Ok(())
}
