//! What fresh agents weigh: with idle connections, and with a large mesh known.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::client::{HOLDING, Load};
use super::mesh::{Bench, Congestion, NODES, Path, settings};
use super::usage::resident_kib;
use crate::mesh::Mesh;
use crate::topology::Topology;

/// Every 10 s an agent gives back what has been unused for a second.
const GIVEN_BACK: Duration = Duration::from_millis(11_500);

/// What processes weigh once they have given back what they needed only for a while, KiB.
fn weights<const N: usize>(pids: [u32; N]) -> Result<[f64; N]> {
    thread::sleep(GIVEN_BACK);
    let mut weights = [0.0; N];
    for (weight, pid) in weights.iter_mut().zip(pids) {
        *weight = resident_kib(pid)?;
    }
    Ok(weights)
}

/// KiB that each idle connection costs the client's agent and the server's.
pub(super) fn idle(connections: u32) -> Result<[f64; 2]> {
    let bench = Bench::start(Congestion::Host)?;
    let pids = bench.agents()?;
    let before = weights(pids)?;
    let pair = bench.pair(Path::Mesh);
    let [kind, count, rate] = Load::Idle(connections as usize).words();
    let server = IpAddr::from(pair.server.host.v4).to_string();
    let client = pair
        .client
        .host
        .netns
        .command(std::env::current_exe()?)
        .args(["client", &server, &kind, &count, &rate, "0"])
        .spawn()?;
    client.wait_for_line("the client's word that it holds its connections", |line| line == HOLDING)?;
    let after = weights(pids)?;
    Ok([0, 1].map(|at| (after[at] - before[at]) / f64::from(connections)))
}

/// Pods of one namespace's file.
const PODS_PER_FILE: u32 = 200;
/// Pods of one Deployment.
const PODS_PER_OWNER: u32 = 10;
/// Nodes that the pods are spread over; none of them is the agent's.
const FOREIGN_NODES: u32 = 200;

/// MiB that one agent weighs more with this many pods in its mesh directory, on other nodes, a file a namespace.
pub(super) fn workloads(pods: u32) -> Result<f64> {
    Ok((agent_kib(pods)? - agent_kib(0)?) / 1024.0)
}

/// What a fresh agent weighs that knows so many pods.
fn agent_kib(pods: u32) -> Result<f64> {
    let node = NODES[0];
    let mut mesh = Mesh::new(Topology::exclusive()?, &[node])?;
    mesh.start_ca(&Value::Null)?;
    for file in 0..pods.div_ceil(PODS_PER_FILE) {
        let first = file * PODS_PER_FILE;
        let until = (first + PODS_PER_FILE).min(pods);
        mesh.apply(&format!("team-{file}"), &namespace(file, first..until))?;
    }
    let settings = settings(&mesh, node);
    mesh.start_agent(node, &settings)?;
    mesh.settle()?;
    let pid = mesh.agent(node)?.process().id();
    let [weight] = weights([pid])?;
    Ok(weight)
}

/// A namespace with its pods, as a cluster's would be.
fn namespace(number: u32, pods: std::ops::Range<u32>) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: team-{number}-production, labels: {{ adit.dev/mesh: enabled }} }}\n"
    );
    for pod in pods {
        let (owner, node) = (pod / PODS_PER_OWNER, pod % FOREIGN_NODES);
        let ip = 0x0a80_0000 + pod;
        let ip = std::net::Ipv4Addr::from(ip);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata:
  name: backend-{owner}-6d4cf56db6-{pod:05x}
  namespace: team-{number}-production
  uid: 5ee5e4c4-0000-4000-8000-{pod:012x}
  labels:
    app: backend-{owner}
    app.kubernetes.io/name: backend-{owner}
    app.kubernetes.io/part-of: team-{number}
    app.kubernetes.io/version: 1.4.{owner}
    pod-template-hash: 6d4cf56db6
  annotations: {{ adit.dev/capture: enabled }}
  ownerReferences:
  - {{ apiVersion: apps/v1, kind: ReplicaSet, name: backend-{owner}-6d4cf56db6, uid: 7c, controller: true }}
spec:
  nodeName: ip-10-0-{node}-17.eu-central-1.compute.internal
  serviceAccountName: backend-{owner}
  containers:
  - name: main
    image: registry.example/backend:1.4.{owner}
    ports:
    - {{ name: http, containerPort: 8080 }}
    - {{ name: metrics, containerPort: 9090 }}
    readinessProbe: {{ httpGet: {{ path: /ready, port: http }} }}
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ ip: {ip} }}]
  conditions: [{{ type: Ready, status: \"True\" }}]
"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_of_the_large_mesh_is_an_object_that_is_understood() {
        let documents = adit_objects::yaml::read(&namespace(3, 600..605)).unwrap();
        assert_eq!(documents.len(), 6);
        for document in documents {
            let (_, object) = adit_objects::Object::read(&document.value).unwrap().unwrap();
            let translated = object.translate("adit-system").unwrap();
            assert!(
                translated.problems.is_empty() && translated.change.is_some(),
                "{:?}",
                translated.problems
            );
        }
    }
}
