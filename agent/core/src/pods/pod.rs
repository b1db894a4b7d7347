//! One sandbox: what stands of it, and the one step that it needs next.
//!
//! ```text
//!            OpenSockets          Redirect             Announce
//!    Added ───────────▶ Listening ────────▶ Redirected ◀──────▶ (annotation on: Live)
//!      ▲                 │      ▲               ▲  │   Unannounce
//!      │ RestoreSysctls  │Close │Unredirect     │  │ Unredirect(filter, nat)
//!      │                 ▼      │(rest)         │  ▼
//!      └────────────── Closed   Drained ◀─── Draining          a restart: Adopted ──OpenSockets──▶ Reopened ──Redirect──▶
//! ```
//! The way up may be taken from any stage, so a pod that is wanted again while it drains never closes. A sandbox that
//! the runtime removes takes none of this: its listeners are closed, the rest goes with its namespace.

mod happened;

use std::sync::Arc;

use adit_proto::{Reason, SpiffeId};

use super::event::{Arrival, Effect, Lacking, Op, Refusal, State, Ticket, Token, Want, Wish};
use crate::redirect::Part;
use crate::time::Mono;
use crate::workload::Skip;

/// What stands in the sandbox's namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Nothing of ours.
    Added,
    /// After a restart: perhaps rules; no listeners.
    Adopted,
    /// The same, on its way out: perhaps the rules that live connections need; no listeners.
    Leftover,
    /// After a restart: listeners, and perhaps rules.
    Reopened,
    /// Listeners, no rules.
    Listening,
    /// Listeners and rules.
    Redirected,
    /// Listeners, and the rules that live connections need, until they have ended or this instant has come.
    Draining(Mono),
    /// The same; none is left, or their time is up.
    Drained,
    /// Nothing but changed sysctls.
    Closed,
}

/// What the pod object says of its capture, as far as is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Annotation {
    /// Nothing.
    Off,
    /// It was there before this sandbox: good enough for an ADD while the API server is away.
    Seen,
    /// A write was begun and its end is not known.
    Unsure,
    /// Acknowledged.
    On,
}

/// The step that a sandbox needs.
#[derive(Debug)]
pub(super) enum Next {
    /// None, until something happens.
    Wait,
    /// Hold the identity.
    Acquire(Want),
    /// Start this operation.
    Start(Op),
    /// Nothing of ours is left in it: give the identity back.
    Release,
    /// The runtime removed it and nothing is left: end.
    Remove,
}

/// An ADD: of a new sandbox, or of one that is known. Several, where they wait for the end of an earlier life.
#[derive(Debug)]
pub(super) struct Adding {
    pub(super) tokens: Vec<Token>,
    pub(super) deadline: Mono,
    pub(super) arrival: Arrival,
    pub(super) wish: Wish,
    pub(super) announced: bool,
}

/// Why a sandbox with rules is not captured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broken {
    /// They stand from before a restart, and the listeners that they lead to cannot be had: tried again here.
    Listeners,
    /// They could not be written: tried again here.
    Rules,
    /// The watch found that they do not capture. It tries again, and says when they do; writing them anew would only
    /// announce what the watch then finds broken again.
    Watched,
}

/// A kind of operation that failed.
#[derive(Debug)]
struct Retry {
    op: Op,
    /// Not before this instant; `None` once it has come.
    at: Option<Mono>,
    /// In a row.
    failures: u32,
}

