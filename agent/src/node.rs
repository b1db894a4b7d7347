//! What only the kernel knows of a node and its pods: the node's own addresses, whose socket a connection comes from,
//! which connections of a pod are older than its capture, and who listens beside us in it.
//!
//! The node is a network namespace: `/proc/1/ns/net` in a cluster. Decides nothing about traffic.

mod beside;
mod cgroups;
mod error;
mod older;

use std::collections::HashSet;
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nix::sys::socket::SockProtocol;

use crate::netns::Netns;
use crate::sockets::canonical;
use crate::sockets::diag::{Diag, SocketState};
use crate::sockets::netlink::{Announcements, Ask, Netlink};
pub use beside::{close_beside, own_sockets};
use cgroups::Cgroups;
pub use error::NodeError;
pub use older::{Direction, Older, close, older};

/// Groups of rtnetlink: IPv4 address 5, IPv6 address 9.
const ADDRESS_GROUPS: u32 = 1 << 4 | 1 << 8;

/// How long after a failure the addresses are followed again.
const FOLLOW_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Where the other end of a connection is, as far as the node's own sockets tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A socket of the node itself: the kubelet's, or another process's.
    Node,
    /// A socket in the node's namespace that is closed already, as that of a TCP probe: the kernel keeps no word of whose
    /// it was.
    Closed,
    /// A socket in the node's namespace that a pod made (hostNetwork).
    HostNetworkPod,
    /// No socket of the node: masqueraded or forged.
    Elsewhere,
}

/// The node's network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    netns: Netns,
    addresses: Arc<ArcSwap<HashSet<IpAddr>>>,
    cgroups: Arc<Cgroups>,
}

impl Node {
    /// Reads the addresses. `cgroup_root` is where the node's cgroup v2 hierarchy is seen:
    /// `/proc/1/root/sys/fs/cgroup` from a pod with the node's processes.
    pub fn open(netns: Netns, cgroup_root: &Path) -> Result<Self, NodeError> {
        let addresses = own_addresses(&netns).map_err(NodeError::Addresses)?;
        Ok(Self {
            netns,
            addresses: Arc::new(ArcSwap::from_pointee(addresses)),
            cgroups: Arc::new(Cgroups::new(cgroup_root)),
        })
    }

    /// Whether an address is the node's own. No system call.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.load().contains(&ip.to_canonical())
    }

    /// The number of its namespace: what is in it is no pod's.
    pub fn netns_inode(&self) -> u64 {
        self.netns.inode()
    }

    /// The node's own addresses now.
    pub fn addresses(&self) -> Arc<HashSet<IpAddr>> {
        self.addresses.load_full()
    }

    /// Keeps the addresses up to date, for ever: what fails (no descriptor left) is tried again. To be run once.
    pub async fn follow(&self) -> Infallible {
        loop {
            let error = match self.follow_here().await {
                Ok(never) => match never {},
                Err(error) => NodeError::Addresses(error),
            };
            tracing::warn!(%error, source = ?error.source(), "cannot follow the node's addresses; trying again");
            tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
        }
    }

    async fn follow_here(&self) -> io::Result<Infallible> {
        let announced = Announcements::open(&self.netns, SockProtocol::NetlinkRoute, ADDRESS_GROUPS)?;
        loop {
            // Read after the socket has joined: no change falls between.
            self.addresses.store(Arc::new(own_addresses(&self.netns)?));
            announced.next().await?;
        }
    }

    /// A handle for questions about the node's sockets: one per worker.
    pub fn lookup(&self) -> Result<Lookup, NodeError> {
        let diag = Diag::open(&self.netns).map_err(NodeError::Sockets)?;
        Ok(Lookup { diag, cgroups: Arc::clone(&self.cgroups) })
    }
}

/// Finds whose socket a connection comes from; for one worker.
#[derive(Debug)]
pub struct Lookup {
    diag: Diag,
    cgroups: Arc<Cgroups>,
}

impl Lookup {
    /// Where the `client` end of a connection to `server` is. To be asked right at accept: a closed socket is found
    /// only for its TIME_WAIT. 4–8 µs; a few ms at the first sight of a cgroup.
    pub fn origin(&mut self, client: SocketAddr, server: SocketAddr) -> Result<Origin, NodeError> {
        let (client, server) = (canonical(client), canonical(server));
        let found = self.diag.find(client, server).map_err(NodeError::Sockets)?;
        // Without such a connection the kernel names a listener on the client's port, if there is one.
        let exact = |socket: &crate::sockets::diag::Socket| {
            socket.state != SocketState::Listening && socket.local == client && socket.remote == server
        };
        Ok(match found.filter(exact) {
            None => Origin::Elsewhere,
            Some(socket) => match socket.cgroup {
                Some(cgroup) if self.cgroups.is_of_a_pod(cgroup) => Origin::HostNetworkPod,
                // In FIN_WAIT2 and TIME_WAIT the kernel keeps no cgroup; without cgroups it has none for an open one.
                None if socket.state != SocketState::Established => Origin::Closed,
                Some(_) | None => Origin::Node,
            },
        })
    }
}

/// The addresses of a namespace, loopback's among them.
pub fn addresses_in(netns: &Netns) -> Result<HashSet<IpAddr>, NodeError> {
    own_addresses(netns).map_err(NodeError::Addresses)
}

fn own_addresses(netns: &Netns) -> io::Result<HashSet<IpAddr>> {
    let mut netlink = Netlink::open(netns, SockProtocol::NetlinkRoute)?;
    let mut addresses = HashSet::new();
    netlink.ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), Ask::All, |answer| {
        if let RouteNetlinkMessage::NewAddress(message) = answer {
            addresses.extend(address_of(&message));
        }
    })?;
    Ok(addresses)
}

/// On a point-to-point link `Address` is the peer's, and `Local` our own.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            return Some(*ip);
        }
        if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        }
    }
    address
}
