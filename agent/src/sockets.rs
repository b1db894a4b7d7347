//! TCP sockets as the agent needs them in a pod: listeners of its own uid, dialers that carry the pod's mark, and what
//! is read off or set on a connection.
//!
//! All are made inside the pod's namespace by the calling thread ([`Netns::run`]), non-blocking. What a socket is used
//! for is the data plane's business.

pub mod bounded;
pub mod diag;
pub mod local;
pub(crate) mod netlink;
pub mod probe;
mod tcp_info;

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use adit_core::net::OriginalDst;
use adit_core::redirect::Family;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::netns::{Netns, NetnsError};
pub use tcp_info::{TcpInfo, tcp_info};

/// Connections that wait for accept(), per listener. With fewer, a frozen old agent's queue overflows while the new
/// one takes it over; the kernel cuts it to the namespace's net.core.somaxconn (4096 by default).
pub const BACKLOG: i32 = 4096;
/// The uid under which our listeners are made; no user of a distribution's or an image's. Two sockets share a port
/// (SO_REUSEPORT) only if their uids are equal, so that a root process in the pod cannot bind beside us.
pub const LISTENER_UID: u32 = 15021;
/// Congestion control of the legs that stay on the node: BBR's pacing there costs more than TLS does. The first that
/// the kernel has is taken; if it has none, its default stays.
pub const LOCAL_CONGESTION: [&str; 2] = ["cubic", "reno"];

/// Who may open a socket beside our listener on the same port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortOwner {
    /// Only [`LISTENER_UID`].
    OwnUid,
    /// Any process of the pod that has our uid: the user namespace maps no other, or SETUID is missing.
    AnyOfOurUid,
}

/// A listener, and how well its port is kept.
#[derive(Debug)]
pub struct Listener {
    /// Non-blocking. Accepted connections inherit its TCP options, and no mark.
    pub socket: std::net::TcpListener,
    /// Who may bind beside it.
    pub owner: PortOwner,
}

/// When a silent connection is probed, and when it is given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keepalive {
    /// Silence before the first probe. Whole seconds.
    pub idle: Duration,
    /// Between probes. Whole seconds.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub probes: u32,
}

impl Default for Keepalive {
    /// 60 s, then 3 probes 10 s apart: a dead peer is noticed within 90 s.
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 3 }
    }
}

/// What every TCP socket of ours is set to.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Names, the best first; see [`LOCAL_CONGESTION`]. Empty: the kernel's default.
    pub congestion: &'a [&'a str],
    /// Keepalive probes. `None`: none, at four system calls less; for a leg whose two ends are sockets of one kernel.
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT); `None`: the kernel's limit.
    pub user_timeout: Option<Duration>,
}

impl Default for Options<'_> {
    /// Of the legs between the agent and the pod's own processes.
    fn default() -> Self {
        Self { congestion: &LOCAL_CONGESTION, keepalive: Some(Keepalive::default()), user_timeout: None }
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A process of the pod has the port already.
    #[error("port {0} is taken by a process of the pod")]
    PortTaken(u16),
    /// The kernel has no IPv6.
    #[error("the kernel has no IPv6")]
    NoIpv6,
    /// A system call failed.
    #[error("cannot listen on port {port}: {step}")]
    Socket {
        /// The port.
        port: u16,
        /// The system call or option.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// All source ports towards this destination are in use.
    #[error("no source port is left towards {0}")]
    PortsExhausted(SocketAddr),
    /// The socket could not be made or set.
    #[error("cannot make a socket towards {to}: {step}")]
    Socket {
        /// The destination.
        to: SocketAddr,
        /// The system call or option.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The destination refused, cannot be reached, or did not answer: `source` says which.
    #[error("cannot connect to {to}")]
    Connect {
        /// The destination.
        to: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How the agent dials from inside a pod.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// The pod's mark: what carries it is not captured again.
    pub mark: u32,
    /// The address that the other end shall see: the true client's, for a dial to the app. `None`: the pod's own.
    pub from: Option<IpAddr>,
    /// TCP options.
    pub options: Options<'a>,
}

/// Listens on every address of a family inside `netns`. Blocks for microseconds.
///
/// The port is shared (SO_REUSEPORT) by all sockets made so: each worker's, and a second agent's.
pub fn listen(
    netns: &Netns,
    family: Family,
    port: u16,
    options: &Options<'_>,
) -> Result<Listener, ListenError> {
    let (socket, owner) = netns.run(|| under_listener_uid(|| stream_socket(domain(family))))?;
    let failed = |step| move |source| ListenError::Socket { port, step, source };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Err(ListenError::NoIpv6),
        Err(error) => return Err(failed("socket")(error)),
    };
    if family == Family::V6 {
        socket.set_only_v6(true).map_err(failed("IPV6_V6ONLY"))?;
    }
    socket.set_reuse_address(true).map_err(failed("SO_REUSEADDR"))?;
    socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
    set_options(&socket, options).map_err(|(step, source)| failed(step)(source))?;
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let taken = |step| {
        move |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                ListenError::PortTaken(port)
            } else {
                failed(step)(source)
            }
        }
    };
    socket.bind(&SocketAddr::new(any, port).into()).map_err(taken("bind"))?;
    socket.listen(BACKLOG).map_err(taken("listen"))?;
    Ok(Listener { socket: socket.into(), owner })
}

