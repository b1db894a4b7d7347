//! Policies that cannot be understood: each is named field by field, and allows less or denies more than it says.

use super::*;

/// A rule of which a part is not understood.
struct Case {
    rule: &'static str,
    /// The part.
    field: &'static str,
    /// Whom it denies: what was not understood counts as true. Web, web's second port, cart, plaintext.
    denies: [bool; 4],
}

const OTHERS: [bool; 4] = [false, false, true, false];
const ALL: [bool; 4] = [true; 4];

const fn case(rule: &'static str, field: &'static str, denies: [bool; 4]) -> Case {
    Case { rule, field, denies }
}

const CASES: [Case; 26] = [
    // What only HTTP shows.
    case(
        "{from: [{source: {namespaces: [other]}}], to: [{operation: {methods: [GET]}}]}",
        "spec.rules[0].to[0].operation.methods",
        OTHERS,
    ),
    case(
        "{from: [{source: {namespaces: [other]}}], to: [{operation: {ports: ['8080'], paths: [/x]}}]}",
        "spec.rules[0].to[0].operation.paths",
        OTHERS,
    ),
    case("{to: [{operation: {hosts: [x]}}]}", "spec.rules[0].to[0].operation.hosts", ALL),
    case(
        "{from: [{source: {namespaces: [other], requestPrincipals: ['*']}}]}",
        "spec.rules[0].from[0].source.requestPrincipals",
        OTHERS,
    ),
    case(
        "{from: [{source: {namespaces: [other], remoteIpBlocks: [10.0.0.0/8]}}]}",
        "spec.rules[0].from[0].source.remoteIpBlocks",
        OTHERS,
    ),
    case(
        "{from: [{source: {namespaces: [other]}}], when: [{key: 'request.headers[x]', values: [y]}]}",
        "spec.rules[0].when[0].key",
        OTHERS,
    ),
    // Fields that nobody knows.
    case(
        "{from: [{source: {namespaces: [other], principal: [web]}}]}",
        "spec.rules[0].from[0].source.principal",
        OTHERS,
    ),
    case("{from: [{source: {namespaces: [other]}}], unless: []}", "spec.rules[0].unless", OTHERS),
    case("{form: [{source: {namespaces: [other]}}]}", "spec.rules[0].form", ALL),
    case("{from: [{sources: {namespaces: [other]}}]}", "spec.rules[0].from[0].sources", ALL),
    // Values that cannot be.
    case("{to: [{operation: {ports: ['8080', '80x']}}]}", "spec.rules[0].to[0].operation.ports[1]", ALL),
    case("{to: [{operation: {ports: ['0']}}]}", "spec.rules[0].to[0].operation.ports[0]", ALL),
    case("{to: [{operation: {notPorts: ['65536']}}]}", "spec.rules[0].to[0].operation.notPorts[0]", ALL),
    case(
        "{from: [{source: {namespaces: [other]}}], to: [{operation: {ports: 8080}}]}",
        "spec.rules[0].to[0].operation.ports",
        OTHERS,
    ),
    case("{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}", "spec.rules[0].from[0].source.ipBlocks[0]", ALL),
    case(
        "{from: [{source: {namespaces: [other], notIpBlocks: [10.0.0]}}]}",
        "spec.rules[0].from[0].source.notIpBlocks[0]",
        OTHERS,
    ),
    case("{from: [{source: {principals: ['a*b']}}]}", "spec.rules[0].from[0].source.principals[0]", ALL),
    case("{from: [{source: {principals: [web]}}]}", "spec.rules[0].from[0].source.principals[0]", ALL),
    case(
        "{from: [{source: {serviceAccounts: [a/b/c]}}]}",
        "spec.rules[0].from[0].source.serviceAccounts[0]",
        ALL,
    ),
    case("{from: [{source: {namespaces: [Other/x]}}]}", "spec.rules[0].from[0].source.namespaces[0]", ALL),
    case("{from: [{source: {}}]}", "spec.rules[0].from[0].source", ALL),
    case(
        "{from: [{source: {namespaces: [other]}}], when: [{key: source.port, values: ['1']}]}",
        "spec.rules[0].when[0].key",
        OTHERS,
    ),
    case(
        "{from: [{source: {namespaces: [other]}}], when: [{key: source.ip, values: [host]}]}",
        "spec.rules[0].when[0].values[0]",
        OTHERS,
    ),
    case(
        "{from: [{source: {namespaces: [other]}}], when: [{key: destination.port}]}",
        "spec.rules[0].when[0].values",
        OTHERS,
    ),
    case("web", "spec.rules[0]", ALL),
    case("{from: web}", "spec.rules[0].from", ALL),
];

#[test]
fn a_rule_that_is_not_understood_allows_nothing_denies_more_and_enforces_nothing_where_it_only_counts()
-> Result<()> {
    with_stage(|mesh, stage| {
        for (number, case) in CASES.iter().enumerate() {
            for (spec, open) in [
                ("action: ALLOW", [false; 4]),
                ("action: DENY", case.denies.map(|denied| !denied)),
                ("action: AUDIT", ALL),
                ("action: ALLOW, dryRun: true", ALL),
                ("action: DENY, dryRun: true", ALL),
            ] {
                let name = format!("bad-{number}-{}", spec.len());
                let spec = format!("{{ {spec}, rules: [{}] }}", case.rule);
                holds(mesh, stage, "AuthorizationPolicy", (&name, &spec), case.field, open)
                    .with_context(|| spec.clone())?;
            }
        }
        Ok(())
    })
}

