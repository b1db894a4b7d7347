//! The cluster itself: what is tested on it later rests on what is seen here.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::{WAIT_MAX, has_real_root, slot};
use anyhow::{Context, Result, ensure};

/// Pods that do nothing, one on each node, from the one image that every node has.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: one }
spec:
  nodeName: node1
  containers: [{ name: pause, image: "localhost/pause:1", imagePullPolicy: Never }]
---
apiVersion: v1
kind: Pod
metadata: { name: two }
spec:
  nodeName: node2
  containers: [{ name: pause, image: "localhost/pause:1", imagePullPolicy: Never }]
"#;

/// A pod's addresses, once it runs and has been started so often.
fn running(cluster: &Cluster, pod: &str, restarts: u32) -> Result<Vec<String>> {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount} {.status.podIPs[*].ip}";
    cluster.until(&format!("that pod {pod} runs, restarted {restarts} times"), || {
        let said = cluster.kubectl(["get", "pod", pod, "-o", path])?;
        let mut words = said.split_whitespace();
        let runs = words.next() == Some("Running") && words.next() == Some(&restarts.to_string());
        Ok(runs.then(|| words.map(str::to_owned).collect()))
    })
}

/// Whether a pod is reached from a node: it refuses the connection, as nothing listens in it.
fn answers(cluster: &Cluster, node: &str, pod: &str) -> Result<bool> {
    let to = SocketAddr::new(pod.parse().context("a pod's address")?, 8080);
    let tried = cluster.node(node)?.netns().run(|| TcpStream::connect_timeout(&to, WAIT_MAX))?;
    Ok(tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

#[test]
fn two_nodes_run_pods_with_addresses_of_both_families_and_one_comes_back_from_a_crash() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let mut cluster = Cluster::start(Settings { nodes: 2, families: Families::Dual })?;
    cluster.load_images()?;
    // The controller makes it in its own time, and pods are refused without it.
    cluster.until("the namespace's account", || {
        Ok(cluster.try_kubectl(["get", "serviceaccount", "default"])?.status.success().then_some(()))
    })?;
    cluster.apply(PODS)?;
    let one = running(&cluster, "one", 0)?;
    let two = running(&cluster, "two", 0)?;
    for (ips, begins) in [(&one, ["10.244.1.", "fd44:0:0:1:"]), (&two, ["10.244.2.", "fd44:0:0:2:"])] {
        let [v4, v6] = &ips[..] else { anyhow::bail!("two addresses: {ips:?}") };
        ensure!(v4.starts_with(begins[0]) && v6.starts_with(begins[1]), "{ips:?} of {begins:?}");
    }
    let away = two.first().context("an address")?;
    ensure!(answers(&cluster, "node1", away)?, "{away} is reached from the other node");

    cluster.crash("node2")?;
    ensure!(cluster.node("node2").is_err());
    cluster.bring_back("node2")?;
    cluster.wait_ready()?;
    let again = running(&cluster, "two", 1)?;
    ensure!(again.first() != Some(away), "a new sandbox has a new address: {again:?} after {two:?}");
    ensure!(running(&cluster, "one", 0)? == one, "the other node's pod was left alone");

    cluster.kill_api_server()?;
    ensure!(!cluster.try_kubectl(["get", "nodes"])?.status.success(), "nobody answers");
    cluster.start_api_server()?;
    ensure!(running(&cluster, "one", 0)? == one, "nothing is lost");
    Ok(())
}
