use adit_core::policy::{
    Action, Among, AuthorizationPolicy, Condition, Operation, Pattern, PeerAuthentication, PeerMode, Rule,
    ServiceAccount, Source, Understood,
};
use adit_core::traffic::TrafficPolicy;
use adit_core::world::Change;
use serde_json::json;

use super::*;
use crate::Object;

/// Reads one document; the problems come with the place of their field.
fn translate(yaml: &str) -> (Change, Vec<String>) {
    let document = crate::yaml::read(yaml).unwrap().remove(0);
    let (_, object) = Object::read(&document.value).unwrap().unwrap();
    let translated = object.translate("adit-system").unwrap();
    let problems = translated.problems.iter().map(ToString::to_string).collect();
    (translated.change.unwrap(), problems)
}

fn authorization(namespace: &str, spec: &str) -> (AuthorizationPolicy, Vec<String>) {
    let yaml = format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}, creationTimestamp: 2026-01-01T00:00:00Z}}\n{spec}"
    );
    match translate(&yaml) {
        (Change::AuthorizationPolicy(policy), problems) => (policy, problems),
        other => panic!("{other:?}"),
    }
}

fn good(spec: &str) -> AuthorizationPolicy {
    let (policy, problems) = authorization("shop", spec);
    assert_eq!(problems, [""; 0], "{spec}");
    policy
}

fn peers(namespace: &str, spec: &str) -> (PeerAuthentication, Vec<String>) {
    let yaml = format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\n{spec}"
    );
    match translate(&yaml) {
        (Change::PeerAuthentication(policy), problems) => (policy, problems),
        other => panic!("{other:?}"),
    }
}

fn traffic(spec: &str) -> (TrafficPolicy, Vec<String>) {
    let yaml = format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  {spec}"
    );
    match translate(&yaml) {
        (Change::TrafficPolicy(policy), problems) => (policy, problems),
        other => panic!("{other:?}"),
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

#[test]
fn every_field_is_read() {
    let policy = good(
        r#"
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  dryRun: true
  rules:
  - from:
    - source:
        principals: ["spiffe://Cluster.Local/ns/shop/sa/web", "cluster.local/ns/other/*", "*/sa/bot", "*"]
        notPrincipals: ["cluster.local/ns/a/sa/b"]
        namespaces: [shop, "dev-*"]
        notNamespaces: ["*-test"]
        serviceAccounts: [web, other/api]
        notServiceAccounts: [a/b]
        ipBlocks: ["10.1.2.3/8", "192.0.2.1", "::ffff:10.0.0.0/104"]
        notIpBlocks: ["fd00::1/64"]
    - source: {namespaces: ["*"]}
    to:
    - operation: {ports: ["80", 443], notPorts: [8080]}
    when:
    - {key: source.principal, values: ["*"]}
    - {key: source.namespace, notValues: [a]}
    - {key: source.ip, values: ["10.0.0.1"]}
    - {key: destination.ip, values: ["10.0.0.0/8"], notValues: ["10.0.0.1"]}
    - {key: destination.port, values: ["80"]}
  - {}
"#,
    );
    assert_eq!((policy.action, policy.dry_run, policy.created), (Action::Deny, true, 1_767_225_600));
    let Scope::Selected { namespace: Some(namespace), labels } = &policy.scope else {
        panic!("{:?}", policy.scope)
    };
    assert_eq!((&**namespace, labels.0.len()), ("shop", 1));
    let account =
        |namespace: &str, name: &str| ServiceAccount { namespace: namespace.into(), name: name.into() };
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let source = Source {
        principals: Among {
            any: vec![
                pattern("cluster.local/ns/shop/sa/web"),
                pattern("cluster.local/ns/other/*"),
                pattern("*/sa/bot"),
                Pattern::Any,
            ],
            none: vec![pattern("cluster.local/ns/a/sa/b")],
        },
        namespaces: Among { any: vec![pattern("shop"), pattern("dev-*")], none: vec![pattern("*-test")] },
        service_accounts: Among {
            any: vec![account("shop", "web"), account("other", "api")],
            none: vec![account("a", "b")],
        },
        ip_blocks: Among {
            any: vec![net("10.0.0.0/8"), net("192.0.2.1/32"), net("10.0.0.0/8")],
            none: vec![net("fd00::/64")],
        },
    };
    let [rule, everything] = &policy.rules[..] else { panic!() };
    assert_eq!(rule.from[0], source);
    assert_eq!(rule.from[1].namespaces.any, [Pattern::Any]);
    assert_eq!(rule.to, [Operation { ports: Among { any: vec![80, 443], none: vec![8080] } }]);
    assert_eq!(rule.when.len(), 5);
    assert_eq!(rule.when[4], Condition::DestinationPort(Among { any: vec![80], none: vec![] }));
    assert_eq!((rule.understood, everything), (Understood::Fully, &Rule::default()));
}

#[test]
fn nothing_and_everything_are_told_apart() {
    for nothing in ["spec: {}", "spec:", "", "spec: {rules: []}", "spec: {rules: null, selector: null}"] {
        let policy = good(nothing);
        assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0), "{nothing}");
    }
    for everything in ["spec: {rules: [{}]}", "spec: {rules: [{from: null, when: []}]}"] {
        assert_eq!(good(everything).rules, [Rule::default()], "{everything}");
    }
}

