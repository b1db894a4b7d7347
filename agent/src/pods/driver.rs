//! The loop: what comes from the plugin, World, the timers, the watches and finished operations goes into the machine,
//! and what the machine wants is started. Blocks for nothing but small files on tmpfs.

mod deleted;
mod effects;
mod older;
mod outcomes;
mod requests;
mod search;
mod succession;
mod tell;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use adit_core::discover::{self, NotFound, Searches, Sought};
use adit_core::draw::Seed;
use adit_core::net::{PodKey, PodUid, SandboxId};
use adit_core::notices::Notices;
use adit_core::pods::{Arrival, Event, Limits, Pods as Machine, Ticket, Token, Want, Wish};
use adit_core::time::Mono;
use adit_proto::SpiffeId;
use adit_proto::cni::{IfName, PodRef, Removal, Reply, Request};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::discover::{Found as FoundSandbox, Looker};
use super::enrolment::{self, NamespacesFile};
use super::handover::Succession;
use super::journal::{Entry, Journal};
use super::missed::Missed;
use super::perform::{Performed, Performer, words};
use super::sandbox::{Sandbox, Stale, sandbox_id};
use super::server::{Asked, Claim};
use super::show::{self, Shown, Standing};
use crate::cluster::Events;
use crate::identity::{CertSource, Needs};
use crate::redirect::Finding;
use crate::view::View;
use deleted::Deleted;

/// How often sandboxes are looked for whose DEL was lost: containerd never calls GC.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether an agent before this one, which says nothing, has listeners beside ours.
const LOOK_BESIDE_EVERY: Duration = Duration::from_secs(2);
/// After a change of World, when the file of namespaces is brought up to date: looking through 20,000 pods takes
/// milliseconds, and World may change fifty times a second.
const NAMESPACES_AFTER: Duration = Duration::from_secs(1);
/// Findings that may wait; a watch tells each once and waits for its turn.
const FINDINGS_MAX: usize = 64;

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) limits: Limits,
    pub(super) performer: Performer,
    pub(super) needs: Needs,
    pub(super) certs: CertSource,
    pub(super) view: View,
    pub(super) journal: Journal,
    pub(super) unread: BTreeMap<SandboxId, Option<IfName>>,
    pub(super) missed: Missed,
    pub(super) looker: Looker,
    pub(super) events: Events,
    pub(super) namespaces: NamespacesFile,
    pub(super) show: watch::Sender<Shown>,
    pub(super) seed: Seed,
    /// Whether the pods are this agent's still.
    pub(super) claim: Claim,
    /// Whether this agent serves all of them, for the one before it.
    pub(super) ready: watch::Receiver<bool>,
    /// What an installer is answered.
    pub(super) removal: watch::Receiver<Removal>,
    /// Set once Adit leaves the node: how long what is open may go on.
    pub(super) leave: watch::Receiver<Option<Duration>>,
    pub(super) standing: watch::Sender<Standing>,
}

/// Owns the machine, what is kept of each sandbox, and every task that works for one.
pub(super) struct Driver {
    machine: Machine,
    performer: Performer,
    needs: Needs,
    certs: CertSource,
    view: View,
    journal: Journal,
    missed: Missed,
    looker: Looker,
    searches: Searches,
    /// The look under way, and for whom.
    looking: Option<(Id, Vec<Sought>)>,
    deleted: Deleted,
    events: Events,
    notices: Notices,
    /// Kept from before, and of no use to this agent: of which interface, where that can be read.
    unread: BTreeMap<SandboxId, Option<IfName>>,
    /// Kept from before, and not to be opened at the last look.
    unopened: Vec<Entry>,
    /// They were looked at again at least once: nobody waits for them any more.
    looked_again: bool,
    namespaces: NamespacesFile,
    namespaces_due: Option<Mono>,
    /// World's policy generation that connections in clear were last judged by.
    policies_seen: u64,
    show: watch::Sender<Shown>,
    seed: Seed,
    /// From the machine's JournalWrite to its JournalRemove.
    sandboxes: BTreeMap<PodKey, Sandbox>,
    /// Added, and not yet taken in: the machine may be ending an earlier life first.
    arriving: BTreeMap<PodKey, Sandbox>,
    waiting: BTreeMap<Token, Waiting>,
    tokens: u64,
    /// Of the last sandbox that came in this boot.
    arrivals: u64,
    tasks: JoinSet<Ended>,
    /// Which operation a task is, should it panic.
    operations: HashMap<Id, (PodKey, Ticket)>,
    underway: BTreeMap<PodKey, Underway>,
    certificates: BTreeMap<SpiffeId, AbortHandle>,
    watches: u64,
    found: mpsc::Sender<Found>,
    findings: mpsc::Receiver<Found>,
    /// Something changed that is shown.
    changed: bool,
    claim: Claim,
    ready: watch::Receiver<bool>,
    removal: watch::Receiver<Removal>,
    leave: watch::Receiver<Option<Duration>>,
    leaving: bool,
    standing: watch::Sender<Standing>,
}

