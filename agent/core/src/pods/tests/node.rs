//! What really stands on a node, as executors would have made it, and the laws that hold at every step.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::draw::Seed;
use crate::redirect::Part;

/// What really stands, as executors would have made it, and the laws that hold at every step of every history.
#[derive(Default)]
pub(super) struct Node {
    /// Per sandbox: what stands in its namespace.
    pub(super) stands: BTreeMap<PodKey, Stands>,
    pub(super) underway: BTreeMap<PodKey, (Ticket, Op)>,
    pub(super) needed: BTreeSet<SpiffeId>,
    pub(super) journal: BTreeMap<PodKey, Kept>,
    pub(super) arrivals: u64,
    /// Of the last ADD of each, until it is written down.
    pub(super) arriving: BTreeMap<PodKey, Arrival>,
    /// What a restarted agent could not open yet.
    pub(super) unopened: Vec<PodKey>,
    /// Sandboxes of which a later one of the same pod came.
    superseded: BTreeSet<PodKey>,
    /// Sandboxes that the runtime removed, or that are gone, and are not released yet.
    pub(super) removed: BTreeSet<PodKey>,
    /// What the pod objects say.
    pub(super) announced: BTreeSet<PodUid>,
    /// What is under way and has been written already: the writer takes words in order.
    written: BTreeSet<Ticket>,
    /// Who asks; of an ADD, for what.
    pub(super) asked: BTreeMap<Token, Option<PodKey>>,
    pub(super) answered: BTreeSet<Token>,
    pub(super) late: Vec<(PodKey, Ticket)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stands {
    pub(super) listening: bool,
    /// Filter and nat; mangle, raw and routes.
    rules: (bool, bool),
    sysctls: bool,
}

/// An entry of the journal.
#[derive(Clone, Debug)]
pub(super) struct Kept {
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
    pub(super) fn ask(&mut self, add: Option<PodKey>) -> Token {
        let token = Token(u64::try_from(self.asked.len()).unwrap());
        self.asked.insert(token, add);
        token
    }

    /// Obeys `effect` of `pods`, which has given all of them already.
    pub(super) fn obey(&mut self, pods: &Pods, effect: Effect) {
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
    pub(super) fn supersede(&mut self) {
        let known = || self.journal.iter().filter(|(key, _)| !self.unopened.contains(key));
        let is_earlier = |(key, kept): &(&PodKey, &Kept)| {
            known().any(|(other, later)| other.uid == key.uid && kept.is_before(later))
        };
        let earlier: Vec<_> = known().filter(is_earlier).map(|(key, _)| key.clone()).collect();
        self.superseded.extend(earlier);
    }

    /// What was not opened yet of this sandbox is forgotten: its DEL has come, or its id is used again.
    pub(super) fn forget_unopened(&mut self, sandbox: &SandboxId) {
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
    pub(super) fn end(&mut self, key: &PodKey, chance: u64) -> Option<Event> {
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
    pub(super) fn restart(&mut self, draw: &mut Seed) -> Vec<Event> {
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
    pub(super) fn adopted(&self, key: PodKey, draw: &mut Seed) -> Event {
        let Kept { arrival, captured } = self.journal[&key].clone();
        // World may know nothing yet of a captured pod.
        let announced = self.announced.contains(&key.uid) && (captured.is_none() || draw.below(2) == 0);
        Event::Adopted { key, arrival, captured, announced }
    }
}
