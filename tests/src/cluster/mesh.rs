//! Adit in a cluster: the images of this checkout in every node, and its manifests applied as a user applies them.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};

use super::Cluster;
use crate::WAIT_MAX;
use crate::process::Process;

/// The manifests of this checkout.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
/// Where the CA's Service is.
const CA_PORT: u16 = 15012;
/// What is installed, as kubectl names it.
const INSTALLED: [&str; 2] = ["deployment/adit-ca", "daemonset/adit-agent"];

impl Cluster {
    /// Loads the images of Adit, and of applications for tests, into every node.
    pub fn load_mesh_images(&self) -> Result<()> {
        self.programs.mesh_images()?.iter().try_for_each(|archive| self.load_image(archive))
    }

    /// `kubectl apply -k manifests/`, with the images loaded; returns when every agent and every replica of the CA is ready.
    pub fn install_mesh(&self) -> Result<()> {
        self.kubectl(["apply", "-k", MANIFESTS])?;
        self.wait_mesh_ready()
    }

    /// `kubectl delete -k manifests/`; returns when all of it is gone.
    pub fn remove_mesh(&self) -> Result<()> {
        self.kubectl(["delete", "-k", MANIFESTS, "--wait=false"])?;
        let mut looked = 0;
        self.until("that adit-system is gone", || {
            // Its controller looks again after half of the grace that its pods have, which is hours, or when it changes.
            looked += 1;
            let look = format!("adit.dev/look={looked}");
            self.try_kubectl(["annotate", "--overwrite", "namespace", "adit-system", &look])?;
            let asked =
                self.try_kubectl(["get", "namespace", "adit-system", "--ignore-not-found", "-o", "name"])?;
            Ok((asked.status.success() && asked.stdout.is_empty()).then_some(()))
        })
    }

    /// Waits until every agent and every replica of the CA is ready. What they said is in the error.
    pub fn wait_mesh_ready(&self) -> Result<()> {
        for what in INSTALLED {
            self.kubectl(["-n", "adit-system", "rollout", "status", what, "--timeout=60s"])
                .with_context(|| format!("{what} does not become ready\n{}", self.mesh_words()))?;
        }
        self.wait_ca_reached()
    }

    /// Waits until each node reaches the CA's Service: kube-proxy follows what is ready up to a second later (its
    /// `minSyncPeriod`).
    fn wait_ca_reached(&self) -> Result<()> {
        let path = "jsonpath={.spec.clusterIP}";
        let ca = self.kubectl(["-n", "adit-system", "get", "service", "adit-ca", "-o", path])?;
        let ca = SocketAddr::new(ca.parse().context("the address of the CA's Service")?, CA_PORT);
        self.nodes().try_for_each(|(name, node)| {
            self.until(&format!("that {name} reaches the CA"), || {
                let tried = node.netns().run(|| TcpStream::connect_timeout(&ca, WAIT_MAX))?;
                Ok(tried.ok().map(drop))
            })
        })
    }

    /// The name of the pod of a node's agent that is not about to end.
    pub fn agent_pod(&self, node: &str) -> Result<String> {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
        let field = format!("spec.nodeName={node}");
        let of = [
            "get",
            "pod",
            "-n",
            "adit-system",
            "-l",
            "app.kubernetes.io/name=adit-agent",
            "--field-selector",
        ];
        let said = self.kubectl([&of[..], &[&field, "-o", path]].concat())?;
        let stays = said.lines().find_map(|line| line.strip_suffix(' '));
        stays.map(str::to_owned).with_context(|| format!("no agent stays on {node}: {said:?}"))
    }

    /// What a node's agent says from now on, and has said.
    pub fn follow_agent(&self, node: &str) -> Result<Process> {
        let pod = self.agent_pod(node)?;
        self.kubectl_command(["-n", "adit-system", "logs", "-f", &pod, "-c", "agent"]).spawn()
    }

    /// What Adit's pods are and said last.
    pub fn mesh_words(&self) -> String {
        let of_all = ["--all-containers", "--prefix", "--tail=20", "-l", "app.kubernetes.io/part-of=adit"];
        [
            &["get", "pods", "-o", "wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &[&["logs", "--max-log-requests=50"][..], &of_all].concat(),
            &[&["logs", "--previous", "--max-log-requests=50"][..], &of_all].concat(),
        ]
        .map(|args| {
            let said = self.try_kubectl([&["-n", "adit-system"][..], args].concat());
            said.map_or_else(|error| error.to_string(), |said| said.stdout + &said.stderr)
        })
        .join("\n")
    }
}
