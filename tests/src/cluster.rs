//! A real Kubernetes cluster on this machine: etcd, kube-apiserver, controller-manager, scheduler and CoreDNS in one
//! network namespace, and for each node namespaces with containerd, kubelet and kube-proxy.
//!
//! ```text
//!   control plane 10.99.0.1 ─ bridge br0 ─┬─ eth0 10.99.0.11  node1  cni0 10.244.1.1/24 ── pods
//!   10.96.0.0/16: Services                └─ eth0 10.99.0.12  node2  cni0 10.244.2.1/24 ── pods
//! ```
//! Everything is in one [`crate::sandbox`], and goes with it; its files lie on a tmpfs of the sandbox's own. Only control groups
//! outlive processes: see [`cgroups`]. What the programs are told is what Kubernetes' own documents say, but for what
//! a machine without systemd, with several nodes and with little time needs; each such setting says why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::WAIT_MAX;
use crate::process::{Output, Run};
use crate::sandbox::Sandbox;

pub mod cgroups;
mod control;
pub mod kept;
mod mesh;
mod network;
mod node;
mod pki;
mod programs;

use control::ControlPlane;
pub use network::Families;
use network::Network;
pub use node::Node;
use pki::Pki;
pub use programs::Programs;

/// What a cluster is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How many nodes, from `node1` on.
    pub nodes: u8,
    /// Which addresses nodes, pods and Services have.
    pub families: Families,
}

/// The most nodes: N is in an address, from 10.99.0.11 on.
pub const NODES_MAX: u8 = 100;

/// A running cluster. Dropped, it is gone.
#[derive(Debug)]
pub struct Cluster {
    // In this order: nodes end before what they talk to.
    nodes: BTreeMap<String, Node>,
    control: ControlPlane,
    network: Network,
    pki: Pki,
    programs: Programs,
    families: Families,
    folder: PathBuf,
    /// Below which control group of each hierarchy its nodes are.
    cgroup: String,
    /// Last, when nobody uses them any more.
    _files: Files,
}

impl Cluster {
    /// Starts one and waits until every node is ready. One in a sandbox: it takes the sandbox's `/dev/shm`.
    pub fn start(settings: Settings) -> Result<Self> {
        ensure!((1..=NODES_MAX).contains(&settings.nodes), "a cluster has 1 to {NODES_MAX} nodes");
        let sandbox = Sandbox::current().context("a cluster runs in a sandbox of its own")?;
        ensure!(sandbox.is_real_root(), "a cluster needs real root: its nodes run containers");
        let files = Files::make()?;
        let folder = own_folder();
        let programs = Programs::find()?;
        let network = Network::create(sandbox.run(), settings.families)?;
        let pki = Pki::create(&folder, settings.families)?;
        let control = ControlPlane::start(&programs, &network, &pki, &folder)?;
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            control,
            network,
            pki,
            programs,
            families: settings.families,
            folder,
            cgroup: sandbox.run().to_owned(),
            _files: files,
        };
        for number in 1..=settings.nodes {
            cluster.start_node(number)?;
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    fn start_node(&mut self, number: u8) -> Result<()> {
        let name = format!("node{number}");
        let plan = node::Plan {
            number,
            programs: &self.programs,
            network: &self.network,
            pki: &self.pki,
            families: self.families,
            folder: self.folder.join(&name),
            cgroup: format!("{}/{name}", self.cgroup),
        };
        let node = Node::start(&plan).with_context(|| format!("{name} does not start"))?;
        self.nodes.insert(name, node);
        Ok(())
    }

    /// Waits until every node that runs says that it is ready.
    pub fn wait_ready(&self) -> Result<()> {
        let wanted: Vec<&String> = self.nodes.keys().collect();
        let path = r#"jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}"#;
        self.until("that every node is ready", || {
            let said = self.kubectl(["get", "nodes", "-o", path])?;
            let is_ready = |name: &&String| said.split(' ').any(|word| word == format!("{name}=True"));
            Ok(wanted.iter().all(is_ready).then_some(()))
        })
    }

    /// Asks again and again until something is found, [`WAIT_MAX`] at most; then what every program of the cluster said
    /// last is in the error.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            match look() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => bail!("{what}: not within {WAIT_MAX:?}\n{}", self.last_words()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("{what}\n{}", self.last_words())));
                }
                // An API server that is about to come, or to come back, is what one waits for.
                Err(_) => {}
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// What the programs said last, and which have ended.
    pub fn last_words(&self) -> String {
        let nodes = self.nodes.values().flat_map(Node::last_words);
        self.control.last_words().into_iter().chain(nodes).collect()
    }

