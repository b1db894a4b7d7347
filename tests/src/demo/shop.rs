//! The shop on its two nodes: plays the kubelet (a server for each pod, after its image), the endpoint controller and,
//! until the namespaces are enrolled, kube-proxy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::killpg;
use nix::unistd::Pid;
use serde_json::json;

use super::examples::{self, Examples, Template};
use crate::WAIT_MAX;
use crate::mesh::{Mesh, Pod};
use crate::process::{Output, Process};
use crate::sandbox::Sandbox;
use crate::servers;
use crate::topology::Topology;

/// The nodes, by the names that the examples use.
pub(super) const NODES: [&str; 2] = ["n1", "n2"];
/// The namespaces, each a folder of the examples.
pub(super) const NAMESPACES: [&str; 2] = ["shop", "guests"];
/// How long leaf certificates live: each is renewed at half of it, ± 10 %, so that the demo can show it.
pub(super) const LEAF_LIFE_S: u64 = 16;

/// A mesh, and what runs in its pods.
#[derive(Debug)]
pub(super) struct Shop {
    pub(super) mesh: Mesh,
    pub(super) pods: BTreeMap<String, Pod>,
    images: BTreeMap<String, String>,
    servers: BTreeMap<String, Process>,
    /// Whether `orders` can run here.
    pub(super) has_orders: bool,
}

impl Shop {
    /// Two nodes, the CA, an agent each; no pods yet.
    pub(super) fn found(sandbox: &Sandbox) -> Result<Self> {
        let mut mesh = Mesh::new(Topology::new()?, &NODES)?;
        mesh.start_ca(&json!({ "leaf-life": format!("{LEAF_LIFE_S}s") }))?;
        for node in NODES {
            mesh.start_agent(node, &json!({ "telemetry": { "log-level": "info" } }))?;
        }
        Ok(Self {
            mesh,
            pods: BTreeMap::new(),
            images: BTreeMap::new(),
            servers: BTreeMap::new(),
            has_orders: sandbox.is_real_root(),
        })
    }

    /// The examples' objects, and what they describe.
    pub(super) fn open(&mut self) -> Result<()> {
        for namespace in NAMESPACES {
            self.mesh.apply(
                &namespace_file(namespace),
                &examples::text(&format!("{namespace}/namespace.yaml"))?,
            )?;
        }
        let Examples { pods, services } = Examples::read(&NAMESPACES)?;
        let has_orders = self.has_orders;
        for service in services.into_iter().filter(|service| has_orders || service.name != "orders") {
            self.mesh.service(service)?;
        }
        for pod in pods.into_iter().filter(|pod| has_orders || pod.spec.name != "orders") {
            self.add(pod)?;
        }
        self.mesh.kube_proxy()
    }

    /// A pod is ready, and so an endpoint, once its server serves.
    fn add(&mut self, template: Template) -> Result<Pod> {
        let Template { mut spec, image } = template;
        spec.ready = false;
        let pod = self.mesh.add_pod(spec)?;
        let name = pod.spec.name.clone();
        self.images.insert(name.clone(), image);
        self.start_server(&pod)?;
        let pod = self.mesh.change_pod(&pod, |spec| spec.ready = true)?;
        self.pods.insert(name, pod.clone());
        Ok(pod)
    }

    fn start_server(&mut self, pod: &Pod) -> Result<()> {
        let name = pod.spec.name.clone();
        let image = self.images.get(&name).context("a pod without an image")?;
        let port = pod.spec.ports.first().map_or(0, |(_, port)| *port);
        let server = match &**image {
            "nginx" => servers::nginx_with(
                &pod.host,
                &format!(
                    "listen {port} backlog=4096; listen [::]:{port} backlog=4096; location / {{ default_type \
                     text/plain; add_header X-Served-By {name}; return 200 \"{name}\\n\"; }}"
                ),
            )?,
            "redis" => servers::redis(&pod.host, port)?,
            "postgres" => servers::postgres(&pod.host, port)?,
            "curl" => return Ok(()),
            other => bail!("nobody knows how to run the image {other}"),
        };
        self.servers.insert(name, server);
        Ok(())
    }

    /// A pod by its name.
    pub(super) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("no pod {name}"))
    }

    /// The process id of a pod's server.
    pub(super) fn server_id(&self, name: &str) -> Result<u32> {
        self.servers.get(name).map(Process::id).with_context(|| format!("{name} has no server"))
    }

    /// Kills a pod's server with SIGKILL, as the kernel's memory killer would; comes back when all its processes, and
    /// so its listeners, are gone.
    pub(super) fn kill_server(&mut self, name: &str) -> Result<()> {
        let server = self.servers.remove(name).with_context(|| format!("{name} has no server"))?;
        let group = Pid::from_raw(server.id().cast_signed());
        drop(server);
        let deadline = Instant::now() + WAIT_MAX;
        // Workers are reaped by the sandbox's first process; until then the kernel lets the group be asked for.
        while killpg(group, None).is_ok() {
            ensure!(Instant::now() < deadline, "{name}'s server does not die");
            thread::yield_now();
        }
        Ok(())
    }

    /// Starts it again, as the kubelet does.
    pub(super) fn restart_server(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?.clone();
        self.start_server(&pod)
    }

    /// Cuts a pod off and kills what runs in it: nothing that it has open can say goodbye.
    pub(super) fn kill_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?;
        let [_, _, _, port] = pod.host.v4.octets();
        self.mesh.topology.node(&pod.spec.node)?.netns.ip(&format!("link set veth{port} down"))?;
        self.kill_server(name)
    }

    /// What follows when the cluster has noticed: endpoints, CNI DEL, network, object.
    pub(super) fn remove_pod(&mut self, name: &str) -> Result<Template> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        let image = self.images.remove(name).context("a pod without an image")?;
        self.mesh.remove_pod(&pod)?;
        Ok(Template { spec: pod.spec, image })
    }

    /// A new pod in the place of one that was removed.
    pub(super) fn replace_pod(&mut self, template: Template) -> Result<Pod> {
        self.add(template)
    }

    /// The address of a service's only port.
    pub(super) fn vip(&self, service: &str) -> Result<SocketAddr> {
        let spec = self.mesh.service_of("shop", service)?;
        let port = spec.ports.first().context("a service without a port")?.port;
        let ip: IpAddr = *spec.ips.first().context("a service without an address")?;
        Ok(SocketAddr::new(ip, port))
    }

    /// Runs a client in a pod, to its end.
    pub(super) fn call(&self, pod: &str, program: &str, args: &[&str]) -> Result<Output> {
        self.pod(pod)?.host.netns.command(program).args(args).output()
    }

    /// Takes the rules away that play kube-proxy: from here on a service's address means something to agents only.
    pub(super) fn stop_kube_proxy(&self) -> Result<()> {
        for node in self.mesh.topology.nodes() {
            for command in ["iptables", "ip6tables"] {
                node.netns.command(command).args(["-w", "5", "-t", "nat", "-F"]).ok()?;
            }
        }
        Ok(())
    }
}

/// The name of a namespace's file in the mesh directory.
pub(super) fn namespace_file(namespace: &str) -> String {
    format!("namespace-{namespace}")
}
