//! Who is outside the mesh and calls into it, as docs/operations.md answers: a scraper, an ingress, a process of a node.

use adit_tests::cluster::Cluster;
use anyhow::{Result, ensure};
use nix::unistd::Pid;

use super::bed::Bed;
use super::shop::{IMAGE, SHOP, Shop};

/// A namespace with one pod on the first node that calls what it is told to.
fn outsider(namespace: &str, sleeps: u32) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: caller, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: caller, namespace: {namespace}}}
spec:
  nodeName: node1
  serviceAccountName: caller
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers: [{{name: it, image: \"{IMAGE}\", imagePullPolicy: Never, command: [/usr/bin/sleep, \"{sleeps}\"]}}]
---
"
    )
}

/// Whether a process in a pod gets a page.
fn gets(cluster: &Cluster, process: Pid, url: &str) -> Result<bool> {
    let curl = cluster.node("node1")?.inside(process, "curl");
    Ok(curl.args(["-sS", "-o", "/dev/null", "-m", "10", url]).output()?.status.success())
}

fn until_gets(cluster: &Cluster, process: Pid, url: &str, wanted: bool) -> Result<()> {
    let looked = || Ok((gets(cluster, process, url)? == wanted).then_some(()));
    cluster.until(&format!("that {url} is answered: {wanted}"), looked)
}

#[test]
fn scrapers_and_ingresses_come_in_as_the_documents_say() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    cluster.until("the callers' objects", || {
        cluster.apply(&(outsider("monitoring", 5_000_001) + &outsider("ingress", 5_000_002))).map(Some)
    })?;
    let process = |sleeps: u32| {
        cluster.until("that a caller runs", || {
            Ok(cluster.node("node1")?.processes(&format!("/usr/bin/sleep {sleeps}"))?.first().copied())
        })
    };
    let (scraper, ingress) = (process(5_000_001)?, process(5_000_002)?);
    let (by_address, by_service) =
        (format!("http://{}:8080/", shop.server), format!("http://{}/", shop.service));
    ensure!(gets(cluster, scraper, &by_address)?, "PERMISSIVE lets it in");

    let strict = "apiVersion: policy.adit.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec:
  mtls: {mode: STRICT}
";
    cluster.apply(strict)?;
    until_gets(cluster, scraper, &by_address, false)?;
    ensure!(!gets(cluster, ingress, &by_service)?, "STRICT refuses who is outside");
    ensure!(!shop.page_from_node("node1")?, "a process of a node too");

    // One port, and only from where the scraper is.
    let ip =
        cluster.kubectl(["get", "pod", "-n", "monitoring", "caller", "-o", "jsonpath={.status.podIP}"])?;
    cluster.apply(&format!(
        "{strict}  portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}
---
apiVersion: policy.adit.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: metrics, namespace: {SHOP}}}
spec:
  action: DENY
  rules:
    - from: [{{source: {{notIpBlocks: [{ip}/32], notNamespaces: [{SHOP}]}}}}]
      to: [{{operation: {{ports: [8080]}}}}]
"
    ))?;
    until_gets(cluster, scraper, &by_address, true)?;
    until_gets(cluster, ingress, &by_service, false)?;
    ensure!(super::policies::may(&shop)?, "the mesh's own come in");

    // Enrolled, it is as everybody: by address and by Service, under its identity.
    cluster.kubectl(["delete", "adap", "-n", SHOP, "metrics"])?;
    cluster.apply(strict)?;
    until_gets(cluster, scraper, &by_address, false)?;
    for namespace in ["monitoring", "ingress"] {
        cluster.kubectl(["label", "namespace", namespace, "adit.dev/mesh=enabled"])?;
    }
    until_gets(cluster, scraper, &by_address, true)?;
    until_gets(cluster, ingress, &by_service, true)?;
    for account in ["monitoring", "ingress"] {
        let wanted = format!("spiffe://cluster.local/ns/{account}/sa/caller");
        shop.until_flow("node2", &format!("a call of {wanted}"), |flow| {
            flow.direction == "inbound" && flow.source.identity.as_deref() == Some(&*wanted)
        })?;
    }
    Ok(())
}
