//! Asks the kernel whether an address is one of a network namespace's own.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::netlink::{Ask, Netlink};
use crate::netns::Netns;

/// Whether what `netns` gets for `ip` stays in it: an address of any of its interfaces, loopback included, whoever added
/// it and however lately. Blocks for microseconds.
pub fn is_local(netns: &Netns, ip: IpAddr) -> io::Result<bool> {
    let (family, bits) = match ip {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    // What `ip route get` asks.
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.attributes = vec![RouteAttribute::Destination(ip.into())];
    let mut local = false;
    let mut netlink = Netlink::open(netns, SockProtocol::NetlinkRoute)?;
    let asked = netlink.ask(RouteNetlinkMessage::GetRoute(question), Ask::One { flags: 0 }, |answer| {
        local |= matches!(&answer, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
    });
    match asked {
        Ok(()) => Ok(local),
        // It leads nowhere, or is prohibited.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