/// The policy has its effect, and says which field was not understood.
fn holds(
    mesh: &mut Mesh,
    stage: &Stage,
    kind: &str,
    (name, spec): (&str, &str),
    field: &str,
    open: [bool; 4],
) -> Result<()> {
    mesh.apply("bad", &object(kind, "shop", name, spec))?;
    mesh.settle()?;
    let status = accepted(mesh, kind, name)?;
    ensure!(!status.accepted, "it is accepted");
    let named = status.problems.iter().any(|problem| problem.starts_with(&format!("{field}: ")));
    ensure!(named, "{field} is not named: {:?}", status.problems);
    let is_open = stage.open_ways(mesh)?;
    ensure!(is_open == open, "open is {is_open:?}, not {open:?}");
    Ok(())
}

#[test]
fn what_is_not_understood_around_the_rules_is_named_and_never_opens_anything() -> Result<()> {
    const CART: &str = "rules: [{from: [{source: {namespaces: [other]}}]}]";
    let but_cart = OTHERS.map(|denied| !denied);
    with_stage(|mesh, stage| {
        let mut number = 0;
        for (spec, field, open) in [
            // Every workload of the namespace, the server too.
            ("action: DENY, selector: {matchLabels: {app: 7}}", "spec.selector.matchLabels.app", but_cart),
            ("action: DENY, selector: {matchExpressions: []}", "spec.selector.matchExpressions", but_cart),
            ("action: DENY, selector: [x]", "spec.selector", but_cart),
            (
                "action: ALLOW, selector: {matchLabels: {app: elsewhere, b: []}}",
                "spec.selector.matchLabels.b",
                [false; 4],
            ),
            // What it matches is denied, and nothing else allowed.
            ("action: CUSTOM", "spec.action", [false; 4]),
            ("action: deny", "spec.action", [false; 4]),
            ("action: 7", "spec.action", [false; 4]),
            // Enforced.
            ("action: DENY, dryRun: 'yes'", "spec.dryRun", but_cart),
            ("action: ALLOW, dryRun: 'yes'", "spec.dryRun", [false; 4]),
            // A field that may mean anything.
            ("action: DENY, provider: {name: x}", "spec.provider", but_cart),
            ("action: ALLOW, provider: {name: x}", "spec.provider", [false; 4]),
            ("action: AUDIT, provider: {name: x}", "spec.provider", [true; 4]),
        ] {
            number += 1;
            let (name, spec) = (format!("around-{number}."), format!("{{ {spec}, {CART} }}"));
            holds(mesh, stage, "AuthorizationPolicy", (&name, &spec), field, open)
                .with_context(|| spec.clone())?;
        }
        for (spec, field, open) in [
            ("{ action: DENY, rules: all }", "spec.rules", [false; 4]),
            ("{ action: ALLOW, rules: all }", "spec.rules", [false; 4]),
            ("{ action: DENY, rule: [{}] }", "spec.rule", [false; 4]),
        ] {
            number += 1;
            let name = format!("around-{number}.");
            holds(mesh, stage, "AuthorizationPolicy", (&name, spec), field, open).with_context(|| spec)?;
        }
        // A PeerAuthentication that is not understood is STRICT on every port.
        let no_plaintext = [true, true, true, false];
        for (spec, field) in [
            ("{ mtls: { mode: DISABLE } }", "spec.mtls.mode"),
            ("{ mtls: { mode: 7 } }", "spec.mtls.mode"),
            ("{ mtls: { mood: PERMISSIVE } }", "spec.mtls.mood"),
            ("{ mlts: { mode: PERMISSIVE } }", "spec.mlts"),
            (
                "{ selector: { matchLabels: { app: api } }, mtls: { mode: PERMISSIVE }, portLevelMtls: { '8080': { mode: PERMISSIVE }, '80x': { mode: STRICT } } }",
                "spec.portLevelMtls.80x",
            ),
            (
                "{ selector: { matchLabels: { app: api } }, portLevelMtls: { '8080': { mode: OFF } } }",
                "spec.portLevelMtls.8080.mode",
            ),
        ] {
            number += 1;
            let name = format!("around-{number}.");
            mesh.apply("bad", &object("PeerAuthentication", "shop", &name, spec))?;
            mesh.settle()?;
            let status = accepted(mesh, "PeerAuthentication", &name)?;
            ensure!(
                !status.accepted && status.problems.iter().any(|said| said.starts_with(field)),
                "{spec}: {status:?}"
            );
            for (way, open) in WAYS.into_iter().zip(no_plaintext) {
                ensure!(stage.attempt(mesh, way)?.answered == open, "{spec}: {way:?}");
            }
        }
        Ok(())
    })
}
