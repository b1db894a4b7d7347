//! One sandbox: what becomes of it by what happened. What to do about it is not decided here.

use std::sync::Arc;
use std::time::Duration;

use adit_proto::SpiffeId;

use super::{Adding, Annotation, Broken, Pod, Retry, Stage, refused};
use crate::net::PodKey;
use crate::pods::event::{Drift, Effect, Failure, Lacking, Limits, Op, Refusal, Ticket, Token, Wish};
use crate::redirect::Part;
use crate::time::Mono;

impl Pod {
    /// An ADD waits for this sandbox, until `deadline` if it is the first.
    pub(in crate::pods) fn wait(&mut self, token: Token, deadline: Mono) {
        if self.adds.is_empty() {
            self.add_deadline = Some(deadline);
        }
        self.started = false;
        self.adds.push(token);
    }

    /// The runtime repeats its ADD.
    pub(in crate::pods) fn add_again(&mut self, key: &PodKey, adding: Adding, out: &mut Vec<Effect>) {
        if self.deleted {
            match &mut self.again {
                None => self.again = Some(adding),
                Some(again) => {
                    again.tokens.extend(adding.tokens);
                    again.arrival = adding.arrival;
                    again.wish = adding.wish;
                }
            }
            return;
        }
        let Adding { tokens, deadline, arrival: _, wish, announced: _ } = adding;
        let started = self.started;
        for token in tokens {
            self.wait(token, deadline);
        }
        self.started = started;
        self.retries.clear();
        if wish != Wish::Unknown {
            self.set_wish(key, wish, out);
        }
    }

    pub(in crate::pods) fn wait_for_release(&mut self, token: Token, deadline: Mono) {
        self.del_deadline.get_or_insert(deadline);
        self.dels.push(token);
    }

    pub(in crate::pods) fn set_wish(&mut self, key: &PodKey, wish: Wish, out: &mut Vec<Effect>) {
        if let Some(again) = &mut self.again {
            again.wish = wish.clone();
        }
        if self.wish == wish {
            return;
        }
        self.retries.clear();
        self.wish = wish;
        // What is kept must name what is about to stand.
        if let (Wish::In(want), Some(held), false) = (&self.wish, &self.held, self.deleted)
            && *held == want.identity
        {
            out.push(Effect::JournalWrite { key: key.clone(), captured: Some(want.clone()) });
        }
    }

    /// Adit leaves the node: it goes out of the mesh, and what is open has until `until` at most.
    pub(in crate::pods) fn leave(&mut self, key: &PodKey, until: Mono, out: &mut Vec<Effect>) {
        self.leaving = true;
        self.set_wish(key, Wish::Out, out);
        self.retries.clear();
        if let Stage::Draining(later) = self.stage {
            self.stage = Stage::Draining(later.min(until));
            // Begun anew, with the nearer end.
            self.busy.take_if(|(_, op)| matches!(op, Op::Drain(_)));
        }
    }

    /// There is a later sandbox of the pod; returns what is known of the annotation, which is now the later one's.
    pub(in crate::pods) fn supersede(&mut self) -> Option<Annotation> {
        let current = !self.superseded;
        self.superseded = true;
        current.then_some(self.annotation)
    }

    /// What an earlier sandbox knew of the annotation: later news than what World has seen.
    pub(in crate::pods) fn inherit(&mut self, known: Annotation) {
        self.annotation = match (known, self.annotation) {
            (Annotation::On | Annotation::Seen, _) => Annotation::Seen,
            (Annotation::Off, Annotation::Off) => Annotation::Off,
            (Annotation::Off | Annotation::Unsure, _) => Annotation::Unsure,
        };
    }

    /// What an earlier sandbox of before a restart, found only now, may have left on the pod object: more than nothing, but
    /// older news than what this one has written.
    pub(in crate::pods) fn learn(&mut self, known: Annotation) {
        if self.annotation == Annotation::Off && known != Annotation::Off {
            self.annotation = Annotation::Unsure;
        }
    }

