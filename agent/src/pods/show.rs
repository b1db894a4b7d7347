//! How sandboxes and their operations are shown: in the admin API, in metrics and in logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_core::net::PodKey;
use adit_core::pods::{Op, Pods as Machine, Seen, State};
use adit_core::redirect::Part;
use adit_proto::admin::PodStatus;

use super::journal::Captured;
use super::sandbox::Sandbox;
use crate::redirect::Condition;

/// The state of a pod of before a restart that is not verified yet, as [`PodStatus`] says it.
pub(super) const ADOPTED: &str = "adopted";

/// Every sandbox, by pod; connections are filled in by the reader.
pub(super) fn status(machine: &Machine, sandboxes: &BTreeMap<PodKey, Sandbox>) -> Arc<[PodStatus]> {
    machine.seen().filter_map(|seen| Some(one(&seen, sandboxes.get(seen.key)?))).collect()
}

fn one(seen: &Seen<'_>, sandbox: &Sandbox) -> PodStatus {
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
        conditions: lacking.chain(trouble).chain(without).chain(older).collect(),
    }
}

/// What is kept out of the mesh: these packets are not redirected.
fn skipped(captured: &Captured) -> Vec<String> {
    let ports = |direction: &'static str, ranges: &[(u16, u16)]| -> Vec<String> {
        let word = |(first, last): &(u16, u16)| {
            if first == last {
                format!("{direction} port {first}")
            } else {
                format!("{direction} ports {first}-{last}")
            }
        };
        ranges.iter().map(word).collect()
    };
    let networks = captured.skip_outbound_cidrs.iter().map(|net| format!("outbound to {net}"));
    let outbound = ports("outbound", &captured.skip_outbound_ports);
    let inbound = ports("inbound", &captured.skip_inbound_ports);
    outbound.into_iter().chain(networks).chain(inbound).collect()
}

fn state(state: State) -> &'static str {
    match state {
        State::Added => "added",
        State::Adopted => ADOPTED,
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
    metrics::describe_counter!(
        "adit_capture_failures_total",
        "Steps of a pod's way in or out of the mesh that failed, by step."
    );
    metrics::describe_gauge!(
        "adit_older_connections",
        "Open connections of captured pods that are older than their capture, and go on in clear."
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
