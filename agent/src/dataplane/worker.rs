//! One data-plane thread: its own runtime, pods, tunnels, budgets and counters. Shares nothing with the others.
//!
//! Takes [`Command`]s, and looks after what it keeps: on each change of the world or of trust, and every few seconds.
//! What is done for a connection is in [`super::outbound`], [`super::inbound`] and [`super::plaintext`].

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::PodKey;
use adit_core::time::{Mono, Now};
use adit_core::world::World;
use adit_proto::Reason;
use metrics::Gauge;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::listeners::Serving;
use super::model::{OpenError, ServedPod};
use super::pod::Live;
use super::shared::Worker;
use crate::telemetry::Registry;

/// How often a worker forgets what is idle and reports long connections.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A timer that is due no later than any that most connections set: the soonest is that of a side which is not read
/// (500 ms, see [`super::unread`]), then the attempt's time-out (1 s by default). Tokio wakes its own driver with a system
/// call for each timer that is due before all others: without this, for every second connection. What is sooner, a retry's
/// delay (250 ms at most by default) or a shorter time-out from the configuration, costs that call and is no less exact.
const PULSE: Duration = Duration::from_millis(500);

/// Makes, on the worker, what is to run there.
pub(super) type Errand = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

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

/// Runs a worker until its commands end. Blocks the thread; `made` is told first whether it has a runtime.
///
/// A runtime of one thread's own, without a `LocalSet` in it: that would wake itself by a system call for every task
/// that a socket wakes.
pub(super) fn run(
    make: impl FnOnce() -> Rc<Worker>,
    commands: mpsc::Receiver<Command>,
    made: impl FnOnce(io::Result<()>),
) {
    match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => {
            made(Ok(()));
            runtime.block_on(async move { serve(make(), commands).await });
        }
        Err(error) => made(Err(error)),
    }
}

async fn serve(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut pods: HashMap<PodKey, Serving> = HashMap::new();
    let mut errands = JoinSet::new();
    let mut view = worker.handles.view.clone();
    let mut certs = worker.handles.certs.clone();
    let clock = worker.handles.clock;
    let gauges = Gauges::new(worker.handles.reporter.registry());
    // When a pod that is missing from the world counts as gone.
    let mut due = None;
    let mut upkeep = interval(UPKEEP_INTERVAL);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    view.latest();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => obey(&worker, &mut pods, &mut errands, command).await,
                None => break,
            },
            () = view.changed() => due = sweep(&pods, &view.latest(), clock.now()),
            () = clock.sleep_until(due) => due = sweep(&pods, &view.world(), clock.now()),
            () = certs.trust_changed() => pods.values().for_each(|serving| serving.pod().pool.cut_distrusted()),
            _ = pulse.tick() => {}
            _ = upkeep.tick() => due = look_after(&worker, &pods, &gauges),
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
                false => Serving::open(worker, &pod, live).map(|serving| {
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

/// Lets go of tunnels that are not wanted any more; says when to look again at the latest.
fn sweep(pods: &HashMap<PodKey, Serving>, world: &World, now: Now) -> Option<Mono> {
    pods.values().filter_map(|serving| serving.pod().sweep(world, now)).min()
}

fn look_after(worker: &Worker, pods: &HashMap<PodKey, Serving>, gauges: &Gauges) -> Option<Mono> {
    let (world, now) = (worker.handles.view.world(), worker.handles.clock.now());
    let due = sweep(pods, &world, now);
    worker.shard.tick();
    worker.shard.forget_lost(&world);
    worker.endpoints.sweep(now.mono);
    worker.buffers.let_unused_go();
    let tunnels = pods.values().map(|serving| serving.pod().pool.tunnels()).sum();
    let inbound = pods.values().map(|serving| serving.pod().inbound_tunnels()).sum();
    let small = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    gauges.tunnels.set(small(tunnels));
    gauges.inbound_tunnels.set(small(inbound));
    gauges.ejected.set(small(worker.endpoints.ejected(now.mono)));
    gauges.buffered.set(small(worker.buffers.used()));
    due
}

/// What a worker shows of itself. Looked up once: that waits for whoever reads all metrics.
struct Gauges {
    tunnels: Gauge,
    inbound_tunnels: Gauge,
    ejected: Gauge,
    buffered: Gauge,
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let thread = std::thread::current();
        let gauge = |name| registry.gauge(name, &[("worker", thread.name().unwrap_or_default())]);
        Self {
            tunnels: gauge("adit_tunnels_open"),
            inbound_tunnels: gauge("adit_inbound_tunnels_open"),
            ejected: gauge("adit_endpoints_ejected"),
            buffered: gauge("adit_buffered_bytes"),
        }
    }
}