#[test]
fn the_scope_follows_namespace_and_selector() {
    let scope = |namespace, spec| authorization(namespace, spec).0.scope;
    assert_eq!(scope("shop", "spec: {}"), Scope::Namespace("shop".into()));
    assert_eq!(scope("shop", "spec: {selector: {}}"), Scope::Namespace("shop".into()));
    assert_eq!(scope("adit-system", "spec: {selector: {matchLabels: {}}}"), Scope::Mesh);
    let labels = Labels([("app".into(), "web".into())].into());
    assert_eq!(
        scope("adit-system", "spec: {selector: {matchLabels: {app: web}}}"),
        Scope::Selected { namespace: None, labels }
    );
}

/// One thing wrong in a rule: the field that is named, and what is left of the rule.
#[track_caller]
fn wrong_rule(rule: &str, field: &str, says: &str, left: Rule) {
    let (policy, problems) = authorization("shop", &format!("spec: {{action: DENY, rules: [{rule}, {{}}]}}"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with(&format!("spec.rules[0]{field}: ")), "{problems:?}");
    assert!(problems[0].contains(says), "{problems:?}");
    let left = Rule { understood: Understood::InPart, ..left };
    assert_eq!(policy.rules, [left, Rule::default()], "the other rule stands");
}

#[test]
fn each_thing_wrong_is_named_and_only_it_is_left_out() {
    let nothing = Rule::default;
    let one_source = || Rule { from: vec![Source::default()], ..Rule::default() };
    let one_operation = || Rule { to: vec![Operation::default()], ..Rule::default() };
    // HTTP
    wrong_rule(
        "{to: [{operation: {methods: [GET]}}]}",
        ".to[0].operation.methods",
        "inside HTTP",
        one_operation(),
    );
    wrong_rule(
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        ".from[0].source.requestPrincipals",
        "inside HTTP",
        one_source(),
    );
    wrong_rule(
        "{from: [{source: {notRemoteIpBlocks: [a]}}]}",
        ".from[0].source.notRemoteIpBlocks",
        "inside HTTP",
        one_source(),
    );
    wrong_rule(
        "{when: [{key: 'request.headers[x]', values: [a]}]}",
        ".when[0].key",
        "inside HTTP",
        nothing(),
    );
    wrong_rule("{when: [{key: connection.sni, values: [a]}]}", ".when[0].key", "inside HTTP", nothing());
    // unknown fields
    wrong_rule("{form: [{source: {namespaces: [a]}}]}", ".form", "from, to, when", nothing());
    wrong_rule(
        "{from: [{sources: {}, source: {namespaces: ['*']}}]}",
        ".from[0].sources",
        "source",
        Rule {
            from: vec![Source {
                namespaces: Among { any: vec![Pattern::Any], none: vec![] },
                ..Source::default()
            }],
            ..Rule::default()
        },
    );
    wrong_rule(
        "{from: [{source: {principal: [a]}}]}",
        ".from[0].source.principal",
        "principals",
        one_source(),
    );
    wrong_rule("{to: [{operation: {port: ['80']}}]}", ".to[0].operation.port", "ports", one_operation());
    wrong_rule(
        "{when: [{key: source.ip, value: [a], values: ['10.0.0.1']}]}",
        ".when[0].value",
        "values",
        Rule {
            when: vec![Condition::SourceIp(Among {
                any: vec!["10.0.0.1/32".parse().unwrap()],
                none: vec![],
            })],
            ..Rule::default()
        },
    );
    wrong_rule("{when: [{key: source.port, values: ['1']}]}", ".when[0].key", "destination.port", nothing());
    // ports
    for bad in ["0", "65536", "'080'", "'http'", "-1", "80.5", "'+80'", "''", "' 80'"] {
        wrong_rule(
            &format!("{{to: [{{operation: {{ports: [80, {bad}]}}}}]}}"),
            ".to[0].operation.ports[1]",
            "not a port",
            one_operation(),
        );
    }
    wrong_rule(
        "{to: [{operation: {notPorts: [true]}}]}",
        ".to[0].operation.notPorts[0]",
        "not a port",
        one_operation(),
    );
    // addresses
    for bad in [
        "10.0.0.0/33",
        "10.0.0/8",
        "01.2.3.4",
        "x",
        "10.0.0.0/-1",
        "10.0.0.0/08",
        "10.0.0.0/",
        "fe80::1%eth0",
        "::1/129",
    ] {
        wrong_rule(
            &format!("{{from: [{{source: {{ipBlocks: ['{bad}']}}}}]}}"),
            ".from[0].source.ipBlocks[0]",
            "neither an address",
            one_source(),
        );
    }
    wrong_rule(
        "{when: [{key: destination.ip, values: [x]}]}",
        ".when[0].values[0]",
        "neither an address",
        Rule { when: vec![Condition::DestinationIp(Among::default())], ..Rule::default() },
    );
    // names
    for bad in ["a*b/c", "**", "*a*", ""] {
        wrong_rule(
            &format!("{{from: [{{source: {{principals: ['{bad}']}}}}]}}"),
            ".from[0].source.principals[0]",
            "a star",
            one_source(),
        );
    }
    for bad in ["web", "cluster.local", "cluster.local//x", "a b/*", "cluster.local/ns/a/"] {
        wrong_rule(
            &format!("{{from: [{{source: {{notPrincipals: ['{bad}']}}}}]}}"),
            ".from[0].source.notPrincipals[0]",
            "no identity",
            one_source(),
        );
    }
    wrong_rule(
        "{from: [{source: {namespaces: [a/b]}}]}",
        ".from[0].source.namespaces[0]",
        "no namespace",
        one_source(),
    );
    for bad in ["a/b/c", "*", "a/*", "/a", "a/", ""] {
        wrong_rule(
            &format!("{{from: [{{source: {{serviceAccounts: ['{bad}']}}}}]}}"),
            ".from[0].source.serviceAccounts[0]",
            "ACCOUNT",
            one_source(),
        );
    }
    // shapes
    wrong_rule("x", "", "a string, not an object", nothing());
    wrong_rule("null", "", "null, not an object", nothing());
    wrong_rule("{from: {source: {}}}", ".from", "not a list", nothing());
    wrong_rule("{from: []}", ".from", "empty", nothing());
    wrong_rule("{to: []}", ".to", "empty", nothing());
    wrong_rule("{from: [x]}", ".from[0]", "not an object", one_source());
    wrong_rule("{from: [{}]}", ".from[0].source", "missing", one_source());
    wrong_rule("{from: [{source: {}}]}", ".from[0].source", "empty", one_source());
    wrong_rule("{to: [{operation: {ports: null}}]}", ".to[0].operation", "empty", one_operation());
    wrong_rule("{from: [{source: {principals: []}}]}", ".from[0].source.principals", "empty", one_source());
    wrong_rule(
        "{from: [{source: {principals: x}}]}",
        ".from[0].source.principals",
        "not a list",
        one_source(),
    );
    wrong_rule(
        "{from: [{source: {principals: [1]}}]}",
        ".from[0].source.principals[0]",
        "not a string",
        one_source(),
    );
    wrong_rule("{when: [{values: [a]}]}", ".when[0].key", "missing", nothing());
    wrong_rule("{when: [{key: [a], values: [a]}]}", ".when[0].key", "not a string", nothing());
    wrong_rule(
        "{when: [{key: source.ip}]}",
        ".when[0].values",
        "missing",
        Rule { when: vec![Condition::SourceIp(Among::default())], ..Rule::default() },
    );
}

#[test]
fn a_bad_value_leaves_the_negation_and_the_other_conditions() {
    let (policy, _) = authorization(
        "shop",
        "spec: {rules: [{from: [{source: {ipBlocks: [x, 10.0.0.1], notIpBlocks: [10.0.0.2], namespaces: [a]}}]}]}",
    );
    let source = &policy.rules[0].from[0];
    assert!(source.ip_blocks.any.is_empty());
    assert_eq!((source.ip_blocks.none.len(), source.namespaces.any.len()), (1, 1));
}

/// One thing wrong beside the rules: what is said, and the policy.
fn wrong_policy(spec: &str, problem: &str) -> AuthorizationPolicy {
    let (policy, problems) = authorization("shop", spec);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with(problem), "{problems:?}");
    policy
}

