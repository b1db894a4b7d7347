//! The data plane: carries the connections of served pods, outbound and inbound, on worker threads of its own.
//!
//! Each worker is a current-thread runtime that shares nothing with the others: it has its own listeners in every pod
//! (the kernel spreads connections over them), its own tunnels, budgets and counters. This file starts them and tells
//! them what to serve; a connection's way is in `outbound`, `inbound` and `plaintext`. Knows no Kubernetes and
//! no rules: pods come from `crate::pods`, decisions from `adit_core`.

mod account;
mod admit;
mod buffers;
mod connect;
mod copy;
mod endpoints;
mod error;
mod flow;
mod gate;
mod inbound;
mod legs;
mod outbound;
mod pipes;
mod plaintext;
mod pod;
mod pool;
mod protocol;
mod relay;
mod stream;
#[cfg(test)]
mod testing;
mod tunnel;
mod unread;
mod worker;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::PodKey;
use adit_proto::{Reason, SpiffeId};
use serde::Deserialize;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::identity::CertSource;
use crate::netns::Netns;
use crate::node::Node;
use crate::sockets::{Keepalive, ListenError};
use crate::telemetry::Reporter;
use crate::view::View;
use legs::LegOptions;
use pod::Live;
use worker::{Command, Worker};

/// Commands that may wait for one worker. Each is for one pod; a node has some hundred.
const COMMANDS_MAX: usize = 256;
/// What one connection's task may weigh, in bytes: with its report, its stream and its sockets an idle connection then
/// costs the agent less than 4 KiB. Tests hold the tasks to it.
#[cfg(test)]
const FUTURE_LEN_MAX: usize = 1024;
/// How often a drain looks whether anything is left.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How connections are carried.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Worker threads. Default none: 1 up to 4 cores, then a quarter of the cores, as far as the CPU limit allows.
    pub workers: Option<NonZeroU32>,
    /// Connections of one pod, both directions together; more are reset (`accept_limit`). Default 65,536: at 4 KiB each
    /// 256 MiB.
    pub connections_per_pod: usize,
    /// Bytes that may wait for slow readers, in all; beyond it new connections are refused (`memory_limit`) and nothing
    /// more is read from apps. Default `256MiB`, at least `16MiB` a worker.
    #[serde(deserialize_with = "crate::units::size")]
    pub buffer_budget: usize,
    /// How long a tunnel without connections is kept. Default `5m`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub tunnel_idle_timeout: Duration,
    /// How long a half-closed connection may be silent. Default `1h`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub half_closed_timeout: Duration,
    /// Congestion control of the tunnel legs, the first that the kernel has. Default `[cubic, reno]`; some want `bbr`
    /// on a WAN; empty: the kernel's default.
    pub tunnel_congestion: Vec<String>,
    /// Silence before the first keepalive probe, on every leg. Whole seconds. Default `60s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub keepalive_idle: Duration,
    /// Between keepalive probes; three unanswered ones end the connection. Whole seconds. Default `10s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub keepalive_interval: Duration,
    /// How long bytes on a tunnel may stay unacknowledged (TCP_USER_TIMEOUT). Default `20s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub tunnel_user_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            connections_per_pod: 65_536,
            buffer_budget: 256 * 1024 * 1024,
            tunnel_idle_timeout: Duration::from_secs(300),
            half_closed_timeout: Duration::from_secs(3600),
            tunnel_congestion: vec!["cubic".into(), "reno".into()],
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            tunnel_user_timeout: Duration::from_secs(20),
        }
    }
}

impl Config {
    /// The worker threads to start. `available_parallelism` knows the CPU limit.
    fn workers(&self) -> NonZeroU32 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let quarter = u32::try_from(cores / 4).unwrap_or(u32::MAX);
        self.workers.or_else(|| NonZeroU32::new(quarter)).unwrap_or(NonZeroU32::MIN)
    }

    fn legs(&self) -> LegOptions {
        LegOptions {
            keepalive: Keepalive { idle: self.keepalive_idle, interval: self.keepalive_interval, probes: 3 },
            tunnel_congestion: self.tunnel_congestion.clone(),
            tunnel_user_timeout: self.tunnel_user_timeout,
        }
    }
}

/// What the data plane is given.
#[derive(Clone)]
pub struct Handles {
    /// The current world.
    pub view: View,
    /// The current certificates.
    pub certs: CertSource,
    /// Where connections are reported.
    pub reporter: Reporter,
    /// The clock.
    pub clock: Clock,
    /// The node's own addresses and sockets, to tell kubelet probes; none: no plaintext counts as a probe.
    pub node: Option<Node>,
}

/// A pod to serve.
#[derive(Clone, Debug)]
pub struct ServedPod {
    /// Which life of which pod.
    pub key: PodKey,
    /// Its network namespace.
    pub netns: Netns,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The mark on what the agent dials for it, so that it is not captured again.
    pub mark: u32,
    /// Its identity.
    pub identity: SpiffeId,
}

