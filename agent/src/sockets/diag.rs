//! Asks the kernel for TCP sockets of a network namespace (sock_diag): one by its addresses, or all of a state.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_core::redirect::Family;
use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::netlink::{Ask, Netlink};
use crate::netns::Netns;

/// INET_DIAG_CGROUP_ID of linux/inet_diag.h; the packet crate has no name for it.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Clients tried for a listener that shares its port: one of two is missed by all of them once in 2^64 times, one of
/// eight once in 5,000.
const CLIENTS_TRIED: u16 = 64;
/// "Any cookie" in a question.
const COOKIE_ANY: [u8; 8] = [0xff; 8];
/// Sockets listed at once: at about 100 bytes each, 25 MiB for a pod with more connections than conntrack holds.
pub const LISTED_MAX: usize = 262_144;

/// What a socket is doing, as far as anybody here asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketState {
    /// Open in both directions.
    Established,
    /// Waiting for connections.
    Listening,
    /// Opening, closing, or in TIME_WAIT.
    Other,
}

/// A TCP socket of the asked namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Socket {
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's.
    pub remote: SocketAddr,
    /// What it is doing.
    pub state: SocketState,
    /// The fsuid under which it was made; an accepted one has that of the accepting thread.
    pub uid: u32,
    /// SO_MARK; `None` where the kernel does not tell (without CAP_NET_ADMIN, in TIME_WAIT).
    pub mark: Option<u32>,
    /// The cgroup of its maker; `None` where the kernel does not tell (in TIME_WAIT, without cgroups).
    pub cgroup: Option<u64>,
    /// The number by which whoever has it open can tell that it is this one; 0 where nobody has.
    pub inode: u64,
    /// Names it for the kernel, once and for all.
    cookie: [u8; 8],
    interface: u32,
    /// As the kernel has it: a v4-mapped IPv6 socket answers to its IPv6 addresses only.
    raw: (SocketAddr, SocketAddr),
}

impl Socket {
    /// A socket that nobody has asked the kernel for.
    #[cfg(test)]
    pub(crate) fn for_test(local: SocketAddr, remote: SocketAddr, mark: u32) -> Self {
        let state = SocketState::Established;
        let (cookie, interface, raw) = (COOKIE_ANY, 0, (local, remote));
        Self {
            local,
            remote,
            state,
            uid: 0,
            mark: Some(mark),
            cgroup: None,
            inode: 0,
            cookie,
            interface,
            raw,
        }
    }
}

/// A kept socket for questions about one namespace. For one thread at a time.
#[derive(Debug)]
pub struct Diag {
    netlink: Netlink,
}

impl Diag {
    /// Opens it inside `netns`.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open(netns, SockProtocol::NetlinkSockDiag)? })
    }

    /// The socket with exactly these addresses, or, without one, whatever listens for them; 4–8 µs.
    ///
    /// Addresses of different families match nothing.
    pub fn find(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(None);
        }
        let request = request(local, remote, StateFlags::all());
        let mut found = None;
        let asked = self.netlink.ask(
            SockDiagMessage::InetRequest(request),
            Ask::One { flags: 0 },
            |answer: SockDiagMessage| found = found.take().or_else(|| socket_of(answer)),
        );
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The sockets of a family that are open in both directions, or that listen. More than [`LISTED_MAX`]: an error.
    pub fn list(&mut self, family: Family, state: SocketState) -> io::Result<Vec<Socket>> {
        let any = match family {
            Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let states = match state {
            SocketState::Established => StateFlags::ESTABLISHED,
            SocketState::Listening => StateFlags::LISTEN,
            SocketState::Other => StateFlags::all().difference(StateFlags::ESTABLISHED | StateFlags::LISTEN),
        };
        let mut sockets = Vec::new();
        let mut too_many = false;
        self.netlink.ask(
            SockDiagMessage::InetRequest(request(any, any, states)),
            Ask::All,
            |answer: SockDiagMessage| match socket_of(answer) {
                Some(socket) if sockets.len() < LISTED_MAX => sockets.push(socket),
                Some(_) => too_many = true,
                None => {}
            },
        )?;
        if too_many {
            return Err(io::Error::other(format!("more than {LISTED_MAX} sockets in one namespace")));
        }
        Ok(sockets)
    }

    /// Closes a socket as a reset from its peer would (SOCK_DESTROY); false if it has gone by itself.
    ///
    /// Needs CAP_NET_ADMIN over the namespace; `Unsupported` where the kernel lacks CONFIG_INET_DIAG_DESTROY.
    pub fn destroy(&mut self, socket: &Socket) -> io::Result<bool> {
        self.destroy_towards(socket, socket.raw.1)
    }

    /// The same for a listener that shares its port with others. The kernel looks for it as for a connection, of which a
    /// hash of both ends says whose it would be: so it is asked for those of several clients, until one is this one's.
    pub fn destroy_shared(&mut self, listener: &Socket) -> io::Result<bool> {
        for port in 1..=CLIENTS_TRIED {
            let client = SocketAddr::new(listener.raw.1.ip(), port);
            if self.destroy_towards(listener, client)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn destroy_towards(&mut self, socket: &Socket, remote: SocketAddr) -> io::Result<bool> {
        let mut request = request(socket.raw.0, remote, StateFlags::all());
        request.socket_id.cookie = socket.cookie;
        request.socket_id.interface_id = socket.interface;
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        match self.netlink.ask(message, Ask::One { flags: 0 }, |_: SockDiagMessage| {}) {
            Ok(()) => Ok(true),
            // Not there, or another one is.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, error))
            }
            Err(error) => Err(error),
        }
    }
}

fn request(local: SocketAddr, remote: SocketAddr, states: StateFlags) -> InetRequest {
    InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: COOKIE_ANY,
        },
    }
}

fn socket_of(message: SockDiagMessage) -> Option<Socket> {
    match message {
        SockDiagMessage::InetResponse(response) => Some(read(&response)),
        SockDiagMessage::InetRequest(_)
        | SockDiagMessage::UnixRequest(_)
        | SockDiagMessage::UnixResponse(_) => None,
    }
}

fn read(response: &InetResponse) -> Socket {
    let id = &response.header.socket_id;
    let addr = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    let mut mark = None;
    let mut cgroup = None;
    for attribute in &response.nlas {
        if let Nla::Mark(value) = attribute {
            mark = Some(*value);
        } else if let Nla::Other(other) = attribute
            && other.kind() == INET_DIAG_CGROUP_ID
        {
            let mut bytes = vec![0; other.value_len()];
            other.emit_value(&mut bytes);
            cgroup = bytes.try_into().ok().map(u64::from_ne_bytes);
        }
    }
    Socket {
        local: addr(id.source_address, id.source_port),
        remote: addr(id.destination_address, id.destination_port),
        state: match response.header.state {
            TCP_ESTABLISHED => SocketState::Established,
            TCP_LISTEN => SocketState::Listening,
            _ => SocketState::Other,
        },
        uid: response.header.uid,
        mark,
        cgroup,
        inode: response.header.inode.into(),
        cookie: id.cookie,
        interface: id.interface_id,
        raw: (
            SocketAddr::new(id.source_address, id.source_port),
            SocketAddr::new(id.destination_address, id.destination_port),
        ),
    }
}