    /// The pod dies: a start that is under way is given up at once, or the pod would wait for its ADD to end, and
    /// then be started for its grace period.
    pub(in crate::pods) fn terminate(&mut self, out: &mut Vec<Effect>) {
        self.terminating = true;
        if !self.adds.is_empty() {
            self.give_up(&Refusal::Terminating, out);
        }
    }

    /// The runtime removed the sandbox, or it is gone.
    pub(in crate::pods) fn delete(&mut self, out: &mut Vec<Effect>) {
        self.deleted = true;
        self.refuse_adds(&Refusal::Deleted, out);
        for token in self.again.take().into_iter().flat_map(|again| again.tokens) {
            out.push(refused(token, &Refusal::Deleted));
        }
    }

    pub(in crate::pods) fn drifted(&mut self, drift: Drift) {
        // Elsewhere there are no rules that should hold, or they are about to be written. Rules of which the writing
        // failed are written again, whatever a watch of those before says.
        if self.stage == Stage::Redirected && self.broken != Some(Broken::Rules) {
            self.broken = (drift == Drift::Unrepairable).then_some(Broken::Watched);
        }
    }

    pub(in crate::pods) fn tick(&mut self, now: Mono, ready: bool, out: &mut Vec<Effect>) {
        for retry in &mut self.retries {
            retry.at = retry.at.filter(|at| *at > now);
        }
        if self.add_deadline.is_some_and(|at| at <= now) {
            let lacking = self.lacking(ready).unwrap_or(Lacking::Release);
            self.give_up(&Refusal::Deadline(lacking), out);
        }
        if self.del_deadline.is_some_and(|at| at <= now) {
            self.answer_dels(out);
        }
    }

    pub(in crate::pods) fn start(&mut self, ticket: Ticket, op: Op) {
        match &op {
            // From here on the object may say either, whatever is answered.
            Op::Announce if self.annotation == Annotation::Off => self.annotation = Annotation::Unsure,
            Op::Unannounce => self.annotation = Annotation::Unsure,
            Op::Announce
            | Op::OpenSockets(_)
            | Op::Redirect(_)
            | Op::Unredirect(_)
            | Op::Drain(_)
            | Op::Close(_)
            | Op::RestoreSysctls => {}
        }
        self.busy = Some((ticket, op));
    }

    pub(in crate::pods) fn done(
        &mut self,
        now: Mono,
        limits: &Limits,
        key: &PodKey,
        ticket: Ticket,
        outcome: Result<(), Failure>,
        out: &mut Vec<Effect>,
    ) {
        // The outcome of an abandoned operation says nothing about the present.
        let Some((_, op)) = self.busy.take_if(|(current, _)| *current == ticket) else {
            return;
        };
        match outcome {
            Ok(()) => {
                self.retries.retain(|retry| !retry.op.same_kind(&op) && !same_place(&retry.op, &op));
                self.succeeded(now, limits, key, op, out);
            }
            Err(Failure::SandboxGone) => {
                self.failed(&op, None, out);
                self.delete(out);
            }
            Err(Failure::Failed(detail)) => {
                self.failed(&op, Some(&detail), out);
                let known = self.retries.iter().position(|retry| retry.op.same_kind(&op));
                let before = known.map(|index| self.retries.swap_remove(index));
                let failures = before.map_or(0, |retry| retry.failures).saturating_add(1);
                self.retries.push(Retry { op, at: Some(now + backoff(limits, failures)), failures });
            }
        }
    }