#[test]
fn a_bad_selector_means_the_whole_namespace_and_marks_every_rule() {
    for (selector, field) in [
        ("{matchExpressions: []}", "spec.selector.matchExpressions: "),
        ("{matchLabels: {app: 1}}", "spec.selector.matchLabels.app: "),
        ("{matchLabels: {app: '*'}}", "spec.selector.matchLabels.app: "),
        ("{matchLabels: {a/b/c: x}}", "spec.selector.matchLabels[\"a/b/c\"]: "),
        ("{matchLabels: [app]}", "spec.selector.matchLabels: "),
        ("app", "spec.selector: "),
    ] {
        let policy = wrong_policy(&format!("spec: {{selector: {selector}, rules: [{{}}]}}"), field);
        let scope = Scope::Selected { namespace: Some("shop".into()), labels: Labels::default() };
        assert_eq!(policy.scope, scope);
        assert_eq!(policy.rules[0].understood, Understood::InPart);
    }
}

#[test]
fn an_unknown_action_is_kept_as_such() {
    for action in ["CUSTOM", "allow", "''", "1"] {
        let policy = wrong_policy(&format!("spec: {{action: {action}, rules: [{{}}]}}"), "spec.action: ");
        assert_eq!(policy.action, Action::NotUnderstood);
        assert_eq!(policy.rules, [Rule::default()]);
    }
}