/// Why the data plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A worker's runtime could not be made.
    #[error("cannot make a worker's runtime")]
    Runtime(#[source] io::Error),
    /// A worker's thread could not be started.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

/// Why a pod is not served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener could not be given to the event loop.
    #[error("cannot watch the listener on port {port}")]
    Register {
        /// Its port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is being served already.
    #[error("pod {} is served already", .0.uid)]
    AlreadyOpen(PodKey),
    /// A worker has ended.
    #[error("a data-plane worker has ended")]
    WorkerGone,
}

/// The running data plane. Cheap to clone; the workers end when the last clone is dropped.
#[derive(Clone)]
pub struct Dataplane {
    shared: Arc<Shared>,
}

struct Shared {
    workers: Vec<mpsc::Sender<Command>>,
    live: Mutex<HashMap<PodKey, Arc<Live>>>,
}

/// Starts the workers. Needs no runtime.
pub fn start(config: Config, handles: Handles, mut seed: Seed) -> Result<Dataplane, StartError> {
    let count = config.workers();
    let mut workers = Vec::new();
    for at in 0..count.get() {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (config, handles, seed) = (config.clone(), handles.clone(), seed.fork());
        // Made here, so that a failure is known; used there only.
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
        std::thread::Builder::new()
            .name(format!("data-{at}"))
            .spawn(move || worker::run(&runtime, || Worker::new(config, handles, count, seed), commands))
            .map_err(StartError::Thread)?;
        workers.push(sender);
    }
    Ok(Dataplane { shared: Arc::new(Shared { workers, live: Mutex::default() }) })
}

impl Dataplane {
    /// Opens a pod's listeners on every worker, and serves them. Resolves when all are listening; if one fails, none is.
    pub async fn open(&self, pod: ServedPod) -> Result<(), OpenError> {
        let pod = Arc::new(pod);
        let live = Arc::new(Live::default());
        for worker in &self.shared.workers {
            let (done, answer) = oneshot::channel();
            let command = Command::Open { pod: Arc::clone(&pod), live: Arc::clone(&live), done };
            let sent = worker.send(command).await;
            let opened = match sent {
                Ok(()) => answer.await.unwrap_or(Err(OpenError::WorkerGone)),
                Err(_) => Err(OpenError::WorkerGone),
            };
            if let Err(error) = opened {
                if !matches!(error, OpenError::AlreadyOpen(_)) {
                    self.end(&pod.key, Reason::Aborted).await;
                }
                return Err(error);
            }
        }
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.key.clone(), live);
        Ok(())
    }

    /// Closes a pod's listeners; what is open goes on, and peers are asked to open no further streams.
    pub async fn refuse_new(&self, key: &PodKey) {
        self.tell(|done| Command::Refuse { key: key.clone(), done }).await;
    }

    /// Waits until a pod has no connection left, or for `at_most`; then ends what is left (`drained`), listeners too.
    ///
    /// Until then it accepts as before: call [`Dataplane::refuse_new`] first if it shall not. Returns how many
    /// connections were ended.
    pub async fn drain(&self, key: &PodKey, at_most: Duration) -> usize {
        let emptied = async {
            while self.live(key) > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(at_most, emptied).await;
        let left = self.live(key);
        self.end(key, Reason::Drained).await;
        left
    }

    /// Ends a pod at once: its listeners, its connections (`pod_gone`) and its tunnels. Of an unknown one: nothing.
    pub async fn close(&self, key: &PodKey) {
        self.end(key, Reason::PodGone).await;
    }

    /// Runs what `make` makes on the first worker, beside its connections, until it ends or the worker does.
    ///
    /// For the kubelet's probes: they are answered only while that worker comes round.
    pub async fn run_on_worker<F: Future<Output = ()> + 'static>(
        &self,
        make: impl FnOnce() -> F + Send + 'static,
    ) {
        let run = Command::Run(Box::new(move || Box::pin(make())));
        if let Some(worker) = self.shared.workers.first() {
            // A worker that has ended answers no probes, which is what they are for.
            let _ = worker.send(run).await;
        }
    }

    /// Connections of a pod, over all workers.
    pub fn live(&self, key: &PodKey) -> usize {
        let live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(key).map_or(0, |live| live.count())
    }

    async fn end(&self, key: &PodKey, reason: Reason) {
        self.tell(|done| Command::Close { key: key.clone(), reason, done }).await;
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Tells all workers, and waits until all have done it.
    async fn tell(&self, command: impl Fn(oneshot::Sender<()>) -> Command) {
        let mut answers = Vec::new();
        for worker in &self.shared.workers {
            let (done, answer) = oneshot::channel();
            // A worker that has ended has nothing left to end.
            if worker.send(command(done)).await.is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            let _ = answer.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_configured_has_its_default_and_unknown_keys_are_errors() {
        let config: Config = serde_saphyr::from_str("buffer-budget: 64MiB\nworkers: 2").unwrap();
        assert_eq!(
            config,
            Config { buffer_budget: 64 << 20, workers: NonZeroU32::new(2), ..Config::default() }
        );
        assert!(serde_saphyr::from_str::<Config>("buffer-budgets: 64MiB").is_err());
        assert!(serde_saphyr::from_str::<Config>("workers: 0").is_err());
    }
}
