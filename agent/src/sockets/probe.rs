//! The functional probe of capture: an unmarked connection to an address that nobody has must arrive at the agent's
//! own listener, and be told there where it was going.
//!
//! The accept side answers in the connection itself, so any agent that shares the port may answer, an older one too.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use adit_core::net::OriginalDst;
use adit_core::redirect::Family;
use nix::libc;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;

use crate::netns::{Netns, NetnsError};

/// An address of TEST-NET-1 (RFC 5737): outside this probe no packet has it.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 173);
/// An address of the documentation prefix (RFC 3849).
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xad17, 0, 0, 0, 0, 0xad);
/// `captured [2001:db8:ad17::ad]:65535` is 34 bytes.
const ANSWER_LEN_MAX: usize = 64;

/// What a probe found.
#[derive(Debug)]
pub enum Probed {
    /// The agent got the connection, with the right original destination.
    Captured,
    /// The pod has no route by which a connection of this family could leave: nothing to capture.
    NoRoute,
    /// It was redirected, but nothing listens there.
    NotListening,
    /// Somebody else answered, or it was cut, or it left the pod.
    NotCaptured,
}

/// Whether an accepted connection is a probe: to be given to [`answer`], counted nowhere, and dropped.
pub fn is_capture_probe(original: &OriginalDst) -> bool {
    let ip = original.0.ip();
    ip == IpAddr::V4(PROBE_V4) || ip == IpAddr::V6(PROBE_V6)
}

/// Tells a probe that it has arrived. Never blocks; a peer that does not read loses the answer. Drop `stream` then.
pub fn answer(stream: &TcpStream, original: &OriginalDst) {
    // A fresh connection's send buffer holds this; if it does not, the probe fails, and is made again.
    let _lost = SockRef::from(stream).send(answer_text(original.0).as_bytes());
}

/// Makes one probe of a family; `port` may be any, and comes back in the answer. Bounded by the caller.
///
/// The first step enters `netns` on the calling thread for microseconds. Cancel-safe.
pub async fn probe(netns: &Netns, family: Family, port: u16) -> Result<Probed, NetnsError> {
    let (domain, ip) = match family {
        Family::V4 => (Domain::IPV4, IpAddr::V4(PROBE_V4)),
        Family::V6 => (Domain::IPV6, IpAddr::V6(PROBE_V6)),
    };
    let to = SocketAddr::new(ip, port.max(1));
    let socket = netns.run(|| Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None))?;
    // Only what connect() says by itself speaks of the pod's own routes: the same errors, later, come from outside.
    let started = socket.and_then(|socket| match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => Ok(socket),
    });
    Ok(match started {
        Ok(socket) => finished(socket, to).await.unwrap_or_else(|error| {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            if refused { Probed::NotListening } else { Probed::NotCaptured }
        }),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT
                | libc::ENETDOWN,
            ) => Probed::NoRoute,
            Some(libc::ECONNREFUSED) => Probed::NotListening,
            _ => Probed::NotCaptured,
        },
    })
}

async fn finished(socket: Socket, to: SocketAddr) -> io::Result<Probed> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    let mut answer: Vec<u8> = Vec::new();
    while answer.len() < ANSWER_LEN_MAX {
        stream.readable().await?;
        let mut buffer = [0; ANSWER_LEN_MAX];
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend(buffer.iter().take(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(if answer == answer_text(to).as_bytes() { Probed::Captured } else { Probed::NotCaptured })
}

fn answer_text(to: SocketAddr) -> String {
    format!("captured {to}")
}