#[test]
fn a_bad_dry_run_is_enforced_and_marks_every_rule() {
    let policy = wrong_policy("spec: {dryRun: 'true', rules: [{}]}", "spec.dryRun: ");
    assert!(!policy.dry_run);
    assert_eq!(policy.rules[0].understood, Understood::InPart);
}

#[test]
fn an_unknown_field_of_the_spec_marks_every_rule_or_stands_for_one() {
    let lost = [Rule { understood: Understood::InPart, ..Rule::default() }];
    for (spec, field) in [
        ("spec: {action: DENY, ruels: [{}]}", "spec.ruels: "),
        ("spec: {action: DENY, rules: [{}], targetRefs: []}", "spec.targetRefs: "),
        ("spec: {action: DENY, rules: {from: []}}", "spec.rules: "),
        ("spec: x", "spec: "),
        ("sepc: {action: DENY}", "sepc: "),
    ] {
        assert_eq!(wrong_policy(spec, field).rules, lost, "{spec}");
    }
}

#[test]
fn labels_have_kubernetes_syntax() {
    for (key, value, good) in [
        ("app", "web", true),
        ("app.kubernetes.io/name", "Web_1.x", true),
        ("app", "", true),
        ("", "x", false),
        ("/a", "x", false),
        ("a", "-x", false),
        ("a", "x.", false),
        ("a", "a b", false),
        ("a", &"x".repeat(64), false),
    ] {
        assert_eq!(parse::label(key, value).is_ok(), good, "{key}={value}");
    }
}

