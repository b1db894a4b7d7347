//! Decides who may connect: authorization by identity, and whether plaintext may enter.
//!
//! Reads a [`PolicySet`] or [`PeerModes`], compiled for one workload when its World was frozen, and one request. Does
//! not allocate, does not know how the peer's identity was verified, does not enforce: see `agent::dataplane::inbound`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_proto::SpiffeId;
use ipnet::IpNet;

use crate::net::ObjectName;
use crate::policy::{
    Action, AuthorizationPolicy, Condition, Level, Operation, Pattern, PeerAuthentication, PeerMode, Rule,
    ServiceAccount, Source, Understood,
};
use crate::workload::PortRange;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

/// The authorization policies of one workload, sorted by what they do. Workloads with the same policies may share one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicySet {
    /// DENY policies, enforced.
    deny: Vec<Arc<AuthorizationPolicy>>,
    /// ALLOW policies, enforced.
    allow: Vec<Arc<AuthorizationPolicy>>,
    /// AUDIT policies and all dry runs.
    observed: Vec<Arc<AuthorizationPolicy>>,
}

impl PolicySet {
    /// Compiles the policies that select a workload, in any order; the order of their names decides which is named.
    pub fn compile<'p>(policies: impl Iterator<Item = &'p Arc<AuthorizationPolicy>>) -> Self {
        let mut sorted: Vec<_> = policies.collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut set = Self::default();
        for policy in sorted {
            if policy.dry_run {
                set.observed.push(Arc::clone(policy));
                continue;
            }
            match policy.action {
                Action::Allow => set.allow.push(Arc::clone(policy)),
                Action::Deny => set.deny.push(Arc::clone(policy)),
                Action::Audit => set.observed.push(Arc::clone(policy)),
                // What it matches is denied first, so as an ALLOW policy it can only keep others out.
                Action::NotUnderstood => {
                    set.deny.push(Arc::clone(policy));
                    set.allow.push(Arc::clone(policy));
                }
            }
        }
        set
    }

    /// Whether nothing is decided or observed: everything is allowed.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.observed.is_empty()
    }

    /// Every policy in it; one whose action was not understood comes twice.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.deny.iter().chain(&self.allow).chain(&self.observed)
    }
}

/// What is asked: one connection, as the destination's agent sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The peer's verified identity; none for plaintext.
    pub peer: Option<&'r SpiffeId>,
    /// The client's true address.
    pub source_ip: IpAddr,
    /// The pod's own address and port.
    pub destination: SocketAddr,
}

/// Which rule of which policy decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ruling<'p> {
    /// The policy.
    pub policy: &'p ObjectName,
    /// Index in its `spec.rules`.
    pub rule: u32,
}

/// What was decided, and what decided it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict<'p> {
    /// It may connect.
    Allow(AllowCause<'p>),
    /// It may not.
    Deny(DenyCause<'p>),
}

impl Verdict<'_> {
    /// Whether it may connect.
    pub fn allowed(&self) -> bool {
        match self {
            Self::Allow(_) => true,
            Self::Deny(_) => false,
        }
    }
}

/// Why a request is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AllowCause<'p> {
    /// The workload has no ALLOW policy.
    NoPolicies,
    /// This ALLOW rule matched.
    By(Ruling<'p>),
}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DenyCause<'p> {
    /// This DENY rule matched.
    By(Ruling<'p>),
    /// The workload has ALLOW policies, and none matched.
    NoneMatched(AllowPolicies<'p>),
}

/// The ALLOW policies that were asked, in the order of their names; never none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AllowPolicies<'p>(&'p [Arc<AuthorizationPolicy>]);

impl<'p> AllowPolicies<'p> {
    /// Their names.
    pub fn names(self) -> impl ExactSizeIterator<Item = &'p ObjectName> + use<'p> {
        self.0.iter().map(|policy| &policy.name)
    }
}

/// Deny beats allow; with no ALLOW policy at all, the request is allowed; otherwise one must match.
///
/// Names the first policy, by name, that matched, and its first rule that did. Does not allocate.
pub fn decide<'p>(policies: &'p PolicySet, request: &Request<'_>) -> Verdict<'p> {
    let request = &Canonical::of(request);
    if let Some(ruling) = first_match(&policies.deny, Effect::Denies, request) {
        return Verdict::Deny(DenyCause::By(ruling));
    }
    if policies.allow.is_empty() {
        return Verdict::Allow(AllowCause::NoPolicies);
    }
    match first_match(&policies.allow, Effect::Allows, request) {
        Some(ruling) => Verdict::Allow(AllowCause::By(ruling)),
        None => Verdict::Deny(DenyCause::NoneMatched(AllowPolicies(&policies.allow))),
    }
}

/// What a policy that enforces nothing saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Observed<'p> {
    /// The policy.
    pub policy: &'p ObjectName,
    /// What it would have done.
    pub outcome: Outcome,
}