/// A socket inside `netns`, ready to `connect(to)` from any thread.
pub fn dialer(netns: &Netns, to: SocketAddr, dial: &Dial<'_>) -> Result<TcpSocket, DialError> {
    let failed = |step| move |source| DialError::Socket { to, step, source };
    let socket = netns.run(|| stream_socket(Domain::for_address(to)))?.map_err(failed("socket"))?;
    socket.set_mark(dial.mark).map_err(failed("SO_MARK"))?;
    set_options(&socket, &dial.options).map_err(|(step, source)| failed(step)(source))?;
    if let Some(from) = dial.from {
        // Lets it bind an address that is not the pod's, too: IP_FREEBIND would be one more call for every connection.
        if from.is_ipv4() {
            socket.set_ip_transparent_v4(true).map_err(failed("IP_TRANSPARENT"))?;
        } else {
            socket.set_ip_transparent_v6(true).map_err(failed("IPV6_TRANSPARENT"))?;
        }
        // The port is chosen at connect, per destination; chosen at bind, the range would bound all destinations
        // together. IPv6 sockets take this option at the IPv4 level too.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
            .map_err(|errno| failed("IP_BIND_ADDRESS_NO_PORT")(errno.into()))?;
        socket.bind(&SocketAddr::new(from, 0).into()).map_err(failed("bind"))?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Connects from inside `netns`. No deadline but the kernel's. Dropping it gives up.
pub async fn dial(netns: &Netns, to: SocketAddr, dial: &Dial<'_>) -> Result<TcpStream, DialError> {
    let socket = dialer(netns, to, dial)?;
    socket.connect(to).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrNotAvailable {
            DialError::PortsExhausted(to)
        } else {
            DialError::Connect { to, source }
        }
    })
}

/// Where an accepted connection of this client's was going before it was redirected; its own address if it was not. IPv4
/// addresses come out as such, also from an IPv6 socket.
pub fn original_dst(stream: &TcpStream, client: SocketAddr) -> io::Result<OriginalDst> {
    let socket = SockRef::from(stream);
    let asked = if client.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    };
    let addr =
        asked.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))?;
    Ok(OriginalDst(canonical(addr)))
}

/// An IPv4-mapped address as the IPv4 address that it is; a scope (link-local) is kept.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
        IpAddr::V6(_) => addr,
    }
}

/// Whether the other side has ended without having said anything that is unread.
pub fn said_nothing(stream: &TcpStream) -> bool {
    SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|count| count == 0)
}

/// Makes the coming close of this connection a reset, and drops what is unsent.
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

/// Close-on-exec from the start: iptables is run by the same process.
fn stream_socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

/// On a listener: its accepted connections inherit all of it, at no system call each.
fn set_options(socket: &Socket, options: &Options<'_>) -> Result<(), (&'static str, io::Error)> {
    socket.set_tcp_nodelay(true).map_err(|error| ("TCP_NODELAY", error))?;
    if let Some(keepalive) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        socket.set_tcp_keepalive(&keepalive).map_err(|error| ("SO_KEEPALIVE", error))?;
    }
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout).map_err(|error| ("TCP_USER_TIMEOUT", error))?;
    }
    // Refused where the kernel lacks it, or restricts it: the default serves as well, only slower.
    let _fell_back = options.congestion.iter().any(|name| socket.set_tcp_congestion(name.as_bytes()).is_ok());
    Ok(())
}

/// Runs `work` under [`LISTENER_UID`] as this thread's fsuid, where the user namespace allows it.
fn under_listener_uid<T>(work: impl FnOnce() -> T) -> (T, PortOwner) {
    let own = LISTENER_UID.into();
    let restore = RestoreFsuid(setfsuid(own));
    let owner = if current_fsuid() == own { PortOwner::OwnUid } else { PortOwner::AnyOfOurUid };
    let made = work();
    drop(restore);
    (made, owner)
}

/// setfsuid(2) reports no failure; asked for an id that cannot be, it changes nothing and answers with the present one.
fn current_fsuid() -> Uid {
    setfsuid(Uid::from_raw(u32::MAX))
}

struct RestoreFsuid(Uid);

impl Drop for RestoreFsuid {
    fn drop(&mut self) {
        // Cannot fail: it is the thread's own effective uid.
        setfsuid(self.0);
        debug_assert_eq!(current_fsuid(), self.0, "a thread may always return to its own uid");
    }
}

#[cfg(test)]
mod tests;
