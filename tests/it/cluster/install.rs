//! What a user does first, as docs/install.md writes it: install, label, and it holds; un-label, and it is as before;
//! delete, and nothing is left on the nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use adit_tests::cluster::{Cluster, Families};
use adit_tests::sniffer::Sniffer;
use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::leave::files_below;

/// A server and a client, one on each node. `VERSION` is that of the images.
const SHOP: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{ name: web, image: "localhost/adit-test-apps:VERSION", imagePullPolicy: Never, command: [nginx] }]
---
apiVersion: v1
kind: Pod
metadata: { name: caller, namespace: shop }
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{ name: caller, image: "localhost/adit-test-apps:VERSION", imagePullPolicy: Never, command: [sleep, "9999"] }]
"#;

fn shop() -> String {
    SHOP.replace("VERSION", env!("CARGO_PKG_VERSION"))
}

/// A field of a pod, by jsonpath below it.
fn of(cluster: &Cluster, pod: &str, path: &str) -> Result<String> {
    cluster.kubectl(["-n", "shop", "get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
}

const CAPTURE: &str = r".metadata.annotations.adit\.dev/capture";

fn until_capture(cluster: &Cluster, pod: &str, wanted: &str) -> Result<()> {
    cluster
        .until(&format!("that {pod} has {CAPTURE} {wanted:?}"), || {
            Ok((of(cluster, pod, CAPTURE)? == wanted).then_some(()))
        })
        .with_context(|| {
            let events = cluster.kubectl(["-n", "shop", "get", "events"]).unwrap_or_default();
            format!("{events}\n{}", cluster.mesh_words())
        })
}

/// Asks for a page of the web pod's with a word in it; returns what it says, and how many packets on the node's link
/// showed the word.
fn call(cluster: &Cluster, to: &str, word: &str) -> Result<(String, usize)> {
    let sniffer = Sniffer::start(cluster.node("node2")?.netns())?;
    let url = format!("http://{to}:8080/{word}");
    let said = cluster
        .kubectl(["-n", "shop", "exec", "caller", "--", "curl", "-sS", "--max-time", "10", &url])
        .with_context(|| cluster.mesh_words())?;
    Ok((said.trim().to_owned(), sniffer.stop()?.count_of(word.as_bytes())?))
}

/// What the runtime's folders hold: path and bytes.
fn cni(cluster: &Cluster) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for (_, node) in cluster.nodes() {
        for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
            found.extend(files_below(&node.file(folder)?)?);
        }
    }
    Ok(found)
}

#[test]
fn a_labelled_namespace_is_carried_by_the_mesh_and_a_delete_leaves_the_nodes_as_they_were() -> Result<()> {
    let Some(bed) = Bed::bare(Families::V4)? else { return Ok(()) };
    let cluster = &bed.cluster;
    let before = cni(cluster)?;
    cluster.install_mesh()?;
    cluster.kubectl(["create", "namespace", "shop"])?;
    cluster.until("the namespace's account", || {
        let asked = cluster.try_kubectl(["-n", "shop", "get", "serviceaccount", "default"])?;
        Ok(asked.status.success().then_some(()))
    })?;
    cluster.apply(&shop())?;
    cluster.kubectl(["-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let ids = ".status.containerStatuses[0].containerID";
    let started = [of(cluster, "web", ids)?, of(cluster, "caller", ids)?];
    let (web, caller) = (of(cluster, "web", ".status.podIP")?, of(cluster, "caller", ".status.podIP")?);
    let expected = format!("web from {caller}");

    let (said, seen) = call(cluster, &web, "in-clear-before")?;
    ensure!(said == expected && seen > 0, "{said:?}, {seen} packets in clear");

    cluster.kubectl(["label", "namespace", "shop", "adit.dev/mesh=enabled"])?;
    for pod in ["web", "caller"] {
        until_capture(cluster, pod, "enabled")?;
    }
    // Each agent goes by its own snapshot, which follows the annotation that was seen here.
    cluster.until("that nothing is read of what is sent", || {
        let (said, seen) = call(cluster, &web, "in-the-mesh")?;
        ensure!(said == expected, "{said:?}");
        Ok((seen == 0).then_some(()))
    })?;

    // One that is made now is captured before its first process runs.
    let late = shop().replace("web", "late");
    cluster.apply(&late)?;
    cluster.kubectl(["-n", "shop", "wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
    until_capture(cluster, "late", "enabled")?;
    let (said, seen) = call(cluster, &of(cluster, "late", ".status.podIP")?, "in-the-mesh-too")?;
    ensure!(said == format!("late from {caller}") && seen == 0, "{said:?}, {seen} packets in clear");

    cluster.kubectl(["label", "namespace", "shop", "adit.dev/mesh-"])?;
    for pod in ["web", "caller", "late"] {
        until_capture(cluster, pod, "")?;
    }
    cluster.until("that it goes in clear again", || {
        let (said, seen) = call(cluster, &web, "in-clear-again")?;
        ensure!(said == expected, "{said:?}");
        Ok((seen > 0).then_some(()))
    })?;
    ensure!(started == [of(cluster, "web", ids)?, of(cluster, "caller", ids)?], "nothing was restarted");

    cluster.kubectl(["label", "namespace", "shop", "adit.dev/mesh=enabled"])?;
    until_capture(cluster, "web", "enabled")?;
    cluster.remove_mesh()?;
    let after = cni(cluster)?;
    ensure!(before == after, "{:?} became {:?}", before.keys(), after.keys());
    let (said, _) = call(cluster, &web, "without-the-mesh")?;
    ensure!(said == expected, "{said:?}");
    Ok(())
}
