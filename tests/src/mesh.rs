//! A whole mesh over a [`Topology`]: the mesh directory, a CA, one agent a node, pods added as a runtime adds them.
//!
//! It drives the built programs as a user would, through files, command lines and sockets; it links none of them.
//! [`with_mesh`] runs a test over one and, where the test fails, shows what agents, rules, sockets and logs said.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::sandbox::Sandbox;
use crate::topology::{Host, Topology};

pub mod admin;
mod agent;
mod ca;
mod cni;
mod dump;
mod objects;
mod proxy;
mod running;
mod watch;

pub use agent::Agent;
pub use ca::Ca;
pub use cni::{Cni, CniAnswer};
pub use objects::{Endpoints, Enrolment, Pod, PodSpec, ServicePort, ServiceSpec};

/// The trust domain of every mesh here.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A mesh.
#[derive(Debug)]
pub struct Mesh {
    /// The network below it.
    pub topology: Topology,
    folder: PathBuf,
    pods: BTreeMap<String, Pod>,
    services: BTreeMap<String, ServiceSpec>,
    ca: Option<Ca>,
    agents: BTreeMap<String, Agent>,
    uids: u32,
    settled: u32,
}

/// Runs `test` over an empty mesh with these nodes; shows the mesh's state where it fails.
pub fn with_mesh(nodes: &[&str], test: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    over(Mesh::new(Topology::new()?, nodes)?, test)
}

/// The same while no other test runs: for one that measures time or load.
pub fn with_mesh_alone(nodes: &[&str], test: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    over(Mesh::new(Topology::exclusive()?, nodes)?, test)
}

/// An error and a panic are shown alike: what the test said, first and last, and between it the mesh's state.
fn over(mut mesh: Mesh, test: impl FnOnce(&mut Mesh) -> Result<()>) -> Result<()> {
    // What a panic has left half done is only looked at, to be shown.
    let ended = catch_unwind(AssertUnwindSafe(|| test(&mut mesh)));
    match &ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => mesh.print_state(&format!("{error:#}")),
        Err(panic) => mesh.print_state(&said_by(panic.as_ref())),
    }
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

/// What a panic said; `panic!` and the assertions say text.
fn said_by(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without a word".to_owned())
}