/// One sandbox.
#[derive(Debug)]
pub(super) struct Pod {
    arrival: Arrival,
    stage: Stage,
    wish: Wish,
    annotation: Annotation,
    /// The identity that it holds.
    held: Option<SpiffeId>,
    /// With what its rules were last applied.
    applied: Option<Arc<Skip>>,
    /// Its rules do not hold what they should, and could not be mended.
    broken: Option<Broken>,
    /// An enrolment failed: all of it is undone before the next attempt.
    failing: bool,
    terminating: bool,
    /// A later sandbox of the same pod is, or was, there: the annotation is that one's, for good (the kubelet never goes back).
    superseded: bool,
    /// The runtime removed it.
    deleted: bool,
    /// Adit leaves the node: what cannot be said of it any more is not waited for.
    leaving: bool,
    busy: Option<(Ticket, Op)>,
    /// What failed, until it succeeds: one of each kind.
    retries: Vec<Retry>,
    /// No first ADD waits: an application may be running in it.
    started: bool,
    adds: Vec<Token>,
    add_deadline: Option<Mono>,
    dels: Vec<Token>,
    del_deadline: Option<Mono>,
    /// It was added again while it was being removed.
    again: Option<Adding>,
}

impl Pod {
    pub(super) fn new(arrival: Arrival, stage: Stage, wish: Wish, announced: bool) -> Self {
        Self {
            arrival,
            stage,
            wish,
            annotation: if announced { Annotation::Seen } else { Annotation::Off },
            held: None,
            applied: None,
            broken: None,
            failing: false,
            terminating: false,
            superseded: false,
            deleted: false,
            leaving: false,
            busy: None,
            retries: Vec::new(),
            started: true,
            adds: Vec::new(),
            add_deadline: None,
            dels: Vec::new(),
            del_deadline: None,
            again: None,
        }
    }

    /// One for which an ADD waits.
    pub(super) fn added(stage: Stage, adding: Adding) -> Self {
        let Adding { tokens, deadline, arrival, wish, announced } = adding;
        let mut pod = Self::new(arrival, stage, wish, announced);
        for token in tokens {
            pod.wait(token, deadline);
        }
        pod
    }

    /// One that was captured before a restart.
    pub(super) fn adopted(arrival: Arrival, want: Want, announced: bool) -> Self {
        let mut pod = Self::new(arrival, Stage::Adopted, Wish::In(want), announced);
        if !announced {
            // World may not have read it yet, and what is captured is announced as a rule.
            pod.annotation = Annotation::Unsure;
        }
        pod
    }

    /// Whether it is the later one. Of two without an order it is the one that is told of later.
    pub(super) fn arrived_after(&self, other: &Self) -> bool {
        self.arrival > other.arrival
    }

    // What to do next. Pure; what happened is recorded in `happened`.

    /// The one step that is possible and needed at `now`; `ready`: there is a certificate for what it holds.
    pub(super) fn next(&self, now: Mono, ready: bool) -> Next {
        let next = match self.direction() {
            Direction::Gone => self.remove(),
            Direction::Up(want) => self.up(now, want, ready),
            Direction::Down => self.down(),
            Direction::Stay => Next::Wait,
        };
        let Next::Start(op) = next else {
            // Holding and giving back wait for what is under way; an end does not wait for what may be abandoned.
            let free = self.busy.as_ref().is_none_or(|(_, busy)| busy.may_be_abandoned());
            return if free { next } else { Next::Wait };
        };
        let underway =
            self.busy.as_ref().is_some_and(|(_, busy)| !busy.may_be_abandoned() || busy.same_kind(&op));
        if underway || self.is_too_early(now, &op) { Next::Wait } else { Next::Start(op) }
    }

    /// Whether this has failed, and its next attempt is not due.
    fn is_too_early(&self, now: Mono, op: &Op) -> bool {
        let mut failed = self.retries.iter().filter(|retry| retry.op.same_kind(op));
        failed.any(|retry| retry.at.is_some_and(|at| now < at))
    }

