use super::*;

fn at(seconds: u64) -> Stamp {
    Stamp::of(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + seconds))
}

fn kind(name: &str) -> PolicyKind {
    KINDS.into_iter().find(|kind| kind.kind == name).unwrap()
}

fn told(name: &str, created: &str, spec: Value) -> Told {
    let (namespace, name) = name.split_once('/').unwrap();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": namespace, "name": name, "resourceVersion": "7", "generation": 3,
            "creationTimestamp": created, "managedFields": [{"manager": "kubectl"}],
        },
        "spec": spec,
    }))
    .unwrap()
}

const OLD: &str = "2026-01-01T00:00:00Z";
const YOUNG: &str = "2026-02-01T00:00:00Z";

/// `NAME REASON MESSAGE` of each that is due.
fn said(policies: &Policies) -> Vec<String> {
    let text = |due: Due| {
        let condition = &due.patch["status"]["conditions"][0];
        let word = |key: &str| condition[key].as_str().unwrap().to_owned();
        format!("{} {} {}", due.place.name, word("reason"), word("message"))
    };
    policies.due(at(0)).into_iter().map(text).collect()
}

#[test]
fn a_policy_is_accepted_or_told_which_field_is_wrong() {
    let mut policies = Policies::new("adit-system".into());
    let good = json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]});
    policies.put(kind("AuthorizationPolicy"), told("shop/good", OLD, good));
    let bad = json!({"rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["http"]}}]}]});
    policies.put(kind("AuthorizationPolicy"), told("shop/bad", OLD, bad));
    policies.put(kind("PeerAuthentication"), told("shop/mode", OLD, json!({"mtls": {"mode": "OPEN"}})));
    let said = said(&policies);
    assert!(said[0].starts_with("bad Invalid spec.rules[0].to[0].operation.methods: "), "{said:?}");
    assert!(said[0].contains("; spec.rules[0].to[0].operation.ports[0]: "), "{said:?}");
    assert_eq!(said[1], "good Accepted all of it is understood and in force");
    assert!(said[2].starts_with("mode Invalid spec.mtls.mode: is \"OPEN\", not one of"), "{said:?}");
}

#[test]
fn of_two_at_one_level_the_younger_does_not_count_and_comes_to_count_when_the_older_goes() {
    let mut policies = Policies::new("adit-system".into());
    let strict = json!({"mtls": {"mode": "STRICT"}});
    let peer = kind("PeerAuthentication");
    policies.put(peer, told("shop/a", YOUNG, strict.clone()));
    policies.put(peer, told("shop/b", OLD, strict.clone()));
    policies.put(peer, told("cart/a", YOUNG, strict.clone()));
    let all = said(&policies);
    assert_eq!(all.iter().filter(|said| said.contains("Accepted")).count(), 2, "{all:?}");
    assert!(
        all.contains(&"a Conflicted spec: does not count: shop/b is for the same and older".to_owned()),
        "{all:?}"
    );
    policies.remove(peer, &told("shop/b", OLD, strict));
    assert!(said(&policies).iter().all(|said| said.contains("Accepted")), "{:?}", said(&policies));
}

#[test]
fn a_status_is_written_where_it_changes_and_only_there() {
    let mut policies = Policies::new("adit-system".into());
    let authorization = kind("AuthorizationPolicy");
    let mut value = told("shop/p", OLD, json!({}));
    policies.put(authorization, value.clone());
    let due = policies.due(at(0)).remove(0);
    assert_eq!(
        due.place.status_path(),
        "/apis/policy.adit.dev/v1alpha1/namespaces/shop/authorizationpolicies/p/status"
    );
    assert_eq!(due.patch["metadata"], json!({"resourceVersion": "7"}));
    let condition = json!({
        "type": "Accepted", "status": "True", "reason": "Accepted",
        "message": "all of it is understood and in force", "observedGeneration": 3,
        "lastTransitionTime": "2023-11-14T22:13:20Z",
    });
    assert_eq!(due.patch["status"]["conditions"], json!([condition]));
    // As it comes back, beside another's.
    let others = json!({"type": "Other", "status": "True"});
    value.value["status"] = json!({"conditions": [others, condition]});
    policies.put(authorization, value.clone());
    assert_eq!(policies.due(at(10)), []);
    // Another generation: written, but nothing has changed its state.
    value.value["metadata"]["generation"] = json!(4);
    policies.put(authorization, value.clone());
    let due = policies.due(at(20)).remove(0);
    let conditions = due.patch["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions[0], others);
    assert_eq!(conditions[1]["observedGeneration"], 4);
    assert_eq!(conditions[1]["lastTransitionTime"], condition["lastTransitionTime"]);
    // Another state: a new time.
    value.value["spec"] = json!({"action": "MAYBE"});
    policies.put(authorization, value);
    let due = policies.due(at(30)).remove(0);
    assert_eq!(due.patch["status"]["conditions"][1]["lastTransitionTime"], "2023-11-14T22:13:50Z");
}

#[test]
fn a_list_replaces_its_own_kind_and_what_cannot_be_read_is_told() {
    let mut policies = Policies::new("adit-system".into());
    policies.put(kind("AuthorizationPolicy"), told("shop/p", OLD, json!({})));
    policies.put(kind("PeerAuthentication"), told("shop/q", OLD, json!({})));
    policies.replace(kind("AuthorizationPolicy"), Vec::new());
    assert_eq!(said(&policies).len(), 1);
    let mut broken = told("shop/r", OLD, json!({}));
    broken.value["metadata"]["labels"] = json!([1]);
    policies.put(kind("TrafficPolicy"), broken);
    let said = said(&policies);
    assert!(said[1].starts_with("r Invalid metadata.labels"), "{said:?}");
}

#[test]
fn an_answer_that_comes_after_what_the_watch_told_changes_nothing() {
    let mut policies = Policies::new("adit-system".into());
    let authorization = kind("AuthorizationPolicy");
    let of = |version: &str| Told { version: version.to_owned(), ..told("shop/p", OLD, json!({})) };
    policies.put(authorization, of("9"));
    let due = policies.due(at(0)).remove(0);
    let known = |policies: &Policies| policies.known.get(&due.place).map(|known| known.version.clone());
    policies.put(authorization, of("11"));
    policies.written(&due, of("10"));
    assert_eq!(known(&policies).as_deref(), Some("11"), "somebody has changed it since");
    policies.remove(authorization, &of("12"));
    policies.written(&due, of("10"));
    assert_eq!(known(&policies), None, "it is gone");
    policies.put(authorization, of("9"));
    policies.written(&due, of("10"));
    assert_eq!(known(&policies).as_deref(), Some("10"), "it need not be written again");
}
