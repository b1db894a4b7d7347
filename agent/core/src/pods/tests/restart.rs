//! Pods of before a restart of the agent, taken up again from the journal.

use std::time::Duration;

use super::story::{Story, web};
use super::*;

#[test]
fn a_pod_of_before_a_restart_whose_listeners_cannot_be_had_is_waited_for_once_and_not_announced() {
    let mut story = Story::new();
    let adopting = |story: &Story| story.pods.seen().filter(|seen| seen.adopting).count();
    story.on(Event::Adopted {
        key: web(),
        arrival: Arrival(1),
        captured: Some(want("web")),
        announced: true,
    });
    assert_eq!(adopting(&story), 1);
    assert_eq!(story.fails(&web()), ["unannounce"]);
    assert_eq!(adopting(&story), 0);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.on(Event::Wanted { uid: PodUid("web".into()), want: want("web") }), [""; 0]);
    assert_eq!(story.pass(Duration::from_secs(1)), ["open"]);
    assert_eq!(adopting(&story), 0, "its trouble is known");
    assert_eq!(story.ok(&web()), ["redirect"]);
    story.on(Event::IdentityReady(id("web")));
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.state(&web()), State::Live);
}

#[test]
fn what_was_captured_before_a_restart_is_listened_for_at_once_and_then_verified() {
    let mut story = Story::new();
    let adopted =
        Event::Adopted { key: web(), arrival: Arrival(1), captured: Some(want("web")), announced: true };
    assert_eq!(story.on(adopted.clone()), ["need web", "write captured", "open"]);
    assert_eq!(story.on(adopted), [""; 0], "told twice");
    assert_eq!(story.state(&web()), State::Adopted);
    // Without the CA: the rules stand already.
    assert_eq!(story.ok(&web()), ["redirect"]);
    assert_eq!(story.ok(&web()), ["serve"]);
    assert_eq!(story.on(Event::IdentityReady(id("web"))), ["announce"]);
    assert_eq!(story.state(&web()), State::Live);
}

#[test]
fn rules_of_before_a_restart_stay_when_listeners_or_rules_cannot_be_had() {
    let mut story = Story::new();
    story.on(Event::Adopted {
        key: web(),
        arrival: Arrival(1),
        captured: Some(want("web")),
        announced: false,
    });
    assert_eq!(story.fails(&web()), ["unannounce"], "the pod object may say more than World knows");
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.pass(Duration::from_secs(1)), ["open"]);
    assert_eq!(story.ok(&web()), ["redirect"]);
    assert_eq!(story.fails(&web()), [""; 0]);
    assert_eq!(story.pass(Duration::from_secs(1)), ["redirect"]);
}

#[test]
fn an_adopted_pod_that_is_wanted_no_more_is_released_in_order() {
    let mut story = Story::new();
    story.on(Event::Adopted {
        key: web(),
        arrival: Arrival(1),
        captured: Some(want("web")),
        announced: true,
    });
    story.on(Event::Unwanted { uid: PodUid("web".into()) });
    let mut steps = Vec::new();
    while story.underway.contains_key(&web()) {
        steps.extend(story.ok(&web()));
    }
    let order = [
        "unannounce",
        "unredirect filter+nat",
        "drain until 3600",
        "unredirect rest",
        "close",
        "restore",
        "forget web",
        "write",
    ];
    assert_eq!(steps, order);
}
