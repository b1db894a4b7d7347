//! How sandboxes and their operations are shown: in the admin API, in metrics and in logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_core::authz::{PeerModes, strict_among};
use adit_core::discover::{self, Searches};
use adit_core::life::Ready;
use adit_core::net::{ObjectName, PodKey};
use adit_core::pods::{Op, Pods as Machine, Seen, State};
use adit_core::redirect::Part;
use adit_core::workload::{PortRange, Skip};
use adit_core::world::World;
use adit_proto::admin::PodStatus;

use super::journal::Captured;
use super::sandbox::Sandbox;
use crate::redirect::Condition;

/// What is shown of all sandboxes.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Each, by pod.
    pub pods: Arc<[PodStatus]>,
    /// How many are of before a restart, and have had neither success nor trouble yet.
    pub adopting: usize,
}

/// Whose the node's pods are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// Another agent's, which serves all of them or not yet. None: this one's.
    pub succeeded: Option<Ready>,
    /// How often this agent had them again.
    pub again: u32,
    /// Adit leaves the node, and nothing of it stands in any pod.
    pub released: bool,
}

/// Every sandbox, by pod; connections are filled in by the reader. Sets the gauges that count what is shown.
pub(super) fn status(
    machine: &Machine,
    sandboxes: &BTreeMap<PodKey, Sandbox>,
    searches: &Searches,
    world: &World,
) -> Arc<[PodStatus]> {
    let mut with_open_port = 0_u32;
    let pods = machine.seen().filter_map(|seen| {
        let sandbox = sandboxes.get(seen.key)?;
        let open = open_though_strict(sandbox, world);
        with_open_port += u32::from(!open.is_empty());
        Some(one(&seen, sandbox, open))
    });
    let found: Vec<PodStatus> = pods.collect();
    metrics::gauge!("adit_skipped_strict_pods").set(with_open_port);
    let mut in_vain = 0_u32;
    let sought = searches.seen().map(|seen| {
        in_vain += u32::from(seen.why.is_some());
        looked_for(&seen, world)
    });
    let pods = found.into_iter().chain(sought).collect();
    metrics::gauge!("adit_pods_not_found").set(in_vain);
    pods
}

/// A running pod whose sandbox is not known.
fn looked_for(seen: &discover::Seen<'_>, world: &World) -> PodStatus {
    let workload = world.workload(&seen.sought.uid);
    let why = seen.why.map_or_else(
        || "its sandbox is looked for".to_owned(),
        |why| format!("its sandbox is not found: {why}"),
    );
    PodStatus {
        pod: seen.sought.name.to_string(),
        uid: seen.sought.uid.to_string(),
        state: "sought".to_owned(),
        enrolled: workload.is_some_and(|workload| workload.enrolment.is_enrolled()),
        conditions: vec![why],
        ..PodStatus::default()
    }
}

fn one(seen: &Seen<'_>, sandbox: &Sandbox, open: Vec<String>) -> PodStatus {
    let entry = &sandbox.entry;
    let lacking = seen.lacking.iter().map(ToString::to_string);
    let trouble = sandbox.trouble.iter().chain(&sandbox.found).map(ToString::to_string);
    let without = sandbox.applied.iter().flat_map(|applied| applied.conditions.iter().map(condition));
    let older = (sandbox.older > 0).then(|| match sandbox.older {
        1 => "1 connection is older than its capture, and goes on in clear".to_owned(),
        more => format!("{more} connections are older than its capture, and go on in clear"),
    });
    PodStatus {
        pod: format!("{}/{}", entry.pod.namespace, entry.pod.name),
        uid: entry.pod.uid.clone(),
        sandbox: entry.container_id.to_string(),
        state: state(seen.state).to_owned(),
        enrolled: seen.enrolled,
        captured: seen.state == State::Live,
        identity: entry.captured.as_ref().map(|captured| captured.identity.to_string()),
        backend: entry.backend.map(|backend| backend.to_string()),
        connections: 0,
        skipped: entry.captured.iter().flat_map(skipped).collect(),
        sysctls_refused: sandbox.applied.iter().flat_map(|applied| refused(&applied.conditions)).collect(),
        conditions: lacking.chain(trouble).chain(without).chain(older).chain(open).collect(),
    }
}

/// The ports that the rules in force leave alone, and at which PeerAuthentication forbids what then comes in.
pub(super) fn open_though_strict(sandbox: &Sandbox, world: &World) -> Vec<String> {
    let modes = world.peer_modes_for(&sandbox.key().uid);
    let skip = sandbox.applied_with.as_deref();
    modes.zip(skip).map(|(modes, skip)| strict_but_skipped(modes, skip)).unwrap_or_default()
}

fn strict_but_skipped(modes: &PeerModes, skip: &Skip) -> Vec<String> {
    let say = |(ports, by): (PortRange, &ObjectName)| {
        let ports = range("port", *ports.start(), *ports.end());
        format!(
            "{ports}: open in clear to everybody, as adit.dev/skip-inbound-ports wants it, though {by} says STRICT"
        )
    };
    strict_among(modes, &skip.inbound_ports).into_iter().map(say).collect()
}

/// `port 80`, or `ports 80-90`.
fn range(what: &str, first: u16, last: u16) -> String {
    if first == last { format!("{what} {first}") } else { format!("{what}s {first}-{last}") }
}

