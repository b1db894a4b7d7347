//! What changes or breaks on a captured pod: its rules, its skips, its identity.

use std::sync::Arc;
use std::time::Duration;

use super::story::{Story, web};
use super::*;
use crate::workload::Skip;

#[test]
fn a_pod_that_cannot_be_repaired_is_not_announced_until_its_watch_says_that_it_holds() {
    let mut story = Story::live(&web());
    let drifted = |drift| Event::Drifted { key: web(), drift };
    assert_eq!(story.on(drifted(Drift::Repaired)), [""; 0]);
    assert_eq!(story.on(drifted(Drift::Unrepairable)), ["unannounce"]);
    assert_eq!(story.state(&web()), State::Redirected);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.pass(Duration::from_secs(60)), [""; 0]);
    assert_eq!(story.on(drifted(Drift::Unrepairable)), [""; 0]);
    assert_eq!(story.on(drifted(Drift::Repaired)), ["announce"]);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.state(&web()), State::Live);
}

#[test]
fn rules_of_which_the_writing_failed_are_written_again_whatever_an_older_watch_says() {
    let mut story = Story::live(&web());
    story.on(Event::Unwanted { uid: PodUid("web".into()) });
    story.ok(&web());
    story.ok(&web());
    story.on(Event::Wanted { uid: PodUid("web".into()), want: want("web") });
    assert_eq!(story.fails(&web()), [""; 0]);
    for drift in [Drift::Repaired, Drift::Unrepairable] {
        assert_eq!(story.on(Event::Drifted { key: web(), drift }), [""; 0], "not announced: {drift:?}");
    }
    assert_eq!(story.pass(Duration::from_secs(60)), ["redirect"]);
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
}

#[test]
fn broken_rules_are_written_again_though_that_cannot_be_said_on_the_pod() {
    let mut story = Story::live(&web());
    let skip = Arc::new(Skip { inbound_ports: vec![9000..=9000], ..Skip::default() });
    story.on(Event::Wanted { uid: PodUid("web".into()), want: Want { identity: id("web"), skip } });
    assert_eq!(story.fails(&web()), ["unannounce"]);
    assert_eq!(story.fails(&web()), [""; 0], "both wait");
    assert_eq!(story.pass(Duration::from_secs(1)), ["unannounce"]);
    assert_eq!(story.fails(&web()), ["redirect"], "while the word waits for its next attempt");
    assert_eq!(story.fails(&web()), [""; 0], "each waits for its own");
    assert_eq!(story.pass(Duration::from_secs(2)), ["unannounce"]);
    assert_eq!(story.fails(&web()), ["redirect"]);
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!((story.state(&web()), story.pods.deadline()), (State::Live, None));
}

#[test]
fn other_skips_are_written_down_and_applied_to_a_running_pod() {
    let mut story = Story::live(&web());
    let skip = Skip { inbound_ports: vec![9000..=9000], ..Skip::default() };
    let changed =
        Event::Wanted { uid: PodUid("web".into()), want: Want { identity: id("web"), skip: Arc::new(skip) } };
    assert_eq!(story.on(changed), ["write captured", "redirect"]);
    assert_eq!(story.ok(&web()), ["serve"]);
}

#[test]
fn another_identity_is_taken_on_only_after_the_old_one_is_given_back() {
    let mut story = Story::live(&web());
    story.on(Event::Wanted { uid: PodUid("web".into()), want: want("new") });
    let mut steps = Vec::new();
    while story.underway.contains_key(&web()) {
        steps.extend(story.ok(&web()));
    }
    let tail = ["restore", "forget web", "write", "need new", "write captured", "open"];
    assert_eq!(steps[steps.len() - 6..], tail);
}
