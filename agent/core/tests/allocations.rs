//! Policy is asked once per connection and again at each change, on the threads that carry bytes: it must not allocate.
//!
//! A binary of its own, as it counts with the process's allocator; what other threads allocate does not count.

#![expect(clippy::unwrap_used, reason = "a test, also outside of its #[test] functions")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_core::authz::{AllowCause, DenyCause, PolicySet, Request, Verdict, decide, observe};
use adit_core::net::ObjectName;
use adit_core::policy::{
    Action, Among, AuthorizationPolicy, Condition, Operation, Pattern, Rule, Scope, ServiceAccount, Source,
};
use adit_proto::SpiffeId;
use allocation_counter::measure;

fn any<T>(values: impl IntoIterator<Item = T>) -> Among<T> {
    Among { any: values.into_iter().collect(), none: Vec::new() }
}

fn policy(name: &str, action: Action, dry_run: bool, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    let (name, scope) = (ObjectName::new("shop", name), Scope::Mesh);
    Arc::new(AuthorizationPolicy { name, created: 0, scope, action, dry_run, rules })
}

/// Every field, in each form of a pattern.
fn rule(account: &str, port: u16) -> Rule {
    let pattern = |text: &str| Pattern::parse(text).unwrap();
    let source = Source {
        principals: Among { any: vec![pattern("cluster.local/*")], none: vec![pattern("*/sa/nobody")] },
        namespaces: any([pattern("shop"), pattern("*")]),
        service_accounts: any([ServiceAccount { namespace: "shop".into(), name: account.into() }]),
        ip_blocks: any(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
    };
    let when = vec![
        Condition::SourcePrincipal(any([pattern("*web"), pattern("*bot"), pattern("*guest")])),
        Condition::SourceNamespace(any([pattern("sh*")])),
        Condition::SourceIp(any(["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()])),
        Condition::DestinationIp(any(["10.9.0.0/16".parse().unwrap()])),
        Condition::DestinationPort(Among { any: Vec::new(), none: vec![1] }),
    ];
    Rule { from: vec![source], to: vec![Operation { ports: any([port]) }], when, ..Rule::default() }
}

#[test]
fn a_decision_allocates_nothing_whatever_it_is() {
    let policies = [
        policy("allow", Action::Allow, false, vec![rule("guest", 80), rule("web", 80)]),
        policy("deny", Action::Deny, false, vec![rule("bot", 80)]),
        policy("audit", Action::Audit, false, vec![rule("web", 80)]),
        policy("dry-allow", Action::Allow, true, vec![rule("web", 80)]),
        policy("dry-deny", Action::Deny, true, vec![rule("web", 80)]),
    ];
    let (set, none) = (PolicySet::compile(policies.iter()), PolicySet::default());
    let account =
        |name: &str| -> SpiffeId { format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap() };
    let (web, bot, stranger) = (account("web"), account("bot"), account("stranger"));
    let sources: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "::ffff:10.0.0.1".parse().unwrap()];
    let destination: SocketAddr = "10.9.0.1:80".parse().unwrap();
    let mut seen = [0; 4];
    let mut observed = 0;
    let allocated = measure(|| {
        for set in [&set, &none] {
            for peer in [None, Some(&web), Some(&bot), Some(&stranger)] {
                for source_ip in sources {
                    let request = Request { peer, source_ip, destination };
                    seen[match decide(set, &request) {
                        Verdict::Allow(AllowCause::NoPolicies) => 0,
                        Verdict::Allow(AllowCause::By(_)) => 1,
                        Verdict::Deny(DenyCause::By(_)) => 2,
                        Verdict::Deny(DenyCause::NoneMatched(asked)) => {
                            assert_eq!(asked.names().len(), 1);
                            3
                        }
                    }] += 1;
                    observe(set, &request, |_| observed += 1);
                }
            }
        }
    });
    assert_eq!(seen, [8, 2, 2, 4], "every verdict was asked for");
    assert!(observed > 0);
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
}

#[test]
fn the_counter_counts() {
    let allocated = measure(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(allocated.count_total, 1);
}
