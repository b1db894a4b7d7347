//! The life of every sandbox on this node, as a machine: from CNI ADD, a label or a restart to captured, and back.
//!
//! Takes what happened ([`Event`]), returns what must be done ([`Effect`]), in order. It knows keys only: the driver
//! `agent::pods` keeps their namespaces, addresses and journal, asks World who is wanted, and executes. What one pod
//! needs next is decided in one place, `pod::Pod::next`; the states are drawn there.
//!
//! What always holds, whatever comes in whatever order:
//! - rules are asked for only while the pod's listeners are open, and listeners close only once the rules are out;
//! - every ADD, CHECK and DEL is answered exactly once, an ADD at the latest at its deadline;
//! - at most one operation on a pod is under way, but for those that may be abandoned ([`Op::may_be_abandoned`]);
//! - of the sandboxes of one pod the one that arrived last has the say in its annotation, whichever is told of first;
//! - per identity one `Need` stands while any pod holds it, and for a while after that ([`Limits::keep`]).

mod event;
mod pod;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use adit_proto::SpiffeId;

use crate::net::{PodKey, PodUid, SandboxId};
use crate::time::{Mono, Now};
pub use event::{
    Arrival, Drift, Effect, Event, Failure, Lacking, Limits, Op, PODS_MAX, Refusal, Seen, State, Ticket,
    Token, Want, Wish,
};
use pod::{Adding, Annotation, Next, Pod, Stage};

/// An identity that pods hold, or held a moment ago.
#[derive(Debug)]
struct Identity {
    /// How many.
    holders: usize,
    /// There is a certificate.
    ready: bool,
    /// While there are none: until when it is kept for the next one.
    until: Option<Mono>,
}

/// The machine.
#[derive(Debug)]
pub struct Pods {
    limits: Limits,
    pods: BTreeMap<PodKey, Pod>,
    /// A DEL names no uid.
    by_sandbox: BTreeMap<SandboxId, PodKey>,
    identities: BTreeMap<SpiffeId, Identity>,
    tickets: u64,
    /// Adit leaves the node.
    leaving: bool,
}

