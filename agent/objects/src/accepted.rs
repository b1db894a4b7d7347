//! What is said of a policy: `Accepted`, and if not, which field is wrong. Agents and the CA say it by this one rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_core::net::ObjectName;
use adit_core::policy::PeerAuthentication;
use adit_core::traffic::TrafficPolicy;
use adit_core::world::{Change, Kind};
use adit_proto::status::PolicyStatus;

use crate::meta::word;
use crate::object::Key;
use crate::problem::{FieldPath, Problem, Wrong};

/// A policy that was read.
#[derive(Clone, Debug)]
pub struct Judged<'p> {
    /// Which.
    pub key: &'p Key,
    /// What in it was not understood: the field's path and what is wrong with it, one each.
    pub problems: Vec<String>,
    /// What it means, if anything could be read: it may conflict with another.
    pub change: Option<&'p Change>,
}

/// What is to be said of each, in the order of `policies`. All there are have to be given: of two that are for the same
/// only the older counts.
pub fn statuses<'p>(policies: impl IntoIterator<Item = Judged<'p>>) -> Vec<PolicyStatus> {
    let mut policies: Vec<Judged<'p>> = policies.into_iter().collect();
    let mut peers: Vec<Arc<PeerAuthentication>> = Vec::new();
    let mut traffic: Vec<&TrafficPolicy> = Vec::new();
    for policy in &policies {
        match policy.change {
            Some(Change::PeerAuthentication(policy)) => peers.push(Arc::new(policy.clone())),
            Some(Change::TrafficPolicy(policy)) => traffic.push(policy),
            // The others have no conflicts.
            Some(_) | None => {}
        }
    }
    let losing = adit_core::authz::losing(peers.iter());
    let losing = losing.into_iter().map(|losing| (Kind::PeerAuthentication, losing.loser, losing.winner));
    let conflicts: BTreeMap<(Kind, ObjectName), ObjectName> =
        losing.chain(losing_traffic(&traffic)).map(|(kind, loser, winner)| ((kind, loser), winner)).collect();
    for policy in &mut policies {
        if let Some(winner) = conflicts.get(&(policy.key.kind, policy.key.name.clone())) {
            let field = FieldPath::of(["spec"]);
            let wrong = Wrong::Conflict(winner.to_string());
            policy.problems.push(Problem { field, wrong }.to_string());
        }
    }
    policies.into_iter().map(|policy| status(policy.key, policy.problems)).collect()
}

fn status(key: &Key, problems: Vec<String>) -> PolicyStatus {
    PolicyStatus {
        kind: word(key.kind).to_owned(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        accepted: problems.is_empty(),
        problems,
    }
}

/// TrafficPolicies that do not count for one of their Services, as an older one is for it too.
fn losing_traffic(policies: &[&TrafficPolicy]) -> Vec<(Kind, ObjectName, ObjectName)> {
    let mut by_seniority = policies.to_vec();
    by_seniority.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut winners: BTreeMap<&ObjectName, &ObjectName> = BTreeMap::new();
    let mut losing = BTreeMap::new();
    for policy in by_seniority {
        for service in &policy.services {
            let winner = *winners.entry(service).or_insert(&policy.name);
            if *winner != policy.name {
                losing.entry(&policy.name).or_insert(winner);
            }
        }
    }
    losing.into_iter().map(|(loser, winner)| (Kind::TrafficPolicy, loser.clone(), winner.clone())).collect()
}
