//! Each action with each field, in its positive and its negative form.

use super::*;

/// A policy's rules, and whom they match: web by IPv4, web by IPv6 at the second port, cart, and plaintext.
struct Case {
    name: &'static str,
    rules: &'static str,
    matches: [bool; 4],
}

const fn case(name: &'static str, rules: &'static str, matches: [u8; 4]) -> Case {
    let [a, b, c, d] = matches;
    Case { name, rules, matches: [a == 1, b == 1, c == 1, d == 1] }
}

const CASES: [Case; 33] = [
    case("principals", "[{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]", [1, 1, 0, 0]),
    case(
        "not-principals",
        "[{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/web]}}]}]",
        [0, 0, 1, 1],
    ),
    case(
        "scheme",
        "[{from: [{source: {principals: ['spiffe://cluster.local/ns/other/sa/cart']}}]}]",
        [0, 0, 1, 0],
    ),
    case("prefix", "[{from: [{source: {principals: ['cluster.local/ns/shop/*']}}]}]", [1, 1, 0, 0]),
    case("suffix", "[{from: [{source: {principals: ['*/sa/cart']}}]}]", [0, 0, 1, 0]),
    case("authenticated", "[{from: [{source: {principals: ['*']}}]}]", [1, 1, 1, 0]),
    case("namespaces", "[{from: [{source: {namespaces: [other]}}]}]", [0, 0, 1, 0]),
    case("not-namespaces", "[{from: [{source: {notNamespaces: [other]}}]}]", [1, 1, 0, 1]),
    case("accounts", "[{from: [{source: {serviceAccounts: [web]}}]}]", [1, 1, 0, 0]),
    case("accounts-elsewhere", "[{from: [{source: {serviceAccounts: [other/cart]}}]}]", [0, 0, 1, 0]),
    case("not-accounts", "[{from: [{source: {notServiceAccounts: [shop/web]}}]}]", [0, 0, 1, 1]),
    case("ip-blocks", "[{from: [{source: {ipBlocks: ['WEB/32']}}]}]", [1, 0, 0, 0]),
    case("not-ip-blocks", "[{from: [{source: {notIpBlocks: [WEB]}}]}]", [0, 1, 1, 1]),
    case("ip-blocks-v6", "[{from: [{source: {ipBlocks: ['fd71::/16']}}]}]", [0, 1, 0, 0]),
    case("ports", "[{to: [{operation: {ports: ['8080']}}]}]", [1, 0, 1, 1]),
    case("not-ports", "[{to: [{operation: {notPorts: ['8080']}}]}]", [0, 1, 0, 0]),
    case(
        "when-principal",
        "[{when: [{key: source.principal, values: [cluster.local/ns/other/sa/cart]}]}]",
        [0, 0, 1, 0],
    ),
    case("when-not-principal", "[{when: [{key: source.principal, notValues: ['*/sa/cart']}]}]", [1, 1, 0, 1]),
    case("when-namespace", "[{when: [{key: source.namespace, values: ['sh*']}]}]", [1, 1, 0, 0]),
    case("when-not-namespace", "[{when: [{key: source.namespace, notValues: [shop]}]}]", [0, 0, 1, 1]),
    case("when-source-ip", "[{when: [{key: source.ip, values: [WEB]}]}]", [1, 0, 0, 0]),
    case("when-not-source-ip", "[{when: [{key: source.ip, notValues: [WEB]}]}]", [0, 1, 1, 1]),
    case("when-destination-ip", "[{when: [{key: destination.ip, values: [API]}]}]", [1, 0, 1, 1]),
    case("when-not-destination-ip", "[{when: [{key: destination.ip, notValues: [API]}]}]", [0, 1, 0, 0]),
    case("when-port", "[{when: [{key: destination.port, values: ['9090']}]}]", [0, 1, 0, 0]),
    case("when-not-port", "[{when: [{key: destination.port, notValues: ['9090']}]}]", [1, 0, 1, 1]),
    case("one-source-is-anded", "[{from: [{source: {namespaces: [shop], ipBlocks: [WEB]}}]}]", [1, 0, 0, 0]),
    case(
        "sources-are-ored",
        "[{from: [{source: {namespaces: [other]}}, {source: {ipBlocks: [WEB]}}]}]",
        [1, 0, 1, 0],
    ),
    case(
        "parts-are-anded",
        "[{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['9090']}}]}]",
        [0, 1, 0, 0],
    ),
    case("values-are-ored", "[{from: [{source: {namespaces: [shop, other]}}]}]", [1, 1, 1, 0]),
    case("everything", "[{}]", [1, 1, 1, 1]),
    case("nothing", "[]", [0, 0, 0, 0]),
    case("but", "[{from: [{source: {principals: ['*'], notNamespaces: [other]}}]}]", [1, 1, 0, 0]),
];