impl Pods {
    /// No pods.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pods: BTreeMap::new(),
            by_sandbox: BTreeMap::new(),
            identities: BTreeMap::new(),
            tickets: 0,
            leaving: false,
        }
    }

    /// Takes one event; returns what the caller must do now, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let now = now.mono;
        let mut out = Vec::new();
        match event {
            Event::CniAdd { key, arrival, token, wish, announced } => {
                let (tokens, deadline) = (vec![token], now + self.limits.add);
                let adding = Adding { tokens, deadline, arrival, wish, announced };
                self.add(now, key, adding, &mut out)
            }
            Event::CniDel { sandbox, token } => self.del(now, &sandbox, token, &mut out),
            Event::CniCheck { sandbox, token } => {
                out.push(Effect::Reply { token, answer: self.check(&sandbox) })
            }
            Event::Adopted { key, arrival, captured, announced } => {
                let pod = match captured {
                    Some(want) => Pod::adopted(arrival, want, announced),
                    None => Pod::new(arrival, Stage::Added, Wish::Unknown, announced),
                };
                self.adopt(now, key, pod, &mut out)
            }
            Event::Wanted { uid, want } => self.wish(now, &uid, &Wish::In(want), &mut out),
            Event::Unwanted { uid } => self.wish(now, &uid, &Wish::Out, &mut out),
            Event::Terminating { uid } => {
                for key in self.sandboxes_of(&uid) {
                    self.with(now, &key, &mut out, |pod, out| pod.terminate(out));
                }
            }
            Event::IdentityReady(id) => self.identity_ready(now, &id, &mut out),
            Event::IdentityLost(id) => {
                // No step follows for anyone: each waits where it is. One that was kept for its certificate goes.
                if let Some(identity) = self.identities.get_mut(&id) {
                    identity.ready = false;
                    identity.until = identity.until.map(|_| now);
                }
                self.forget_unheld(|until| until <= now, &mut out);
            }
            Event::Done { key, ticket, outcome } => {
                let limits = self.limits;
                self.with(now, &key, &mut out, |pod, out| pod.done(now, &limits, &key, ticket, outcome, out));
            }
            Event::Drifted { key, drift } => self.with(now, &key, &mut out, |pod, _| pod.drifted(drift)),
            Event::SandboxGone(key) => self.with(now, &key, &mut out, |pod, out| pod.delete(out)),
            Event::Leaving { drain } => self.leave(now, drain, &mut out),
        }
        out
    }

    /// Does what has fallen due by `now`.
    pub fn tick(&mut self, now: Now) -> Vec<Effect> {
        let now = now.mono;
        let mut out = Vec::new();
        let due: Vec<PodKey> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.deadline().is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let ready = self.is_ready(&key);
            self.with(now, &key, &mut out, |pod, out| pod.tick(now, ready, out));
        }
        self.forget_unheld(|until| until <= now, &mut out);
        out
    }

    /// When to call [`Self::tick`] next; `None` while nothing is scheduled.
    pub fn deadline(&self) -> Option<Mono> {
        let unheld = self.identities.values().filter_map(|identity| identity.until);
        self.pods.values().filter_map(Pod::deadline).chain(unheld).min()
    }

    /// Every sandbox, by key.
    pub fn seen(&self) -> impl Iterator<Item = Seen<'_>> {
        self.pods.iter().map(|(key, pod)| {
            let ready = self.is_ready(key);
            Seen {
                key,
                state: pod.state(ready),
                enrolled: matches!(pod.wish(), Wish::In(_)),
                lacking: pod.lacking(ready),
                adopting: pod.is_being_adopted(),
            }
        })
    }

    /// Whether this sandbox is kept.
    pub fn knows(&self, key: &PodKey) -> bool {
        self.pods.contains_key(key)
    }

    /// Whether nothing of ours stands in any sandbox, and nothing is under way.
    pub fn is_released(&self) -> bool {
        self.pods.values().all(Pod::is_released)
    }

    fn leave(&mut self, now: Mono, drain: Duration, out: &mut Vec<Effect>) {
        self.leaving = true;
        self.limits.drain = self.limits.drain.min(drain);
        let until = now + self.limits.drain;
        let all: Vec<PodKey> = self.pods.keys().cloned().collect();
        for key in all {
            self.with(now, &key, out, |pod, out| pod.leave(&key, until, out));
        }
        self.forget_unheld(|_| true, out);
    }

    fn add(&mut self, now: Mono, key: PodKey, mut adding: Adding, out: &mut Vec<Effect>) {
        if self.leaving {
            adding.wish = Wish::Out;
        }
        // A runtime that gives an id to another pod has lost the DEL of the first.
        if self.by_sandbox.get(&key.sandbox).is_some_and(|known| *known != key) {
            self.del(now, &key.sandbox, None, out);
        }
        if self.pods.contains_key(&key) {
            self.with(now, &key, out, |pod, out| pod.add_again(&key, adding, out));
            return;
        }
        if self.pods.len() >= PODS_MAX {
            let tokens = adding.tokens.into_iter();
            out.extend(tokens.map(|token| Effect::Reply { token, answer: Err(Refusal::TooMany) }));
            return;
        }
        let pod = Pod::added(Stage::Added, adding);
        out.push(Effect::JournalWrite { key: key.clone(), captured: None });
        self.insert(now, key, pod, out);
    }

    fn adopt(&mut self, now: Mono, key: PodKey, pod: Pod, out: &mut Vec<Effect>) {
        if !self.pods.contains_key(&key) && self.pods.len() < PODS_MAX {
            self.insert(now, key, pod, out);
        }
    }

    /// Takes a sandbox in. Of those of one pod only the last to arrive has a say in what the pod object tells: as a rule
    /// this one, but one of before a restart may be found only after its successor.
    fn insert(&mut self, now: Mono, key: PodKey, mut pod: Pod, out: &mut Vec<Effect>) {
        for other in self.sandboxes_of(&key.uid) {
            self.with(now, &other, out, |other, _| {
                if other.arrived_after(&pod) {
                    if let Some(known) = pod.supersede() {
                        other.learn(known);
                    }
                } else if let Some(known) = other.supersede() {
                    pod.inherit(known);
                }
            });
        }
        self.by_sandbox.insert(key.sandbox.clone(), key.clone());
        self.pods.insert(key.clone(), pod);
        let until = self.leaving.then(|| now + self.limits.drain);
        self.with(now, &key, out, |pod, out| {
            if let Some(until) = until {
                pod.leave(&key, until, out);
            }
        });
    }

    fn del(&mut self, now: Mono, sandbox: &SandboxId, token: Option<Token>, out: &mut Vec<Effect>) {
        let Some(key) = self.by_sandbox.get(sandbox).cloned() else {
            out.extend(token.map(|token| Effect::Reply { token, answer: Ok(()) }));
            return;
        };
        let deadline = now + self.limits.del;
        self.with(now, &key, out, |pod, out| {
            pod.delete(out);
            if let Some(token) = token {
                pod.wait_for_release(token, deadline);
            }
        });
    }

    /// A sandbox that is not known is none of ours: the specification wants CHECK to fail only for what is broken.
    fn check(&self, sandbox: &SandboxId) -> Result<(), Refusal> {
        let Some((key, pod)) = self.by_sandbox.get(sandbox).and_then(|key| self.pods.get_key_value(key))
        else {
            return Ok(());
        };
        match pod.lacking(self.is_ready(key)) {
            Some(lacking) => Err(Refusal::NotCaptured(lacking)),
            None => Ok(()),
        }
    }

    fn wish(&mut self, now: Mono, uid: &PodUid, wish: &Wish, out: &mut Vec<Effect>) {
        let wish = if self.leaving { &Wish::Out } else { wish };
        for key in self.sandboxes_of(uid) {
            self.with(now, &key, out, |pod, out| pod.set_wish(&key, wish.clone(), out));
        }
    }

    fn identity_ready(&mut self, now: Mono, id: &SpiffeId, out: &mut Vec<Effect>) {
        // Forgotten meanwhile, or told twice.
        let Some(identity) = self.identities.get_mut(id).filter(|identity| !identity.ready) else {
            return;
        };
        identity.ready = true;
        let holders: Vec<PodKey> =
            self.pods.iter().filter(|(_, pod)| pod.holds() == Some(id)).map(|(key, _)| key.clone()).collect();
        for key in holders {
            self.with(now, &key, out, |_, _| {});
        }
    }

    fn sandboxes_of(&self, uid: &PodUid) -> Vec<PodKey> {
        let first = PodKey { uid: uid.clone(), sandbox: SandboxId("".into()) };
        self.pods.range(first..).map(|(key, _)| key).take_while(|key| key.uid == *uid).cloned().collect()
    }

    /// Whether there is a certificate for what this pod holds.
    fn is_ready(&self, key: &PodKey) -> bool {
        let held = self.pods.get(key).and_then(Pod::holds);
        held.and_then(|id| self.identities.get(id)).is_some_and(|identity| identity.ready)
    }

    /// Changes one pod, if it is known, then takes every step that has become possible, and answers who can be.
    fn with(
        &mut self,
        now: Mono,
        key: &PodKey,
        out: &mut Vec<Effect>,
        change: impl FnOnce(&mut Pod, &mut Vec<Effect>),
    ) {
        let Some(pod) = self.pods.get_mut(key) else { return };
        change(pod, out);
        loop {
            let ready = self.is_ready(key);
            let Some(pod) = self.pods.get_mut(key) else { return };
            match pod.next(now, ready) {
                Next::Wait => break,
                Next::Acquire(want) => {
                    pod.hold(want.identity.clone());
                    self.need(want.identity.clone(), out);
                    // Before anything is put into the namespace.
                    out.push(Effect::JournalWrite { key: key.clone(), captured: Some(want) });
                }
                Next::Start(op) => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    pod.start(ticket, op.clone());
                    out.push(Effect::Do { key: key.clone(), ticket, op });
                }
                Next::Release => {
                    let held = pod.released();
                    self.let_go(now, held, out);
                    out.push(Effect::JournalWrite { key: key.clone(), captured: None });
                }
                Next::Remove => self.remove(now, key, out),
            }
        }
        let ready = self.is_ready(key);
        if let Some(pod) = self.pods.get_mut(key) {
            pod.answer_adds(ready, out);
        }
    }

    /// Ends a sandbox; one that was added again meanwhile begins anew.
    fn remove(&mut self, now: Mono, key: &PodKey, out: &mut Vec<Effect>) {
        let Some(pod) = self.pods.remove(key) else { return };
        let (held, again) = pod.removed(out);
        self.let_go(now, held, out);
        out.push(Effect::JournalRemove(key.clone()));
        let Some(again) = again else {
            if self.by_sandbox.get(&key.sandbox) == Some(key) {
                self.by_sandbox.remove(&key.sandbox);
            }
            return;
        };
        // Should it be the same namespace still, the rules of the first time stand in it.
        let mut pod = Pod::added(Stage::Adopted, again);
        // What was seen of the annotation when the ADD came may be old by now.
        pod.inherit(Annotation::Unsure);
        out.push(Effect::JournalWrite { key: key.clone(), captured: None });
        self.insert(now, key.clone(), pod, out);
    }

    fn need(&mut self, id: SpiffeId, out: &mut Vec<Effect>) {
        match self.identities.entry(id) {
            Entry::Occupied(mut known) => {
                let identity = known.get_mut();
                identity.holders += 1;
                identity.until = None;
            }
            Entry::Vacant(new) => {
                out.push(Effect::Need(new.key().clone()));
                new.insert(Identity { holders: 1, ready: false, until: None });
            }
        }
    }

    /// One holder less. An identity without a certificate is not worth keeping.
    fn let_go(&mut self, now: Mono, held: Option<SpiffeId>, out: &mut Vec<Effect>) {
        let Some(id) = held else { return };
        let Some(identity) = self.identities.get_mut(&id) else {
            return;
        };
        identity.holders -= 1;
        if identity.holders == 0 {
            let keep = if self.leaving || !identity.ready { Duration::ZERO } else { self.limits.keep };
            identity.until = Some(now + keep);
            self.forget_unheld(|until| until <= now, out);
        }
    }

    /// Forgets identities that nobody holds, of those that are kept until an instant that is `over`.
    fn forget_unheld(&mut self, over: impl Fn(Mono) -> bool, out: &mut Vec<Effect>) {
        let is_over = |_: &SpiffeId, identity: &mut Identity| identity.until.is_some_and(&over);
        out.extend(self.identities.extract_if(.., is_over).map(|(id, _)| Effect::Forget(id)));
    }
}

#[cfg(test)]
mod tests;