/// What is kept out of the mesh: these packets are not redirected.
fn skipped(captured: &Captured) -> Vec<String> {
    let ports = |direction: &'static str, ranges: &[(u16, u16)]| -> Vec<String> {
        let what = format!("{direction} port");
        ranges.iter().map(|(first, last)| range(&what, *first, *last)).collect()
    };
    let networks = captured.skip_outbound_cidrs.iter().map(|net| format!("outbound to {net}"));
    let outbound = ports("outbound", &captured.skip_outbound_ports);
    let inbound = ports("inbound", &captured.skip_inbound_ports);
    outbound.into_iter().chain(networks).chain(inbound).collect()
}

fn state(state: State) -> &'static str {
    match state {
        State::Added => "added",
        State::Adopted => "adopted",
        State::Listening => "listening",
        State::Redirected => "redirected",
        State::Live => "live",
        State::Draining => "draining",
        State::Gone => "gone",
    }
}

/// What capture has to do without in this pod.
fn condition(condition: &Condition) -> String {
    match condition {
        Condition::NoSocketMatch => {
            "closed ports answer as open ones: the kernel has no xt_socket".to_owned()
        }
        Condition::NoIpv6 => "the kernel has no IPv6".to_owned(),
        Condition::NoIpv6Route => "IPv6 is switched off in the pod".to_owned(),
        Condition::SysctlRefused(sysctl) => format!("{} cannot be set", sysctl.path()),
    }
}

/// The sysctls among what capture has to do without.
fn refused(conditions: &[Condition]) -> impl Iterator<Item = String> + '_ {
    conditions.iter().filter_map(|condition| match condition {
        Condition::SysctlRefused(sysctl) => Some(sysctl.path().to_owned()),
        Condition::NoSocketMatch | Condition::NoIpv6 | Condition::NoIpv6Route => None,
    })
}

/// The name of an operation, as a metric's label and in logs.
pub(super) fn step(op: &Op) -> &'static str {
    match op {
        Op::OpenSockets(_) => "open_sockets",
        Op::Redirect(_) => "redirect",
        Op::Announce => "announce",
        Op::Unannounce => "unannounce",
        Op::Unredirect(Part::FilterAndNat) => "unredirect_filter_nat",
        Op::Unredirect(Part::Rest) => "unredirect_rest",
        Op::Drain(_) => "drain",
        Op::Close(_) => "close",
        Op::RestoreSysctls => "restore_sysctls",
    }
}

/// The metrics of pods, and what they count.
pub(super) fn describe() {
    metrics::describe_counter!(
        "adit_capture_repairs_total",
        "Repairs of rules, routes or sysctls that somebody else changed in a pod."
    );
    metrics::describe_gauge!(
        "adit_journal_unread_entries",
        "Entries of the journal that could not be used at the start, as those of another version, and whose sandboxes have not gone since: their pods are not served."
    );
    metrics::describe_gauge!(
        "adit_pods_not_found",
        "Running pods that are to be captured and whose network namespace was looked for in vain."
    );
    metrics::describe_counter!(
        "adit_capture_failures_total",
        "Steps of a pod's way in or out of the mesh that failed, by step."
    );
    metrics::describe_gauge!(
        "adit_older_connections",
        "Open connections of captured pods that are older than their capture, and go on in clear."
    );
    metrics::describe_gauge!(
        "adit_skipped_strict_pods",
        "Pods with a port that adit.dev/skip-inbound-ports leaves open in clear though PeerAuthentication says STRICT."
    );
    metrics::describe_counter!(
        "adit_older_connections_closed_total",
        "Connections older than a pod's capture that were closed, as STRICT forbids clear ones."
    );
    metrics::describe_counter!(
        "adit_cni_requests_total",
        "Requests of the CNI plugin that were answered, by verb and answer."
    );
}

#[cfg(test)]
mod tests {
    use adit_core::policy::{PeerAuthentication, PeerMode, Scope};
    use adit_core::redirect::Sysctl;

    use super::*;

    #[test]
    fn a_sysctl_that_was_refused_is_told_by_its_path_and_as_a_condition() {
        let conditions = [Condition::NoIpv6, Condition::SysctlRefused(Sysctl::TcpMigrateReq)];
        assert_eq!(refused(&conditions).collect::<Vec<_>>(), ["net/ipv4/tcp_migrate_req"]);
        assert_eq!(condition(&conditions[1]), "net/ipv4/tcp_migrate_req cannot be set");
    }

    #[test]
    fn a_skipped_port_is_named_with_the_policy_that_is_not_held_there() {
        let strict = Arc::new(PeerAuthentication {
            name: ObjectName::new("shop", "strict"),
            created: 0,
            scope: Scope::Namespace("shop".into()),
            mode: Some(PeerMode::Strict),
            port_modes: [(22, PeerMode::Permissive)].into(),
        });
        let skip = Skip { inbound_ports: vec![22..=22, 80..=80, 9000..=9010], ..Skip::default() };
        let none = PeerModes::compile([].iter());
        assert!(strict_but_skipped(&none, &skip).is_empty());
        let modes = PeerModes::compile([strict].iter());
        assert!(strict_but_skipped(&modes, &Skip::default()).is_empty());
        let said = strict_but_skipped(&modes, &skip);
        let rest = ": open in clear to everybody, as adit.dev/skip-inbound-ports wants it, though shop/strict says STRICT";
        assert_eq!(said, [format!("port 80{rest}"), format!("ports 9000-9010{rest}")]);
    }
}