#[test]
fn peer_authentications_are_read() {
    use PeerMode::{Permissive, Strict};
    let (policy, problems) = peers(
        "shop",
        "spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}, '9': {mode: UNSET}}}",
    );
    assert_eq!(problems, [""; 0]);
    assert_eq!((policy.mode, policy.port_modes), (Some(Strict), [(8080, Permissive)].into()));
    for unset in ["spec: {}", "", "spec: {mtls: {mode: UNSET}}", "spec: {mtls: {}}"] {
        let (policy, problems) = peers("adit-system", unset);
        assert_eq!((policy.mode, policy.scope, problems), (None, Scope::Mesh, vec![]), "{unset}");
    }
}

#[test]
fn a_peer_authentication_that_is_not_understood_is_strict() {
    for (spec, field) in [
        ("{mtls: {mode: DISABLE}}", "spec.mtls.mode: "),
        ("{mtls: {mode: permissive}}", "spec.mtls.mode: "),
        ("{mtls: {mode: 1}}", "spec.mtls.mode: "),
        ("{mtls: PERMISSIVE}", "spec.mtls: "),
        ("{mtls: {mode: PERMISSIVE, x: 1}}", "spec.mtls.x: "),
        ("{mtsl: {mode: STRICT}}", "spec.mtsl: "),
        ("{mtls: {mode: PERMISSIVE}, portLevelMtls: {http: {mode: STRICT}}}", "spec.portLevelMtls.http: "),
        ("{portLevelMtls: {80: {mode: PERMISSIVE}, 0: {mode: STRICT}}}", "spec.portLevelMtls.0: "),
        ("{portLevelMtls: []}", "spec.portLevelMtls: "),
        ("{selector: {matchLabels: {a: '*'}}, mtls: {mode: PERMISSIVE}}", "spec.selector.matchLabels.a: "),
    ] {
        let (policy, problems) = peers("shop", &format!("spec: {spec}"));
        assert!(problems.len() == 1 && problems[0].starts_with(field), "{spec}: {problems:?}");
        assert_eq!((policy.mode, policy.port_modes.len()), (Some(PeerMode::Strict), 0), "{spec}");
    }
    let (policy, _) = peers("shop", "spec: {selector: {matchLabels: {a: '*'}}}");
    assert_eq!(policy.level(), adit_core::policy::Level::Workload);
}

