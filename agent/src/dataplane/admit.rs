//! Asks policy about one inbound connection, and says the answer to report and counters.
//!
//! The decision is `adit_core::authz`'s; the same question is asked again when something it depends on changes.

use std::net::{IpAddr, SocketAddr};

use adit_core::authz::{self, AllowCause, DenyCause, Observed, Outcome, Request, Verdict};
use adit_core::net::{ObjectName, PodUid};
use adit_core::policy::PeerMode;
use adit_core::report::{Decision, Unmatched};
use adit_core::world::World;
use adit_proto::hbone::Refusal;
use adit_proto::{Reason, SpiffeId};

use crate::telemetry::{Report, Shard, shard};

#[cfg(test)]
mod tests;

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

/// Whether it may, as things stand in `world`; `Err` says why not. Counted, and told to the report.
pub(super) fn admit(world: &World, asked: &Asked<'_>, shard: &Shard, report: &Report) -> Result<(), Refusal> {
    if is_beyond_policy(world, asked) {
        return Ok(());
    }
    let judged = judge(world, asked)?;
    if let Some(policies) = world.policies_for(asked.pod) {
        let mut dry_run = Vec::new();
        authz::observe(policies, &asked.request(), |seen| observe(&seen, shard, &mut dry_run));
        report.edit(|report| report.dry_run = dry_run);
    }
    judged.told(shard, report)
}

/// Whether a connection that was admitted before still may go on. Counted only if not: it is the same connection.
pub(super) fn still_admitted(
    world: &World,
    asked: &Asked<'_>,
    shard: &Shard,
    report: &Report,
) -> Result<(), Refusal> {
    if is_beyond_policy(world, asked) {
        return Ok(());
    }
    let judged = judge(world, asked)?;
    if judged.decision.allowed { Ok(()) } else { judged.told(shard, report) }
}

impl<'a> Asked<'a> {
    fn request(&self) -> Request<'a> {
        Request { peer: self.peer, source_ip: self.client, destination: self.destination }
    }
}

/// Whether this is plaintext to a pod that has left the mesh, and whose rules are only not gone yet: it takes what a pod
/// outside the mesh takes, or leaving would cut what policy never spoke of. Its tunnels stay policy's.
fn is_beyond_policy(world: &World, asked: &Asked<'_>) -> bool {
    asked.peer.is_none()
        && world.workload(asked.pod).is_some_and(|workload| !workload.enrolment.is_enrolled())
}

/// What was decided, in the words of report, counter and refusal.
struct Judged {
    decision: Decision,
    reason: Option<Reason>,
    verdict: shard::Verdict,
}

impl Judged {
    fn told(self, shard: &Shard, report: &Report) -> Result<(), Refusal> {
        let Self { decision, reason, verdict } = self;
        // Allowed by no policy at all is no policy's verdict.
        if decision.policy.is_some() || !decision.allowed {
            shard.verdict(decision.policy.as_ref(), verdict);
        }
        let unmatched = decision.unmatched.as_deref();
        for policy in unmatched.iter().flat_map(|unmatched| &unmatched.named) {
            shard.verdict(Some(policy), shard::Verdict::Unmatched);
        }
        let refusal = reason.map(|reason| Refusal {
            reason,
            policy: decision.policy.as_ref().map(ToString::to_string),
            rule: decision.rule,
            unmatched: unmatched.iter().flat_map(|all| &all.named).map(ToString::to_string).collect(),
            more: unmatched.map_or(0, |unmatched| unmatched.more),
        });
        report.edit(|report| report.decision = Some(decision));
        refusal.map_or(Ok(()), Err)
    }
}

/// `Err`: the policies are not known yet.
fn judge(world: &World, asked: &Asked<'_>) -> Result<Judged, Refusal> {
    let (Some(policies), Some(modes)) = (world.policies_for(asked.pod), world.peer_modes_for(asked.pod))
    else {
        return Err(Refusal::of(Reason::PolicyNotSynced));
    };
    if asked.peer.is_none() {
        let (mode, by) = authz::peer_mode(modes, asked.destination.port());
        if mode == PeerMode::Strict {
            return Ok(Judged {
                decision: decision(false, by, None),
                reason: Some(Reason::PlaintextRefused),
                verdict: shard::Verdict::PlaintextRefused,
            });
        }
    }
    Ok(match authz::decide(policies, &asked.request()) {
        Verdict::Allow(AllowCause::NoPolicies) => {
            Judged { decision: decision(true, None, None), reason: None, verdict: shard::Verdict::Allowed }
        }
        Verdict::Allow(AllowCause::By(by)) => Judged {
            decision: decision(true, Some(by.policy), Some(by.rule)),
            reason: None,
            verdict: shard::Verdict::Allowed,
        },
        Verdict::Deny(DenyCause::By(by)) => Judged {
            decision: decision(false, Some(by.policy), Some(by.rule)),
            reason: Some(Reason::PolicyDenied),
            verdict: shard::Verdict::Denied,
        },
        Verdict::Deny(DenyCause::NoneMatched(asked)) => {
            let unmatched = Some(Box::new(Unmatched::of(asked.names().cloned(), 0)));
            let decision = Decision { unmatched, ..decision(false, None, None) };
            let reason = Some(Reason::PolicyNoneMatched);
            Judged { decision, reason, verdict: shard::Verdict::NoneMatched }
        }
    })
}

fn observe(seen: &Observed<'_>, shard: &Shard, dry_run: &mut Vec<Decision>) {
    let (verdict, said) = match seen.outcome {
        Outcome::Audited { .. } => (shard::Verdict::Audited, None),
        Outcome::WouldDeny { rule } => (shard::Verdict::WouldDeny, Some((false, Some(rule)))),
        Outcome::WouldAllow { rule } => (shard::Verdict::WouldAllow, Some((true, Some(rule)))),
        Outcome::WouldMatchNone => (shard::Verdict::WouldMatchNone, Some((false, None))),
    };
    shard.verdict(Some(seen.policy), verdict);
    dry_run.extend(said.map(|(allowed, rule)| decision(allowed, Some(seen.policy), rule)));
}

fn decision(allowed: bool, policy: Option<&ObjectName>, rule: Option<u32>) -> Decision {
    Decision { allowed, policy: policy.cloned(), rule, unmatched: None }
}
