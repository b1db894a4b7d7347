//! Out: a label taken off, a pod that terminates, a DEL, a namespace that is gone, Adit leaving the node.

use std::time::Duration;

use super::story::{Story, web};
use super::*;

#[test]
fn un_enrolment_takes_the_annotation_off_first_and_closes_last() {
    let mut story = Story::live(&web());
    assert_eq!(story.on(Event::Unwanted { uid: PodUid("web".into()) }), ["unannounce"]);
    assert_eq!(story.ok(&web()), ["unredirect filter+nat"]);
    assert_eq!(story.ok(&web()), ["drain until 3600"]);
    assert_eq!(story.state(&web()), State::Draining);
    assert_eq!(story.ok(&web()), ["unredirect rest"]);
    assert_eq!(story.ok(&web()), ["close"]);
    assert_eq!(story.ok(&web()), ["restore"]);
    assert_eq!(story.ok(&web()), ["forget web", "write"]);
    assert_eq!(story.state(&web()), State::Added);
}

#[test]
fn a_pod_enrolled_again_while_it_drains_is_redirected_again_and_never_closed() {
    let mut story = Story::live(&web());
    story.on(Event::Unwanted { uid: PodUid("web".into()) });
    story.ok(&web());
    story.ok(&web());
    let drain = story.underway.get(&web()).cloned().unwrap();
    let again = story.on(Event::Wanted { uid: PodUid("web".into()), want: want("web") });
    assert_eq!(again, ["write captured", "redirect"]);
    let late = Event::Done { key: web(), ticket: drain.0, outcome: Ok(()) };
    assert_eq!(story.on(late), [""; 0], "the abandoned drain counts no more");
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
    assert_eq!(story.ok(&web()), [""; 0]);
    assert_eq!(story.state(&web()), State::Live);
}

#[test]
fn un_enrolment_during_enrolment_turns_around_and_answers_the_add_when_all_is_undone() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    assert_eq!(story.on(Event::Unwanted { uid: PodUid("web".into()) }), [""; 0]);
    assert_eq!(story.ok(&web()), ["close"]);
    assert_eq!(story.ok(&web()), ["restore"]);
    assert_eq!(story.ok(&web()), ["forget web", "write", "1 ok"]);
}

#[test]
fn an_add_whose_pod_terminates_is_answered_at_once_and_undone() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    story.ok(&web());
    let terminating = Event::Terminating { uid: PodUid("web".into()) };
    assert_eq!(story.on(terminating.clone()), ["1 the pod is being deleted", "close"]);
    story.ok(&web());
    assert_eq!(story.ok(&web()), ["forget web", "write"]);
    assert_eq!(story.on(terminating), [""; 0]);
}

#[test]
fn a_captured_pod_that_terminates_is_served_until_its_sandbox_goes() {
    let mut story = Story::live(&web());
    assert_eq!(story.on(Event::Terminating { uid: PodUid("web".into()) }), [""; 0]);
    assert_eq!(story.state(&web()), State::Live);
    assert_eq!(story.del("s1", 2), ["close"]);
    assert_eq!(story.ok(&web()), ["2 ok", "forget web", "remove"]);
}

#[test]
fn a_del_of_an_unknown_sandbox_and_a_second_del_succeed() {
    let mut story = Story::new();
    assert_eq!(story.del("never", 1), ["1 ok"]);
    story.add(web(), 2, Wish::Out);
    assert_eq!(story.del("s1", 3), ["3 ok", "remove"]);
    assert_eq!(story.del("s1", 4), ["4 ok"]);
}

#[test]
fn a_del_while_an_operation_runs_waits_for_it_but_not_beyond_its_time() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    assert_eq!(story.del("s1", 2), ["1 the sandbox is being removed"]);
    assert_eq!(story.pass(Duration::from_secs(2)), ["2 ok"]);
    assert_eq!(story.ok(&web()), ["close"], "what was opened meanwhile is closed");
    assert_eq!(story.ok(&web()), ["forget web", "remove"]);
}

#[test]
fn a_del_abandons_an_announcement_that_hangs() {
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    story.on(Event::IdentityReady(id("web")));
    story.ok(&web());
    assert_eq!(story.ok(&web()), ["serve", "announce"]);
    assert_eq!(story.del("s1", 2), ["1 the sandbox is being removed", "close"]);
    assert_eq!(story.ok(&web()), ["2 ok", "forget web", "remove"]);
}

#[test]
fn an_add_during_the_removal_of_its_own_sandbox_begins_anew() {
    let mut story = Story::live(&web());
    assert_eq!(story.del("s1", 2), ["close"]);
    assert_eq!(story.add(web(), 3, Wish::In(want("web"))), [""; 0]);
    assert_eq!(
        story.ok(&web()),
        ["2 ok", "forget web", "remove", "write", "need web", "write captured", "open"]
    );
}

#[test]
fn a_namespace_that_is_gone_without_a_del_releases_all() {
    let mut story = Story::live(&web());
    assert_eq!(story.on(Event::SandboxGone(web())), ["close"]);
    assert_eq!(story.ok(&web()), ["forget web", "remove"]);
    let mut story = Story::new();
    story.add(web(), 1, Wish::In(want("web")));
    assert_eq!(story.end(&web(), Err(Failure::SandboxGone)), ["1 the sandbox is being removed", "close"]);
}

#[test]
fn where_adit_leaves_the_node_a_pod_goes_out_though_that_cannot_be_said_and_none_comes_in() {
    let mut story = Story::live(&web());
    let leaving = || Event::Leaving { drain: Duration::from_secs(30) };
    assert_eq!(story.on(leaving()), ["unannounce"]);
    assert_eq!(story.fails(&web()), ["unredirect filter+nat"], "it is not waited for");
    assert_eq!(story.ok(&web()), ["drain until 30"]);
    assert_eq!(story.on(leaving()), ["drain until 30"], "told twice, it is begun anew with its end");
    assert!(!story.pods.is_released());
    assert_eq!(story.on(Event::Wanted { uid: PodUid("web".into()), want: want("web") }), [""; 0]);
    assert_eq!(story.add(key("late", "s9"), 7, Wish::In(want("late"))), ["write", "7 ok"]);
    assert_eq!(story.ok(&web()), ["unredirect rest"]);
    assert_eq!(story.ok(&web()), ["close"]);
    assert_eq!(story.ok(&web()), ["restore"]);
    assert_eq!(story.ok(&web()), ["forget web", "write"]);
    assert!(story.pods.is_released());
}

#[test]
fn a_drain_that_is_under_way_has_no_more_time_than_the_node_gives_it() {
    let mut story = Story::live(&web());
    story.on(Event::Unwanted { uid: PodUid("web".into()) });
    story.ok(&web());
    story.ok(&web());
    let until = |story: &Story| {
        let Op::Drain(until) = story.underway[&web()].1 else { panic!("no drain is under way") };
        until
    };
    assert_eq!(until(&story), Mono::ZERO + Limits::default().drain);
    assert_eq!(story.on(Event::Leaving { drain: Duration::from_secs(30) }), ["drain until 30"]);
    assert_eq!(until(&story), Mono::from_millis(30_000));
}
