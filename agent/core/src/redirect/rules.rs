//! The text of our rules, as `iptables-save` prints it back, and where each chain hangs.

use adit_proto::hbone::{PORT_INBOUND_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND};

use super::model::{CONN_MARK, CONNTRACK_ZONE, Family, InboundMatch, Table, Wanted};
use crate::workload::PortRange;

/// The first letters of the name of every chain of ours, and of nobody else's.
pub(super) const PREFIX: &str = "ADIT_";
/// Only the packet that opens a connection: a segment in the middle of one that is older than our rules, redirected,
/// would reset it.
const SYN: &str = "--tcp-flags FIN,SYN,RST,ACK SYN";

/// One chain of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chain {
    pub(super) table: Table,
    /// The built-in chain whose first rule jumps to it.
    pub(super) hook: &'static str,
    pub(super) name: &'static str,
    /// Each without `-A NAME`.
    pub(super) rules: Vec<String>,
}

/// All chains of a family.
pub(super) fn chains(family: Family, wanted: &Wanted) -> Vec<Chain> {
    let mark_value = format!("{:#x}", wanted.mark.value());
    let mark = format!("-m mark --mark {mark_value}");
    let chain = |table, hook, name, rules| Chain { table, hook, name, rules };
    vec![
        // The dial that spoofs its client's address over lo gets conntrack entries of its own: the client's real
        // port may be the one that the kernel picked.
        chain(
            Table::Raw,
            "OUTPUT",
            "ADIT_OUTPUT",
            vec![format!("-o lo -p tcp {mark} -j CT --zone-orig {CONNTRACK_ZONE}")],
        ),
        // What was dialled by us over lo is remembered, and the app's replies get the mark that routes them back to
        // lo rather than out to the real client.
        chain(
            Table::Mangle,
            "PREROUTING",
            "ADIT_PREROUTING",
            vec![format!("-i lo -p tcp {mark} -j CONNMARK --set-xmark {CONN_MARK:#x}/0xffffffff")],
        ),
        chain(
            Table::Mangle,
            "OUTPUT",
            "ADIT_OUTPUT",
            vec![format!(
                "-p tcp -m mark ! --mark {mark_value} -m connmark --mark {CONN_MARK:#x} \
                 -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
            )],
        ),
        // The app's sockets take this mark over from the SYN (tcp_fwmark_accept): their replies are routed to lo at once,
        // where the rule above has the kernel look up a second route for each. After the routing of the packet itself,
        // which src_valid_mark would have refused it.
        chain(
            Table::Mangle,
            "INPUT",
            "ADIT_INPUT",
            vec![format!("-i lo -p tcp {mark} -j MARK --set-xmark {CONN_MARK:#x}/0xffffffff")],
        ),
        chain(Table::Nat, "PREROUTING", "ADIT_PREROUTING", inbound(wanted)),
        chain(Table::Nat, "OUTPUT", "ADIT_OUTPUT", outbound(family, &mark, wanted)),
        chain(Table::Filter, "INPUT", "ADIT_INPUT", refused(wanted)),
    ]
}

fn inbound(wanted: &Wanted) -> Vec<String> {
    let listening = match wanted.inbound {
        InboundMatch::Listening => "-m socket --nowildcard ",
        InboundMatch::Any => "",
    };
    let mut rules = ports_returned(&wanted.skip.inbound_ports);
    rules.push(format!(
        "! -i lo -p tcp -m tcp {SYN} \
         -m multiport ! --dports {PORT_OUTBOUND},{PORT_INBOUND_PLAINTEXT},{PORT_INBOUND_HBONE} \
         {listening}-j REDIRECT --to-ports {PORT_INBOUND_PLAINTEXT}"
    ));
    rules
}

fn outbound(family: Family, mark: &str, wanted: &Wanted) -> Vec<String> {
    let mut rules = vec!["-o lo -j RETURN".to_owned()];
    rules.extend(match family {
        Family::V4 => vec!["-d 127.0.0.0/8 -j RETURN".to_owned()],
        // A link-local destination has a scope that a redirected connection loses.
        Family::V6 => vec!["-d ::1/128 -j RETURN".to_owned(), "-d fe80::/10 -j RETURN".to_owned()],
    });
    rules.push(format!("-p tcp {mark} -j RETURN"));
    for net in &wanted.skip.outbound_cidrs {
        let of_family = match family {
            Family::V4 => net.addr().is_ipv4(),
            Family::V6 => net.addr().is_ipv6(),
        };
        if of_family && net.prefix_len() == 0 {
            rules.push("-j RETURN".to_owned());
        } else if of_family {
            rules.push(format!("-d {} -j RETURN", net.trunc()));
        }
    }
    rules.extend(ports_returned(&wanted.skip.outbound_ports));
    rules.push(format!("-p tcp -m tcp {SYN} -j REDIRECT --to-ports {PORT_OUTBOUND}"));
    rules
}

/// A SYN from outside that nothing redirected is answered as a closed port answers. With the redirects lost, that is
/// every one: capture fails closed.
fn refused(wanted: &Wanted) -> Vec<String> {
    let mut rules = ports_returned(&wanted.skip.inbound_ports);
    rules.push(format!(
        "! -i lo -p tcp -m tcp ! --dport {PORT_INBOUND_HBONE} {SYN} \
         -m conntrack ! --ctstate DNAT -j REJECT --reject-with tcp-reset"
    ));
    rules
}

/// One rule a range: multiport takes 15 ports a rule, and a range counts as two.
fn ports_returned(ranges: &[PortRange]) -> Vec<String> {
    let nonempty =
        ranges.iter().map(|range| (*range.start().max(&1), *range.end())).filter(|(from, to)| from <= to);
    nonempty
        .map(|(from, to)| {
            let ports = if from == to { from.to_string() } else { format!("{from}:{to}") };
            format!("-p tcp -m tcp --dport {ports} -j RETURN")
        })
        .collect()
}
