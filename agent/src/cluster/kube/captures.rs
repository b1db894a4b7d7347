//! Which pods of the own node carry the annotation `adit.dev/capture`, which should, and what must be written for it.
//!
//! A machine, without clock or API server. What is wanted of a pod is compared with what was seen of it, again and again,
//! so that an announcement that failed is owed until it is there, and a value that nobody here wrote goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::{ObjectName, PodUid};
use adit_core::time::Mono;

use super::backoff::Backoff;

/// What a pod's annotation says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// `enabled`.
    Enabled,
    /// Something else, which no agent writes; or a write failed, and it is not known what came of it.
    Other,
}

/// Something to write: the annotation, or that there is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Write {
    pub(super) uid: PodUid,
    pub(super) pod: ObjectName,
    pub(super) captured: bool,
}

/// What came of a [`Write`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Written {
    /// It is there, as of this version of the object.
    Acknowledged(u64),
    /// The pod is no more, or is another one by the same name.
    Gone,
    /// It failed; the pod may carry either.
    Failed,
}

/// How things stand between what is wanted of a pod and what is seen of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// As it should.
    Done,
    /// Not yet.
    Owed,
    /// No such pod is known.
    Unknown,
}

/// After how long a pod's annotation counts as settled: what changes it sooner is somebody who writes it, too, and again
/// and again.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// For how long after an agent's start the annotation of before stays on a pod that is to be captured, and is not yet:
/// after its node's restart its peers would else send in clear, to an address that it has no more and another may have.
/// The kubelet makes sandboxes anew within seconds.
const STAYS_FOR: Duration = Duration::from_secs(60);

/// The own node's pods.
#[derive(Debug, Default)]
pub(super) struct Captures {
    pods: BTreeMap<PodUid, Pod>,
    /// Until when what another boot's agent, or nobody known, wrote stays where it may soon be true; none once it is known
    /// which pods there were at the start.
    stays_until: Option<Mono>,
    is_aside: bool,
}

#[derive(Debug)]
struct Pod {
    name: ObjectName,
    seen: Seen,
    /// Whether an agent of this node wrote what is seen, as far as is known.
    is_ours: bool,
    /// What was asked for in this life. Before that, what an earlier life wrote stays.
    wanted: Option<bool>,
    /// What is being written.
    writing: Option<bool>,
    /// Since this version of the object, what is seen is known: an older one, from a watch that is behind, is not news.
    version: u64,
    backoff: Backoff,
    /// Not before.
    not_before: Mono,
    /// Whether what it says stays until then though nobody here wrote it: the pod may be about to be captured.
    stays: bool,
    /// When it was last written.
    written: Option<Mono>,
}

impl Pod {
    /// What must be written; nothing while something is.
    fn due(&self, now: Mono) -> Option<bool> {
        (self.writing.is_none() && self.not_before <= now).then(|| self.owed()).flatten()
    }

    /// What the annotation should become.
    fn owed(&self) -> Option<bool> {
        match (self.wanted, self.seen) {
            (Some(true), Seen::Enabled) | (Some(false) | None, Seen::Absent) => None,
            (Some(true), Seen::Absent | Seen::Other) => Some(true),
            (Some(false), Seen::Enabled | Seen::Other) | (None, Seen::Other) => Some(false),
            (None, Seen::Enabled) => (!self.is_ours).then_some(false),
        }
    }
}

impl Captures {
    /// No pod is known yet, at an agent's start.
    pub(super) fn new(now: Mono) -> Self {
        Self { stays_until: Some(now + STAYS_FOR), ..Self::default() }
    }

    /// Takes what a version of a pod of this node says. `is_ours`: an agent of this node wrote that it is captured.
    pub(super) fn saw(&mut self, uid: &PodUid, name: &ObjectName, version: u64, seen: Seen, is_ours: bool) {
        let stays_until = self.stays_until.filter(|_| seen == Seen::Enabled && !is_ours);
        let pod = self.pods.entry(uid.clone()).or_insert_with(|| Pod {
            name: name.clone(),
            seen,
            is_ours,
            wanted: None,
            writing: None,
            version,
            backoff: Backoff::default(),
            not_before: stays_until.unwrap_or(Mono::ZERO),
            stays: stays_until.is_some(),
            written: None,
        });
        if version >= pod.version {
            pod.version = version;
            pod.seen = seen;
            pod.is_ours = is_ours || pod.wanted == Some(true);
        }
    }

