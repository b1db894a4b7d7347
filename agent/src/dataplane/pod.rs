//! One served pod on one worker: its tunnels, and what all its connections share.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use adit_core::net::{ObjectName, OriginalDst, PodKey, SourceAddr};
use adit_core::report::{ConnectionReport, Direction, End, TraceId};
use adit_core::time::{Mono, Now};
use adit_core::workload::{Enrolment, Owner, Pod as PodModel, Skip, Workload};
use adit_core::world::World;
use adit_proto::{Reason, SpiffeId};
use http::HeaderValue;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::timeout;

use super::caller::Caller;
use super::gate::{Entered, Gate};
use super::legs::Legs;
use super::model::ServedPod;
use super::pool::{Dialling, Pool};
use super::protocol;
use super::share::Share;
use super::shared::Worker;
use crate::sockets;
use crate::telemetry::Report;
use crate::view::View;

/// Tunnels that peers may have open to one pod on one worker: at some 30 KiB each 240 MiB.
const INBOUND_TUNNELS_MAX: usize = 8192;
/// Of these, from one address. A peer pod has one per worker and 100 connections: 25,600 connections between two pods,
/// or 256 pods behind one address. If all stand in the middle of a frame, the largest is 1 MiB: 256 MiB.
pub(super) const INBOUND_TUNNELS_PER_SOURCE_MAX: usize = 256;
/// How much longer than by its opener, which lets go of it first, a tunnel without streams is kept.
pub(super) const IDLE_GRACE: Duration = Duration::from_secs(60);

/// How long a connection waits for its pod to become known: a pod's object is there within milliseconds of its peers' copy,
/// and the peer gives up after 3 s.
const KNOWN_DEADLINE: Duration = Duration::from_secs(1);

/// A pod as its connections see it.
pub(super) struct Pod {
    pub(super) key: PodKey,
    /// Its addresses, as the runtime told them.
    pub(super) ips: Vec<IpAddr>,
    pub(super) identity: SpiffeId,
    pub(super) legs: Legs,
    pub(super) pool: Rc<Pool>,
    /// Its part of the worker's buffers.
    pub(super) share: Rc<Share>,
    pub(super) worker: Rc<Worker>,
    /// Says who it is while the world does not know it (its object may come later than its first connection).
    stand_in: Arc<Workload>,
    live: Arc<Live>,
    /// Why what is open is being ended.
    ending: Cell<Option<Reason>>,
    refusing: watch::Sender<bool>,
    /// The tunnels that peers opened.
    tunnels: Gate,
    /// Who opened the tunnels that peers opened.
    callers: RefCell<Vec<Weak<Caller>>>,
    /// What it says of itself in a CONNECT, for the workload that it was made of.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
}

/// How many connections a pod has, over all workers.
#[derive(Debug, Default)]
pub(super) struct Live(AtomicUsize);