    fn direction(&self) -> Direction<'_> {
        if self.deleted {
            return Direction::Gone;
        }
        if self.failing {
            return Direction::Down;
        }
        match &self.wish {
            // A service account does not change, but a configured trust domain may over a restart: out and in again.
            Wish::In(want) if self.held.as_ref().is_some_and(|held| *held != want.identity) => {
                Direction::Down
            }
            // What dies anyway is not enrolled any more; what is enrolled is served until its sandbox goes.
            Wish::In(_) if self.terminating && self.held.is_none() => Direction::Stay,
            Wish::In(want) => Direction::Up(want),
            Wish::Out => Direction::Down,
            Wish::Unknown => Direction::Stay,
        }
    }

    fn remove(&self) -> Next {
        match self.stage {
            Stage::Added | Stage::Adopted | Stage::Leftover | Stage::Closed => Next::Remove,
            Stage::Reopened | Stage::Listening | Stage::Redirected | Stage::Draining(_) | Stage::Drained => {
                Next::Start(Op::Close(Reason::PodGone))
            }
        }
    }

    fn up(&self, now: Mono, want: &Want, ready: bool) -> Next {
        if self.held.is_none() {
            return Next::Acquire(want.clone());
        }
        // Peers must not come by HBONE to what is broken. Where that cannot be said at present, mending goes on: else a
        // full disk would keep broken what it has nothing to do with.
        if self.broken.is_some() && self.may_be_announced() && !self.is_too_early(now, &Op::Unannounce) {
            return Next::Start(Op::Unannounce);
        }
        match self.stage {
            // Listeners before rules: with the order reversed, a pod's first SYN would be redirected to a closed port.
            Stage::Added | Stage::Adopted | Stage::Leftover | Stage::Closed => {
                Next::Start(Op::OpenSockets(want.identity.clone()))
            }
            // Without a certificate every captured connection would fail.
            Stage::Listening if !ready => Next::Wait,
            // After a restart the rules stand already; waiting for a certificate would only leave them unverified.
            Stage::Listening | Stage::Reopened | Stage::Draining(_) | Stage::Drained => {
                Next::Start(Op::Redirect(want.clone()))
            }
            Stage::Redirected => self.up_from_redirected(want, ready),
        }
    }

    fn up_from_redirected(&self, want: &Want, ready: bool) -> Next {
        if self.broken == Some(Broken::Rules) || self.applied.as_ref() != Some(&want.skip) {
            return Next::Start(Op::Redirect(want.clone()));
        }
        if self.broken.is_none() && ready && !self.superseded && self.annotation != Annotation::On {
            return Next::Start(Op::Announce);
        }
        Next::Wait
    }

    fn down(&self) -> Next {
        // The annotation first: peers stop coming by HBONE before anything is taken away.
        if self.may_be_announced() {
            return Next::Start(Op::Unannounce);
        }
        match self.stage {
            Stage::Added if self.held.is_some() || self.failing => Next::Release,
            Stage::Added => Next::Wait,
            Stage::Adopted | Stage::Reopened | Stage::Redirected => {
                Next::Start(Op::Unredirect(Part::FilterAndNat))
            }
            Stage::Draining(until) => Next::Start(Op::Drain(until)),
            // Without listeners, none of the connections is ours any more.
            Stage::Drained | Stage::Leftover => Next::Start(Op::Unredirect(Part::Rest)),
            Stage::Listening => Next::Start(Op::Close(Reason::Drained)),
            Stage::Closed => Next::Start(Op::RestoreSysctls),
        }
    }

    fn may_be_announced(&self) -> bool {
        self.annotation != Annotation::Off && !self.superseded
    }

    // Answers.

    /// Answers the ADDs that wait, once what they wait for is so.
    pub(super) fn answer_adds(&mut self, ready: bool, out: &mut Vec<Effect>) {
        if self.adds.is_empty() || self.deleted {
            return;
        }
        let settled = match &self.wish {
            Wish::Unknown => false,
            Wish::In(_) | Wish::Out => self.lacking(ready).is_none(),
        };
        if settled {
            self.started = true;
            self.add_deadline = None;
            out.extend(self.adds.drain(..).map(|token| Effect::Reply { token, answer: Ok(()) }));
        }
    }

    fn refuse_adds(&mut self, refusal: &Refusal, out: &mut Vec<Effect>) {
        self.add_deadline = None;
        out.extend(self.adds.drain(..).map(|token| refused(token, refusal)));
    }

    fn answer_dels(&mut self, out: &mut Vec<Effect>) {
        self.del_deadline = None;
        out.extend(self.dels.drain(..).map(|token| Effect::Reply { token, answer: Ok(()) }));
    }

    // What can be seen.

    /// The next instant at which time alone changes something.
    pub(super) fn deadline(&self) -> Option<Mono> {
        let retries = self.retries.iter().filter_map(|retry| retry.at);
        retries.chain(self.add_deadline).chain(self.del_deadline).min()
    }

    /// Whether nothing of ours stands in it, and nothing is under way.
    pub(super) fn is_released(&self) -> bool {
        self.stage == Stage::Added && self.held.is_none() && self.busy.is_none()
    }

    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }

    pub(super) fn holds(&self) -> Option<&SpiffeId> {
        self.held.as_ref()
    }

    /// What it lacks first to be as the labels want it; `None` if it is.
    pub(super) fn lacking(&self, ready: bool) -> Option<Lacking> {
        let want = match &self.wish {
            // Of a running pod it says nothing that the labels do not.
            Wish::Unknown if self.adds.is_empty() => return None,
            Wish::Unknown => return Some(Lacking::Enrolment),
            Wish::Out if self.stage == Stage::Added && self.held.is_none() => return None,
            Wish::Out => return Some(Lacking::Release),
            Wish::In(want) => want,
        };
        if self.failing || self.held.as_ref().is_some_and(|held| *held != want.identity) {
            return Some(Lacking::Release);
        }
        match self.stage {
            Stage::Added | Stage::Adopted | Stage::Leftover | Stage::Closed => Some(Lacking::Listeners),
            Stage::Listening if !ready => Some(Lacking::Certificate(want.identity.clone())),
            Stage::Reopened | Stage::Listening | Stage::Draining(_) | Stage::Drained => Some(Lacking::Rules),
            Stage::Redirected if self.broken.is_some() => Some(Lacking::Rules),
            Stage::Redirected if !ready => Some(Lacking::Certificate(want.identity.clone())),
            Stage::Redirected => match self.annotation {
                Annotation::Seen | Annotation::On => None,
                Annotation::Off | Annotation::Unsure => Some(Lacking::Annotation),
            },
        }
    }

    /// Whether it is of before a restart, and its first verification has not come to an end.
    pub(super) fn is_being_adopted(&self) -> bool {
        match self.stage {
            Stage::Adopted | Stage::Leftover | Stage::Reopened => {
                self.held.is_some() && self.broken.is_none() && matches!(self.direction(), Direction::Up(_))
            }
            Stage::Added
            | Stage::Listening
            | Stage::Redirected
            | Stage::Draining(_)
            | Stage::Drained
            | Stage::Closed => false,
        }
    }

    pub(super) fn state(&self, ready: bool) -> State {
        if self.deleted {
            return State::Gone;
        }
        let down = matches!(self.direction(), Direction::Down);
        match self.stage {
            Stage::Added => State::Added,
            _ if down => State::Draining,
            Stage::Closed => State::Added,
            Stage::Adopted | Stage::Leftover | Stage::Reopened => State::Adopted,
            Stage::Listening => State::Listening,
            Stage::Redirected if self.lacking(ready).is_none() => State::Live,
            Stage::Redirected | Stage::Draining(_) | Stage::Drained => State::Redirected,
        }
    }
}

/// Where a sandbox is to go.
enum Direction<'p> {
    Up(&'p Want),
    Down,
    Stay,
    Gone,
}

fn refused(token: Token, refusal: &Refusal) -> Effect {
    Effect::Reply { token, answer: Err(refusal.clone()) }
}
