//! Asks policy about one inbound connection, and says the answer to report and counters.
//!
//! The decision is `adit_core::authz`'s; the same question is asked again when something it depends on changes.

use std::net::{IpAddr, SocketAddr};

use adit_core::authz::{self, AllowCause, DenyCause, Observed, Outcome, Request, Verdict};
use adit_core::net::{ObjectName, PodUid};
use adit_core::policy::PeerMode;
use adit_core::report::Decision;
use adit_core::world::World;
use adit_proto::hbone::Refusal;
use adit_proto::{Reason, SpiffeId};

use crate::telemetry::{Report, Shard, shard};

/// Who wants to connect to what.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The local pod.
    pub(super) pod: &'a PodUid,
    /// The peer's verified identity; none for plaintext.
    pub(super) peer: Option<&'a SpiffeId>,
    /// The client's true address.
    pub(super) client: IpAddr,
    /// The pod's own address and port.
    pub(super) destination: SocketAddr,
}

/// Whether it may, as things stand in `world`; `Err` says why not. The report gets the decision.
pub(super) fn admit(world: &World, asked: &Asked<'_>, shard: &Shard, report: &Report) -> Result<(), Refusal> {
    let (Some(policies), Some(modes)) = (world.policies_for(asked.pod), world.peer_modes_for(asked.pod))
    else {
        return Err(Refusal { reason: Reason::PolicyNotSynced, policy: None, rule: None });
    };
    if asked.peer.is_none() {
        let (mode, by) = authz::peer_mode(modes, asked.destination.port());
        if mode == PeerMode::Strict {
            shard.verdict(by, shard::Verdict::Denied);
            report.edit(|report| report.decision = Some(decision(false, by, None)));
            return Err(refusal(Reason::PlaintextRefused, by, None));
        }
    }
    let request =
        Request { peer: asked.peer, source_ip: asked.client, destination: asked.destination };
    let mut dry_run = Vec::new();
    authz::observe(policies, &request, |seen| observe(&seen, shard, &mut dry_run));
    let (result, decision, verdict) = match authz::decide(policies, &request) {
        Verdict::Allow(AllowCause::NoPolicies) => (Ok(()), decision(true, None, None), None),
        Verdict::Allow(AllowCause::By(by)) => (
            Ok(()),
            decision(true, Some(by.policy), Some(by.rule)),
            Some((Some(by.policy), shard::Verdict::Allowed)),
        ),
        Verdict::Deny(DenyCause::By(by)) => (
            Err(refusal(Reason::PolicyDenied, Some(by.policy), Some(by.rule))),
            decision(false, Some(by.policy), Some(by.rule)),
            Some((Some(by.policy), shard::Verdict::Denied)),
        ),
        Verdict::Deny(DenyCause::NoneMatched) => (
            Err(refusal(Reason::PolicyNoneMatched, None, None)),
            decision(false, None, None),
            Some((None, shard::Verdict::Denied)),
        ),
    };
    if let Some((policy, verdict)) = verdict {
        shard.verdict(policy, verdict);
    }
    report.edit(|report| {
        report.decision = Some(decision);
        report.dry_run = dry_run;
    });
    result
}

fn observe(seen: &Observed<'_>, shard: &Shard, dry_run: &mut Vec<Decision>) {
    let (verdict, said) = match seen.outcome {
        Outcome::Audited { .. } => (shard::Verdict::Audited, None),
        Outcome::WouldDeny { rule } => (shard::Verdict::WouldDeny, Some((false, Some(rule)))),
        Outcome::WouldAllow { rule } => (shard::Verdict::WouldAllow, Some((true, Some(rule)))),
        Outcome::WouldMatchNone => (shard::Verdict::WouldDeny, Some((false, None))),
    };
    shard.verdict(Some(seen.policy), verdict);
    dry_run.extend(said.map(|(allowed, rule)| decision(allowed, Some(seen.policy), rule)));
}

fn decision(allowed: bool, policy: Option<&ObjectName>, rule: Option<u32>) -> Decision {
    Decision { allowed, policy: policy.cloned(), rule }
}

fn refusal(reason: Reason, policy: Option<&ObjectName>, rule: Option<u32>) -> Refusal {
    Refusal { reason, policy: policy.map(ToString::to_string), rule }
}