    /// Takes that a pod should carry the annotation, or should not.
    pub(super) fn want(&mut self, uid: &PodUid, captured: bool) -> Standing {
        let Some(pod) = self.pods.get_mut(uid) else { return Standing::Unknown };
        pod.wanted = Some(captured);
        pod.is_ours = captured;
        pod.stays = false;
        // Who asks waits: a back-off is for what is owed to nobody in particular.
        pod.not_before = Mono::ZERO;
        self.standing(uid)
    }

    /// Takes which pods are to be captured, once that, and each pod, is known: what was written of others stays no longer.
    pub(super) fn judge(&mut self, is_enrolled: impl Fn(&PodUid) -> bool) {
        self.stays_until = None;
        for (_, pod) in self.pods.iter_mut().filter(|(uid, pod)| pod.stays && !is_enrolled(uid)) {
            pod.stays = false;
            pod.not_before = Mono::ZERO;
        }
    }

    /// How it stands.
    pub(super) fn standing(&self, uid: &PodUid) -> Standing {
        match self.pods.get(uid) {
            None => Standing::Unknown,
            // What is being written may be there or not.
            Some(pod) if pod.writing.is_none() && pod.owed().is_none() => Standing::Done,
            Some(_) => Standing::Owed,
        }
    }

    /// What must be written now. Each of these is answered by [`Captures::written`].
    pub(super) fn due(&mut self, now: Mono) -> Vec<Write> {
        let mut due = Vec::new();
        if self.is_aside {
            return due;
        }
        for (uid, pod) in &mut self.pods {
            if let Some(captured) = pod.due(now) {
                pod.writing = Some(captured);
                due.push(Write { uid: uid.clone(), pod: pod.name.clone(), captured });
            }
        }
        due
    }

    /// When to ask [`Captures::due`] next.
    pub(super) fn deadline(&self) -> Option<Mono> {
        if self.is_aside {
            return None;
        }
        let waiting = self.pods.values().filter(|pod| pod.writing.is_none() && pod.owed().is_some());
        waiting.map(|pod| pod.not_before).min()
    }

    /// Takes what came of a write.
    pub(super) fn written(&mut self, write: &Write, result: Written, now: Mono, seed: &mut Seed) {
        let Some(pod) = self.pods.get_mut(&write.uid) else { return };
        pod.writing = None;
        match result {
            Written::Acknowledged(version) => {
                // Told later than written: the watch may have told what somebody else made of it since.
                if version >= pod.version {
                    pod.version = version;
                    pod.seen = if write.captured { Seen::Enabled } else { Seen::Absent };
                }
                if pod.written.is_none_or(|at| now.since(at) > SETTLED_AFTER) {
                    pod.backoff.reset();
                }
                pod.written = Some(now);
                // What somebody else makes of it is not written over at their speed.
                let is_wanted_otherwise = pod.wanted == Some(!write.captured);
                pod.not_before = if is_wanted_otherwise { Mono::ZERO } else { now + pod.backoff.next(seed) };
            }
            Written::Gone => {
                self.pods.remove(&write.uid);
            }
            Written::Failed => {
                pod.seen = Seen::Other;
                pod.not_before = now + pod.backoff.next(seed);
            }
        }
    }

    /// Leaves all writing to another agent of this node, or does it again: two that write would undo each other's work.
    /// Either way nothing is wanted of before.
    pub(super) fn stand_aside(&mut self, aside: bool) {
        if self.is_aside != aside {
            self.is_aside = aside;
            self.pods.values_mut().for_each(|pod| pod.wanted = None);
        }
    }

    /// Whether another agent does the writing.
    pub(super) fn is_aside(&self) -> bool {
        self.is_aside
    }

    /// Forgets pods that are not among these. Returns those.
    pub(super) fn keep_only(&mut self, is_there: impl Fn(&PodUid) -> bool) -> Vec<PodUid> {
        self.pods.extract_if(.., |uid, _| !is_there(uid)).map(|(uid, _)| uid).collect()
    }

