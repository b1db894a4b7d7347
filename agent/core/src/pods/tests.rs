use std::time::Duration;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::draw::Seed;
use crate::redirect::Part;
use crate::workload::Skip;

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn want(account: &str) -> Want {
    Want { identity: id(account), skip: Arc::new(Skip::default()) }
}

fn key(uid: &str, sandbox: &str) -> PodKey {
    PodKey { uid: PodUid(uid.into()), sandbox: SandboxId(sandbox.into()) }
}

fn web() -> PodKey {
    key("web", "s1")
}

/// The machine with what its driver would hold: drives one story, event by event.
struct Story {
    pods: Pods,
    now: Now,
    underway: BTreeMap<PodKey, (Ticket, Op)>,
}

impl Story {
    fn new() -> Self {
        let limits = Limits { keep: Duration::ZERO, ..Limits::default() };
        Self { pods: Pods::new(limits), now: Now::at_start(UNIX_EPOCH), underway: BTreeMap::new() }
    }

    /// Gives an event; returns the effects in words.
    fn on(&mut self, event: Event) -> Vec<String> {
        let effects = self.pods.handle(self.now, event);
        self.note(effects)
    }

    fn pass(&mut self, span: Duration) -> Vec<String> {
        self.now = self.now.after(span);
        let effects = self.pods.tick(self.now);
        self.note(effects)
    }

    fn note(&mut self, effects: Vec<Effect>) -> Vec<String> {
        for effect in &effects {
            if let Effect::Do { key, ticket, op } = effect {
                self.underway.insert(key.clone(), (*ticket, op.clone()));
            }
        }
        effects.iter().map(words).collect()
    }

    fn add(&mut self, key: PodKey, token: u64, wish: Wish) -> Vec<String> {
        self.on(Event::CniAdd { key, arrival: Arrival(token), token: Token(token), wish, announced: false })
    }

    fn del(&mut self, sandbox: &str, token: u64) -> Vec<String> {
        self.on(Event::CniDel { sandbox: SandboxId(sandbox.into()), token: Some(Token(token)) })
    }

    /// The operation under way on this sandbox ends.
    fn end(&mut self, key: &PodKey, outcome: Result<(), Failure>) -> Vec<String> {
        let (ticket, _) = self.underway.remove(key).expect("an operation is under way");
        self.on(Event::Done { key: key.clone(), ticket, outcome })
    }

    fn ok(&mut self, key: &PodKey) -> Vec<String> {
        self.end(key, Ok(()))
    }

    fn fails(&mut self, key: &PodKey) -> Vec<String> {
        self.end(key, Err(Failure::Failed("no".into())))
    }

    /// Added, enrolled, captured; its ADD answered.
    fn live(key: &PodKey) -> Self {
        let mut story = Self::new();
        story.add(key.clone(), 1, Wish::In(want("web")));
        story.on(Event::IdentityReady(id("web")));
        for _ in ["listeners", "rules", "annotation"] {
            story.ok(key);
        }
        assert_eq!(story.state(key), State::Live);
        story
    }

    fn state(&self, key: &PodKey) -> State {
        self.pods.seen().find(|seen| seen.key == key).expect("the sandbox is kept").state
    }
}

