use super::*;
use crate::discover::{NotFound, Seen, Sought};
use crate::net::{ObjectName, SandboxId};

fn key() -> PodKey {
    PodKey { uid: PodUid("u1".into()), sandbox: SandboxId("c0ffee".into()) }
}

fn standing(state: State, enrolled: bool) -> Standing {
    Standing {
        state,
        enrolled,
        identity: enrolled.then(|| "spiffe://cluster.local/ns/shop/sa/web".to_owned()),
        lacking: None,
        trouble: None,
        older: 0,
        open: vec![],
        invalid_skip: None,
        late: false,
    }
}

fn words(news: &[Notice]) -> Vec<&'static str> {
    news.iter().map(|notice| notice.word.as_str()).collect()
}

/// What is said of one sandbox as it goes through these.
fn said(steps: &[(u64, Standing)]) -> Vec<&'static str> {
    let mut notices = Notices::default();
    steps.iter().flat_map(|(ms, step)| words(&notices.of(Mono::from_millis(*ms), &key(), step))).collect()
}

#[test]
fn a_pod_is_told_once_that_it_was_captured_and_that_it_was_released() {
    let live = standing(State::Live, true);
    let steps = [
        (0, standing(State::Added, true)),
        (1, standing(State::Listening, true)),
        (2, live.clone()),
        (3, live),
        (4, standing(State::Draining, false)),
        (5, standing(State::Added, false)),
        (6, standing(State::Added, false)),
    ];
    assert_eq!(said(&steps), ["Captured", "Released"]);
    assert_eq!(said(&[(0, standing(State::Added, false))]), [""; 0], "nobody's wish");
}

#[test]
fn an_agent_s_restart_is_no_news() {
    let adopted = standing(State::Adopted, true);
    assert_eq!(said(&[(0, adopted.clone()), (1, standing(State::Live, true))]), [""; 0]);
    assert_eq!(said(&[(0, adopted), (1, standing(State::Added, false))]), ["Released"]);
}

#[test]
fn what_keeps_a_pod_from_being_captured_is_told_once_each_and_then_that_it_is() {
    let failing = |why: &str| Standing { trouble: Some(why.into()), ..standing(State::Listening, true) };
    let steps = [
        (0, failing("iptables is missing")),
        (1, failing("iptables is missing")),
        (2, failing("a port is taken")),
        (3, standing(State::Live, true)),
        (4, failing("a port is taken")),
        (5, standing(State::Live, true)),
    ];
    assert_eq!(said(&steps), ["CaptureFailed", "CaptureFailed", "Captured", "CaptureFailed", "Captured"]);
    let unwanted = Standing { trouble: Some("whatever".into()), ..standing(State::Draining, false) };
    assert_eq!(said(&[(0, unwanted)]), [""; 0]);
}

#[test]
fn a_certificate_that_does_not_come_is_told_after_ten_seconds() {
    let lacking = |what: &str| Standing { lacking: Some(what.into()), ..standing(State::Listening, true) };
    let none = "no certificate";
    assert_eq!(said(&[(0, lacking(none)), (9_999, lacking(none))]), [""; 0]);
    let steps = [(0, lacking(none)), (10_000, lacking(none)), (20_000, lacking(none))];
    assert_eq!(said(&steps), ["CaptureFailed"]);
    let steps = [(0, lacking(none)), (9_000, lacking("no listeners")), (18_000, lacking("no listeners"))];
    assert_eq!(said(&steps), [""; 0], "each for less");
}

#[test]
fn what_is_open_though_strict_and_what_came_late_is_told() {
    let live = Standing { open: vec!["port 80".into()], late: true, older: 2, ..standing(State::Live, true) };
    let mut notices = Notices::default();
    let news = notices.of(Mono::ZERO, &key(), &live);
    assert_eq!(words(&news), ["Captured", "StartedBeforeCaptured", "SkippedInboundPortUnderStrict"]);
    assert_eq!(
        news[0].note,
        "The pod is in the mesh as spiffe://cluster.local/ns/shop/sa/web; 2 connections that were open before go on unencrypted until they end."
    );
    assert_eq!(notices.of(Mono::ZERO, &key(), &live), []);
    let more = Standing { open: vec!["port 80".into(), "port 81".into()], ..live.clone() };
    assert_eq!(notices.of(Mono::ZERO, &key(), &more)[0].note, "port 81");
    notices.keep(|_| false, |_| false);
    assert_eq!(notices.of(Mono::ZERO, &key(), &live).len(), 3, "forgotten");
}

#[test]
fn a_pod_that_is_not_found_is_told_of_after_some_looks() {
    let sought = Sought {
        uid: PodUid("u1".into()),
        name: ObjectName::new("shop", "web"),
        ips: vec![[10, 0, 0, 1].into()],
    };
    let seen = |looks, why| Seen { sought: &sought, looks, why: Some(why) };
    let mut notices = Notices::default();
    assert_eq!(notices.of_sought(&seen(2, &NotFound::NoTrace)), None);
    let said = notices.of_sought(&seen(3, &NotFound::NoTrace)).unwrap();
    assert_eq!(said.word, Word::CaptureFailed);
    assert!(said.word.is_warning() && said.note.contains("no process of the pod"), "{}", said.note);
    assert_eq!(notices.of_sought(&seen(4, &NotFound::NoTrace)), None);
    assert!(notices.of_sought(&seen(5, &NotFound::Ambiguous(2))).is_some());
}

#[test]
fn a_skip_annotation_that_is_not_understood_is_told_of_an_enrolled_pod_once_each() {
    let bad = |what: &str, enrolled| {
        let state = if enrolled { State::Live } else { State::Added };
        Standing { invalid_skip: Some(what.into()), ..standing(state, enrolled) }
    };
    assert_eq!(said(&[(0, bad("port x", false))]), [""; 0]);
    let steps = [(0, bad("port x", true)), (1, bad("port x", true)), (2, bad("port y", true))];
    assert_eq!(said(&steps), ["Captured", "SkipAnnotationInvalid", "SkipAnnotationInvalid"]);
}