/// An operation under way.
struct Underway {
    task: AbortHandle,
    may_be_abandoned: bool,
}

/// What the loop has waited for.
enum Woken {
    Asked(Option<Asked>),
    Ended(Result<(Id, Ended), JoinError>),
    Found(Found),
    World,
    Due,
    Search,
    Namespaces,
    Leave,
    Beside,
    Sweep,
}

/// A client that waits.
struct Waiting {
    /// None for a part of a request, which is counted as a whole.
    verb: Option<&'static str>,
    pod: PodRef,
    reply: oneshot::Sender<Reply>,
}

/// What a task came to.
enum Ended {
    Operation(Performed),
    Certificate(SpiffeId, Watched),
    /// The source of truth was told, or asked, something.
    Told,
    Looked(Vec<(Sought, Result<FoundSandbox, NotFound>)>),
    /// Every sandbox of a GC is gone, and its caller knows.
    Collected,
}

/// What of a certificate is waited for.
#[derive(Clone, Copy)]
enum Watched {
    Arrival,
    Loss,
}

/// What the watch over one sandbox found.
struct Found {
    key: PodKey,
    serial: u64,
    finding: Finding,
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Self {
        let (found, findings) = mpsc::channel(FINDINGS_MAX);
        Self {
            machine: Machine::new(parts.limits),
            performer: parts.performer,
            needs: parts.needs,
            certs: parts.certs,
            view: parts.view,
            journal: parts.journal,
            missed: parts.missed,
            looker: parts.looker,
            searches: Searches::new(discover::Limits::default()),
            looking: None,
            deleted: Deleted::default(),
            events: parts.events,
            notices: Notices::default(),
            unread: parts.unread,
            unopened: Vec::new(),
            looked_again: false,
            namespaces: parts.namespaces,
            namespaces_due: None,
            policies_seen: 0,
            show: parts.show,
            seed: parts.seed,
            sandboxes: BTreeMap::new(),
            arriving: BTreeMap::new(),
            waiting: BTreeMap::new(),
            tokens: 0,
            arrivals: 0,
            tasks: JoinSet::new(),
            operations: HashMap::new(),
            underway: BTreeMap::new(),
            certificates: BTreeMap::new(),
            watches: 0,
            found,
            findings,
            changed: false,
            claim: parts.claim,
            ready: parts.ready,
            removal: parts.removal,
            leave: parts.leave,
            leaving: false,
            standing: parts.standing,
        }
    }

    /// Takes up what an earlier life of the agent left, and shows it.
    pub(super) fn adopt(&mut self, entries: Vec<Entry>) {
        let world = self.view.world();
        for entry in entries {
            let id = sandbox_id(&entry.container_id);
            self.arrivals = self.arrivals.max(entry.arrival);
            let netns = entry.netns.clone();
            let sandbox = match self.recalled(entry) {
                Ok(sandbox) => sandbox,
                Err(Stale::Unopened(entry, error)) => {
                    tracing::warn!(sandbox = %id, "cannot open the namespace of a sandbox of before, and try again: {error}");
                    self.unopened.push(*entry);
                    self.changed = true;
                    continue;
                }
                Err(stale) => {
                    tracing::info!(sandbox = %id, reason = %words(&stale), "dropping a sandbox of before");
                    self.forget(&id);
                    continue;
                }
            };
            let key = sandbox.key();
            let event = Event::Adopted {
                arrival: Arrival(sandbox.entry.arrival),
                captured: sandbox.entry.captured.as_ref().map(Want::from),
                announced: world.workload(&key.uid).is_some_and(|workload| workload.captured),
                key: key.clone(),
            };
            let found_again = sandbox.entry.netns != netns;
            self.sandboxes.insert(key.clone(), sandbox);
            if found_again {
                self.write(&key);
            }
            self.changed = true;
            self.feed(event);
        }
        self.count_unread();
        self.take_missed();
        self.show();
    }