/// What an AUDIT policy counted, or what a dry run would have done.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// This rule of an AUDIT policy matched.
    Audited {
        /// Index in its `spec.rules`.
        rule: u32,
    },
    /// A dry run's DENY rule matched.
    WouldDeny {
        /// Index in its `spec.rules`.
        rule: u32,
    },
    /// A dry run's ALLOW rule matched.
    WouldAllow {
        /// Index in its `spec.rules`.
        rule: u32,
    },
    /// A request that no ALLOW policy speaks for is allowed now, as there are none; were the dry runs enforced, it
    /// would not be, since none of them matched either.
    WouldMatchNone,
}

/// Calls `seen` for every AUDIT policy that matched and for every dry run that would have mattered.
///
/// Dry runs are judged as if all of them were enforced together, beside what is enforced. Changes no verdict; does not
/// allocate.
pub fn observe<'p>(policies: &'p PolicySet, request: &Request<'_>, mut seen: impl FnMut(Observed<'p>)) {
    if policies.observed.is_empty() {
        return;
    }
    // Where something enforced already decides, or a dry run would let it in, none is to blame for matching nothing.
    let decided = decide(policies, request) != Verdict::Allow(AllowCause::NoPolicies);
    let request = &Canonical::of(request);
    let spoken_for = decided || first_match(dry_allows(policies), Effect::Allows, request).is_some();
    for policy in &policies.observed {
        let outcome = match policy.action {
            Action::Audit => {
                matching_rule(policy, Effect::Allows, request).map(|rule| Outcome::Audited { rule })
            }
            Action::Deny => {
                matching_rule(policy, Effect::Denies, request).map(|rule| Outcome::WouldDeny { rule })
            }
            Action::Allow => match matching_rule(policy, Effect::Allows, request) {
                Some(rule) => Some(Outcome::WouldAllow { rule }),
                None => (!spoken_for).then_some(Outcome::WouldMatchNone),
            },
            Action::NotUnderstood => match matching_rule(policy, Effect::Denies, request) {
                Some(rule) => Some(Outcome::WouldDeny { rule }),
                None => (!spoken_for).then_some(Outcome::WouldMatchNone),
            },
        };
        if let Some(outcome) = outcome {
            seen(Observed { policy: &policy.name, outcome });
        }
    }
}

/// The dry runs of ALLOW policies.
fn dry_allows(policies: &PolicySet) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
    policies.observed.iter().filter(|policy| policy.dry_run && policy.action == Action::Allow)
}

/// What a match leads to; decides how what was not understood counts.
#[derive(Clone, Copy)]
enum Effect {
    /// It lets in (or only counts): what was not understood is false.
    Allows,
    /// It refuses: what was not understood is true.
    Denies,
}

/// A request with addresses in the one form in which policies are written: no IPv4-mapped IPv6.
struct Canonical<'r> {
    /// Identity without its scheme.
    principal: Option<&'r str>,
    /// Namespace and service account of the identity, where it has Kubernetes' form.
    account: Option<(&'r str, &'r str)>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    port: u16,
}

impl<'r> Canonical<'r> {
    fn of(request: &Request<'r>) -> Self {
        Self {
            principal: request.peer.map(SpiffeId::without_scheme),
            account: request.peer.and_then(SpiffeId::service_account),
            source_ip: request.source_ip.to_canonical(),
            destination_ip: request.destination.ip().to_canonical(),
            port: request.destination.port(),
        }
    }

    fn has_principal(&self, pattern: &Pattern) -> bool {
        self.principal.is_some_and(|principal| pattern.matches(principal))
    }

    fn has_namespace(&self, pattern: &Pattern) -> bool {
        self.account.is_some_and(|(namespace, _)| pattern.matches(namespace))
    }

    fn has_account(&self, wanted: &ServiceAccount) -> bool {
        self.account == Some((&*wanted.namespace, &*wanted.name))
    }

    fn comes_from(&self, block: &IpNet) -> bool {
        block.contains(&self.source_ip)
    }

    fn goes_to(&self, block: &IpNet) -> bool {
        block.contains(&self.destination_ip)
    }
}

fn first_match<'p>(
    policies: impl IntoIterator<Item = &'p Arc<AuthorizationPolicy>>,
    effect: Effect,
    request: &Canonical<'_>,
) -> Option<Ruling<'p>> {
    policies.into_iter().find_map(|policy| {
        matching_rule(policy, effect, request).map(|rule| Ruling { policy: &policy.name, rule })
    })
}

/// The first rule of a policy that matches.
fn matching_rule(policy: &AuthorizationPolicy, effect: Effect, request: &Canonical<'_>) -> Option<u32> {
    let at = policy.rules.iter().position(|rule| rule_matches(rule, effect, request))?;
    Some(u32::try_from(at).unwrap_or(u32::MAX))
}

fn rule_matches(rule: &Rule, effect: Effect, request: &Canonical<'_>) -> bool {
    let counts = match (rule.understood, effect) {
        (Understood::Fully, Effect::Allows | Effect::Denies) | (Understood::InPart, Effect::Denies) => true,
        (Understood::InPart, Effect::Allows) => false,
    };
    counts
        && (rule.from.is_empty() || rule.from.iter().any(|source| source_matches(source, request)))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| operation_matches(operation, request)))
        && rule.when.iter().all(|condition| condition_holds(condition, request))
}

