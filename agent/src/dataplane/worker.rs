//! One data-plane thread: its own runtime, pods, tunnels, budgets and counters. Shares nothing with the others.
//!
//! Takes [`Command`]s, and looks after what it keeps: on each change of the world or of trust, and every few seconds.
//! What is done for a connection is in [`super::outbound`], [`super::inbound`] and [`super::plaintext`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::PodKey;
use adit_core::traffic::TrafficSettings;
use adit_proto::Reason;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval};

use super::buffers::Buffers;
use super::endpoints::Endpoints;
use super::gate::Gate;
use super::pipes::Pipes;
use super::pod::{Live, Pod, Serving};
use super::{Config, Handles, OpenError, ServedPod};
use crate::node::Lookup;
use crate::telemetry::Shard;

/// How often a worker forgets what is idle and reports long connections.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes, on the worker, what is to run there.
pub(super) type Errand = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The least that a worker may buffer, whatever the configuration says: one stalled stream's window, four times.
const BUFFER_SHARE_MIN: usize = 16 * 1024 * 1024;

/// What a worker is told.
pub(super) enum Command {
    /// Open a pod's listeners and serve it.
    Open { pod: Arc<ServedPod>, live: Arc<Live>, done: oneshot::Sender<Result<(), OpenError>> },
    /// Accept no further connection for a pod; tell its peers.
    Refuse { key: PodKey, done: oneshot::Sender<()> },
    /// Run this beside the connections.
    Run(Errand),
    /// End a pod at once; its connections report this reason.
    Close { key: PodKey, reason: Reason, done: oneshot::Sender<()> },
}

/// What the connections of one worker have in common.
pub(super) struct Worker {
    pub(super) handles: Handles,
    pub(super) config: Config,
    pub(super) shard: Shard,
    pub(super) buffers: Rc<Buffers>,
    pub(super) pipes: Rc<Pipes>,
    pub(super) endpoints: Endpoints,
    pub(super) handshakes: Gate,
    pub(super) seed: RefCell<Seed>,
    /// For connections to pods dialled by their own address.
    pub(super) traffic_default: Arc<TrafficSettings>,
    /// Finds whose socket a probe comes from; none where the kernel does not say.
    pub(super) lookup: RefCell<Option<Lookup>>,
}

impl Worker {
    /// The common part of a worker; must be made on its thread.
    pub(super) fn new(config: Config, handles: Handles, workers: NonZeroU32, seed: Seed) -> Rc<Self> {
        let lookup = handles.node.as_ref().and_then(|node| {
            let opened = node.lookup();
            opened.inspect_err(|error| tracing::error!("kubelet probes cannot be told: {error}")).ok()
        });
        let share = (config.buffer_budget / workers.get() as usize).max(BUFFER_SHARE_MIN);
        Rc::new(Self {
            shard: handles.reporter.shard(handles.clock),
            buffers: Rc::new(Buffers::new(share)),
            pipes: Rc::default(),
            endpoints: Endpoints::new(workers),
            handshakes: Gate::default(),
            seed: RefCell::new(seed),
            traffic_default: Arc::default(),
            lookup: RefCell::new(lookup),
            handles,
            config,
        })
    }
}

/// Runs a worker until its commands end. Blocks the thread.
pub(super) fn run(runtime: &Runtime, make: impl FnOnce() -> Rc<Worker>, commands: mpsc::Receiver<Command>) {
    let local = LocalSet::new();
    local.block_on(runtime, async move { serve(make(), commands).await });
}

async fn serve(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut pods: HashMap<PodKey, Serving> = HashMap::new();
    let mut errands = JoinSet::new();
    let mut view = worker.handles.view.clone();
    let mut certs = worker.handles.certs.clone();
    let mut upkeep = interval(UPKEEP_INTERVAL);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    view.latest();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => obey(&worker, &mut pods, &mut errands, command).await,
                None => break,
            },
            () = view.changed() => {
                let (world, now) = (view.latest(), worker.handles.clock.now());
                pods.values().for_each(|serving| serving.pod().pool.sweep(&world, now));
            }
            () = certs.trust_changed() => pods.values().for_each(|serving| serving.pod().pool.cut_revoked()),
            _ = upkeep.tick() => look_after(&worker, &pods),
        }
    }
    for serving in pods.into_values() {
        serving.end(Reason::Aborted).await;
    }
}

async fn obey(
    worker: &Rc<Worker>,
    pods: &mut HashMap<PodKey, Serving>,
    errands: &mut JoinSet<()>,
    command: Command,
) {
    match command {
        Command::Open { pod, live, done } => {
            let result = match pods.contains_key(&pod.key) {
                true => Err(OpenError::AlreadyOpen(pod.key.clone())),
                false => Pod::open(worker, &pod, live).map(|serving| {
                    pods.insert(pod.key.clone(), serving);
                }),
            };
            let _ = done.send(result);
        }
        Command::Refuse { key, done } => {
            if let Some(serving) = pods.get(&key) {
                serving.pod().refuse_new();
            }
            let _ = done.send(());
        }
        Command::Run(make) => {
            errands.spawn_local(make());
        }
        Command::Close { key, reason, done } => {
            if let Some(serving) = pods.remove(&key) {
                serving.end(reason).await;
            }
            let _ = done.send(());
        }
    }
}

fn look_after(worker: &Worker, pods: &HashMap<PodKey, Serving>) {
    let (world, now) = (worker.handles.view.world(), worker.handles.clock.now());
    worker.shard.tick();
    worker.endpoints.sweep(now.mono);
    let mut tunnels = 0_u32;
    for serving in pods.values() {
        serving.pod().pool.sweep(&world, now);
        tunnels = tunnels.saturating_add(u32::try_from(serving.pod().pool.tunnels()).unwrap_or(u32::MAX));
    }
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    let small = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    metrics::gauge!("adit_tunnels_open", "worker" => thread.clone()).set(f64::from(tunnels));
    metrics::gauge!("adit_endpoints_ejected", "worker" => thread.clone())
        .set(small(worker.endpoints.ejected(now.mono)));
    metrics::gauge!("adit_buffered_bytes", "worker" => thread).set(small(worker.buffers.used()));
}
