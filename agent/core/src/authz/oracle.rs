//! A second, naive answer to "may it connect?": the table of DESIGN's rules, read aloud, over every possible reading.
//!
//! What was not understood may have meant anything narrower than what is left; an action that was not understood may
//! have meant any of the three. A request is allowed only where every such reading allows it.

use super::Request;
use crate::policy::{
    Action, Among, AuthorizationPolicy, Condition, Operation, Pattern, Rule, Source, Understood,
};

/// Whether the request is allowed under every reading of the policies.
pub(super) fn allowed(policies: &[AuthorizationPolicy], request: &Request<'_>) -> bool {
    let mut worlds: Vec<Vec<(Action, bool)>> = vec![Vec::new()];
    for policy in policies.iter().filter(|policy| !policy.dry_run) {
        let readings = readings(policy, request);
        worlds = worlds
            .iter()
            .flat_map(|world| {
                readings.iter().map(|reading| {
                    let mut longer = world.clone();
                    longer.push(*reading);
                    longer
                })
            })
            .collect();
    }
    worlds.iter().all(|world| allowed_in(world))
}

/// One world: what each policy does, and whether it matches.
fn allowed_in(world: &[(Action, bool)]) -> bool {
    let of = |action| world.iter().filter(move |policy| policy.0 == action);
    let denied = of(Action::Deny).any(|policy| policy.1);
    let is_allow_list = of(Action::Allow).count() > 0;
    let on_the_list = of(Action::Allow).any(|policy| policy.1);
    !denied && (!is_allow_list || on_the_list)
}

/// Every reading of one policy.
fn readings(policy: &AuthorizationPolicy, request: &Request<'_>) -> Vec<(Action, bool)> {
    let widest = policy.rules.iter().any(|rule| matches(rule, request));
    let narrowest =
        policy.rules.iter().any(|rule| rule.understood == Understood::Fully && matches(rule, request));
    let actions = match policy.action {
        Action::NotUnderstood => vec![Action::Allow, Action::Deny, Action::Audit],
        known @ (Action::Allow | Action::Deny | Action::Audit) => vec![known],
    };
    actions.into_iter().flat_map(|action| [(action, widest), (action, narrowest)]).collect()
}

/// Whether what was understood of a rule matches.
pub(super) fn matches(rule: &Rule, request: &Request<'_>) -> bool {
    let mut clauses = Vec::new();
    if !rule.from.is_empty() {
        clauses.push(rule.from.iter().any(|source| source_matches(source, request)));
    }
    if !rule.to.is_empty() {
        clauses.push(rule.to.iter().any(|operation| operation_matches(operation, request)));
    }
    for condition in &rule.when {
        clauses.push(match condition {
            Condition::SourcePrincipal(texts) => text_matches(texts, principal(request).as_deref()),
            Condition::SourceNamespace(texts) => text_matches(texts, namespace(request).as_deref()),
            Condition::SourceIp(blocks) => block_matches(blocks, request.source_ip),
            Condition::DestinationIp(blocks) => block_matches(blocks, request.destination.ip()),
            Condition::DestinationPort(ports) => listed(ports, |port| *port == request.destination.port()),
        });
    }
    !clauses.contains(&false)
}

fn source_matches(source: &Source, request: &Request<'_>) -> bool {
    let account = principal(request).and_then(|whole| {
        let mut parts = whole.split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(name), None) => {
                Some((namespace.to_owned(), name.to_owned()))
            }
            _ => None,
        }
    });
    [
        text_matches(&source.principals, principal(request).as_deref()),
        text_matches(&source.namespaces, namespace(request).as_deref()),
        listed(&source.service_accounts, |wanted| {
            account == Some((wanted.namespace.to_string(), wanted.name.to_string()))
        }),
        block_matches(&source.ip_blocks, request.source_ip),
    ]
    .iter()
    .all(|clause| *clause)
}

fn operation_matches(operation: &Operation, request: &Request<'_>) -> bool {
    listed(&operation.ports, |port| *port == request.destination.port())
}

fn principal(request: &Request<'_>) -> Option<String> {
    request.peer.map(|id| id.to_string().replacen("spiffe://", "", 1))
}

fn namespace(request: &Request<'_>) -> Option<String> {
    let principal = principal(request)?;
    let parts: Vec<_> = principal.split('/').collect();
    (parts.len() == 5 && parts[1] == "ns" && parts[3] == "sa").then(|| parts[2].to_owned())
}

fn text_matches(wanted: &Among<Pattern>, text: Option<&str>) -> bool {
    listed(wanted, |pattern| {
        text.is_some_and(|text| match pattern {
            Pattern::Any => true,
            Pattern::Exact(whole) => text == &**whole,
            Pattern::Prefix(prefix) => text.get(..prefix.len()) == Some(prefix),
            Pattern::Suffix(suffix) => {
                text.len().checked_sub(suffix.len()).is_some_and(|at| text.get(at..) == Some(suffix))
            }
        })
    })
}

fn block_matches(blocks: &Among<ipnet::IpNet>, ip: std::net::IpAddr) -> bool {
    let ip = ip.to_canonical();
    listed(blocks, |block| {
        block.network() <= ip && ip <= block.broadcast() && block.addr().is_ipv4() == ip.is_ipv4()
    })
}

fn listed<T>(list: &Among<T>, matches: impl Fn(&T) -> bool) -> bool {
    let hits = list.any.iter().filter(|value| matches(value)).count();
    let misses = list.none.iter().filter(|value| matches(value)).count();
    (list.any.is_empty() || hits > 0) && misses == 0
}
