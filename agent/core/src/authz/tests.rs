use super::*;
use crate::policy::{Among, Scope};

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text)
}

fn policy(text: &str, action: Action, dry_run: bool, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        name: name(text),
        created: 0,
        scope: Scope::Namespace("shop".into()),
        action,
        dry_run,
        rules,
    }
}

fn compile(policies: &[AuthorizationPolicy]) -> PolicySet {
    let shared: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
    PolicySet::compile(shared.iter())
}

fn any<T>(values: impl IntoIterator<Item = T>) -> Among<T> {
    Among { any: values.into_iter().collect(), none: Vec::new() }
}

fn none<T>(values: impl IntoIterator<Item = T>) -> Among<T> {
    Among { any: Vec::new(), none: values.into_iter().collect() }
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn block(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const BOT: &str = "spiffe://cluster.local/ns/other/sa/bot";

struct Asked {
    peer: Option<SpiffeId>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl Asked {
    fn request(&self) -> Request<'_> {
        Request { peer: self.peer.as_ref(), source_ip: self.source_ip, destination: self.destination }
    }
}

fn asked(peer: Option<&str>, destination: &str) -> Asked {
    Asked {
        peer: peer.map(id),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

fn every_request(peers: &[Option<&str>], sources: &[&str], destinations: &[&str]) -> Vec<Asked> {
    let mut all = Vec::new();
    for peer in peers {
        for source in sources {
            for destination in destinations {
                all.push(Asked {
                    peer: peer.map(id),
                    source_ip: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                });
            }
        }
    }
    all
}

const UNDERSTOOD: [Understood; 2] = [Understood::Fully, Understood::InPart];
const ACTIONS: [Action; 4] = [Action::Allow, Action::Deny, Action::Audit, Action::NotUnderstood];

/// Two principals, two ports: no more is needed for policies to meet in every way.
fn small_rules() -> Vec<Rule> {
    let principals: [Option<Among<Pattern>>; 5] = [
        None,
        Some(any([pattern("cluster.local/ns/shop/sa/web")])),
        Some(any([pattern("*/sa/bot")])),
        Some(none([pattern("cluster.local/ns/shop/sa/web")])),
        Some(none([pattern("*")])),
    ];
    let ports = [None, Some(any([80])), Some(none([80]))];
    let mut rules = Vec::new();
    for principal in &principals {
        for port in &ports {
            for understood in UNDERSTOOD {
                rules.push(Rule {
                    from: principal
                        .iter()
                        .map(|principals| Source { principals: principals.clone(), ..Source::default() })
                        .collect(),
                    to: port.iter().map(|ports| Operation { ports: ports.clone() }).collect(),
                    when: Vec::new(),
                    understood,
                });
            }
        }
    }
    rules
}

/// Every field, in both forms, alone and beside others.
fn every_rule() -> Vec<Rule> {
    let web = || ServiceAccount { namespace: "shop".into(), name: "web".into() };
    let source = Source::default;
    let froms: Vec<Vec<Source>> = vec![
        vec![],
        vec![source()],
        vec![Source { principals: any([pattern("*")]), ..source() }],
        vec![Source { principals: any([pattern("cluster.local/ns/shop/*")]), ..source() }],
        vec![Source { namespaces: any([pattern("shop")]), ..source() }],
        vec![Source { namespaces: none([pattern("shop")]), ..source() }],
        vec![Source {
            namespaces: any([pattern("*er")]),
            principals: none([pattern("*/sa/bot")]),
            ..source()
        }],
        vec![Source { service_accounts: any([web()]), ..source() }],
        vec![Source { service_accounts: none([web()]), ..source() }],
        vec![Source { ip_blocks: any([block("10.0.0.0/24")]), ..source() }],
        vec![Source { ip_blocks: none([block("10.0.0.0/24"), block("fd00::/64")]), ..source() }],
        vec![
            Source {
                principals: any([pattern("cluster.local/ns/shop/sa/web")]),
                ip_blocks: any([block("10.1.0.0/16")]),
                ..source()
            },
            Source { namespaces: any([pattern("other")]), ..source() },
        ],
    ];
    let tos: Vec<Vec<Operation>> = vec![
        vec![],
        vec![Operation { ports: any([80]) }],
        vec![Operation { ports: none([80]) }],
        vec![Operation { ports: any([443]) }, Operation { ports: any([80, 8080]) }],
        vec![Operation { ports: Among { any: vec![80, 443], none: vec![443] } }],
    ];
    let whens: Vec<Vec<Condition>> = vec![
        vec![],
        vec![Condition::SourcePrincipal(any([pattern("*/sa/web")]))],
        vec![Condition::SourcePrincipal(none([pattern("*")]))],
        vec![Condition::SourceNamespace(any([pattern("o*")]))],
        vec![Condition::SourceNamespace(none([pattern("o*")]))],
        vec![Condition::SourceIp(any([block("10.0.0.1/32")]))],
        vec![Condition::SourceIp(none([block("10.0.0.1/32")]))],
        vec![Condition::DestinationIp(any([block("10.9.0.0/16")]))],
        vec![Condition::DestinationIp(none([block("10.9.0.0/16")]))],
        vec![Condition::DestinationPort(any([80]))],
        vec![Condition::DestinationPort(none([80]))],
        vec![Condition::SourceNamespace(any([pattern("shop")])), Condition::DestinationPort(any([80]))],
    ];
    let mut rules = Vec::new();
    for from in &froms {
        for to in &tos {
            for when in &whens {
                for understood in UNDERSTOOD {
                    rules.push(Rule { from: from.clone(), to: to.clone(), when: when.clone(), understood });
                }
            }
        }
    }
    rules
}

fn check_against_oracle(policies: &[AuthorizationPolicy], requests: &[Asked]) {
    let set = compile(policies);
    for asked in requests {
        let request = asked.request();
        let verdict = decide(&set, &request);
        assert_eq!(verdict.allowed(), oracle::allowed(policies, &request), "{policies:#?} {request:?}");
        check_names(policies, &request, verdict);
    }
}

/// The verdict names a policy with that effect, and a rule of it that matches.
fn check_names(policies: &[AuthorizationPolicy], request: &Request<'_>, verdict: Verdict<'_>) {
    let (ruling, actions): (_, &[Action]) = match verdict {
        Verdict::Allow(AllowCause::By(ruling)) => (ruling, &[Action::Allow]),
        Verdict::Deny(DenyCause::By(ruling)) => (ruling, &[Action::Deny, Action::NotUnderstood]),
        Verdict::Allow(AllowCause::NoPolicies) | Verdict::Deny(DenyCause::NoneMatched(_)) => return,
    };
    let named = policies.iter().find(|policy| policy.name == *ruling.policy).unwrap();
    assert!(actions.contains(&named.action) && !named.dry_run, "{named:?}");
    let rule = usize::try_from(ruling.rule).unwrap();
    assert!(oracle::matches(&named.rules[rule], request), "{named:?} {request:?}");
    let earlier = named.rules[..rule].iter().filter(|rule| rule.understood == Understood::Fully);
    assert!(!earlier.into_iter().any(|rule| oracle::matches(rule, request)), "not the first: {named:?}");
}

#[test]
fn decide_agrees_with_the_oracle_on_every_two_policies() {
    let requests =
        every_request(&[None, Some(WEB), Some(BOT)], &["10.0.0.1"], &["10.9.0.1:80", "10.9.0.1:81"]);
    let mut rule_lists: Vec<Vec<Rule>> = small_rules().into_iter().map(|rule| vec![rule]).collect();
    rule_lists.push(Vec::new());
    let mut policies = Vec::new();
    for action in ACTIONS {
        for dry_run in [false, true] {
            for rules in &rule_lists {
                policies.push(policy("a", action, dry_run, rules.clone()));
            }
        }
    }
    check_against_oracle(&[], &requests);
    for first in &policies {
        for second in &policies {
            let second = AuthorizationPolicy { name: name("b"), ..second.clone() };
            check_against_oracle(&[first.clone(), second], &requests);
        }
    }
}

#[test]
fn decide_agrees_with_the_oracle_on_every_field() {
    let requests = every_request(
        &[
            None,
            Some(WEB),
            Some(BOT),
            Some("spiffe://cluster.local/ns/shop/web"),
            Some("spiffe://a.org/ns/other/sa/web"),
        ],
        &["10.0.0.1", "10.1.2.3", "::ffff:10.0.0.1", "fd00::1"],
        &["10.9.0.1:80", "[::ffff:10.9.0.1]:443", "[fd01::1]:80"],
    );
    for rule in every_rule() {
        for action in [Action::Allow, Action::Deny] {
            check_against_oracle(&[policy("a", action, false, vec![rule.clone()])], &requests);
        }
    }
}

#[test]
fn decide_agrees_with_the_oracle_on_every_policy_of_two_rules() {
    let requests =
        every_request(&[None, Some(WEB), Some(BOT)], &["10.0.0.1"], &["10.9.0.1:80", "10.9.0.1:81"]);
    for first in small_rules() {
        for second in small_rules() {
            for action in ACTIONS {
                check_against_oracle(
                    &[policy("a", action, false, vec![first.clone(), second.clone()])],
                    &requests,
                );
            }
        }
    }
}

#[test]
fn an_empty_spec_allows_nothing_and_an_empty_rule_everything() {
    let plain = asked(None, "10.9.0.1:80");
    let nothing = compile(&[policy("nothing", Action::Allow, false, vec![])]);
    assert!(!decide(&nothing, &plain.request()).allowed());
    let everything = compile(&[policy("everything", Action::Allow, false, vec![Rule::default()])]);
    assert_eq!(
        decide(&everything, &plain.request()),
        Verdict::Allow(AllowCause::By(Ruling { policy: &name("everything"), rule: 0 }))
    );
    assert_eq!(decide(&compile(&[]), &plain.request()), Verdict::Allow(AllowCause::NoPolicies));
}

#[test]
fn where_none_matches_every_allow_policy_that_was_asked_is_named_and_no_other() {
    let set = compile(&[
        policy("d", Action::Allow, false, vec![]),
        policy("c", Action::Deny, false, vec![]),
        policy("b", Action::Allow, true, vec![]),
        policy("a", Action::Allow, false, vec![]),
    ]);
    let Verdict::Deny(DenyCause::NoneMatched(asked)) = decide(&set, &asked(None, "10.9.0.1:80").request())
    else {
        panic!("none matches");
    };
    assert_eq!(asked.names().collect::<Vec<_>>(), [&name("a"), &name("d")]);
}

#[test]
fn the_first_policy_by_name_is_named_whatever_the_order_of_compiling() {
    let all = [
        policy("b", Action::Deny, false, vec![Rule::default()]),
        policy(
            "a",
            Action::Deny,
            false,
            vec![Rule { to: vec![Operation { ports: any([1]) }], ..Rule::default() }, Rule::default()],
        ),
    ];
    let set = compile(&all);
    assert_eq!(
        decide(&set, &asked(None, "10.9.0.1:80").request()),
        Verdict::Deny(DenyCause::By(Ruling { policy: &name("a"), rule: 1 }))
    );
}

fn outcomes(policies: &[AuthorizationPolicy], asked: &Asked) -> Vec<(String, Outcome)> {
    let set = compile(policies);
    let mut seen = Vec::new();
    observe(&set, &asked.request(), |observed| {
        seen.push((observed.policy.name.to_string(), observed.outcome));
    });
    seen
}

fn from_web() -> Rule {
    Rule {
        from: vec![Source { principals: any([pattern("*/sa/web")]), ..Source::default() }],
        ..Rule::default()
    }
}

#[test]
fn dry_runs_and_audits_are_seen_and_change_nothing() {
    let all = [
        policy("audit", Action::Audit, false, vec![from_web()]),
        policy("dry-allow", Action::Allow, true, vec![from_web()]),
        policy("dry-deny", Action::Deny, true, vec![Rule::default()]),
    ];
    let web = asked(Some(WEB), "10.9.0.1:80");
    assert_eq!(decide(&compile(&all), &web.request()), Verdict::Allow(AllowCause::NoPolicies));
    assert_eq!(
        outcomes(&all, &web),
        [
            ("audit".into(), Outcome::Audited { rule: 0 }),
            ("dry-allow".into(), Outcome::WouldAllow { rule: 0 }),
            ("dry-deny".into(), Outcome::WouldDeny { rule: 0 }),
        ]
    );
    assert_eq!(
        outcomes(&all, &asked(Some(BOT), "10.9.0.1:80")),
        [("dry-allow".into(), Outcome::WouldMatchNone), ("dry-deny".into(), Outcome::WouldDeny { rule: 0 }),]
    );
}

#[test]
fn a_dry_allow_is_not_blamed_where_something_else_decides() {
    let dry = policy("dry", Action::Allow, true, vec![from_web()]);
    let bot = asked(Some(BOT), "10.9.0.1:80");
    let beside = |other| outcomes(&[dry.clone(), other], &bot);
    assert_eq!(outcomes(std::slice::from_ref(&dry), &bot), [("dry".into(), Outcome::WouldMatchNone)]);
    assert_eq!(beside(policy("allow", Action::Allow, false, vec![Rule::default()])), []);
    assert_eq!(beside(policy("allow", Action::Allow, false, vec![])), []);
    assert_eq!(beside(policy("deny", Action::Deny, false, vec![Rule::default()])), []);
    assert_eq!(
        beside(policy("dry-2", Action::Allow, true, vec![Rule::default()])),
        [("dry-2".into(), Outcome::WouldAllow { rule: 0 })]
    );
}

#[test]
fn an_audit_rule_that_was_not_understood_counts_nothing() {
    let part = Rule { understood: Understood::InPart, ..Rule::default() };
    assert_eq!(
        outcomes(&[policy("audit", Action::Audit, false, vec![part])], &asked(Some(WEB), "10.9.0.1:80")),
        []
    );
}

#[test]
fn dry_runs_say_what_enforcing_them_would_do() {
    let requests =
        every_request(&[None, Some(WEB), Some(BOT)], &["10.0.0.1"], &["10.9.0.1:80", "10.9.0.1:81"]);
    for rule in small_rules() {
        for action in ACTIONS {
            let dry = [policy("a", action, true, vec![rule.clone()])];
            let enforced = [policy("a", action, false, vec![rule.clone()])];
            for asked in &requests {
                let refused = outcomes(&dry, asked).iter().any(|(_, outcome)| match outcome {
                    Outcome::WouldDeny { .. } | Outcome::WouldMatchNone => true,
                    Outcome::Audited { .. } | Outcome::WouldAllow { .. } => false,
                });
                assert_eq!(
                    refused,
                    !oracle::allowed(&enforced, &asked.request()),
                    "{dry:?} {:?}",
                    asked.request()
                );
            }
        }
    }
}

#[test]
fn patterns_have_a_star_at_one_end_only() {
    for (text, matching, other) in
        [("*", "", ""), ("a/b", "a/b", "a/bc"), ("a/*", "a/b", "b/a/"), ("*/b", "a/b", "a/bc")]
    {
        let pattern = pattern(text);
        assert!(pattern.matches(matching), "{text}");
        assert!(pattern == Pattern::Any || !pattern.matches(other), "{text}");
    }
    for bad in ["", "**", "*a*", "a*b", "*a*b", "a**"] {
        assert_eq!(Pattern::parse(bad), None, "{bad:?}");
    }
}

fn peers(
    text: &str,
    created: i64,
    scope: Scope,
    mode: Option<PeerMode>,
    ports: &[(u16, PeerMode)],
) -> PeerAuthentication {
    PeerAuthentication { name: name(text), created, scope, mode, port_modes: ports.iter().copied().collect() }
}

fn selected(key: &str) -> Scope {
    Scope::Selected {
        namespace: Some("shop".into()),
        labels: crate::workload::Labels([(key.into(), "x".into())].into()),
    }
}

fn mode(policies: &[PeerAuthentication], port: u16) -> (PeerMode, Option<String>) {
    let shared: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
    let modes = PeerModes::compile(shared.iter());
    let (mode, by) = peer_mode(&modes, port);
    (mode, by.map(|by| by.name.to_string()))
}

#[test]
fn port_beats_workload_beats_namespace_beats_mesh() {
    use PeerMode::{Permissive, Strict};
    let mesh = peers("mesh", 0, Scope::Mesh, Some(Strict), &[]);
    let namespace = peers("ns", 9, Scope::Namespace("shop".into()), Some(Permissive), &[]);
    let workload = peers("wl", 9, selected("app"), Some(Strict), &[(80, Permissive)]);
    let silent = peers("wl", 9, selected("app"), None, &[]);
    assert_eq!(mode(&[], 80), (Permissive, None));
    assert_eq!(mode(std::slice::from_ref(&mesh), 80), (Strict, Some("mesh".into())));
    let both = [mesh.clone(), namespace.clone()];
    assert_eq!(mode(&both, 80), (Permissive, Some("ns".into())));
    let three = [mesh.clone(), namespace.clone(), workload];
    assert_eq!(mode(&three, 443), (Strict, Some("wl".into())));
    assert_eq!(mode(&three, 80), (Permissive, Some("wl".into())));
    assert_eq!(mode(&[mesh, namespace, silent], 80), (Permissive, Some("ns".into())));
}

#[test]
fn the_strict_ports_among_some_are_those_of_which_each_is_strict() {
    use PeerMode::{Permissive, Strict};
    let mesh = || peers("mesh", 0, Scope::Mesh, Some(Strict), &[(90, Permissive)]);
    let workload =
        |mode| peers("wl", 9, selected("app"), mode, &[(80, Permissive), (443, Strict), (65535, Strict)]);
    let cases = [
        vec![],
        vec![mesh()],
        vec![workload(None)],
        vec![mesh(), workload(None)],
        vec![mesh(), workload(Some(Permissive))],
        vec![mesh(), workload(Some(Strict))],
    ];
    for policies in cases {
        let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
        let modes = PeerModes::compile(policies.iter());
        for range in [1..=65535, 0..=79, 80..=80, 79..=91, 443..=444, 65535..=65535, 8080..=8080] {
            let found = strict_among(&modes, std::slice::from_ref(&range));
            let flat: Vec<_> =
                found.into_iter().flat_map(|(range, by)| range.map(move |port| (port, by))).collect();
            let strict = |port| match peer_mode(&modes, port) {
                (Strict, by) => by.map(|by| (port, by)),
                (Permissive, _) => None,
            };
            assert_eq!(flat, range.filter_map(strict).collect::<Vec<_>>());
        }
    }
    let modes = PeerModes::compile([Arc::new(mesh())].iter());
    assert_eq!(strict_among(&modes, &[1..=65535]).len(), 2, "as ranges");
}

#[test]
fn of_two_at_one_level_the_older_wins_then_the_name() {
    use PeerMode::{Permissive, Strict};
    let scope = || Scope::Namespace("shop".into());
    let old = peers("z-old", 1, scope(), Some(Strict), &[]);
    let new = peers("a-new", 2, scope(), Some(Permissive), &[(80, Permissive)]);
    let twin = peers("z-twin", 1, scope(), Some(Permissive), &[]);
    let mut all = vec![new, old, twin];
    for _ in 0..3 {
        all.rotate_left(1);
        assert_eq!(mode(&all, 80), (Strict, Some("z-old".into())));
        let shared: Vec<_> = all.iter().cloned().map(Arc::new).collect();
        let losers: Vec<_> =
            losing(shared.iter()).into_iter().map(|losing| losing.loser.name.to_string()).collect();
        assert_eq!(losers, ["z-twin", "a-new"]);
    }
    let apart = [peers("a", 0, selected("app"), None, &[]), peers("b", 0, selected("tier"), None, &[])];
    let shared: Vec<_> = apart.into_iter().map(Arc::new).collect();
    assert_eq!(losing(shared.iter()), []);
}

#[test]
fn a_scope_selects_what_it_says() {
    let labels = crate::workload::Labels([("app".into(), "x".into())].into());
    let other = crate::workload::Labels::default();
    let everywhere = Scope::Selected { namespace: None, labels: labels.clone() };
    for (scope, own, unlabelled, elsewhere) in [
        (Scope::Mesh, true, true, true),
        (Scope::Namespace("shop".into()), true, true, false),
        (selected("app"), true, false, false),
        (everywhere, true, false, true),
    ] {
        assert_eq!(scope.selects("shop", &labels), own, "{scope:?}");
        assert_eq!(scope.selects("shop", &other), unlabelled, "{scope:?}");
        assert_eq!(scope.selects("else", &labels), elsewhere, "{scope:?}");
    }
}
