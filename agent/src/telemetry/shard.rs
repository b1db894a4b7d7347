//! One worker's part of telemetry: opens and closes reports, counts, and hands closed reports to the telemetry thread.
//!
//! Nothing here is shared with another worker but the queue. Series are looked up once, when they are first counted in,
//! and kept: whoever reads all metrics holds a lock for as long as that takes.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adit_core::net::ObjectName;
use adit_core::report::{ConnectionReport, End, Stage};
use adit_core::time::Mono;
use adit_core::world::World;
use adit_proto::Reason;

use super::active::Active;
use super::edge::{EdgeKey, connect_phase};
use super::registry::{IDLE, Registry};
use super::said::{Said, Sender};
use super::series::EdgeSeries;
use crate::clock::Clock;

/// One worker's telemetry. Cheap to clone; not `Send`.
#[derive(Clone)]
pub struct Shard(Rc<Inner>);

/// Which end a handshake was made at, and why it failed, if it did.
type Handshake = (Role, Option<Reason>);

struct Inner {
    registry: Registry,
    active: Active,
    hub: Sender,
    clock: Clock,
    interim_interval: Duration,
    edges: RefCell<HashMap<EdgeKey, Rc<EdgeSeries>>>,
    verdicts: RefCell<HashMap<VerdictKey, Arc<AtomicU64>>>,
    /// The generation of the world that was last looked through for lost policies.
    looked_at: Cell<u64>,
    ejections: RefCell<HashMap<ObjectName, Arc<AtomicU64>>>,
    handshakes: RefCell<HashMap<Handshake, Arc<AtomicU64>>>,
    budget: RefCell<HashMap<Budget, Arc<AtomicU64>>>,
    live: RefCell<LiveList>,
}

/// What a policy did with a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// It let it in.
    Allowed,
    /// It refused it.
    Denied,
    /// No ALLOW policy matched: that refused it, and no single one did.
    NoneMatched,
    /// A PeerAuthentication asks for mutual TLS, and it came in clear: that refused it.
    PlaintextRefused,
    /// An ALLOW policy was asked and did not match, and neither did any other: that refused it.
    Unmatched,
    /// An AUDIT policy matched.
    Audited,
    /// A `dryRun` policy would have let it in.
    WouldAllow,
    /// A `dryRun` DENY policy would have refused it.
    WouldDeny,
    /// A `dryRun` ALLOW policy would have refused it: it does not match, and neither does any other.
    WouldMatchNone,
}

impl Verdict {
    const fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied | Self::NoneMatched | Self::PlaintextRefused => "denied",
            Self::Unmatched => "unmatched",
            Self::Audited => "audited",
            Self::WouldAllow => "would_allow",
            Self::WouldDeny | Self::WouldMatchNone => "would_deny",
        }
    }

    /// The action of the policies that give this verdict; a PeerAuthentication has none. One whose action was not
    /// understood acts as a DENY policy and as an ALLOW policy.
    const fn action(self) -> &'static str {
        match self {
            Self::Allowed | Self::NoneMatched | Self::Unmatched | Self::WouldAllow | Self::WouldMatchNone => {
                "ALLOW"
            }
            Self::Denied | Self::WouldDeny => "DENY",
            Self::Audited => "AUDIT",
            Self::PlaintextRefused => "",
        }
    }
}

/// Which part this side had in a handshake.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

impl Role {
    const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What the budget said when a retry asked it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Budget {
    /// It paid.
    Granted,
    /// It was used up.
    Denied,
}

impl Budget {
    const fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Denied => "denied",
        }
    }
}

type VerdictKey = (Option<ObjectName>, Verdict);

/// A live connection's report. Closed exactly once: by [`Report::close`], or as `aborted` when it is dropped.
pub struct Report {
    live: Rc<Live>,
    shard: Shard,
    /// Its place in the worker's list of live reports.
    slot: usize,
}

/// What counts the bytes of a connection while it is open. Cheap to clone.
#[derive(Clone)]
pub struct Meter(Rc<Live>);

struct Live {
    report: RefCell<Box<ConnectionReport>>,
    to_server: Cell<u64>,
    to_client: Cell<u64>,
    /// What of the bytes was said already.
    said_to_server: Cell<u64>,
    said_to_client: Cell<u64>,
    said_at: Cell<Mono>,
    said_before: Cell<bool>,
    closed: Cell<bool>,
    edge: OnceCell<Rc<EdgeSeries>>,
}

/// Live reports by slot; free slots are reused.
#[derive(Default)]
struct LiveList {
    slots: Vec<Option<Rc<Live>>>,
    free: Vec<usize>,
}

