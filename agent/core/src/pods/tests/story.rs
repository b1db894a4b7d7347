//! The machine with what its driver would hold, driven event by event, and its effects in words.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::redirect::Part;

pub(super) fn web() -> PodKey {
    key("web", "s1")
}

/// The machine with what its driver would hold: drives one story, event by event.
pub(super) struct Story {
    pub(super) pods: Pods,
    now: Now,
    pub(super) underway: BTreeMap<PodKey, (Ticket, Op)>,
}

impl Story {
    pub(super) fn new() -> Self {
        let limits = Limits { keep: Duration::ZERO, ..Limits::default() };
        Self { pods: Pods::new(limits), now: Now::at_start(UNIX_EPOCH), underway: BTreeMap::new() }
    }

    /// Gives an event; returns the effects in words.
    pub(super) fn on(&mut self, event: Event) -> Vec<String> {
        let effects = self.pods.handle(self.now, event);
        self.note(effects)
    }

    pub(super) fn pass(&mut self, span: Duration) -> Vec<String> {
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

    pub(super) fn add(&mut self, key: PodKey, token: u64, wish: Wish) -> Vec<String> {
        self.on(Event::CniAdd { key, arrival: Arrival(token), token: Token(token), wish, announced: false })
    }

    pub(super) fn del(&mut self, sandbox: &str, token: u64) -> Vec<String> {
        self.on(Event::CniDel { sandbox: SandboxId(sandbox.into()), token: Some(Token(token)) })
    }

    /// The operation under way on this sandbox ends.
    pub(super) fn end(&mut self, key: &PodKey, outcome: Result<(), Failure>) -> Vec<String> {
        let (ticket, _) = self.underway.remove(key).expect("an operation is under way");
        self.on(Event::Done { key: key.clone(), ticket, outcome })
    }

    pub(super) fn ok(&mut self, key: &PodKey) -> Vec<String> {
        self.end(key, Ok(()))
    }

    pub(super) fn fails(&mut self, key: &PodKey) -> Vec<String> {
        self.end(key, Err(Failure::Failed("no".into())))
    }

    /// Added, enrolled, captured; its ADD answered.
    pub(super) fn live(key: &PodKey) -> Self {
        let mut story = Self::new();
        story.add(key.clone(), 1, Wish::In(want("web")));
        story.on(Event::IdentityReady(id("web")));
        for _ in ["listeners", "rules", "annotation"] {
            story.ok(key);
        }
        assert_eq!(story.state(key), State::Live);
        story
    }

    pub(super) fn state(&self, key: &PodKey) -> State {
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