    /// The pods of which an agent of this node said that they are captured, and which say so.
    pub(super) fn captured(&self) -> BTreeSet<PodUid> {
        let captured = self.pods.iter().filter(|(_, pod)| pod.is_ours && pod.seen == Seen::Enabled);
        captured.map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Mono = Mono::ZERO;

    fn uid() -> PodUid {
        PodUid("u".into())
    }

    fn name() -> ObjectName {
        ObjectName::new("shop", "web")
    }

    fn write(captured: bool) -> Write {
        Write { uid: uid(), pod: name(), captured }
    }

    fn seeing(seen: Seen, is_ours: bool) -> Captures {
        let mut captures = Captures::default();
        captures.saw(&uid(), &name(), 5, seen, is_ours);
        captures
    }

    #[test]
    fn a_captured_pod_is_announced_once_and_known_when_that_is_acknowledged() {
        let mut captures = seeing(Seen::Absent, false);
        assert_eq!(captures.due(T0), []);
        assert_eq!(captures.want(&uid(), true), Standing::Owed);
        assert_eq!(captures.due(T0), [write(true)]);
        assert_eq!(captures.due(T0), [], "while that is being written");
        assert!(captures.captured().is_empty());
        captures.written(&write(true), Written::Acknowledged(9), T0, &mut Seed(1));
        assert_eq!((captures.standing(&uid()), captures.captured()), (Standing::Done, [uid()].into()));
        captures.saw(&uid(), &name(), 8, Seen::Absent, true);
        assert_eq!(captures.due(T0), [], "a watch that is behind says nothing new");
        captures.saw(&uid(), &name(), 10, Seen::Absent, true);
        assert_eq!(captures.due(captures.deadline().unwrap()), [write(true)], "somebody took it away");
    }

    #[test]
    fn what_was_taken_away_before_its_writing_was_acknowledged_is_owed() {
        let mut captures = seeing(Seen::Absent, false);
        captures.want(&uid(), true);
        captures.due(T0);
        captures.saw(&uid(), &name(), 9, Seen::Enabled, true);
        captures.saw(&uid(), &name(), 10, Seen::Absent, true);
        captures.written(&write(true), Written::Acknowledged(9), T0, &mut Seed(4));
        assert_eq!((captures.standing(&uid()), captures.captured()), (Standing::Owed, BTreeSet::new()));
        let at = captures.deadline().unwrap();
        assert!(at > T0, "not at the speed of who takes it away");
        assert_eq!(captures.due(at), [write(true)]);
    }

    #[test]
    fn what_is_there_already_needs_no_api_server() {
        let mut captures = seeing(Seen::Enabled, true);
        assert_eq!(captures.want(&uid(), true), Standing::Done);
        assert_eq!(captures.due(T0), []);
        assert_eq!(captures.want(&PodUid("other".into()), true), Standing::Unknown);
    }

    #[test]
    fn a_value_that_no_agent_of_this_node_wrote_is_removed_and_counts_for_nothing() {
        for (seen, is_ours) in [(Seen::Enabled, false), (Seen::Other, false), (Seen::Other, true)] {
            let mut captures = seeing(seen, is_ours);
            assert!(captures.captured().is_empty());
            assert_eq!(captures.due(T0), [write(false)], "{seen:?} {is_ours}");
        }
        let mut captures = seeing(Seen::Enabled, true);
        assert_eq!(captures.due(T0), [], "an earlier life's stays until it is known what becomes of the pod");
        assert_eq!(captures.captured(), [uid()].into());
    }

    #[test]
    fn what_was_written_before_the_node_restarted_stays_for_a_while_on_a_pod_that_is_to_be_captured() {
        let started = || {
            let mut captures = Captures::new(T0);
            captures.saw(&uid(), &name(), 5, Seen::Enabled, false);
            captures
        };
        let mut captures = started();
        assert_eq!(captures.due(T0), [], "it is not known yet what it is");
        captures.judge(|_| true);
        assert_eq!((captures.due(T0), captures.captured()), (vec![], BTreeSet::new()));
        assert_eq!(captures.deadline(), Some(T0 + STAYS_FOR));
        assert_eq!(captures.want(&uid(), true), Standing::Done, "it was captured in time");
        assert_eq!((captures.deadline(), captures.captured()), (None, [uid()].into()));
        let mut captures = started();
        captures.judge(|_| true);
        assert_eq!(captures.due(T0 + STAYS_FOR), [write(false)], "it was not");
        let mut captures = started();
        captures.judge(|_| false);
        assert_eq!(captures.due(T0), [write(false)], "it is none that could be");
    }

    #[test]
    fn what_somebody_writes_later_does_not_stay() {
        let mut captures = Captures::new(T0);
        captures.saw(&uid(), &name(), 5, Seen::Absent, false);
        captures.judge(|_| true);
        captures.saw(&uid(), &name(), 6, Seen::Enabled, false);
        assert_eq!(captures.due(T0), [write(false)]);
        let mut captures = Captures::new(T0);
        captures.judge(|_| true);
        captures.saw(&uid(), &name(), 7, Seen::Enabled, false);
        assert_eq!(captures.due(T0), [write(false)], "on a pod that came after the start");
    }

    #[test]
    fn an_announcement_that_comes_while_a_strangers_value_is_removed_is_made_after_it() {
        let mut captures = seeing(Seen::Enabled, false);
        assert_eq!(captures.due(T0), [write(false)]);
        assert_eq!(captures.want(&uid(), true), Standing::Owed, "it is about to go");
        captures.written(&write(false), Written::Acknowledged(6), T0, &mut Seed(1));
        assert_eq!(captures.due(T0), [write(true)]);
        captures.written(&write(true), Written::Acknowledged(7), T0, &mut Seed(1));
        assert_eq!(captures.standing(&uid()), Standing::Done);
    }

    #[test]
    fn what_failed_is_owed_and_tried_again_later_or_at_once_if_somebody_asks() {
        let mut captures = seeing(Seen::Absent, false);
        captures.want(&uid(), true);
        captures.due(T0);
        captures.written(&write(true), Written::Failed, T0, &mut Seed(4));
        let at = captures.deadline().unwrap();
        assert!(at > T0 && captures.due(T0).is_empty());
        assert_eq!(captures.want(&uid(), true), Standing::Owed);
        assert_eq!(captures.due(T0), [write(true)], "somebody asked");
        captures.written(&write(true), Written::Failed, T0, &mut Seed(4));
        let at = captures.deadline().unwrap();
        assert_eq!(captures.due(at), [write(true)], "nobody asked");
    }

    #[test]
    fn of_a_write_that_failed_it_is_not_known_what_became() {
        let mut captures = seeing(Seen::Enabled, true);
        captures.want(&uid(), false);
        captures.due(T0);
        captures.written(&write(false), Written::Failed, T0, &mut Seed(1));
        assert_eq!(captures.want(&uid(), true), Standing::Owed, "the annotation may be gone");
        captures.saw(&uid(), &name(), 6, Seen::Enabled, true);
        assert_eq!(captures.standing(&uid()), Standing::Done, "it is not");
    }

    #[test]
    fn somebody_who_undoes_it_again_and_again_is_not_written_over_at_their_speed() {
        let mut captures = seeing(Seen::Absent, false);
        captures.want(&uid(), true);
        let (mut now, mut writes, mut seed) = (T0, 0, Seed(3));
        while now.since(T0) < Duration::from_secs(60) {
            for write in captures.due(now) {
                writes += 1;
                captures.written(&write, Written::Acknowledged(6), now, &mut seed);
                captures.saw(&uid(), &name(), 6, Seen::Absent, true);
            }
            now = now + Duration::from_millis(10);
        }
        assert!((5..40).contains(&writes), "{writes} writes in a minute");
    }

    #[test]
    fn while_another_agent_of_the_node_does_it_nothing_is_written_and_then_nothing_of_before_is_wanted() {
        let mut captures = seeing(Seen::Absent, false);
        captures.want(&uid(), true);
        captures.stand_aside(true);
        assert_eq!((captures.due(T0), captures.deadline()), (vec![], None));
        captures.saw(&uid(), &name(), 6, Seen::Enabled, false);
        assert_eq!((captures.due(T0), captures.deadline()), (vec![], None), "it is the other's to judge");
        captures.saw(&uid(), &name(), 7, Seen::Absent, false);
        captures.stand_aside(false);
        assert_eq!(captures.due(T0), [], "the other may have released it");
        captures.want(&uid(), true);
        assert_eq!(captures.due(T0), [write(true)]);
    }

    #[test]
    fn a_pod_that_is_gone_is_owed_nothing() {
        let mut captures = seeing(Seen::Enabled, true);
        captures.want(&uid(), false);
        captures.due(T0);
        captures.written(&write(false), Written::Gone, T0, &mut Seed(1));
        assert_eq!((captures.standing(&uid()), captures.deadline()), (Standing::Unknown, None));
        let mut captures = seeing(Seen::Enabled, true);
        assert_eq!(captures.keep_only(|_| false), [uid()]);
        assert!(captures.captured().is_empty());
    }
}