    /// Runs until another agent takes over; none: until nobody can ask any more. Dropped, what stands, stands.
    pub(super) async fn run(mut self, asks: &mut mpsc::Receiver<Asked>) -> Option<Succession> {
        let clock = self.performer.clock;
        // The first look was the start itself.
        let mut sweep = interval_at(Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beside = interval_at(Instant::now() + LOOK_BESIDE_EVERY, LOOK_BESIDE_EVERY);
        beside.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.world_changed();
        self.leave();
        loop {
            // Every source keeps what is not taken here, so that nothing is lost when another comes first.
            let woken = tokio::select! {
                asked = asks.recv() => Woken::Asked(asked),
                Some(ended) = self.tasks.join_next_with_id() => Woken::Ended(ended),
                Some(found) = self.findings.recv() => Woken::Found(found),
                () = self.view.changed() => Woken::World,
                () = clock.sleep_until(self.machine.deadline()) => Woken::Due,
                () = clock.sleep_until(self.searches.deadline().filter(|_| self.looking.is_none())) => {
                    Woken::Search
                }
                () = clock.sleep_until(self.namespaces_due) => Woken::Namespaces,
                Ok(()) = self.leave.changed() => Woken::Leave,
                _ = beside.tick() => Woken::Beside,
                _ = sweep.tick() => Woken::Sweep,
            };
            // After each wait: in a process that was frozen it may have lasted for hours.
            if !self.claim.is_ours() {
                return Some(self.succeeded().await);
            }
            match woken {
                Woken::Asked(None) => return None,
                Woken::Asked(Some(asked)) if asked.request == Request::Handover => {
                    return Some(self.hand_over(asked).await);
                }
                Woken::Asked(Some(asked)) => self.asked(asked),
                Woken::Ended(ended) => self.ended(ended),
                Woken::Found(found) => self.found(found),
                Woken::World => self.world_changed(),
                Woken::Due => {
                    let effects = self.machine.tick(clock.now());
                    self.obey(effects);
                }
                Woken::Search => self.look(),
                Woken::Namespaces => self.keep_namespaces(),
                Woken::Leave => self.leave(),
                Woken::Beside => self.close_beside(),
                Woken::Sweep => self.sweep(),
            }
            self.show();
        }
    }

    /// Whether a pod holds this identity.
    pub(super) fn needs(&self, id: &SpiffeId) -> bool {
        self.certificates.contains_key(id)
    }

    /// Whether this sandbox is, or is about to be, captured.
    pub(super) fn captures(&self, key: &PodKey) -> bool {
        self.sandboxes.get(key).is_some_and(|sandbox| sandbox.entry.captured.is_some())
    }

    fn feed(&mut self, event: Event) {
        let effects = self.machine.handle(self.performer.clock.now(), event);
        self.obey(effects);
    }

    pub(super) fn world_changed(&mut self) {
        let world = self.view.latest();
        if !enrolment::has_synced(&world) {
            return;
        }
        let uids: BTreeSet<PodUid> = self.sandboxes.keys().map(|key| key.uid.clone()).collect();
        let mut suspect = BTreeSet::new();
        for uid in uids {
            // One that is not known (yet, or any more) stays as it is until its sandbox goes.
            let Some(workload) = world.workload(&uid) else {
                suspect.insert(uid);
                continue;
            };
            match enrolment::wish(workload) {
                Wish::In(want) => self.feed(Event::Wanted { uid: uid.clone(), want }),
                Wish::Out => self.feed(Event::Unwanted { uid: uid.clone() }),
                Wish::Unknown => {}
            }
            if workload.pod.terminating {
                self.feed(Event::Terminating { uid });
            }
        }
        // Not at the next sweep: what it carried must end now, and a sandbox that was re-made be looked for.
        suspect.extend(self.moved(&world));
        self.look_for(|key| suspect.contains(&key.uid));
        if world.policy_generation() != self.policies_seen {
            self.policies_seen = world.policy_generation();
            // A port that is skipped may be a STRICT one now.
            self.changed = true;
            self.look_at_older_again();
        }
        if self.namespaces_due.is_none() {
            self.namespaces_due = Some(self.performer.clock.now().mono + NAMESPACES_AFTER);
        }
        self.seek();
    }

    fn keep_namespaces(&mut self) {
        self.namespaces_due = None;
        let now = enrolment::memberships(&self.view.world());
        if let Err(error) = self.namespaces.keep(now) {
            tracing::error!(%error, "cannot keep which namespaces are enrolled; pods may wait for an agent that is away");
        }
    }

    /// Has pods of this namespace wait for an agent from now on, where something in it is to be captured.
    fn hold_back(&mut self, namespace: &str) {
        if self.namespaces.kept.passes(namespace) {
            self.keep_namespaces();
        }
    }

    fn sweep(&mut self) {
        self.look_for(|_| true);
        self.changed |= !self.looked_again;
        self.looked_again = true;
        let unopened = std::mem::take(&mut self.unopened);
        self.adopt(unopened);
        self.look_at_older_again();
        self.seek();
        // What is said of a pod that lacks something for some time.
        self.changed = true;
    }

    /// Ends those of these sandboxes whose namespace is gone.
    fn look_for(&mut self, which: impl Fn(&PodKey) -> bool) {
        let these = self.sandboxes.iter().filter(|(key, _)| which(key));
        let gone = these.filter(|(_, sandbox)| !sandbox.is_there());
        let gone: Vec<PodKey> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            if self.find_again(&key) {
                continue;
            }
            tracing::info!(pod = %key.uid, sandbox = %key.sandbox, "its namespace is gone without a DEL");
            self.feed(Event::SandboxGone(key));
        }
    }

    fn show(&mut self) {
        if std::mem::take(&mut self.changed) {
            let world = self.view.world();
            self.tell(&world);
            let adopting = self.machine.seen().filter(|seen| seen.adopting).count();
            let unopened = if self.looked_again { 0 } else { self.unopened.len() };
            self.show.send_replace(Shown {
                pods: show::status(&self.machine, &self.sandboxes, &self.searches, &world),
                adopting: adopting + unopened,
            });
            self.say_whether_released();
        }
    }
}