impl Mesh {
    /// A mesh with these nodes, without CA, agents or objects.
    pub fn new(mut topology: Topology, nodes: &[&str]) -> Result<Self> {
        let folder = Sandbox::folder().join(topology.prefix());
        for part in ["mesh/objects", "mesh/status"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        for node in nodes {
            topology.add_node(node)?;
        }
        Ok(Self {
            topology,
            folder,
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            ca: None,
            agents: BTreeMap::new(),
            uids: 0,
            settled: 0,
        })
    }

    /// The mesh directory, as `adit --mesh` takes it.
    pub fn directory(&self) -> PathBuf {
        self.folder.join("mesh")
    }

    /// A folder of the mesh's own, on the sandbox's tmpfs; what lies in it goes with the sandbox.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the CA on a host of its own; `settings` go over its usual configuration.
    pub fn start_ca(&mut self, settings: &Value) -> Result<&Ca> {
        let host = match self.topology.host(ca::HOST) {
            Ok(host) => host.clone(),
            Err(_) => self.topology.add_outside(ca::HOST)?,
        };
        let ca = Ca::start(&host, &self.folder, settings)?;
        Ok(self.ca.insert(ca))
    }

    /// The CA.
    pub fn ca(&self) -> Result<&Ca> {
        self.ca.as_ref().context("the CA is not running")
    }

    /// Ends the CA by SIGKILL.
    pub fn kill_ca(&mut self) -> Result<()> {
        self.ca.take().map(drop).context("the CA is not running")
    }

    /// Starts a node's agent and waits until it is ready; `settings` go over its usual configuration. A second agent
    /// beside a running one is an upgrade: it takes the first one's place here, and the first is returned.
    pub fn start_agent(&mut self, node: &str, settings: &Value) -> Result<Option<Agent>> {
        let first = self.launch_agent(node, settings)?;
        self.agent(node)?.wait_ready()?;
        Ok(first)
    }

    /// The same without waiting for anything.
    pub fn launch_agent(&mut self, node: &str, settings: &Value) -> Result<Option<Agent>> {
        let token = self.ca()?.add_node(node)?;
        let agent =
            Agent::start(self.topology.node(node)?, &self.folder, &token, self.ca()?.address(), settings)?;
        Ok(self.agents.insert(node.to_owned(), agent))
    }

    /// Starts CA and all agents as they are by default.
    pub fn start(&mut self) -> Result<()> {
        self.start_ca(&Value::Null)?;
        let nodes: Vec<String> = self.topology.nodes().map(|node| node.name.clone()).collect();
        for node in nodes {
            self.start_agent(&node, &Value::Null)?;
        }
        Ok(())
    }

    /// A node's agent.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.get(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// The agent of the node that this pod is on.
    pub fn agent_of(&self, pod: &Pod) -> Result<&Agent> {
        self.agent(&pod.spec.node)
    }

    /// Takes a node's agent out, still running.
    pub fn take_agent(&mut self, node: &str) -> Result<Agent> {
        self.agents.remove(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// Puts one back that was taken out, or that another has taken the place of here.
    pub fn put_agent(&mut self, agent: Agent) {
        self.agents.insert(agent.node().to_owned(), agent);
    }

    /// Lets every one of these programs fail when a node's agent, and nobody else, runs it.
    pub fn shadow_programs(&self, node: &str, names: &[&str]) -> Result<()> {
        let folder = cni::agent_folder(&self.folder, node).join("bin");
        fs::create_dir_all(&folder).context("a folder for programs")?;
        for name in names {
            std::os::unix::fs::symlink("/bin/false", folder.join(name))
                .with_context(|| format!("cannot shadow {name}"))?;
        }
        Ok(())
    }

    /// Gives them back.
    pub fn unshadow_programs(&self, node: &str, names: &[&str]) -> Result<()> {
        let folder = cni::agent_folder(&self.folder, node).join("bin");
        names.iter().try_for_each(|name| {
            fs::remove_file(folder.join(name)).with_context(|| format!("{name} is not shadowed"))
        })
    }

    /// Writes a namespace's object, enrolled or not.
    pub fn namespace(&self, name: &str, enrolment: Enrolment) -> Result<()> {
        self.write_object(&format!("namespace-{name}"), &objects::namespace(name, enrolment))
    }

    /// A pod's object, and its sandbox with its network: what is there when its CNI ADD comes.
    pub fn prepare_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.uids);
        self.write_pod(&objects::pod(&spec, &uid, None), &spec)?;
        let host = self.topology.add_pod(&spec.node, &spec.host_name())?;
        Ok(Pod { spec, uid, sandbox: format!("{:064x}", self.uids), host })
    }

    /// Adds a pod as a cluster does: its object, its sandbox with its network, CNI ADD if an agent runs on its node,
    /// its addresses and readiness, the endpoints of the services that select it.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let pod = self.prepare_pod(spec)?;
        if self.agents.contains_key(&pod.spec.node) {
            self.cni(&pod)?.add()?.ok()?;
        }
        self.write_pod(&objects::pod(&pod.spec, &pod.uid, Some(&pod.host)), &pod.spec)?;
        self.pods.insert(pod.host.name.clone(), pod.clone());
        self.write_endpoints()?;
        Ok(pod)
    }

    /// Changes a running pod's object: its labels, annotations and the like.
    pub fn change_pod(&mut self, pod: &Pod, change: impl FnOnce(&mut PodSpec)) -> Result<Pod> {
        let mut pod = pod.clone();
        change(&mut pod.spec);
        self.write_pod(&objects::pod(&pod.spec, &pod.uid, Some(&pod.host)), &pod.spec)?;
        self.pods.insert(pod.host.name.clone(), pod.clone());
        self.write_endpoints()?;
        Ok(pod)
    }

