//! The data plane: carries the connections of served pods, outbound and inbound, on worker threads of its own.
//!
//! Each worker is a current-thread runtime that shares nothing with the others: it has its own listeners in every pod
//! (the kernel spreads connections over them), its own tunnels, budgets and counters. This file starts them and tells
//! them what to serve; a connection's way is in `outbound`, `inbound` and `plaintext`. Knows no Kubernetes and
//! no rules: pods come from `crate::pods`, decisions from `adit_core`.

mod account;
mod admit;
mod buffers;
mod caller;
mod connect;
mod copy;
mod endpoints;
mod error;
mod flow;
mod gate;
mod handshake;
mod inbound;
mod inbox;
mod legs;
mod listeners;
mod model;
mod offer;
mod outbound;
mod pipes;
mod plaintext;
mod pod;
mod pool;
mod protocol;
mod records;
mod relay;
mod share;
mod shared;
mod stream;
mod streams;
#[cfg(test)]
mod testing;
mod tunnel;
mod unread;
mod wire;
mod worker;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::PodKey;
use adit_proto::Reason;
use tokio::sync::{mpsc, oneshot};

pub use model::{Config, Handles, OpenError, ServedPod};
use pod::Live;
use shared::Worker;
use worker::Command;

use crate::shutdown::vital_thread;

/// Commands that may wait for one worker. Each is for one pod; a node has some hundred.
const COMMANDS_MAX: usize = 256;
/// What one connection's task may weigh, in bytes: with its report, its stream and its sockets an idle connection then
/// costs the agent less than 4 KiB. Tests hold the tasks to it.
#[cfg(test)]
const FUTURE_LEN_MAX: usize = 1024;
/// How often a drain looks whether anything is left.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

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
        let (made, is_made) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name(format!("data-{at}"))
            .spawn(move || {
                let make = || Worker::new(config, handles, count, seed);
                vital_thread("a data-plane worker", || {
                    worker::run(make, commands, |result| {
                        // The starter waits for it.
                        let _ = made.send(result);
                    });
                });
            })
            .map_err(StartError::Thread)?;
        // Without a word only a thread ends that the process is ending with.
        let died = |_| Err(io::Error::other("the worker's thread died"));
        is_made.recv().unwrap_or_else(died).map_err(StartError::Runtime)?;
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

    /// Every pod that is served, or whose connections still are.
    pub fn served(&self) -> Vec<PodKey> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
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

    /// Ends every pod at once: listeners, connections (`aborted`) and tunnels. For the agent's own end.
    pub async fn stop(&self) {
        for key in self.served() {
            self.end(&key, Reason::Aborted).await;
        }
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

    /// The same over all pods.
    pub fn live_in_all(&self) -> usize {
        let live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.values().map(|live| live.count()).sum()
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
    use std::num::NonZeroU32;

    use super::*;

    /// Set in the process that is to end.
    const PANICS: &str = "ADIT_TEST_PANICS";

    #[test]
    fn a_panic_of_a_worker_ends_the_process() {
        const NAME: &str = "dataplane::tests::a_panic_of_a_worker_ends_the_process";
        if std::env::var_os(PANICS).is_none() {
            let test = std::env::current_exe().unwrap();
            let output = std::process::Command::new(test).args(["--exact", NAME]).env(PANICS, "1").output();
            let output = output.unwrap();
            assert_eq!(output.status.code(), Some(70), "{output:?}");
            return;
        }
        testing::on_worker(async {
            let rig = testing::Rig::new(Config::default());
            let dataplane = start(Config::default(), rig.worker.handles.clone(), Seed(1)).unwrap();
            dataplane.run_on_worker::<std::future::Ready<()>>(|| panic!("on purpose")).await;
            // Answered only by a worker's end.
            std::future::pending::<()>().await;
        });
    }

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