impl Shard {
    pub(super) fn new(
        registry: Registry,
        active: Active,
        hub: Sender,
        clock: Clock,
        interim_interval: Duration,
    ) -> Self {
        Self(Rc::new(Inner {
            registry,
            active,
            hub,
            clock,
            interim_interval,
            edges: RefCell::default(),
            verdicts: RefCell::default(),
            looked_at: Cell::new(0),
            ejections: RefCell::default(),
            handshakes: RefCell::default(),
            budget: RefCell::default(),
            live: RefCell::default(),
        }))
    }

    /// Begins the report of a connection that was just accepted.
    pub fn open(&self, report: ConnectionReport) -> Report {
        let live = Rc::new(Live {
            said_at: Cell::new(report.opened.mono),
            report: RefCell::new(Box::new(report)),
            to_server: Cell::new(0),
            to_client: Cell::new(0),
            said_to_server: Cell::new(0),
            said_to_client: Cell::new(0),
            said_before: Cell::new(false),
            closed: Cell::new(false),
            edge: OnceCell::new(),
        });
        let slot = self.0.live.borrow_mut().add(Rc::clone(&live));
        Report { live, shard: self.clone(), slot }
    }

    /// Counts what a policy did; without a name where no policy decided.
    pub fn verdict(&self, policy: Option<&ObjectName>, verdict: Verdict) {
        let mut verdicts = self.0.verdicts.borrow_mut();
        let counter = match verdicts.entry((policy.cloned(), verdict)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let name = policy.map(ToString::to_string).unwrap_or_default();
                let labels =
                    [("policy", name.as_str()), ("action", verdict.action()), ("verdict", verdict.label())];
                entry.insert(self.0.registry.counter("adit_policy_verdicts_total", &labels))
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an endpoint's ejection from a Service.
    pub fn ejected(&self, service: &ObjectName) {
        let mut ejections = self.0.ejections.borrow_mut();
        let counter = ejections.entry(service.clone()).or_insert_with(|| {
            let labels = [("service", &*service.to_string())];
            self.0.registry.counter("adit_ejections_total", &labels)
        });
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a handshake that has ended: well, or with `failure`. Apart from connections: a retry may have succeeded.
    pub fn handshake(&self, role: Role, failure: Option<Reason>) {
        let mut handshakes = self.0.handshakes.borrow_mut();
        let counter = handshakes.entry((role, failure)).or_insert_with(|| {
            let labels = [("side", role.label()), ("result", failure.map_or("ok", Reason::label))];
            self.0.registry.counter("adit_tls_handshakes_total", &labels)
        });
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a retry that asked its budget.
    pub fn asked_budget(&self, answer: Budget) {
        let mut budget = self.0.budget.borrow_mut();
        let counter = budget.entry(answer).or_insert_with(|| {
            self.0.registry.counter("adit_retry_budget_total", &[("result", answer.label())])
        });
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets go of the counters of Services that `world` has lost, and of policies that select no pod of this node any
    /// more; their series leave after [`IDLE`]. To be called every few seconds.
    pub fn forget_lost(&self, world: &World) {
        self.0.ejections.borrow_mut().retain(|service, _| world.service(service).is_some());
        // Not that of the policies: a pod that goes, and then a policy that selects no other one, change no live decision.
        if self.0.looked_at.replace(world.generation()) == world.generation() {
            return;
        }
        let mut selecting = HashSet::new();
        for pod in world.pods_on(&world.settings().node) {
            let policies = world.policies_for(&pod.pod.uid);
            let modes = world.peer_modes_for(&pod.pod.uid);
            selecting.extend(policies.iter().flat_map(|set| set.policies()).map(|policy| &policy.name));
            selecting.extend(modes.iter().flat_map(|modes| modes.policies()).map(|policy| &policy.name));
        }
        self.0
            .verdicts
            .borrow_mut()
            .retain(|(policy, _), _| policy.as_ref().is_none_or(|policy| selecting.contains(policy)));
    }

    /// Says what connections that have been open for long did since they were last reported, and lets go of edges that
    /// have been idle. To be called every few seconds.
    pub fn tick(&self) {
        let now = self.0.clock.now().mono;
        let due: Vec<Rc<Live>> = self
            .0
            .live
            .borrow()
            .slots
            .iter()
            .flatten()
            .filter(|live| {
                now.since(live.said_at.get()) >= self.0.interim_interval && live.edge.get().is_some()
            })
            .cloned()
            .collect();
        for live in due {
            live.say(&self.0.hub, End::Open, now);
        }
        self.0
            .edges
            .borrow_mut()
            .retain(|_, edge| Rc::strong_count(edge) > 1 || now.since(edge.used.get()) < IDLE);
    }

    /// Connections with an open report.
    pub fn live(&self) -> usize {
        let live = self.0.live.borrow();
        live.slots.len() - live.free.len()
    }

    fn edge(&self, report: &ConnectionReport) -> Rc<EdgeSeries> {
        let mut edges = self.0.edges.borrow_mut();
        let edge = match edges.entry(EdgeKey::of(report)) {
            Entry::Occupied(entry) => Rc::clone(entry.get()),
            Entry::Vacant(entry) => {
                let series = EdgeSeries::new(&self.0.registry, &self.0.active, entry.key());
                Rc::clone(entry.insert(Rc::new(series)))
            }
        };
        edge.used.set(self.0.clock.now().mono);
        edge
    }
}

impl Report {
    /// Fills in, or reads, what is to be said.
    pub fn edit<T>(&self, edit: impl FnOnce(&mut ConnectionReport) -> T) -> T {
        edit(&mut self.live.report.borrow_mut())
    }

    /// What counts this connection's bytes.
    pub fn meter(&self) -> Meter {
        Meter(Rc::clone(&self.live))
    }

    /// The connect phase has succeeded: from here on the connection counts as opened and active on its edge.
    ///
    /// Who is on the other side must have been filled in before; what changes later does not move it to another edge.
    pub fn carried(&self) {
        let report = self.live.report.borrow();
        let edge = self.shard.edge(&report);
        edge.opened(&self.shard.0.registry, &report);
        drop(report);
        if self.live.edge.set(edge).is_err() {
            debug_assert!(false, "a connection is carried once");
        }
    }

    /// Ends the report.
    pub fn close(self, end: End) {
        self.end(end);
    }

    fn end(&self, end: End) {
        if self.live.closed.replace(true) {
            return;
        }
        self.shard.0.live.borrow_mut().remove(self.slot);
        let report = self.live.report.borrow();
        let registry = &self.shard.0.registry;
        match self.live.edge.get() {
            Some(edge) => {
                edge.closed();
                edge.used.set(self.shard.0.clock.now().mono);
                if let Some(reason) = end.reason() {
                    edge.failed(registry, &report, reason);
                }
            }
            None => {
                let edge = self.shard.edge(&report);
                edge.retried(registry, &report);
                edge.handshook(registry, &report);
                if let Some(reason) = end.reason() {
                    edge.failed(registry, &report, reason);
                }
            }
        }
        drop(report);
        self.live.say(&self.shard.0.hub, end, self.shard.0.clock.now().mono);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(End::Failed(Reason::Aborted, None));
    }
}

impl Meter {
    /// Counts bytes that the client sent and the server was given.
    pub fn to_server(&self, bytes: u64) {
        self.0.to_server.set(self.0.to_server.get() + bytes);
    }

    /// Counts bytes that the server sent and the client was given.
    pub fn to_client(&self, bytes: u64) {
        self.0.to_client.set(self.0.to_client.get() + bytes);
    }

    /// All bytes so far, both ways.
    pub fn total(&self) -> u64 {
        self.0.to_server.get() + self.0.to_client.get()
    }

    /// Records how long a stage took.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.report.borrow_mut().stages.set(stage, took);
    }
}

impl Live {
    fn say(&self, hub: &Sender, end: End, at: Mono) {
        let mut report = self.report.borrow_mut();
        report.bytes_to_server = self.to_server.get();
        report.bytes_to_client = self.to_client.get();
        let new_bytes_to_server =
            report.bytes_to_server - self.said_to_server.replace(report.bytes_to_server);
        let new_bytes_to_client =
            report.bytes_to_client - self.said_to_client.replace(report.bytes_to_client);
        if let Some(edge) = self.edge.get() {
            edge.carried(new_bytes_to_server, new_bytes_to_client);
        }
        self.said_at.set(at);
        let said = Said {
            connect_phase: connect_phase(&report),
            report: report.clone(),
            end,
            at,
            first: !self.said_before.replace(true),
            carried: self.edge.get().is_some(),
            new_bytes_to_server,
            new_bytes_to_client,
        };
        drop(report);
        hub.say(said);
    }
}

impl LiveList {
    fn add(&mut self, live: Rc<Live>) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(live);
                slot
            }
            None => {
                self.slots.push(Some(live));
                self.slots.len() - 1
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
    }
}
