//! The words of capture: families, tables, marks, sysctls, what is wanted and what is to be edited.

use std::fmt;
use std::sync::Arc;

use crate::workload::Skip;

/// The connection mark of what the agent dialled over `lo`; the policy route matches it, on all 32 bits.
pub const CONN_MARK: u32 = 0x0ad1_7ac2;
/// The routing table that delivers marked packets locally; also the preference of the rule that selects it.
pub const ROUTE_TABLE: u8 = 100;
/// The conntrack zone of the agent's dials over `lo`: without one of their own, their spoofed source ports would
/// collide with the client's real ones.
pub const CONNTRACK_ZONE: u16 = 2769;

/// An address family; each has rules, routes and listeners of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are worked on.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A table of iptables that we write to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Table {
    /// Conntrack zones.
    Raw,
    /// Marks.
    Mangle,
    /// Redirects.
    Nat,
    /// The reset of what was not redirected.
    Filter,
}

impl Table {
    /// In the order of application: filter last, since filter before nat refuses every new connection meanwhile.
    pub const IN_ORDER: [Self; 4] = [Self::Raw, Self::Mangle, Self::Nat, Self::Filter];

    /// As iptables names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is taken out together, in un-enrolment's order: what captures first, what carries live connections after
/// the drain.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Part {
    /// The filter rules, then the redirects: new connections are no longer captured, live ones go on.
    FilterAndNat,
    /// Marks, zones and routes: live inbound plaintext connections end with them.
    Rest,
}

impl Part {
    /// Its tables, in the order of removal.
    pub fn tables(self) -> [Table; 2] {
        match self {
            Self::FilterAndNat => [Table::Filter, Table::Nat],
            Self::Rest => [Table::Mangle, Table::Raw],
        }
    }
}

/// The mark of the sockets with which the agent dials in one pod: random, so that an app cannot know it.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Mark(u32);

impl Mark {
    /// A mark that a caller kept; `None` for 0 (unmarked) and for [`CONN_MARK`], which the route matches.
    pub const fn new(mark: u32) -> Option<Self> {
        if mark == 0 || mark == CONN_MARK { None } else { Some(Self(mark)) }
    }

    /// The mark made from one draw.
    pub fn from_draw(draw: u64) -> Self {
        let high = u32::try_from(draw >> 32).expect("the high half of 64 bits fits 32");
        // Fixed values stand in for the two of 2^32 that cannot be marks.
        Self::new(high).unwrap_or(Self(0x5a5a_ad17))
    }

    /// As SO_MARK takes it.
    pub fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Mark {
    /// Without the value: a process in the pod that read it in a log could leave the mesh with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mark(..)")
    }
}

/// How an inbound SYN is found to be for somebody.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum InboundMatch {
    /// Only ports on which something listens are redirected (xt_socket): a closed port answers as it would without us.
    #[default]
    Listening,
    /// Every port is redirected: for kernels without xt_socket. A connect to a closed port succeeds, then is reset.
    Any,
}

/// What a pod's namespace shall hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// The mark of the agent's dials in this pod.
    pub mark: Mark,
    /// What is not redirected.
    pub skip: Arc<Skip>,
    /// How inbound SYNs are matched.
    pub inbound: InboundMatch,
}

impl Wanted {
    /// Capture of all but `skip`.
    pub fn new(mark: Mark, skip: Arc<Skip>) -> Self {
        Self { mark, skip, inbound: InboundMatch::Listening }
    }

    /// The same, for a kernel without xt_socket.
    #[must_use]
    pub fn without_socket_match(&self) -> Self {
        Self { inbound: InboundMatch::Any, ..self.clone() }
    }
}

/// One run of `iptables-restore --noflush`: atomic, as it touches one table of one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Edit {
    /// Whose iptables-restore.
    pub family: Family,
    /// The only table in [`Edit::text`].
    pub table: Table,
    /// Its standard input.
    pub text: String,
}

/// A setting of the pod's network namespace that capture relies on.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Sysctl {
    /// Closing one of two listeners of a port moves its queued connections to the other; else they are reset.
    TcpMigrateReq,
    /// An accepted socket sends with the mark that its SYN came with: an app's replies to the agent's dials are routed to
    /// lo at once, instead of twice.
    TcpFwmarkAccept,
    /// A segment outside the window does not reset a captured connection.
    ConntrackBeLiberal,
    /// How long conntrack keeps a closed connection: two entries each for inbound plaintext, 120 s by default.
    ConntrackTimeWait,
}

impl Sysctl {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::TcpMigrateReq, Self::TcpFwmarkAccept, Self::ConntrackBeLiberal, Self::ConntrackTimeWait];

    /// Below `/proc/sys`.
    pub fn path(self) -> &'static str {
        match self {
            Self::TcpMigrateReq => "net/ipv4/tcp_migrate_req",
            Self::TcpFwmarkAccept => "net/ipv4/tcp_fwmark_accept",
            Self::ConntrackBeLiberal => "net/netfilter/nf_conntrack_tcp_be_liberal",
            Self::ConntrackTimeWait => "net/netfilter/nf_conntrack_tcp_timeout_time_wait",
        }
    }

    /// The one with this path, as a journal keeps it.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sysctl| sysctl.path() == path)
    }

    /// What it is set to. TIME_WAIT: 10 s, so that 5,000 connections/s leave 100,000 entries, under the usual
    /// nf_conntrack_max of 262,144.
    pub fn wanted(self) -> &'static str {
        match self {
            Self::TcpMigrateReq | Self::TcpFwmarkAccept | Self::ConntrackBeLiberal => "1",
            Self::ConntrackTimeWait => "10",
        }
    }
}