    /// Removes a pod as a cluster does: endpoints, CNI DEL, network, object.
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        self.pods.remove(&pod.host.name).with_context(|| format!("no pod {}", pod.host.name))?;
        self.write_endpoints()?;
        if self.agents.contains_key(&pod.spec.node) {
            self.cni(pod)?.del()?.ok()?;
        }
        self.topology.remove_pod(&pod.host.name)?;
        self.remove_object(&pod.spec.object_file())
    }

    /// Prints on standard error what rules, sockets, agents and logs say, as [`with_mesh`] does for a test that fails;
    /// `why` is said before and after it.
    pub fn print_state(&self, why: &str) {
        dump::print(self, why);
    }

    /// What a runtime would call for this pod.
    pub fn cni(&self, pod: &Pod) -> Result<Cni> {
        Cni::new(self.topology.node(&pod.spec.node)?, &self.folder, pod)
    }

    /// Adds or replaces a service, with the endpoints that its selector finds.
    pub fn service(&mut self, spec: ServiceSpec) -> Result<()> {
        self.write_object(&spec.object_file(), &objects::service(&spec))?;
        self.services.insert(spec.object_file(), spec);
        self.write_endpoints()
    }

    /// A service that was added.
    pub fn service_of(&self, namespace: &str, name: &str) -> Result<&ServiceSpec> {
        let file = format!("service-{namespace}-{name}");
        self.services.get(&file).with_context(|| format!("no service {namespace}/{name}"))
    }

    /// Lets each node translate service addresses as kube-proxy does, for pods that are not enrolled. It follows the
    /// endpoints as they are now; to be called again when they change.
    pub fn kube_proxy(&self) -> Result<()> {
        let services: Vec<(&ServiceSpec, Endpoints)> =
            self.services.values().map(|spec| (spec, self.endpoints(spec))).collect();
        self.topology.nodes().try_for_each(|node| proxy::program(node, &services))
    }

    /// The pods that a service's selector finds.
    pub fn endpoints(&self, service: &ServiceSpec) -> Endpoints {
        Endpoints::select(service, self.pods.values())
    }

    fn write_endpoints(&self) -> Result<()> {
        for service in self.services.values() {
            for (family, slice) in objects::slices(service, &self.endpoints(service)) {
                self.write_object(&format!("{}-{family}", service.object_file()), &slice)?;
            }
        }
        Ok(())
    }

    fn write_pod(&self, object: &Value, spec: &PodSpec) -> Result<()> {
        self.write_object(&spec.object_file(), object)
    }

    fn write_object(&self, name: &str, object: &Value) -> Result<()> {
        self.apply(name, &serde_saphyr::to_string(object).context("an object is no YAML")?)
    }

    /// Puts YAML into the mesh directory under this name, whole at once, as `kubectl apply` would.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let folder = self.directory().join("objects");
        replace(&folder.join(format!("{name}.yaml")), yaml)
    }

    /// Takes it out again.
    pub fn remove_object(&self, name: &str) -> Result<()> {
        let file = self.directory().join("objects").join(format!("{name}.yaml"));
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
    }

    /// Waits until a node's status file says what is wanted.
    pub fn wait_for_status(&self, node: &str, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let file = self.directory().join("status").join(format!("{node}.yaml"));
        watch::wait_for_file(&file, what, |text| wanted(text).then(|| text.to_owned()))
    }

    /// Waits until every running agent works with all that was written to the mesh directory so far, by this mesh and by
    /// the agents themselves: a policy that selects nothing is written after it, and each agent's word on it awaited.
    pub fn settle(&mut self) -> Result<()> {
        self.settled += 1;
        let name = format!("barrier-{}.", self.settled);
        let yaml = format!(
            "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{ name: {name}x, namespace: barrier }}\n\
             spec: {{ action: AUDIT, selector: {{ matchLabels: {{ selects: nothing }} }}, rules: [{{}}] }}\n"
        );
        self.apply("barrier", &yaml)?;
        for node in self.agents.keys() {
            self.wait_for_status(node, "that all is known", |text| text.contains(&name))?;
        }
        Ok(())
    }

    /// Waits until a pod is captured, by its agent's own word.
    pub fn wait_captured(&self, pod: &Pod) -> Result<()> {
        let what = format!("that {} is captured", pod.spec.name);
        self.wait_for_status(&pod.spec.node, &what, |text| text.contains(&pod.uid)).map(drop)
    }

    /// Waits until it is not captured any more.
    pub fn wait_released(&self, pod: &Pod) -> Result<()> {
        let what = format!("that {} is released", pod.spec.name);
        self.wait_for_status(&pod.spec.node, &what, |text| !text.contains(&pod.uid)).map(drop)
    }

    /// The pod whose address this is.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        self.pods.values().find(|pod| pod.host.ips().contains(&ip))
    }

    /// Runs the tool `adit` on this mesh, in the first node's namespace, and returns what it prints.
    pub fn adit(&self, args: &[&str]) -> Result<String> {
        let node = self.topology.nodes().next().context("a mesh without nodes")?;
        let tool = crate::process::program("adit")?;
        node.netns.command(tool).args(["--mesh"]).args([self.directory()]).args(args).ok()
    }
}

impl Pod {
    /// Where the pod serves this port, by IPv4.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.v4.into(), port)
    }

    /// The same by IPv6.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.v6.into(), port)
    }

    /// Its SPIFFE identity.
    pub fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}", self.spec.namespace, self.spec.account)
    }

    /// Its host in the topology.
    pub const fn host(&self) -> &Host {
        &self.host
    }
}

/// Writes a file whole or not at all: readers never see a part of it.
fn replace(file: &Path, text: &str) -> Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        bail!("{} is no file's name", file.display());
    };
    let fresh = folder.join(format!(".{}.fresh", name.display()));
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, file).with_context(|| format!("cannot write {}", file.display()))
}

/// `settings` over `usual`, map by map.
fn merge(usual: &mut Value, settings: &Value) {
    match (usual, settings) {
        (Value::Object(usual), Value::Object(settings)) => {
            for (key, value) in settings {
                merge(usual.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (usual, settings) => *usual = settings.clone(),
    }
}