#[test]
fn every_field_of_every_action_means_what_it_says_and_both_sides_name_the_policy() -> Result<()> {
    with_stage(|mesh, stage| {
        for case in &CASES {
            let rules = filled(case.rules, stage);
            allow(mesh, stage, case, &rules).with_context(|| format!("ALLOW {}", case.name))?;
            deny(mesh, stage, case, &rules).with_context(|| format!("DENY {}", case.name))?;
        }
        Ok(())
    })
}

/// As ALLOW, beside an AUDIT policy and the dry run of a DENY policy with the same rules.
fn allow(mesh: &mut Mesh, stage: &Stage, case: &Case, rules: &str) -> Result<()> {
    let name = case.name;
    let (allow, audit, dry) = (format!("a-{name}"), format!("audit-{name}"), format!("dry-{name}"));
    write(
        mesh,
        &[
            (&allow, format!("{{ action: ALLOW, rules: {rules} }}")),
            (&audit, format!("{{ action: AUDIT, rules: {rules} }}")),
            (&dry, format!("{{ action: DENY, dryRun: true, rules: {rules} }}")),
        ],
    )?;
    let (allow, dry) = (format!("shop/{allow}"), format!("shop/{dry}"));
    for (way, matches) in WAYS.into_iter().zip(case.matches) {
        let Seen { answered, inbound, outbound } = stage.attempt(mesh, way)?;
        ensure!(answered == matches, "{way:?} was answered: {answered}");
        let wanted = if matches { decision(true, Some(&allow), Some(0)) } else { none_of(&[&allow]) };
        ensure!(inbound.decision.as_ref() == Some(&wanted), "{way:?}: {:?}", inbound.decision);
        let rehearsed = matches.then(|| decision(false, Some(&dry), Some(0)));
        ensure!(inbound.dry_run == Vec::from_iter(rehearsed), "{way:?}: {:?}", inbound.dry_run);
        let reason = (!matches).then_some("policy_none_matched");
        ensure!(inbound.reason.as_deref() == reason, "{way:?}: {:?}", inbound.reason);
        if let Some(outbound) = outbound {
            let (reason, wanted) = ((!matches).then_some("peer_denied"), (!matches).then_some(wanted));
            ensure!(outbound.reason.as_deref() == reason, "{way:?}: {:?}", outbound.reason);
            ensure!(outbound.decision == wanted, "{way:?}: {:?}", outbound.decision);
        }
    }
    let count = case.matches.iter().filter(|matches| **matches).count();
    let refused = WAYS.len() - count;
    counted(
        mesh,
        &[
            (&format!("shop/{audit}"), "AUDIT", "audited", count),
            (&dry, "DENY", "would_deny", count),
            (&allow, "ALLOW", "allowed", count),
            (&allow, "ALLOW", "unmatched", refused),
        ],
    )
}

/// Whether these verdicts of these policies, with these actions, have been counted so often.
fn counted(mesh: &Mesh, all: &[(&str, &str, &str, usize)]) -> Result<()> {
    let metrics = metrics(mesh)?;
    for (policy, action, verdict, count) in all {
        let series = format!(
            "adit_policy_verdicts_total{{policy=\"{policy}\",action=\"{action}\",verdict=\"{verdict}\"}}"
        );
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        let value: usize = value.map_or(Ok(0), |value| value.trim().parse())?;
        ensure!(
            value == *count,
            "{series} is {value}, not {count}:\n{}",
            lines_with(&metrics, "adit_policy")
        );
    }
    Ok(())
}