    fn succeeded(&mut self, now: Mono, limits: &Limits, key: &PodKey, op: Op, out: &mut Vec<Effect>) {
        match op {
            Op::OpenSockets(_) => {
                self.broken.take_if(|broken| *broken == Broken::Listeners);
                self.stage = match self.stage {
                    Stage::Adopted | Stage::Leftover => Stage::Reopened,
                    Stage::Added
                    | Stage::Closed
                    | Stage::Reopened
                    | Stage::Listening
                    | Stage::Redirected
                    | Stage::Draining(_)
                    | Stage::Drained => Stage::Listening,
                };
            }
            Op::Redirect(want) => {
                self.stage = Stage::Redirected;
                self.applied = Some(want.skip);
                self.broken = None;
                out.push(Effect::Serve(key.clone()));
            }
            Op::Announce => self.annotation = Annotation::On,
            Op::Unannounce => self.annotation = Annotation::Off,
            Op::Unredirect(Part::FilterAndNat) if self.stage == Stage::Adopted => {
                self.stage = Stage::Leftover
            }
            Op::Unredirect(Part::FilterAndNat) => self.stage = Stage::Draining(now + limits.drain),
            Op::Drain(_) => self.stage = Stage::Drained,
            Op::Unredirect(Part::Rest) if self.stage == Stage::Leftover => self.stage = Stage::Closed,
            Op::Unredirect(Part::Rest) => self.stage = Stage::Listening,
            Op::Close(_) => self.stage = Stage::Closed,
            Op::RestoreSysctls => self.stage = Stage::Added,
        }
    }

    fn failed(&mut self, op: &Op, detail: Option<&Arc<str>>, out: &mut Vec<Effect>) {
        match (op, self.stage) {
            // Rules of before the restart stand and fail closed; they are not taken down because a listener is late.
            (Op::OpenSockets(_), Stage::Adopted | Stage::Leftover) => self.broken = Some(Broken::Listeners),
            // Some listeners may be open.
            (Op::OpenSockets(_), _) => {
                self.stage = Stage::Listening;
                self.give_up_for(detail, out);
            }
            // Some rules may stand.
            (Op::Redirect(_), Stage::Listening) => {
                self.stage = Stage::Redirected;
                self.give_up_for(detail, out);
            }
            // Rules stood before: they stay, the pod is not announced, and the attempt is repeated.
            (Op::Redirect(_), _) => {
                self.stage = Stage::Redirected;
                self.broken = Some(Broken::Rules);
            }
            // Neither can be had otherwise.
            (Op::Drain(_), _) => self.stage = Stage::Drained,
            (Op::Close(_), _) => self.stage = Stage::Closed,
            // What stood before is lost for this namespace; the executor has said so.
            (Op::RestoreSysctls, _) => self.stage = Stage::Added,
            // Who takes Adit off may have taken away what it is said to; nobody asks there any more.
            (Op::Unannounce, _) if self.leaving => self.annotation = Annotation::Off,
            (Op::Announce | Op::Unannounce | Op::Unredirect(_), _) => {}
        }
    }

    fn give_up_for(&mut self, detail: Option<&Arc<str>>, out: &mut Vec<Effect>) {
        self.failing = true;
        if let Some(detail) = detail {
            self.refuse_adds(&Refusal::Failed(Arc::clone(detail)), out);
        }
    }

    /// Answers those who wait with `refusal` and undoes what was begun for them.
    fn give_up(&mut self, refusal: &Refusal, out: &mut Vec<Effect>) {
        self.refuse_adds(refusal, out);
        // An ADD repeated for a running pod does not take its capture down.
        if !self.started {
            self.failing |= self.held.is_some();
        }
    }

    pub(in crate::pods) fn hold(&mut self, identity: SpiffeId) {
        self.held = Some(identity);
    }

    /// Nothing of ours is left in the sandbox; returns the identity that it held.
    pub(in crate::pods) fn released(&mut self) -> Option<SpiffeId> {
        self.failing = false;
        self.broken = None;
        self.applied = None;
        self.held.take()
    }

    /// The end: answers the DELs; returns the identity that it held, and what is to begin anew.
    pub(in crate::pods) fn removed(mut self, out: &mut Vec<Effect>) -> (Option<SpiffeId>, Option<Adding>) {
        self.answer_dels(out);
        (self.held, self.again)
    }
}

/// Whether both write the same place: where one succeeds, the other need not wait.
fn same_place(one: &Op, other: &Op) -> bool {
    let is_word = |op: &Op| matches!(op, Op::Announce | Op::Unannounce);
    is_word(one) && is_word(other)
}

/// `retry_first` · 2^(failures - 1), at most `retry_max`.
fn backoff(limits: &Limits, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    limits.retry_first.saturating_mul(1 << doublings).min(limits.retry_max)
}
