//! Nodes, pods and outside hosts as network namespaces, wired as a cluster without an overlay.
//!
//! ```text
//!   pod 10.71.N.10 ── veth (hairpin) ── cni0 10.71.N.1/24  node N  eth0 192.168.171.N ──┐
//!   pod 10.71.N.11 ── …                 fd71:N::1/64               fd00:171::N          ├─ bridge "wire"
//!   outside host 192.168.171.200 ────────────────────────────────────────────────────── ┘
//! ```
//! Every topology has namespaces of its own, so the same addresses may be used by several at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::sandbox::Sandbox;
use crate::slot::{self, Slot};

/// A cluster's network.
#[derive(Debug)]
pub struct Topology {
    /// Begins the name of each of its namespaces.
    prefix: String,
    wire: Netns,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Host>,
    outside: BTreeMap<String, Host>,
    /// Last, so that the slot is given up when all of it is gone.
    slot: Slot,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// N in its addresses, from 1.
    pub number: u8,
    /// How many pods it has had: addresses are not used again.
    pods: u8,
}

/// A pod, or a host outside the cluster: something with one interface `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The node that it is on; `None` outside.
    pub node: Option<String>,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Host {
    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its address of this family: that of `other`.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The first host part of a pod's address; below it are the node's own.
const FIRST_POD: u8 = 10;
/// The first host part of an outside host's address on the wire; below it are the nodes.
const FIRST_OUTSIDE: u8 = 200;

impl Topology {
    /// An empty one, for a test that runs beside others.
    pub fn new() -> Result<Self> {
        Self::with_slot(slot::shared())
    }

    /// An empty one for a test that measures time or load: nothing else runs while it lives.
    pub fn exclusive() -> Result<Self> {
        Self::with_slot(slot::exclusive())
    }

    fn with_slot(slot: Slot) -> Result<Self> {
        let sandbox = Sandbox::current().context(
            "tests over namespaces run in a sandbox of their own: `cargo xtask test --part it [NAME]`",
        )?;
        let prefix = format!("{}-{}", sandbox.run(), COUNT.fetch_add(1, Ordering::Relaxed));
        let wire = Netns::create(&format!("{prefix}-wire"))?;
        wire.ip("link add wire type bridge mcast_snooping 0\nlink set wire up")?;
        Ok(Self {
            prefix,
            wire,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            outside: BTreeMap::new(),
            slot,
        })
    }

    /// The begin of its namespaces' names, unique in the sandbox.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether nothing else runs beside it.
    pub const fn is_exclusive(&self) -> bool {
        self.slot.is_exclusive()
    }

    /// Adds a node, with routes to and from all others.
    pub fn add_node(&mut self, name: &str) -> Result<&Node> {
        let number = u8::try_from(self.nodes.len() + 1)?;
        if number >= FIRST_OUTSIDE {
            bail!("no address is left for node {name}");
        }
        let netns = self.namespace(name)?;
        self.plug(&netns, number)?;
        for (key, value) in FORWARDING {
            netns.sysctl(key, value)?;
        }
        // With an address of its own, as the bridge plugin gives it: else it takes its lowest port's, and where a pod that
        // comes has a lower one, every other pod sends to an address that is gone.
        netns.ip(&format!(
            "link add cni0 address 0a:58:0a:47:{number:02x}:01 type bridge mcast_snooping 0
             addr add 10.71.{number}.1/24 dev cni0
             addr add fd71:{number}::1/64 dev cni0 nodad
             link set cni0 up"
        ))?;
        for other in self.nodes.values() {
            route(&netns, &[other.number])?;
            route(&other.netns, &[number])?;
        }
        for host in self.outside.values() {
            route(&host.netns, &[number])?;
        }
        let node = Node { name: name.to_owned(), netns, number, pods: 0 };
        Ok(self.nodes.entry(name.to_owned()).or_insert(node))
    }

    /// Adds a pod to a node: a namespace with loopback, `eth0` and a default route, on a hairpin port of `cni0`.
    pub fn add_pod(&mut self, node: &str, name: &str) -> Result<Host> {
        let netns = self.namespace(name)?;
        let node = self.nodes.get_mut(node).with_context(|| format!("no node {node}"))?;
        let (number, host) = (node.number, FIRST_POD.checked_add(node.pods).context("no address is left")?);
        node.pods += 1;
        node.netns.ip(&format!(
            "link add veth{host} type veth peer name eth0 netns {pod}
             link set veth{host} master cni0 up
             link set veth{host} type bridge_slave hairpin on",
            pod = netns.name()
        ))?;
        netns.ip(&format!(
            "addr add 10.71.{number}.{host}/24 dev eth0
             addr add fd71:{number}::{host}/64 dev eth0 nodad
             link set eth0 up
             route add default via 10.71.{number}.1
             route add default via fd71:{number}::1"
        ))?;
        let pod = Host {
            name: name.to_owned(),
            node: Some(node.name.clone()),
            netns,
            v4: Ipv4Addr::new(10, 71, number, host),
            v6: format!("fd71:{number}::{host}").parse().context("the pod's address")?,
        };
        self.pods.insert(name.to_owned(), pod.clone());
        Ok(pod)
    }

    /// Takes a pod's namespace away, as the end of its sandbox does. Processes and sockets in it keep it alive.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        pod.netns.ip("link del eth0")
    }

    /// Adds a host beside the nodes, outside the cluster.
    pub fn add_outside(&mut self, name: &str) -> Result<Host> {
        let host =
            u8::try_from(self.outside.len())?.checked_add(FIRST_OUTSIDE).context("no address is left")?;
        let netns = self.namespace(name)?;
        self.plug(&netns, host)?;
        let nodes: Vec<u8> = self.nodes.values().map(|node| node.number).collect();
        route(&netns, &nodes)?;
        let host = Host {
            name: name.to_owned(),
            node: None,
            netns,
            v4: Ipv4Addr::new(192, 168, 171, host),
            v6: format!("fd00:171::{host}").parse().context("the host's address")?,
        };
        self.outside.insert(name.to_owned(), host.clone());
        Ok(host)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The pod or outside host of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.pods.get(name).or_else(|| self.outside.get(name)).with_context(|| format!("no host {name}"))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Host> {
        self.pods.values()
    }

    /// The namespace that all nodes' links meet in: what passes between nodes passes here.
    pub const fn wire(&self) -> &Netns {
        &self.wire
    }

    fn namespace(&self, name: &str) -> Result<Netns> {
        if self.nodes.contains_key(name) || self.pods.contains_key(name) || self.outside.contains_key(name) {
            bail!("{name} is there already");
        }
        Netns::create(&format!("{}-{name}", self.prefix))
    }

    /// Gives a namespace its `eth0` on the wire.
    fn plug(&self, netns: &Netns, host: u8) -> Result<()> {
        self.wire.ip(&format!(
            "link add port{host} type veth peer name eth0 netns {name}
             link set port{host} master wire up",
            name = netns.name()
        ))?;
        netns.ip(&format!(
            "addr add 192.168.171.{host}/24 dev eth0
             addr add fd00:171::{host}/64 dev eth0 nodad
             link set eth0 up"
        ))
    }
}

const FORWARDING: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// Routes from a namespace on the wire to the pods of these nodes.
fn route(from: &Netns, nodes: &[u8]) -> Result<()> {
    let lines: String = nodes
        .iter()
        .map(|number| {
            format!(
                "route add 10.71.{number}.0/24 via 192.168.171.{number}\n\
                 route add fd71:{number}::/64 via fd00:171::{number}\n"
            )
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { from.ip(&lines) }
}
