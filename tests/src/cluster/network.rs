//! The network of a cluster: namespaces of the control plane and the nodes, one bridge, a route to each node's pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::Netns;

/// Which addresses there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// Both; IPv4 is the first of every pod and Service.
    Dual,
}

/// The cluster's network.
#[derive(Debug)]
pub struct Network {
    control: Netns,
    nodes: std::sync::Mutex<std::collections::BTreeMap<u8, Netns>>,
    prefix: String,
    families: Families,
}

/// The API server's address, and the cluster's DNS server's.
pub(super) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The API server as a Service: the first address of the range.
pub(super) const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

impl Families {
    /// What `--service-cluster-ip-range` says.
    pub(super) const fn services(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::Dual => "10.96.0.0/16,fd96::/112",
        }
    }

    /// What `--cluster-cidr` says.
    pub(super) const fn pods(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::Dual => "10.244.0.0/16,fd44::/48",
        }
    }
}

/// A node's own address.
pub(super) fn node_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

fn node_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(number))
}

/// A node's addresses.
pub(super) fn node_addresses(number: u8, families: Families) -> Vec<IpAddr> {
    match families {
        Families::V4 => vec![node_v4(number).into()],
        Families::Dual => vec![node_v4(number).into(), node_v6(number).into()],
    }
}

/// The ranges of a node's pods.
pub(super) fn pod_ranges(number: u8, families: Families) -> Vec<String> {
    let v4 = format!("10.244.{number}.0/24");
    match families {
        Families::V4 => vec![v4],
        Families::Dual => vec![v4, format!("fd44:0:0:{number:x}::/64")],
    }
}

impl Network {
    /// The control plane's part; `prefix` begins the namespaces' names.
    pub(super) fn create(prefix: &str, families: Families) -> Result<Self> {
        let control = Netns::create(&format!("{prefix}-control"))?;
        forward(&control)?;
        control.ip(&format!(
            "link add br0 type bridge mcast_snooping 0
             addr add {CONTROL}/24 dev br0
             addr add fd99::1/64 dev br0 nodad
             link set br0 up"
        ))?;
        let nodes = std::sync::Mutex::default();
        Ok(Self { control, nodes, prefix: prefix.to_owned(), families })
    }

    /// The control plane's namespace: every packet between nodes passes its bridge.
    pub const fn control(&self) -> &Netns {
        &self.control
    }

    /// Which addresses there are.
    pub(super) const fn families(&self) -> Families {
        self.families
    }

    /// Makes a node's namespace, with routes to and from all others; that of a node that was there before is the same.
    pub(super) fn add_node(&self, number: u8) -> Result<Netns> {
        let mut nodes = self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = nodes.get(&number) {
            return Ok(known.clone());
        }
        let netns = Netns::create(&format!("{}-node{number}", self.prefix))?;
        forward(&netns)?;
        // What kube-proxy's localhost node ports need.
        netns.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
        self.control.ip(&format!(
            "link add node{number} type veth peer name eth0 netns {name}
             link set node{number} master br0 up",
            name = netns.name()
        ))?;
        netns.ip(&format!(
            "addr add {v4}/24 dev eth0
             addr add {v6}/64 dev eth0 nodad
             link set eth0 up
             route add default via {CONTROL}
             route add default via fd99::1",
            v4 = node_v4(number),
            v6 = node_v6(number)
        ))?;
        self.route(&self.control, number)?;
        for (other, their_netns) in &*nodes {
            self.route(their_netns, number)?;
            self.route(&netns, *other)?;
        }
        nodes.insert(number, netns.clone());
        Ok(netns)
    }

    /// A route from a namespace on the bridge to a node's pods.
    fn route(&self, from: &Netns, to: u8) -> Result<()> {
        let lines: Vec<String> = pod_ranges(to, self.families)
            .into_iter()
            .zip(node_addresses(to, self.families))
            .map(|(range, via)| format!("route add {range} via {via}"))
            .collect();
        from.ip(&lines.join("\n"))
    }
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")
}
