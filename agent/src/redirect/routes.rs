//! The policy rule and route that deliver marked packets locally, by rtnetlink; blocking for microseconds.

use std::io;

use adit_core::redirect::{CONN_MARK, Drift, Family, ROUTE_TABLE};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::error::RedirectError;
use crate::netns::Netns;
use crate::sockets::netlink::{Ask, Netlink};

/// `lo` has this index in every network namespace (LOOPBACK_IFINDEX).
const LO: u32 = 1;
/// Copies of the rule deleted at most; one is the rule, more are somebody's experiment.
const RULE_COPIES_MAX: usize = 64;

/// Whether all routes are in place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ensured {
    All,
    /// IPv6 is switched off on lo.
    ButV6,
}

/// Puts rule and route in place for each family.
pub(super) fn ensure(netns: &Netns, families: &[Family]) -> Result<Ensured, RedirectError> {
    let mut netlink = open(netns)?;
    let mut ensured = Ensured::All;
    for family in families.iter().copied() {
        let failed = |step| move |source| RedirectError::Route { family, step, source };
        match tell(&mut netlink, RouteNetlinkMessage::NewRule(rule(family)), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                return Err(failed("add the rule of")(error));
            }
            Ok(()) | Err(_) => {}
        }
        match tell(&mut netlink, RouteNetlinkMessage::NewRoute(route(family)), NLM_F_CREATE | NLM_F_REPLACE) {
            // "IPv6 is disabled on nexthop device".
            Err(error) if family == Family::V6 && error.raw_os_error() == Some(libc::EACCES) => {
                ensured = Ensured::ButV6;
            }
            other => other.map_err(failed("add"))?,
        }
    }
    Ok(ensured)
}

/// What of them is not there.
pub(super) fn missing(netns: &Netns, families: &[Family]) -> Result<Vec<Drift>, RedirectError> {
    let mut netlink = open(netns)?;
    let mut drift = Vec::new();
    for family in families.iter().copied() {
        let failed = |source| RedirectError::Route { family, step: "list", source };
        let mut rule_found = false;
        let mut all_rules = RuleMessage::default();
        all_rules.header.family = address_family(family);
        netlink
            .ask(RouteNetlinkMessage::GetRule(all_rules), Ask::All, |answer| {
                rule_found |= matches!(&answer, RouteNetlinkMessage::NewRule(found) if is_rule(found));
            })
            .map_err(failed)?;
        if !rule_found {
            drift.push(Drift::PolicyRule(family));
        }
        let mut route_found = false;
        let mut all_routes = RouteMessage::default();
        all_routes.header.address_family = address_family(family);
        netlink
            .ask(RouteNetlinkMessage::GetRoute(all_routes), Ask::All, |answer| {
                route_found |= matches!(&answer, RouteNetlinkMessage::NewRoute(found) if is_route(found));
            })
            .map_err(failed)?;
        if !route_found {
            drift.push(Drift::PolicyRoute(family));
        }
    }
    Ok(drift)
}

/// Takes out every copy of the rule, then the route, of both families.
pub(super) fn remove(netns: &Netns) -> Result<(), RedirectError> {
    let mut netlink = open(netns)?;
    for family in Family::BOTH {
        let failed = |step| move |source| RedirectError::Route { family, step, source };
        for _ in 0..RULE_COPIES_MAX {
            match tell(&mut netlink, RouteNetlinkMessage::DelRule(rule(family)), 0) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => break,
                Err(error) => return Err(failed("delete the rule of")(error)),
            }
        }
        match tell(&mut netlink, RouteNetlinkMessage::DelRoute(route(family)), 0) {
            Err(error) if !is_absent(&error) => return Err(failed("delete")(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// No such rule, no such route, no such family, or no such table (which the kernel makes with its first route).
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn open(netns: &Netns) -> Result<Netlink, RedirectError> {
    Netlink::open(netns, SockProtocol::NetlinkRoute).map_err(RedirectError::Netlink)
}

fn tell(netlink: &mut Netlink, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    netlink.ask(message, Ask::One { flags }, |_: RouteNetlinkMessage| {})
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// `fwmark C lookup 100 pref 100`.
fn rule(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.table = ROUTE_TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(u32::from(ROUTE_TABLE)),
        RuleAttribute::FwMark(CONN_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(u32::from(ROUTE_TABLE)),
    ];
    rule
}

fn is_rule(found: &RuleMessage) -> bool {
    let wanted = rule(Family::V4);
    let has = |attribute| found.attributes.contains(attribute);
    let narrowed = found.header.src_len != 0 || found.header.dst_len != 0;
    found.header.action == wanted.header.action && !narrowed && wanted.attributes.iter().all(has)
}

/// `local default dev lo table 100`.
fn route(family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.table = ROUTE_TABLE;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![RouteAttribute::Oif(LO), RouteAttribute::Table(u32::from(ROUTE_TABLE))];
    route
}

fn is_route(found: &RouteMessage) -> bool {
    let wanted = route(Family::V4);
    found.header.kind == wanted.header.kind
        && found.header.destination_prefix_length == 0
        && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
}
