//! In: what an ADD or a label leads to, and how and when the ADD is answered.

use std::sync::Arc;
use std::time::Duration;

use super::story::{Story, web};
use super::*;
use crate::workload::Skip;

#[test]
fn an_enrolled_pod_is_captured_step_by_step_before_its_add_is_answered() {
    let mut story = Story::new();
    assert_eq!(story.add(web(), 1, Wish::In(want("web"))), ["write", "need web", "write captured", "open"]);
    assert_eq!(story.ok(&web()), [""; 0], "no rules without a certificate");
    assert_eq!(story.on(Event::IdentityReady(id("web"))), ["redirect"]);
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
    assert_eq!(story.ok(&web()), ["1 ok"]);
    assert_eq!(story.state(&web()), State::Live);
    assert_eq!(story.pods.deadline(), None);
}

#[test]
fn a_pod_that_is_not_enrolled_is_kept_and_let_go_at_once_and_a_later_label_captures_it() {
    let mut story = Story::new();
    assert_eq!(story.add(web(), 1, Wish::Out), ["write", "1 ok"]);
    let wanted = Event::Wanted { uid: PodUid("web".into()), want: want("web") };
    assert_eq!(story.on(wanted.clone()), ["need web", "write captured", "open"]);
    assert_eq!(story.on(wanted), [""; 0], "told twice");
}

#[test]
fn an_add_before_world_has_synced_waits_for_what_the_labels_say() {
    let mut story = Story::new();
    assert_eq!(story.add(web(), 1, Wish::Unknown), ["write"]);
    assert_eq!(story.on(Event::Unwanted { uid: PodUid("web".into()) }), ["1 ok"]);
    assert_eq!(story.add(key("cart", "s2"), 2, Wish::Unknown), ["write"]);
    let answer = story.pass(Duration::from_secs(25));
    assert_eq!(answer, ["2 not captured in time: it is not known yet whether the pod is enrolled"]);
}

#[test]
fn an_add_at_its_deadline_ends_with_what_was_lacking_and_is_undone() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    story.ok(&web());
    assert_eq!(
        story.pass(Duration::from_secs(25)),
        ["1 not captured in time: no certificate for spiffe://cluster.local/ns/shop/sa/web", "close"]
    );
    story.ok(&web());
    assert_eq!(story.ok(&web())[..2], ["forget web", "write"]);
}

#[test]
fn an_identity_whose_certificate_is_lost_captures_nobody_new_and_leaves_what_is_captured() {
    let mut story = Story::live(&web());
    assert_eq!(story.on(Event::IdentityLost(id("web"))), [""; 0], "its rules stay: it fails closed");
    assert_eq!(story.state(&web()), State::Redirected);
    let second = key("web-2", "s2");
    assert_eq!(story.add(second.clone(), 2, Wish::In(want("web"))), ["write", "write captured", "open"]);
    assert_eq!(story.ok(&second), [""; 0], "no rules without a certificate");
    let refused = story.pass(Limits::default().add);
    assert_eq!(
        refused[0],
        "2 not captured in time: no certificate for spiffe://cluster.local/ns/shop/sa/web"
    );
    let third = key("web-3", "s3");
    story.add(third.clone(), 3, Wish::In(want("web")));
    story.ok(&third);
    assert_eq!(story.on(Event::IdentityReady(id("web"))), ["redirect"]);
    assert_eq!(story.state(&web()), State::Live);
    assert_eq!(story.on(Event::IdentityLost(id("nobody"))), [""; 0]);
}

#[test]
fn a_failed_step_refuses_the_add_and_undoes_all_that_may_stand() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    story.on(Event::IdentityReady(id("web")));
    story.ok(&web());
    assert_eq!(story.fails(&web()), ["1 no", "unredirect filter+nat"]);
    assert_eq!(story.ok(&web()), ["drain until 3600"]);
    assert_eq!(story.ok(&web()), ["unredirect rest"]);
}

#[test]
fn an_enrolment_that_fails_for_good_is_repeated_ever_more_rarely() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    assert_eq!(story.fails(&web()), ["1 no", "close"]);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        story.ok(&web());
        assert_eq!(story.ok(&web()), ["forget web", "write", "need web", "write captured"]);
        assert_eq!(story.pass(Duration::from_secs(seconds) - Duration::from_millis(1)), [""; 0]);
        assert_eq!(story.pass(Duration::from_millis(1)), ["open"]);
        assert_eq!(story.fails(&web()), ["close"]);
    }
}

#[test]
fn a_repeated_add_gets_an_answer_of_its_own() {
    let mut story = Story::live(&web());
    assert_eq!(story.add(web(), 2, Wish::Unknown), ["2 ok"]);
    assert_eq!(story.add(web(), 3, Wish::In(want("web"))), ["3 ok"]);
}

#[test]
fn an_annotation_seen_before_answers_the_add_while_the_api_server_is_away() {
    let mut story = Story::new();
    story.on(Event::CniAdd {
        key: web(),
        arrival: Arrival(1),
        token: Token(1),
        wish: Wish::In(want("web")),
        announced: true,
    });
    story.on(Event::IdentityReady(id("web")));
    story.ok(&web());
    assert_eq!(story.ok(&web()), ["serve", "announce", "1 ok"]);
}

#[test]
fn what_a_repeated_add_wants_is_written_down_before_it_is_done() {
    let mut story = Story::live(&web());
    let skip = Arc::new(Skip { inbound_ports: vec![9000..=9000], ..Skip::default() });
    let wish = Wish::In(Want { identity: id("web"), skip });
    assert_eq!(story.add(web(), 2, wish), ["write captured", "redirect", "2 ok"]);
}

#[test]
fn check_fails_only_for_a_pod_that_is_wanted_and_not_captured() {
    let check = |story: &mut Story, sandbox: &str| {
        story.on(Event::CniCheck { sandbox: SandboxId(sandbox.into()), token: Token(9) })
    };
    let mut story = Story::live(&web());
    assert_eq!(check(&mut story, "s1"), ["9 ok"]);
    assert_eq!(check(&mut story, "never"), ["9 ok"]);
    story.on(Event::Drifted { key: web(), drift: Drift::Unrepairable });
    let answer = check(&mut story, "s1");
    assert_eq!(answer, ["9 the pod is enrolled but not captured: its redirect rules are not in place"]);
}

#[test]
fn a_sandbox_beyond_the_bound_is_refused() {
    let mut story = Story::new();
    for n in 0..PODS_MAX {
        story.add(key(&n.to_string(), &n.to_string()), 1, Wish::Out);
    }
    assert_eq!(story.add(web(), 2, Wish::Out), ["2 4096 sandboxes are kept already"]);
    assert_eq!(story.del("7", 3), ["3 ok", "remove"]);
    assert_eq!(story.add(web(), 4, Wish::Out), ["write", "4 ok"]);
}