#[test]
fn traffic_policies_are_read() {
    let ms = std::time::Duration::from_millis;
    let (policy, problems) = traffic(
        "{targetRefs: [{kind: Service, name: web, group: ''}, {kind: Service, name: web}, {kind: Service, name: db}],
          connectTimeout: 5s, attemptTimeout: 500ms, retry: {attempts: 3, backoff: 10ms, maxBackoff: 1s},
          retryConstraint: {budget: {percent: 20, interval: 20s}, minRetryRate: {count: 4, interval: 2s}},
          ejection: {consecutiveFailures: 3, baseTime: 2s, maxTime: 1m, maxPercent: 10}}",
    );
    assert_eq!(problems, [""; 0]);
    let services: Vec<_> = policy.services.iter().map(ToString::to_string).collect();
    assert_eq!(services, ["shop/web", "shop/db"]);
    let settings = policy.settings;
    assert_eq!((settings.connect_deadline, settings.attempt_timeout), (ms(5000), ms(500)));
    assert_eq!((settings.retries_max, settings.backoff_base, settings.backoff_cap), (3, ms(10), ms(1000)));
    assert_eq!((settings.budget_percent, settings.budget_interval), (20, ms(20_000)));
    assert_eq!(settings.budget_floor_interval, Some(ms(500)));
    assert_eq!((settings.ejection_failures, settings.ejection_percent_max), (3, 10));
    assert_eq!((settings.ejection_base, settings.ejection_cap), (ms(2000), ms(60_000)));
}

#[test]
fn a_traffic_policy_keeps_the_defaults_of_what_it_does_not_say() {
    let (policy, problems) = traffic(
        "{targetRefs: [{kind: Service, name: web}], retryConstraint: {minRetryRate: {}}, retry: {backoff: 1s}}",
    );
    assert_eq!(problems, [""; 0]);
    let defaults = adit_core::traffic::TrafficSettings::default();
    assert_eq!(policy.settings.budget_floor_interval, defaults.budget_floor_interval);
    assert_eq!(policy.settings.backoff_cap, policy.settings.backoff_base, "a base above the cap lifts it");
    let (policy, _) =
        traffic("{targetRefs: [{kind: Service, name: web}], retryConstraint: {minRetryRate: {count: 0}}}");
    assert_eq!(policy.settings.budget_floor_interval, None);
}

#[test]
fn what_a_traffic_policy_gets_wrong_is_named_and_keeps_its_default() {
    let (policy, problems) = traffic(
        "{targetRefs: [{kind: Service}, {kind: Gateway, name: x}, {group: apps, kind: Service, name: x}, {kind: Service, name: web, port: 1}],
          connectTimeout: 3, attemptTimeout: 0s, timeout: 1s, retry: {attempts: 11, backoff: 1.5s},
          retryConstraint: {budget: {percent: 101}}, ejection: {maxPercent: x}}",
    );
    let fields: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
    assert_eq!(
        fields,
        [
            "spec.timeout",
            "spec.connectTimeout",
            "spec.attemptTimeout",
            "spec.retry.attempts",
            "spec.retry.backoff",
            "spec.retryConstraint.budget.percent",
            "spec.ejection.maxPercent",
            "spec.targetRefs[0].name",
            "spec.targetRefs[1].kind",
            "spec.targetRefs[2].group",
            "spec.targetRefs[3].port",
        ]
    );
    assert_eq!(policy.settings, adit_core::traffic::TrafficSettings::default());
    assert_eq!(policy.services.len(), 1);
    assert_eq!(traffic("{}").1, ["spec.targetRefs: is missing"]);
    let (policy, problems) = traffic("{targetRefs: [{group: 1, kind: Service, name: x}]}");
    assert_eq!(
        (policy.services.len(), &*problems),
        (0, &["spec.targetRefs[0].group: is a number, not a string".to_owned()][..])
    );
}

#[test]
fn a_problem_is_found_in_its_file() {
    let yaml = "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules:\n  - to:\n    - operation:\n        ports:\n        - 80\n        - 70000\n";
    let document = crate::yaml::read(yaml).unwrap().remove(0);
    let (_, object) = Object::read(&document.value).unwrap().unwrap();
    let problems = object.translate("adit-system").unwrap().problems;
    assert_eq!(document.locate(&problems[0].field).to_string(), "10:11");
}

#[test]
fn the_age_of_a_policy_without_a_timestamp_is_zero() {
    let policy: Policy = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
    assert_eq!(policy.created(), 0);
}