fn source_matches(source: &Source, request: &Canonical<'_>) -> bool {
    source.principals.holds(|pattern| request.has_principal(pattern))
        && source.namespaces.holds(|pattern| request.has_namespace(pattern))
        && source.service_accounts.holds(|wanted| request.has_account(wanted))
        && source.ip_blocks.holds(|block| request.comes_from(block))
}

fn operation_matches(operation: &Operation, request: &Canonical<'_>) -> bool {
    operation.ports.holds(|port| *port == request.port)
}

fn condition_holds(condition: &Condition, request: &Canonical<'_>) -> bool {
    match condition {
        Condition::SourcePrincipal(among) => among.holds(|pattern| request.has_principal(pattern)),
        Condition::SourceNamespace(among) => among.holds(|pattern| request.has_namespace(pattern)),
        Condition::SourceIp(among) => among.holds(|block| request.comes_from(block)),
        Condition::DestinationIp(among) => among.holds(|block| request.goes_to(block)),
        Condition::DestinationPort(among) => among.holds(|port| *port == request.port),
    }
}

/// The PeerAuthentications of one workload: at most one of each level.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerModes {
    /// The winner of each level, nearest first.
    winners: BTreeMap<Level, Arc<PeerAuthentication>>,
}

impl PeerModes {
    /// Compiles the policies that select a workload, in any order. Of two at one level the older wins, then the name.
    pub fn compile<'p>(policies: impl Iterator<Item = &'p Arc<PeerAuthentication>>) -> Self {
        let mut winners: BTreeMap<Level, Arc<PeerAuthentication>> = BTreeMap::new();
        for policy in policies {
            match winners.get(&policy.level()) {
                Some(winner) if winner.seniority() <= policy.seniority() => {}
                Some(_) | None => {
                    winners.insert(policy.level(), Arc::clone(policy));
                }
            }
        }
        Self { winners }
    }

    /// The policies that count, nearest first.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.winners.values()
    }
}

/// Whether plaintext may enter at this port of the workload, and the policy that says so.
///
/// A port's own mode beats any other; then workload beats namespace beats mesh; none: permissive, by no policy.
pub fn peer_mode(policies: &PeerModes, port: u16) -> (PeerMode, Option<&ObjectName>) {
    let by_port = policies
        .policies()
        .find_map(|policy| policy.port_modes.get(&port).map(|mode| (*mode, Some(&policy.name))));
    by_port.unwrap_or_else(|| usual_mode(policies))
}

/// The same for the ports that no policy names.
fn usual_mode(policies: &PeerModes) -> (PeerMode, Option<&ObjectName>) {
    policies
        .policies()
        .find_map(|policy| policy.mode.map(|mode| (mode, Some(&policy.name))))
        .unwrap_or_default()
}

/// Those of `ports` at which plaintext may not enter, in the order given, cut where another policy says so.
///
/// Costs what the policies name, however wide the ranges are.
pub fn strict_among<'p>(policies: &'p PeerModes, ports: &[PortRange]) -> Vec<(PortRange, &'p ObjectName)> {
    let named: BTreeSet<u16> =
        policies.policies().flat_map(|policy| policy.port_modes.keys().copied()).collect();
    let usual = usual_mode(policies);
    let mut strict = Vec::new();
    let mut add = |range: PortRange, mode: (PeerMode, Option<&'p ObjectName>)| {
        if let (PeerMode::Strict, Some(by)) = mode
            && !range.is_empty()
        {
            strict.push((range, by));
        }
    };
    for range in ports {
        // None once the last port of all has been looked at.
        let mut from = Some(*range.start());
        for port in named.iter().copied().filter(|port| range.contains(port)) {
            if let Some(from) = from.filter(|from| *from < port) {
                add(from..=port - 1, usual);
            }
            add(port..=port, peer_mode(policies, port));
            from = port.checked_add(1);
        }
        if let Some(from) = from {
            add(from..=*range.end(), usual);
        }
    }
    strict
}

/// One PeerAuthentication that does not count, because another of exactly the same scope is senior.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Losing {
    /// The one that does not count.
    pub loser: ObjectName,
    /// The one that counts instead.
    pub winner: ObjectName,
}

/// Which of these PeerAuthentications count for no workload, as another has the same scope and is senior.
///
/// Two selectors that differ may still meet on a workload: there [`PeerModes::compile`] decides by the same order.
pub fn losing<'p>(policies: impl Iterator<Item = &'p Arc<PeerAuthentication>>) -> Vec<Losing> {
    let mut by_seniority: Vec<_> = policies.collect();
    by_seniority.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    let mut winners: Vec<&PeerAuthentication> = Vec::new();
    let mut losers = Vec::new();
    for policy in by_seniority {
        match winners.iter().find(|winner| winner.scope == policy.scope) {
            Some(winner) => losers.push(Losing { loser: policy.name.clone(), winner: winner.name.clone() }),
            None => winners.push(policy),
        }
    }
    losers
}