impl Live {
    /// Connections open now.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A place among the pod's connections; given back when dropped.
pub(super) struct Seat(Arc<Live>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pod {
    /// A pod without listeners.
    pub(super) fn new(worker: &Rc<Worker>, served: &ServedPod, legs: Legs, live: Arc<Live>) -> Rc<Self> {
        let share = Share::new(Rc::clone(&worker.buffers));
        let pool = Pool::new(Dialling {
            legs: legs.clone(),
            certs: worker.handles.certs.clone(),
            share: Rc::clone(&share),
            shard: worker.shard.clone(),
            clock: worker.handles.clock,
            own: served.identity.clone(),
            idle_timeout: worker.config.tunnel_idle_timeout,
        });
        let world = worker.handles.view.world();
        Rc::new(Self {
            key: served.key.clone(),
            ips: served.ips.iter().map(IpAddr::to_canonical).collect(),
            identity: served.identity.clone(),
            legs,
            pool,
            share,
            worker: Rc::clone(worker),
            stand_in: Arc::new(stand_in(served, &world)),
            live,
            ending: Cell::new(None),
            refusing: watch::Sender::new(false),
            tunnels: Gate::new(INBOUND_TUNNELS_MAX, INBOUND_TUNNELS_PER_SOURCE_MAX),
            callers: RefCell::default(),
            baggage: RefCell::default(),
        })
    }

    /// The pod as the world knows it, or its stand-in.
    pub(super) fn local(&self, world: &World) -> Arc<Workload> {
        Arc::clone(world.workload(&self.key.uid).unwrap_or(&self.stand_in))
    }

    /// The latest snapshot; while it does not know the pod, the first one that does, within [`KNOWN_DEADLINE`]. The agents
    /// of peers may hear of a new pod some milliseconds before its own, and have named it to their callers.
    ///
    /// Who waits takes a seat; where there is none, the answer comes at once.
    pub(super) async fn known(&self, view: &mut View) -> Arc<World> {
        let world = view.latest();
        if self.is_known(&world) {
            return world;
        }
        let Ok(_seat) = self.seat() else { return world };
        // On the heap: what hardly ever waits takes no room in every connection's future.
        let waiting = Box::pin(async {
            loop {
                view.changed().await;
                let world = view.latest();
                if self.is_known(&world) {
                    return world;
                }
            }
        });
        timeout(KNOWN_DEADLINE, waiting).await.unwrap_or(world)
    }

    fn is_known(&self, world: &World) -> bool {
        world.policies_for(&self.key.uid).is_some()
    }

    /// Takes a place for one more connection; `Err` says how many there are.
    pub(super) fn seat(&self) -> Result<Seat, usize> {
        let before = self.live.0.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(Arc::clone(&self.live));
        if before < self.worker.config.connections_per_pod { Ok(seat) } else { Err(before) }
    }

    /// Places that are taken.
    #[cfg(test)]
    pub(super) fn seats_taken(&self) -> usize {
        self.live.count()
    }

    /// Takes a place for a tunnel that a peer at this address opens; `None` where there are too many.
    pub(super) fn tunnel_seat(&self, source: IpAddr) -> Option<Entered> {
        self.tunnels.enter(source)
    }

    /// Tunnels that peers have open to the pod on this worker.
    pub(super) fn inbound_tunnels(&self) -> usize {
        self.tunnels.count()
    }

    /// Has a tunnel that a peer opened looked after by [`Pod::sweep`].
    pub(super) fn accepted(&self, caller: &Rc<Caller>) {
        self.callers.borrow_mut().push(Rc::downgrade(caller));
    }

    /// Lets go of tunnels that are not wanted any more, and ends those to and from pods that are gone; says when to look
    /// again at the latest.
    pub(super) fn sweep(&self, world: &World, now: Now) -> Option<Mono> {
        let mut callers = self.callers.borrow_mut();
        callers.retain(|caller| caller.strong_count() > 0);
        let idle_max = self.worker.config.tunnel_idle_timeout + IDLE_GRACE;
        callers.iter().filter_map(Weak::upgrade).for_each(|caller| caller.look_idle(now.mono, idle_max));
        self.pool.sweep(world, now);
        // A world that has lost this pod, which is here, proves nothing of others: a directory that was emptied or unmounted
        // must not end what works.
        world.workload(&self.key.uid)?;
        let looks = callers.iter().filter_map(|caller| caller.upgrade()?.look(world, now.mono));
        looks.chain(self.pool.cut_gone(world, now.mono)).min()
    }

    /// What the pod says of itself in a CONNECT; made anew when its object has changed.
    pub(super) fn baggage(&self, local: &Arc<Workload>) -> HeaderValue {
        let mut kept = self.baggage.borrow_mut();
        match &*kept {
            Some((made_of, value)) if Arc::ptr_eq(made_of, local) => value.clone(),
            Some(_) | None => {
                let value = protocol::baggage(local);
                *kept = Some((Arc::clone(local), value.clone()));
                value
            }
        }
    }

    /// Begins the report of a connection.
    pub(super) fn report(
        self: &Rc<Self>,
        direction: Direction,
        source: SocketAddr,
        destination: OriginalDst,
        trace: TraceId,
    ) -> Reported {
        let local = self.local(&self.worker.handles.view.world());
        let opened = self.worker.handles.clock.now();
        let source = SourceAddr(sockets::canonical(source));
        let report = ConnectionReport::open(opened, direction, source, destination, local, trace);
        Reported { report: Some(self.worker.shard.open(report)), pod: Rc::clone(self) }
    }

    /// A trace id for a connection that brought none.
    pub(super) fn new_trace(&self) -> TraceId {
        protocol::new_trace(&mut self.worker.seed.borrow_mut())
    }

    /// One of its addresses.
    pub(super) fn first_ip(&self) -> IpAddr {
        self.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// From now on what is open is being ended for `reason`, and nothing more is accepted.
    pub(super) fn end_for(&self, reason: Reason) {
        self.ending.set(Some(reason));
        self.refuse_new();
    }

    /// Accepts nothing more; tunnels that peers opened are told to end when their streams have.
    pub(super) fn refuse_new(&self) {
        self.refusing.send_replace(true);
    }

    /// Resolves once nothing more is accepted. Cancel-safe.
    pub(super) async fn refusing(&self) {
        // Never an error: the sender is in `self`.
        let _ = self.refusing.subscribe().wait_for(|refusing| *refusing).await;
    }
}

/// What the pod says of itself, as far as it is known without its object.
fn stand_in(served: &ServedPod, world: &World) -> Workload {
    let (namespace, account) = served.identity.service_account().unwrap_or_default();
    let pod = PodModel {
        uid: served.key.uid.clone(),
        name: ObjectName::new(namespace, &*served.key.uid.0),
        node: Some(world.settings().node.clone()),
        ips: served.ips.iter().map(IpAddr::to_canonical).collect(),
        service_account: account.into(),
        labels: Arc::default(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating: false,
        captured: true,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        skip: Skip::default(),
        owner: Owner { kind: "Pod".into(), name: Arc::clone(&served.key.uid.0) },
    };
    Workload {
        pod: Arc::new(pod),
        identity: served.identity.clone(),
        enrolment: Enrolment::ByNamespace,
        captured: true,
        zone: None,
        skip: Arc::default(),
    }
}

/// A connection that panicked ends alone, and is reported as aborted; the panic itself must not pass unseen.
pub(super) fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked: {error}");
        metrics::counter!("adit_connection_panics_total").increment(1);
    }
}

/// A connection's report, closed exactly once: by [`Reported::finish`], or when dropped, as what the pod is ending for.
pub(super) struct Reported {
    report: Option<Report>,
    pod: Rc<Pod>,
}

impl Reported {
    /// The open report.
    pub(super) fn get(&self) -> &Report {
        self.report.as_ref().expect("a report is taken out only when it is closed")
    }

    /// Closes it.
    pub(super) fn finish(mut self, end: End) {
        if let Some(report) = self.report.take() {
            report.close(end);
        }
    }
}

impl Drop for Reported {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            report.close(End::Failed(self.pod.ending.get().unwrap_or(Reason::Aborted), None));
        }
    }
}
