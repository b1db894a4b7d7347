//! The rules that capture a pod's TCP, as a plan: what stands now, and what is wanted, in; edits out.
//!
//! [`plan`], [`removal`] and [`compare`] read the text of `iptables-save` and return `iptables-restore` text or the
//! differences. They run nothing and know no namespace: `agent::redirect` executes edits, in the order returned.
//! Rule text is in [`rules`], the reading of what stands in [`save`].

mod drift;
mod rules;
mod save;

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::workload::Skip;
pub use drift::Drift;
use rules::Chain;
use save::{Save, SavedTable};

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
    /// A segment outside the window does not reset a captured connection.
    ConntrackBeLiberal,
    /// How long conntrack keeps a closed connection: two entries each for inbound plaintext, 120 s by default.
    ConntrackTimeWait,
}

impl Sysctl {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TcpMigrateReq, Self::ConntrackBeLiberal, Self::ConntrackTimeWait];

    /// Below `/proc/sys`.
    pub fn path(self) -> &'static str {
        match self {
            Self::TcpMigrateReq => "net/ipv4/tcp_migrate_req",
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
            Self::TcpMigrateReq | Self::ConntrackBeLiberal => "1",
            Self::ConntrackTimeWait => "10",
        }
    }
}

/// The edits that turn what stands (`save`, the text of iptables-save) into what is wanted, in the order raw,
/// mangle, nat, filter. Empty when nothing differs; a table that is as wanted gets no edit.
///
/// Rules that are not ours are left alone, but for jumps to our chains.
pub fn plan(save: &str, wanted: &Wanted, family: Family) -> Vec<Edit> {
    let save = Save::parse(save);
    let chains = rules::chains(family, wanted);
    Table::IN_ORDER
        .into_iter()
        .filter(|table| !drift_of(*table, &save, &chains, family).is_empty())
        .map(|table| edit_of(table, &save, &chains, family))
        .collect()
}

/// How what stands differs from what is wanted; empty exactly when [`plan`] is.
pub fn compare(save: &str, wanted: &Wanted, family: Family) -> Vec<Drift> {
    let save = Save::parse(save);
    let chains = rules::chains(family, wanted);
    Table::IN_ORDER.into_iter().flat_map(|table| drift_of(table, &save, &chains, family)).collect()
}

/// The edits that take `part` of our rules out of what stands: every copy of every jump, then the chains.
pub fn removal(save: &str, part: Part, family: Family) -> Vec<Edit> {
    let save = Save::parse(save);
    part.tables()
        .into_iter()
        .filter_map(|table| {
            let saved = save.table(table);
            let own = saved.own_chains();
            if own.is_empty() {
                return None;
            }
            let mut text = format!("*{table}\n");
            delete_jumps(&mut text, &saved, |_| true);
            drop_chains(&mut text, &own);
            text.push_str("COMMIT\n");
            Some(Edit { family, table, text })
        })
        .collect()
}

/// Whether any rule or chain of ours stands in `save`.
pub fn holds_ours(save: &str) -> bool {
    let save = Save::parse(save);
    Table::IN_ORDER.into_iter().any(|table| !save.table(table).own_chains().is_empty())
}

/// Whether `save` holds a rule or chain that somebody wrote and that is not ours.
pub fn holds_others(save: &str) -> bool {
    Save::parse(save).holds_others()
}

/// Whether `save` holds a rule in nat that is not ours: it may come before our redirects.
pub fn holds_others_nat(save: &str) -> bool {
    Save::parse(save).table(Table::Nat).holds_others()
}

fn drift_of(table: Table, save: &Save<'_>, chains: &[Chain], family: Family) -> Vec<Drift> {
    let saved = save.table(table);
    let mut drift = Vec::new();
    for chain in chains.iter().filter(|chain| chain.table == table) {
        if !saved.jump_is_right(chain) {
            drift.push(Drift::Jump { family, table, chain: chain.name });
        }
        if !saved.rules_are(chain) {
            drift.push(Drift::Rules { family, table, chain: chain.name });
        }
    }
    let stale = stale_chains(table, &saved, chains);
    drift.extend(stale.into_iter().map(|chain| Drift::Stale { family, table, chain: chain.to_owned() }));
    drift
}

/// Rewrites our part of one table: jumps only where they are wrong, so that a right one never goes missing.
fn edit_of(table: Table, save: &Save<'_>, chains: &[Chain], family: Family) -> Edit {
    let saved = save.table(table);
    let stale = stale_chains(table, &saved, chains);
    let ours: Vec<&Chain> = chains.iter().filter(|chain| chain.table == table).collect();
    let mut text = format!("*{table}\n");
    for chain in &ours {
        // Under --noflush this line makes the chain or empties it.
        let _infallible = writeln!(text, ":{} - [0:0]", chain.name);
    }
    let right = |target: &str| ours.iter().any(|chain| chain.name == target && saved.jump_is_right(chain));
    delete_jumps(&mut text, &saved, |target| !right(target));
    drop_chains(&mut text, &stale);
    for chain in &ours {
        if !saved.jump_is_right(chain) {
            let _infallible = writeln!(text, "-I {} 1 -j {}", chain.hook, chain.name);
        }
        for rule in &chain.rules {
            let _infallible = writeln!(text, "-A {} {rule}", chain.name);
        }
    }
    text.push_str("COMMIT\n");
    Edit { family, table, text }
}

fn stale_chains<'s>(table: Table, saved: &SavedTable<'s>, chains: &[Chain]) -> Vec<&'s str> {
    let wanted = |name: &str| chains.iter().any(|chain| chain.table == table && chain.name == name);
    saved.own_chains().into_iter().filter(|name| !wanted(name)).collect()
}

/// Deletes each rule outside our chains that leads into one whose name is `chosen`, by its own text.
fn delete_jumps(text: &mut String, saved: &SavedTable<'_>, chosen: impl Fn(&str) -> bool) {
    for (chain, rule, target) in saved.jumps_to_ours() {
        if chosen(target) {
            let _infallible = writeln!(text, "-D {chain} {rule}");
        }
    }
}

/// Empties all before deleting any: one may be the target of another.
fn drop_chains(text: &mut String, names: &[&str]) {
    for name in names {
        let _infallible = writeln!(text, "-F {name}");
    }
    for name in names {
        let _infallible = writeln!(text, "-X {name}");
    }
}

#[cfg(test)]
mod tests;