    /// Runs `kubectl` as the cluster's administrator; returns what it printed. Any exit but 0 is an error with all of it.
    pub fn kubectl<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.kubectl_command(args).ok()
    }

    /// The same, with what it said however it ended.
    pub fn try_kubectl<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Result<Output> {
        self.kubectl_command(args).output()
    }

    /// Gives `kubectl apply -f -` this text.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_command(["apply", "-f", "-"]).stdin(yaml).ok()
    }

    /// `kubectl` as the administrator, yet to be run.
    pub fn kubectl_command<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let config = self.pki.kubeconfig("admin");
        let cache = self.folder.join("kubectl-cache");
        self.network
            .control()
            .command(self.programs.kubernetes("kubectl"))
            .env("KUBECONFIG", config)
            .env("KUBECACHEDIR", cache)
            .args(args)
    }

    /// The administrator's kubeconfig.
    pub fn admin(&self) -> PathBuf {
        self.pki.kubeconfig("admin")
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// The same, to be changed.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("no node {name}"))
    }

    /// The nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The control plane's part of the network, in which the API server is reached as from a node.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Takes a node away as a power cut does: every process of it is gone at once, and what lay in its memory.
    pub fn crash(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.remove(name).with_context(|| format!("no node {name} runs"))?;
        node.crash()
    }

    /// Brings a node back that crashed, with the disk that it had.
    pub fn bring_back(&mut self, name: &str) -> Result<()> {
        let number = name.strip_prefix("node").and_then(|number| number.parse().ok());
        let number = number.with_context(|| format!("{name} is no node's name"))?;
        ensure!(!self.nodes.contains_key(name), "{name} runs");
        ensure!(self.folder.join(name).is_dir(), "there never was a {name}");
        // With left-over groups of pods the kubelet waits for ever in its cAdvisor's start.
        cgroups::remove(&format!("{}/{name}", self.cgroup))?;
        // The node object says for a while that it is ready, as it was when it went.
        let said = self.last_heard(name)?;
        self.start_node(number)?;
        self.until("that the node is heard of again", || Ok((self.last_heard(name)? != said).then_some(())))
    }

    /// When a node's kubelet last renewed its Lease; nothing where there is none yet.
    fn last_heard(&self, node: &str) -> Result<String> {
        let args = ["get", "lease", "-n", "kube-node-lease", node, "-o", "jsonpath={.spec.renewTime}"];
        self.try_kubectl(args).map(|said| said.stdout)
    }

    /// Loads every image that was made for the tests into every node.
    pub fn load_images(&self) -> Result<()> {
        self.programs.images().iter().try_for_each(|archive| self.load_image(archive))
    }

    /// Loads an OCI archive into every node.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.nodes.values().try_for_each(|node| node.load_image(archive))
    }

    /// Stops the API server as a crash does.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.control.kill_api_server()
    }

    /// Sends the API server a signal: one that is stopped (SIGSTOP) takes connections and says nothing.
    pub fn signal_api_server(&self, signal: Signal) -> Result<()> {
        self.control.signal_api_server(signal)
    }

    /// Starts the API server again, and waits until it serves.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.control.start_api_server(&self.programs, &self.network, &self.pki)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        // Reported, as nothing else will: the folders of these groups would stay.
        if let Err(error) = cgroups::remove(&self.cgroup) {
            eprintln!("control groups of the cluster are left: {error:#}");
        }
    }
}

/// Where the files of a sandbox's cluster are. A node has a `/run` of its own and must see them too; this folder is on
/// every machine, and nothing in it is anybody's checkout or program.
const PLACE: &str = "/dev/shm";

/// The folder with a cluster's files.
fn own_folder() -> PathBuf {
    Path::new(PLACE).join("adit-cluster")
}

/// That folder, on a tmpfs of the sandbox's own; both go with this.
#[derive(Debug)]
struct Files;

/// Whether there are [`Files`] of this process's: two clusters of one sandbox would share them.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Files {
    fn make() -> Result<Self> {
        ensure!(!TAKEN.swap(true, Ordering::AcqRel), "there is a cluster in this sandbox already");
        // What was mounted there before is an outer sandbox's, and hidden meanwhile.
        let mounted = mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("mode=1777"));
        if let Err(error) = mounted {
            TAKEN.store(false, Ordering::Release);
            return Err(error).context("cannot mount the cluster's file system");
        }
        let files = Self;
        std::fs::create_dir(own_folder()).context("cannot make the cluster's folder")?;
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = umount2(PLACE, MntFlags::MNT_DETACH) {
            eprintln!("the cluster's file system stays mounted in the sandbox: {error}");
        }
        TAKEN.store(false, Ordering::Release);
    }
}
