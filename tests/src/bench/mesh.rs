//! The mesh that is measured: two nodes, a pair of pods in the mesh and a pair outside it, policy, metrics and logs on.

use anyhow::Result;
use serde_json::{Value, json};

use super::server::READY;
use crate::mesh::{Enrolment, Mesh, Pod, PodSpec};
use crate::process::Process;
use crate::topology::Topology;

/// Congestion control in every namespace.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Congestion {
    /// The host's.
    Host,
    /// Reno: the loss of none of the sockets is hidden by pacing.
    Reno,
}

/// Which way a load goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Path {
    /// Between pods that are not enrolled, without any rule of ours.
    Plain,
    /// Between enrolled pods, through both agents.
    Mesh,
}

/// A client pod on the first node and a server pod on the second.
pub(super) struct Pair {
    pub(super) client: Pod,
    pub(super) server: Pod,
    _serving: Process,
}

/// A running mesh with its pairs.
pub(super) struct Bench {
    pub(super) mesh: Mesh,
    plain: Pair,
    meshed: Pair,
}

pub(super) const NODES: [&str; 2] = ["n1", "n2"];

/// What an operator sets: identities are asked for, one caller may, one may not, and what it does is audited.
const POLICIES: &str = "\
apiVersion: policy.adit.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: strict, namespace: shop }
spec: { mtls: { mode: STRICT } }
---
apiVersion: policy.adit.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: callers, namespace: shop }
spec:
  action: ALLOW
  selector: { matchLabels: { app: server } }
  rules:
  - from: [{ source: { principals: [cluster.local/ns/shop/sa/other, cluster.local/ns/shop/sa/client] } }]
    to: [{ operation: { ports: [\"9001\", \"9002\"] } }]
---
apiVersion: policy.adit.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: not-them, namespace: shop }
spec:
  action: DENY
  rules:
  - from: [{ source: { namespaces: [outside, elsewhere] } }]
---
apiVersion: policy.adit.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: watched, namespace: shop }
spec:
  action: AUDIT
  rules:
  - to: [{ operation: { ports: [\"9001\", \"9002\"] } }]
";

impl Bench {
    /// Starts all of it, afresh.
    pub(super) fn start(congestion: Congestion) -> Result<Self> {
        let mut mesh = Mesh::new(Topology::exclusive()?, &NODES)?;
        mesh.start_ca(&Value::Null)?;
        if congestion == Congestion::Reno {
            set_reno(&mesh)?;
        }
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.apply("policies", POLICIES)?;
        for node in NODES {
            let settings = settings(&mesh, node);
            mesh.start_agent(node, &settings)?;
        }
        let plain = Pair::start(&mut mesh, "plain", congestion)?;
        let meshed = Pair::start(&mut mesh, "shop", congestion)?;
        mesh.wait_captured(&meshed.client)?;
        mesh.wait_captured(&meshed.server)?;
        mesh.settle()?;
        Ok(Self { mesh, plain, meshed })
    }

    pub(super) fn pair(&self, path: Path) -> &Pair {
        match path {
            Path::Plain => &self.plain,
            Path::Mesh => &self.meshed,
        }
    }

    /// The process ids of both agents, the client's first.
    pub(super) fn agents(&self) -> Result<[u32; 2]> {
        Ok([self.mesh.agent(NODES[0])?.process().id(), self.mesh.agent(NODES[1])?.process().id()])
    }
}

/// An agent as it is by default, but for where it writes its access log: to a file, as the harness's reader of pipes
/// would take CPU that a container runtime does not.
pub(super) fn settings(mesh: &Mesh, node: &str) -> Value {
    let log = mesh.folder().join(format!("access-{node}.log"));
    json!({ "telemetry": { "log-level": "info", "access-log": { "path": log } } })
}

/// Before any socket is made: a listener keeps what it began with.
fn set_reno(mesh: &Mesh) -> Result<()> {
    let topology = &mesh.topology;
    topology.nodes().try_for_each(|node| node.netns.sysctl(CONGESTION, "reno"))
}

const CONGESTION: &str = "net/ipv4/tcp_congestion_control";

impl Pair {
    fn start(mesh: &mut Mesh, namespace: &str, congestion: Congestion) -> Result<Self> {
        let client = mesh.add_pod(PodSpec::new(NODES[0], namespace, "client"))?;
        let server = mesh.add_pod(PodSpec::new(NODES[1], namespace, "server"))?;
        for pod in [&client, &server] {
            let netns = &pod.host.netns;
            // Without these the client runs out of ports, whatever carries its connections.
            netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
            netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
            if congestion == Congestion::Reno {
                netns.sysctl(CONGESTION, "reno")?;
            }
        }
        let serving = server.host.netns.command(std::env::current_exe()?).args(["server"]).spawn()?;
        serving.wait_for_line("the server's word that it listens", |line| line == READY)?;
        Ok(Self { client, server, _serving: serving })
    }
}