fn words(effect: &Effect) -> String {
    match effect {
        Effect::Need(id) => format!("need {}", id.service_account().unwrap().1),
        Effect::Forget(id) => format!("forget {}", id.service_account().unwrap().1),
        Effect::Do { op, .. } => match op {
            Op::OpenSockets(_) => "open".into(),
            Op::Redirect(_) => "redirect".into(),
            Op::Announce => "announce".into(),
            Op::Unannounce => "unannounce".into(),
            Op::Unredirect(Part::FilterAndNat) => "unredirect filter+nat".into(),
            Op::Unredirect(Part::Rest) => "unredirect rest".into(),
            Op::Drain(until) => format!("drain until {}", until.0.as_secs()),
            Op::Close(_) => "close".into(),
            Op::RestoreSysctls => "restore".into(),
        },
        Effect::Serve(_) => "serve".into(),
        Effect::Reply { token, answer: Ok(()) } => format!("{} ok", token.0),
        Effect::Reply { token, answer: Err(refusal) } => format!("{} {refusal}", token.0),
        Effect::JournalWrite { captured: Some(_), .. } => "write captured".into(),
        Effect::JournalWrite { captured: None, .. } => "write".into(),
        Effect::JournalRemove(_) => "remove".into(),
    }
}

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
fn a_repeated_add_gets_an_answer_of_its_own() {
    let mut story = Story::live(&web());
    assert_eq!(story.add(web(), 2, Wish::Unknown), ["2 ok"]);
    assert_eq!(story.add(web(), 3, Wish::In(want("web"))), ["3 ok"]);
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
fn what_a_repeated_add_wants_is_written_down_before_it_is_done() {
    let mut story = Story::live(&web());
    let skip = Arc::new(Skip { inbound_ports: vec![9000..=9000], ..Skip::default() });
    let wish = Wish::In(Want { identity: id("web"), skip });
    assert_eq!(story.add(web(), 2, wish), ["write captured", "redirect", "2 ok"]);
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

/// What really stands, as executors would have made it, and the laws that hold at every step of every history.
#[derive(Default)]
struct Node {
    /// Per sandbox: what stands in its namespace.
    stands: BTreeMap<PodKey, Stands>,
    underway: BTreeMap<PodKey, (Ticket, Op)>,
    needed: BTreeSet<SpiffeId>,
    journal: BTreeMap<PodKey, Kept>,
    arrivals: u64,
    /// Of the last ADD of each, until it is written down.
    arriving: BTreeMap<PodKey, Arrival>,
    /// What a restarted agent could not open yet.
    unopened: Vec<PodKey>,
    /// Sandboxes of which a later one of the same pod came.
    superseded: BTreeSet<PodKey>,
    /// Sandboxes that the runtime removed, or that are gone, and are not released yet.
    removed: BTreeSet<PodKey>,
    /// What the pod objects say.
    announced: BTreeSet<PodUid>,
    /// What is under way and has been written already: the writer takes words in order.
    written: BTreeSet<Ticket>,
    /// Who asks; of an ADD, for what.
    asked: BTreeMap<Token, Option<PodKey>>,
    answered: BTreeSet<Token>,
    late: Vec<(PodKey, Ticket)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stands {
    listening: bool,
    /// Filter and nat; mangle, raw and routes.
    rules: (bool, bool),
    sysctls: bool,
}

/// An entry of the journal.
#[derive(Clone, Debug)]
struct Kept {
    arrival: Arrival,
    captured: Option<Want>,
}

impl Kept {
    fn is_before(&self, other: &Self) -> bool {
        self.arrival < other.arrival
    }
}

impl Node {
    /// Who asks next; for an ADD of `add`.
    fn ask(&mut self, add: Option<PodKey>) -> Token {
        let token = Token(u64::try_from(self.asked.len()).unwrap());
        self.asked.insert(token, add);
        token
    }

    /// Obeys `effect` of `pods`, which has given all of them already.
    fn obey(&mut self, pods: &Pods, effect: Effect) {
        match effect {
            Effect::Need(id) => assert!(self.needed.insert(id), "needed twice"),
            Effect::Forget(id) => assert!(self.needed.remove(&id), "forgotten without need"),
            Effect::Do { key, ticket, op } => self.start(key, ticket, op),
            Effect::Serve(key) => assert!(self.stands[&key].listening),
            Effect::Reply { token, answer } => {
                let asked = self.asked.get(&token).expect("somebody asked");
                if let (Some(key), Ok(())) = (asked, answer) {
                    self.may_start(pods, key);
                }
                assert!(self.answered.insert(token), "{token:?} was answered twice");
            }
            Effect::JournalWrite { key, captured } => {
                if let Some(kept) = self.journal.get_mut(&key) {
                    kept.captured = captured;
                    return;
                }
                self.journal.insert(key.clone(), Kept { arrival: self.arriving[&key], captured });
                self.supersede();
            }
            Effect::JournalRemove(key) => {
                assert!(self.journal.remove(&key).is_some());
                self.superseded.remove(&key);
                self.removed.remove(&key);
                if let Some((ticket, op)) = self.underway.remove(&key) {
                    assert!(op.may_be_abandoned());
                    self.late.push((key.clone(), ticket));
                }
                assert!(!self.stands.remove(&key).unwrap_or_default().listening, "removed while listening");
            }
        }
    }

    /// Of the sandboxes of one pod that the machine knows all but the last are superseded, for good.
    fn supersede(&mut self) {
        let known = || self.journal.iter().filter(|(key, _)| !self.unopened.contains(key));
        let is_earlier = |(key, kept): &(&PodKey, &Kept)| {
            known().any(|(other, later)| other.uid == key.uid && kept.is_before(later))
        };
        let earlier: Vec<_> = known().filter(is_earlier).map(|(key, _)| key.clone()).collect();
        self.superseded.extend(earlier);
    }

    /// What was not opened yet of this sandbox is forgotten: its DEL has come, or its id is used again.
    fn forget_unopened(&mut self, sandbox: &SandboxId) {
        for key in Vec::from_iter(self.unopened.extract_if(.., |key| key.sandbox == *sandbox)) {
            self.journal.remove(&key);
            self.superseded.remove(&key);
            self.stands.remove(&key);
        }
    }

    /// An ADD is answered well: the pod's containers start now.
    fn may_start(&self, pods: &Pods, key: &PodKey) {
        let stands = self.stands.get(key).copied().unwrap_or_default();
        let enrolled = pods.seen().find(|seen| seen.key == key).expect("its sandbox is kept").enrolled;
        if enrolled {
            assert!(stands.listening && stands.rules == (true, true), "not captured: {stands:?}");
            // Of a sandbox that was made anew the kubelet waits for the later one only, and the annotation is that one's.
            let is_later_s = self.superseded.contains(key);
            assert!(is_later_s || self.announced.contains(&key.uid), "not announced");
        } else {
            assert!(!stands.listening && stands.rules == (false, false), "still captured: {stands:?}");
        }
    }

    fn start(&mut self, key: PodKey, ticket: Ticket, op: Op) {
        let stands = *self.stands.entry(key.clone()).or_default();
        match &op {
            Op::Redirect(want) => {
                assert!(stands.listening, "redirected while not listening");
                assert_eq!(self.journal[&key].captured.as_ref(), Some(want), "a restart would not know");
            }
            Op::OpenSockets(_) => {
                assert!(self.journal[&key].captured.is_some(), "opened before it was written down");
            }
            Op::Announce => assert!(stands.listening && stands.rules == (true, true), "{stands:?}"),
            Op::Unredirect(_) => assert!(
                !self.announced.contains(&key.uid) || self.superseded.contains(&key),
                "peers still come by HBONE"
            ),
            Op::Drain(_) => assert!(!stands.rules.0, "still captured"),
            Op::Unannounce => {}
            // The rules of a removed sandbox go with its namespace.
            Op::Close(_) => assert!(
                stands.rules == (false, false) || self.removed.contains(&key),
                "closed under standing rules: {stands:?}"
            ),
            Op::RestoreSysctls => assert!(!stands.listening && stands.rules == (false, false)),
        }
        if matches!(op, Op::Announce | Op::Unannounce) {
            assert!(!self.superseded.contains(&key), "the annotation is its successor's");
            let others = self.underway.iter().filter(|(other, _)| other.uid == key.uid && **other != key);
            let others: Vec<_> = others.map(|(_, started)| started.clone()).collect();
            for (ticket, op) in others {
                if self.write(&key.uid, &op) {
                    self.written.insert(ticket);
                }
            }
        }
        if let Some((abandoned, before)) = self.underway.insert(key.clone(), (ticket, op)) {
            assert!(before.may_be_abandoned(), "{before:?} was under way");
            self.late.push((key, abandoned));
        }
    }

    /// Writes into the pod object what `op` says there, if it does.
    fn write(&mut self, uid: &PodUid, op: &Op) -> bool {
        match op {
            Op::Announce => _ = self.announced.insert(uid.clone()),
            Op::Unannounce => _ = self.announced.remove(uid),
            Op::OpenSockets(_)
            | Op::Redirect(_)
            | Op::Unredirect(_)
            | Op::Drain(_)
            | Op::Close(_)
            | Op::RestoreSysctls => return false,
        }
        true
    }

    /// Ends what is under way on `key`, well or not, and says how.
    fn end(&mut self, key: &PodKey, chance: u64) -> Option<Event> {
        let (ticket, op) = self.underway.remove(key)?;
        let well = !chance.is_multiple_of(4) || matches!(op, Op::Close(_));
        let half = chance.is_multiple_of(8);
        if !self.written.remove(&ticket) && (well || half) {
            self.write(&key.uid, &op);
        }
        let stands = self.stands.get_mut(key).expect("its start made the entry");
        match op {
            Op::OpenSockets(_) => stands.listening = well,
            Op::Redirect(_) => {
                stands.sysctls = true;
                if well {
                    stands.rules = (true, true);
                } else if half {
                    stands.rules.1 = true;
                }
            }
            Op::Announce | Op::Unannounce | Op::Drain(_) => {}
            Op::Unredirect(Part::FilterAndNat) => stands.rules.0 &= !well,
            Op::Unredirect(Part::Rest) => stands.rules.1 &= !well,
            Op::Close(_) => stands.listening = false,
            Op::RestoreSysctls => stands.sysctls = false,
        }
        let outcome = match (well, chance % 64) {
            (true, _) => Ok(()),
            (false, 0) => {
                self.removed.insert(key.clone());
                Err(Failure::SandboxGone)
            }
            (false, _) => Err(Failure::Failed("by chance".into())),
        };
        Some(Event::Done { key: key.clone(), ticket, outcome })
    }

    /// The agent dies, at any point of what is under way, and is started again: listeners and who waited are gone,
    /// rules, annotations and the journal are not. Returns what the journal tells the new one.
    fn restart(&mut self, draw: &mut Seed) -> Vec<Event> {
        for key in Vec::from_iter(self.underway.keys().cloned()) {
            // Done, nothing of it, half of it, or never begun.
            let point = usize::try_from(draw.below(4)).unwrap();
            if let Some(chance) = [Some(1), Some(4), Some(8), None][point] {
                self.end(&key, chance);
            }
        }
        self.underway.clear();
        self.written.clear();
        self.needed.clear();
        self.late.clear();
        let Self { asked, answered, .. } = self;
        answered.extend(asked.keys());
        for stands in self.stands.values_mut() {
            stands.listening = false;
        }
        for key in std::mem::take(&mut self.removed) {
            // Its namespace is gone, or its DEL will be repeated.
            if draw.below(2) == 0 {
                self.journal.remove(&key);
                self.stands.remove(&key);
            }
        }
        let mut entries = Vec::from_iter(self.journal.clone());
        entries.sort_by_key(|(_, kept)| kept.arrival);
        let keys = entries.into_iter().map(|(key, _)| key);
        let (unopened, opened): (Vec<_>, Vec<_>) = keys.partition(|_| draw.below(4) == 0);
        self.unopened = unopened;
        self.superseded.clear();
        self.supersede();
        opened.into_iter().map(|key| self.adopted(key, draw)).collect()
    }

    /// What an agent of after a restart is told of this entry of the journal.
    fn adopted(&self, key: PodKey, draw: &mut Seed) -> Event {
        let Kept { arrival, captured } = self.journal[&key].clone();
        // World may know nothing yet of a captured pod.
        let announced = self.announced.contains(&key.uid) && (captured.is_none() || draw.below(2) == 0);
        Event::Adopted { key, arrival, captured, announced }
    }
}

/// One run of the machine against the node.
struct History {
    pods: Pods,
    node: Node,
    now: Now,
    keys: Vec<PodKey>,
}

impl History {
    fn new() -> Self {
        Self {
            pods: Pods::new(Limits::default()),
            node: Node::default(),
            now: Now::at_start(UNIX_EPOCH),
            keys: ["a1", "a2", "b3", "c4"].map(|name| key(&name[..1], name)).to_vec(),
        }
    }

    fn give(&mut self, event: Event) {
        let removed = match &event {
            Event::SandboxGone(key) => Some(key.clone()),
            Event::CniDel { sandbox, .. } => self.keys.iter().find(|key| key.sandbox == *sandbox).cloned(),
            Event::CniAdd { .. }
            | Event::CniCheck { .. }
            | Event::Adopted { .. }
            | Event::Wanted { .. }
            | Event::Unwanted { .. }
            | Event::Terminating { .. }
            | Event::IdentityReady(_)
            | Event::IdentityLost(_)
            | Event::Done { .. }
            | Event::Drifted { .. }
            | Event::Leaving { .. } => None,
        };
        let known = removed.filter(|key| self.pods.knows(key));
        self.node.removed.extend(known);
        let effects = self.pods.handle(self.now, event);
        self.obey(effects);
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.node.obey(&self.pods, effect);
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        let effects = self.pods.tick(self.now);
        self.obey(effects);
    }

    fn restart(&mut self, draw: &mut Seed) {
        self.pods = Pods::new(Limits::default());
        for event in self.node.restart(draw) {
            self.give(event);
        }
    }

    fn end(&mut self, key: &PodKey, chance: u64) {
        if let Some(event) = self.node.end(key, chance) {
            self.give(event);
        }
    }

    fn step(&mut self, draw: &mut Seed) {
        let chance = draw.draw();
        let key = self.keys[usize::try_from(draw.below(4)).unwrap()].clone();
        let uid = key.uid.clone();
        let want = {
            let account = ["x", "y"][usize::try_from(draw.below(2)).unwrap()];
            let port = 9000 + u16::try_from(draw.below(2)).unwrap();
            let skip = Skip { inbound_ports: vec![port..=port], ..Skip::default() };
            Want { identity: id(account), skip: Arc::new(skip) }
        };
        match draw.below(18) {
            0 | 1 => {
                self.node.forget_unopened(&key.sandbox);
                self.node.arrivals += 1;
                let arrival = Arrival(self.node.arrivals);
                self.node.arriving.insert(key.clone(), arrival);
                let token = self.node.ask(Some(key.clone()));
                let announced = self.node.announced.contains(&key.uid);
                let wish = match chance % 3 {
                    0 => Wish::Unknown,
                    1 => Wish::Out,
                    _ => Wish::In(want),
                };
                self.give(Event::CniAdd { key, arrival, token, wish, announced });
            }
            2 => {
                self.node.forget_unopened(&key.sandbox);
                let token = Some(self.node.ask(None));
                self.give(Event::CniDel { sandbox: key.sandbox, token });
            }
            3 => {
                let token = self.node.ask(None);
                self.give(Event::CniCheck { sandbox: key.sandbox, token });
            }
            4 | 5 => self.give(Event::Wanted { uid, want }),
            6 => self.give(Event::Unwanted { uid }),
            7 if chance.is_multiple_of(8) => self.give(Event::Terminating { uid }),
            7 if chance.is_multiple_of(2) => self.give(Event::SandboxGone(key)),
            8 if chance.is_multiple_of(4) => self.give(Event::IdentityLost(want.identity)),
            8 => self.give(Event::IdentityReady(want.identity)),
            9 => {
                let drift = if chance.is_multiple_of(2) { Drift::Repaired } else { Drift::Unrepairable };
                self.give(Event::Drifted { key, drift });
            }
            10 => {
                if let Some((key, ticket)) = self.node.late.pop() {
                    self.give(Event::Done { key, ticket, outcome: Ok(()) });
                }
            }
            11 => self.pass(Duration::from_millis(draw.below(40_000))),
            12 if chance.is_multiple_of(4) => self.restart(draw),
            12 => {
                if let Some(key) = self.node.unopened.pop() {
                    self.node.supersede();
                    let event = self.node.adopted(key, draw);
                    self.give(event);
                }
            }
            _ => self.end(&key, chance),
        }
    }

    /// Removes every sandbox and lets all end.
    fn finish(mut self) {
        for key in self.keys.clone() {
            self.node.forget_unopened(&key.sandbox);
            let token = Some(self.node.ask(None));
            self.give(Event::CniDel { sandbox: key.sandbox, token });
        }
        for _ in 0..8 {
            for key in self.keys.clone() {
                self.end(&key, 1);
            }
        }
        self.pass(Limits::default().keep);
        let Self { pods, node, .. } = self;
        assert_eq!(pods.seen().count(), 0);
        assert_eq!(pods.deadline(), None);
        let asked = BTreeSet::from_iter(node.asked.into_keys());
        assert_eq!(asked, node.answered, "everyone who asked is answered");
        assert!(node.needed.is_empty() && node.journal.is_empty() && node.underway.is_empty());
        assert!(node.stands.values().all(|stands| !stands.listening));
    }
}

/// Runs a history of `steps` events drawn from `seed`. Returns the states that were seen.
fn history(seed: u64, steps: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut draw = Seed(seed);
    let mut history = History::new();
    for _ in 0..steps {
        history.step(&mut draw);
        seen.extend(history.pods.seen().map(|seen| format!("{:?}", seen.state)));
    }
    history.finish();
    seen
}

/// The same, and then Adit leaves the node: nothing of ours is left in any pod that is there, and nothing comes back.
fn left(seed: u64, steps: usize) {
    let mut draw = Seed(seed);
    let mut history = History::new();
    for _ in 0..steps {
        history.step(&mut draw);
    }
    history.give(Event::Leaving { drain: Duration::from_secs(30) });
    for _ in 0..30 {
        for key in history.keys.clone() {
            history.give(Event::Wanted { uid: key.uid.clone(), want: want("x") });
            history.end(&key, 1);
        }
        history.pass(Duration::from_secs(10));
    }
    assert!(history.pods.is_released(), "{:?}", history.pods);
    let taken_up = |key: &PodKey| history.pods.knows(key);
    for (key, stands) in history.node.stands.iter().filter(|(key, _)| taken_up(key)) {
        assert_eq!(*stands, Stands::default(), "{key:?}");
    }
    assert!(history.node.needed.is_empty());
}

#[test]
fn whatever_was_before_nothing_is_left_where_adit_leaves() {
    (0..400).for_each(|seed| left(seed, 120));
}

#[test]
fn every_seeded_history_keeps_the_laws() {
    let seen: BTreeSet<String> = (0..400).flat_map(|seed| history(seed, 300)).collect();
    let states = ["Added", "Adopted", "Draining", "Gone", "Listening", "Live", "Redirected"];
    assert_eq!(Vec::from_iter(seen), states, "the histories go everywhere");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_history_keeps_the_laws(seed: u64, steps in 0_usize..200) {
        history(seed, steps);
    }
}
