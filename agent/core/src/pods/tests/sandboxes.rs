//! One sandbox of a pod after another: whose the certificate is, and whose the annotation.

use std::time::Duration;

use super::story::{Story, web};
use super::*;

/// A pod that was captured and is gone, whose identity is kept for a while.
fn gone() -> Story {
    let mut story = Story::live(&web());
    story.pods.limits.keep = Duration::from_secs(60);
    assert_eq!(story.del("s1", 2), ["close"]);
    assert_eq!(story.ok(&web()), ["2 ok", "remove"]);
    story
}

#[test]
fn a_sandbox_that_is_made_anew_needs_no_new_certificate() {
    let mut story = gone();
    assert_eq!(story.pass(Duration::from_secs(59)), [""; 0]);
    let again = key("web", "s2");
    assert_eq!(story.add(again.clone(), 3, Wish::In(want("web"))), ["write", "write captured", "open"]);
    assert_eq!(story.ok(&again), ["redirect"], "its certificate is there");
    assert_eq!(
        story.pass(Duration::from_secs(600)),
        ["3 not captured in time: its redirect rules are not in place"]
    );
}

#[test]
fn an_identity_that_nobody_holds_is_forgotten_after_a_while_without_a_certificate_and_with_adit() {
    let mut story = gone();
    assert_eq!(story.pass(Duration::from_secs(60)), ["forget web"]);
    assert_eq!(story.pods.deadline(), None);

    assert_eq!(gone().on(Event::IdentityLost(id("web"))), ["forget web"]);
    assert_eq!(gone().on(Event::Leaving { drain: Duration::ZERO }), ["forget web"]);

    let mut story = Story::new();
    story.pods.limits.keep = Duration::from_secs(60);
    story.add(web(), 1, Wish::In(want("web")));
    story.ok(&web());
    assert_eq!(story.del("s1", 2), ["1 the sandbox is being removed", "close"]);
    assert!(story.ok(&web()).contains(&"forget web".to_owned()), "there is no certificate to keep");
}

#[test]
fn a_sandbox_made_anew_under_the_same_uid_is_another_and_the_old_one_says_nothing_any_more() {
    let (old, new) = (web(), key("web", "s2"));
    let mut story = Story::live(&old);
    assert_eq!(story.add(new.clone(), 2, Wish::In(want("web"))), ["write", "write captured", "open"]);
    story.ok(&new);
    // The annotation stands already: the API server may be away, and the ADD is answered all the same.
    assert_eq!(story.ok(&new), ["serve", "announce", "2 ok"]);
    let unrepairable = Event::Drifted { key: old.clone(), drift: Drift::Unrepairable };
    assert_eq!(story.on(unrepairable), [""; 0], "without taking the annotation off");
    assert_eq!(story.del("s1", 3), ["close"]);
    assert_eq!(story.ok(&old), ["3 ok", "remove"], "the identity is still held");
}

#[test]
fn an_earlier_sandbox_that_is_found_late_leaves_the_annotation_to_its_successor() {
    let (old, new) = (web(), key("web", "s2"));
    let adopted =
        |captured| Event::Adopted { key: old.clone(), arrival: Arrival(1), captured, announced: true };
    let unrepairable = |key: &PodKey| Event::Drifted { key: key.clone(), drift: Drift::Unrepairable };
    for captured in [Some(want("web")), None] {
        let mut story = Story::new();
        story.add(new.clone(), 2, Wish::In(want("web")));
        story.on(Event::IdentityReady(id("web")));
        (0..3).for_each(|_| _ = story.ok(&new));
        let was_captured = captured.is_some();
        let taken_up = story.on(adopted(captured));
        assert_eq!(taken_up, if was_captured { vec!["write captured", "open"] } else { vec![] });
        if was_captured {
            story.ok(&old);
            assert_eq!(story.ok(&old), ["serve"], "nothing is said of it");
            assert_eq!(story.on(unrepairable(&old)), [""; 0]);
        }
        assert_eq!(story.state(&new), State::Live);
        assert_eq!(story.on(unrepairable(&new)), ["unannounce"], "it has the say");
    }
}

#[test]
fn what_an_earlier_sandbox_may_have_left_on_the_pod_object_is_taken_off_by_its_successor() {
    let new = key("web", "s2");
    let mut story = Story::new();
    story.on(Event::Adopted { key: new.clone(), arrival: Arrival(2), captured: None, announced: false });
    story.on(Event::Unwanted { uid: new.uid.clone() });
    let late =
        Event::Adopted { key: web(), arrival: Arrival(1), captured: Some(want("web")), announced: false };
    assert_eq!(story.on(late), ["unannounce", "need web", "write captured", "open"]);
}