/// As DENY, beside the dry run of an ALLOW policy with the same rules.
fn deny(mesh: &mut Mesh, stage: &Stage, case: &Case, rules: &str) -> Result<()> {
    let (deny, dry) = (format!("d-{}", case.name), format!("dry-{}", case.name));
    write(
        mesh,
        &[
            (&deny, format!("{{ action: DENY, rules: {rules} }}")),
            (&dry, format!("{{ action: ALLOW, dryRun: true, rules: {rules} }}")),
        ],
    )?;
    let (deny, dry) = (format!("shop/{deny}"), format!("shop/{dry}"));
    for (way, matches) in WAYS.into_iter().zip(case.matches) {
        let Seen { answered, inbound, outbound } = stage.attempt(mesh, way)?;
        ensure!(answered != matches, "{way:?} was answered: {answered}");
        let wanted = if matches { decision(false, Some(&deny), Some(0)) } else { decision(true, None, None) };
        ensure!(inbound.decision.as_ref() == Some(&wanted), "{way:?}: {:?}", inbound.decision);
        let rehearsed =
            if matches { decision(true, Some(&dry), Some(0)) } else { decision(false, Some(&dry), None) };
        ensure!(inbound.dry_run == [rehearsed], "{way:?}: {:?}", inbound.dry_run);
        ensure!(
            inbound.reason.as_deref() == matches.then_some("policy_denied"),
            "{way:?}: {:?}",
            inbound.reason
        );
        if let Some(outbound) = outbound {
            let (reason, wanted) = (matches.then_some("peer_denied"), matches.then_some(wanted));
            ensure!(outbound.reason.as_deref() == reason, "{way:?}: {:?}", outbound.reason);
            ensure!(outbound.decision == wanted, "{way:?}, the client's side: {:?}", outbound.decision);
        }
    }
    let count = case.matches.iter().filter(|matches| **matches).count();
    counted(
        mesh,
        &[
            (&deny, "DENY", "denied", count),
            (&dry, "ALLOW", "would_allow", count),
            (&dry, "ALLOW", "would_deny", WAYS.len() - count),
        ],
    )
}

/// Replaces all policies of the test by these.
fn write(mesh: &mut Mesh, policies: &[(&str, String)]) -> Result<()> {
    let documents: Vec<String> =
        policies.iter().map(|(name, spec)| object("AuthorizationPolicy", "shop", name, spec)).collect();
    mesh.apply("policies", &documents.join("---\n"))?;
    mesh.settle()
}

fn metrics(mesh: &Mesh) -> Result<String> {
    mesh.agent("n2")?.admin("/metrics")
}

fn lines_with<'t>(text: &'t str, part: &str) -> String {
    let lines: Vec<&'t str> = text.lines().filter(|line| line.contains(part)).collect();
    lines.join("\n")
}

#[test]
fn a_policy_without_rules_allows_nothing_and_deny_beats_allow() -> Result<()> {
    with_stage(|mesh, stage| {
        assert_eq!(stage.open_ways(mesh)?, [true; 4], "without a policy");
        policy(mesh, "empty", "{}")?;
        assert_eq!(stage.open_ways(mesh)?, [false; 4], "spec: {{}}");
        policy(mesh, "everyone", "{ rules: [{}] }")?;
        assert_eq!(stage.open_ways(mesh)?, [true; 4], "one ALLOW that matches is enough");
        policy(mesh, "no-cart", "{ action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}] }")?;
        assert_eq!(stage.open_ways(mesh)?, [true, true, false, true], "DENY beats ALLOW");
        unpolicy(mesh, "everyone")?;
        let refused = stage.attempt(mesh, Way::Cart)?;
        assert_eq!(refused.inbound.decision, Some(decision(false, Some("shop/no-cart"), Some(0))));
        Ok(())
    })
}

#[test]
fn scopes_are_the_mesh_a_namespace_or_a_selector_and_a_selector_of_the_system_selects_everywhere()
-> Result<()> {
    with_stage(|mesh, stage| {
        let nobody = "{ action: DENY, rules: [{}] }";
        let selected = |labels: &str| {
            format!("{{ action: DENY, selector: {{ matchLabels: {labels} }}, rules: [{{}}] }}")
        };
        let (here, not_here) = (selected("{ app: api }"), selected("{ app: api, tier: none }"));
        for (namespace, spec, open) in [
            ("adit-system", nobody, false),
            ("adit-system", &here, false),
            ("adit-system", &not_here, true),
            ("shop", nobody, false),
            ("shop", &here, false),
            ("shop", &not_here, true),
            ("other", nobody, true),
            ("other", &here, true),
        ] {
            mesh.apply("scoped", &object("AuthorizationPolicy", namespace, "scoped", spec))?;
            mesh.settle()?;
            let seen = stage.attempt(mesh, Way::Web)?;
            assert_eq!(seen.answered, open, "{namespace}: {spec}");
            if !open {
                let by = seen.inbound.decision.and_then(|decision| decision.policy);
                assert_eq!(by.as_deref(), Some(&*format!("{namespace}/scoped")));
            }
        }
        Ok(())
    })
}
