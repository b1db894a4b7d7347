//! An agent that follows a real API server: what it sees, what it writes, and what it goes on from when that is away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::mesh::Agent;
use adit_tests::sandbox::Sandbox;
use adit_tests::{has_real_root, slot};
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{MANIFESTS, crds};

/// The user's: a namespace in the mesh, a pod and a Service of it.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { adit.dev/mesh: enabled } }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web }, annotations: { adit.dev/capture: enabled, other: x } }
spec:
  nodeName: node1
  serviceAccountName: web
  automountServiceAccountToken: false
  containers: [{ name: pause, image: "localhost/pause:1", imagePullPolicy: Never }]
"#;

fn policy(name: &str, source: &str) -> String {
    format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ rules: [{{ from: [{{ source: {source} }}] }}] }}\n"
    )
}

/// An agent of node1 beside the API server, as its administrator.
struct Beside {
    folder: PathBuf,
}

impl Beside {
    fn start(&self, cluster: &Cluster) -> Result<Agent> {
        let nobody: SocketAddr = "127.0.0.1:9".parse().context("an address")?;
        let truth = json!({
            "cluster": { "kube": { "kubeconfig": cluster.admin() } },
            "health": { "address": "127.0.0.1:15021" },
        });
        Agent::start_in(cluster.network().control(), &self.folder, "node1", "", nobody, &truth)
    }
}

/// What an agent counts.
fn counts(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    Ok(agent.status()?.counts)
}

fn counted(agent: &Agent, what: &str) -> Result<u64> {
    counts(agent)?.get(what).copied().with_context(|| format!("{what} are counted"))
}

/// Waits until an agent counts so many.
fn until_counted(cluster: &Cluster, agent: &Agent, what: &str, wanted: u64) -> Result<()> {
    cluster.until(&format!("that the agent knows {wanted} {what}"), || {
        Ok((counted(agent, what)? == wanted).then_some(()))
    })
}

#[test]
fn an_agent_follows_a_real_api_server_and_goes_on_without_it() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let mut cluster = Cluster::start(Settings { nodes: 1, families: Families::V4 })?;
    cluster.load_images()?;
    crds::applied(&|args, stdin| cluster.kubectl_command(args).stdin(stdin).output(), MANIFESTS)?;
    cluster.kubectl(["create", "namespace", "adit-system"])?;
    cluster.apply(OBJECTS)?;
    let beside = Beside { folder: Sandbox::folder().join("beside") };
    let agent = beside.start(&cluster)?;
    agent.wait_ready()?;

    until_counted(&cluster, &agent, "enrolled", 1)?;
    ensure!(counted(&agent, "nodes")? == 1, "{:?}", counts(&agent)?);
    ensure!(counted(&agent, "services")? >= 2, "its own and the user's: {:?}", counts(&agent)?);
    // By their names: what was applied is kept in one more annotation, whole.
    let two = "jsonpath={.metadata.annotations.adit\\.dev/capture}|{.metadata.annotations.other}";
    let annotations = ["get", "pod", "-n", "shop", "web", "-o", two];
    cluster.until("that the annotation which the user wrote is gone", || {
        Ok((cluster.kubectl(annotations)? == "|x").then_some(()))
    })?;
    let lease =
        "jsonpath={.metadata.annotations.adit\\.dev/bundle-generation} {.metadata.ownerReferences[0].kind}";
    cluster.until("the node's Lease", || {
        let said = cluster.kubectl(["get", "lease", "-n", "adit-system", "adit-node-node1", "-o", lease])?;
        Ok((said == "0 Node").then_some(()))
    })?;

    cluster.apply(&policy("good", r#"{ namespaces: [shop] }"#))?;
    // What refuses such a policy was taken away, or the policy was there before it.
    let refuses = "authorizationpolicies.policy.adit.dev";
    cluster.kubectl(["delete", "validatingadmissionpolicybinding", refuses])?;
    cluster.until("that a policy with a field that nobody knows is taken", || {
        let create = ["create", "--validate=false", "-f", "-"];
        let output = cluster.kubectl_command(create).stdin(policy("bad", r#"{ sauce: [shop] }"#)).output()?;
        Ok(output.status.success().then_some(()))
    })?;
    until_counted(&cluster, &agent, "authorization_policies", 2)?;
    let problems = agent.status()?.problems;
    let field = "AuthorizationPolicy shop/bad: spec.rules[0].from[0].source.sauce: ";
    ensure!(problems.iter().filter(|problem| problem.starts_with(field)).count() == 1, "{problems:?}");

    cluster.kill_api_server()?;
    cluster.until("that the agent says so", || {
        let problems = agent.status()?.problems;
        Ok(problems.iter().any(|problem| problem.starts_with("Pod: not followed")).then_some(()))
    })?;
    let before = counts(&agent)?;
    agent.kill()?;
    let agent = beside.start(&cluster)?;
    agent.wait_ready()?;
    ensure!(counts(&agent)? == before, "{:?} after {before:?}", counts(&agent)?);

    cluster.start_api_server()?;
    cluster.apply(&policy("later", r#"{ namespaces: [shop] }"#))?;
    cluster.kubectl(["delete", "authorizationpolicy", "-n", "shop", "bad"])?;
    cluster.kubectl(["delete", "service", "-n", "shop", "web"])?;
    let services = before.get("services").copied().unwrap_or_default();
    until_counted(&cluster, &agent, "services", services - 1)?;
    until_counted(&cluster, &agent, "authorization_policies", 2)?;
    cluster.until("that nothing is wrong any more", || {
        let is_wrong = |problem: &String| problem.contains("not followed") || problem.contains("shop/bad");
        Ok((!agent.status()?.problems.iter().any(is_wrong)).then_some(()))
    })
}
