//! The telemetry thread: what the workers say, turned into access-log lines, kept flows and edges.
//!
//! The queue between is bounded and never waits: what does not fit is dropped and counted. The thread looks every
//! [`TICK`] instead of being woken, which spares the data path a system call for each connection.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::time::Mono;
use adit_proto::admin;

use super::access_log::{flow, write_line};
use super::config::{AccessLog, Config, StartError};
use super::edges::Edges;
use super::process;
use super::registry::Registry;
use super::said::{Said, Sender};
use crate::clock::Clock;
use crate::shutdown::vital_thread;

/// How often the thread looks.
const TICK: Duration = Duration::from_millis(25);
/// How often idle series are looked for, and the process' own gauges are read.
const UPKEEP: Duration = Duration::from_secs(10);

/// What the admin API reads: kept flows, edges and metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flowing {
    node: Arc<str>,
    clock: Clock,
    registry: Registry,
    kept: Arc<Mutex<Kept>>,
    dropped: Arc<AtomicU64>,
    rounds: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Kept {
    flows: VecDeque<Said>,
    flows_max: usize,
    edges: Edges,
}

impl Flowing {
    /// The newest `limit` flows that `wanted` accepts, the newest last, as `read` takes them.
    ///
    /// Only the telemetry thread waits while `read` runs.
    pub fn flows<T>(
        &self,
        limit: usize,
        wanted: impl Fn(&admin::Flow<'_>) -> bool,
        read: impl FnOnce(&admin::Flows<'_>) -> T,
    ) -> T {
        let kept = lock(&self.kept);
        let mut flows: Vec<_> =
            kept.flows.iter().rev().map(flow).filter(|flow| wanted(flow)).take(limit).collect();
        flows.reverse();
        read(&admin::Flows {
            node: self.node.to_string(),
            flows,
            dropped: self.dropped.load(Ordering::Relaxed),
        })
    }

    /// The edges of the last `window`.
    pub fn edges(&self, window: Duration) -> admin::Edges {
        let (edges, other) = lock(&self.kept).edges.read(self.clock.now().mono, window);
        admin::Edges {
            node: self.node.to_string(),
            window_s: window.as_secs(),
            edges,
            other,
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Resolves once all that was said before is in the access log, kept and counted; never where the log's reader
    /// stands still. For the agent's own end.
    pub async fn written(&self) {
        // The round that is under way may have begun before.
        let until = self.rounds.load(Ordering::Acquire) + 2;
        while self.rounds.load(Ordering::Acquire) < until {
            tokio::time::sleep(TICK).await;
        }
    }

    /// The metrics.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // A panic while it was held can only have left one report out.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread.
pub fn start(
    config: &Config,
    clock: Clock,
    node: Arc<str>,
    registry: Registry,
) -> Result<(Sender, Flowing), StartError> {
    let (sender, said) = Sender::channel();
    let kept = Arc::new(Mutex::new(Kept {
        flows: VecDeque::new(),
        flows_max: config.flows_kept,
        edges: Edges::new(config.edges_kept),
    }));
    let dropped = sender.dropped();
    let rounds = Arc::<AtomicU64>::default();
    let flowing = Flowing {
        node,
        clock,
        registry: registry.clone(),
        kept: Arc::clone(&kept),
        dropped,
        rounds: Arc::clone(&rounds),
    };
    let log = Log::open(config.access_log.clone())?;
    let lost = registry.counter("adit_reports_dropped_total", &[]);
    let counted = sender.dropped();
    let thread = Thread { said, kept, log, clock, registry, dropped: counted, lost, rounds };
    thread::Builder::new()
        .name("adit-telemetry".into())
        .spawn(move || vital_thread("telemetry", || thread.run()))
        .map_err(StartError::Thread)?;
    Ok((sender, flowing))
}

struct Thread {
    said: Receiver<Said>,
    kept: Arc<Mutex<Kept>>,
    log: Log,
    clock: Clock,
    registry: Registry,
    dropped: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    /// How often the queue was emptied.
    rounds: Arc<AtomicU64>,
}

impl Thread {
    fn run(mut self) {
        let gauges = process::Gauges::new(&self.registry);
        let mut upkeep_at = Mono::ZERO;
        while self.drain() {
            let now = self.clock.now().mono;
            if now >= upkeep_at {
                upkeep_at = now + UPKEEP;
                gauges.read();
                self.registry.expire(now);
            }
            self.lost.store(self.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
            thread::sleep(TICK);
        }
    }

    /// Takes all that is there; false once no worker can say anything any more.
    fn drain(&mut self) -> bool {
        let open = loop {
            match self.said.try_recv() {
                Ok(said) => self.take(said),
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        self.log.flush();
        self.rounds.fetch_add(1, Ordering::Release);
        open
    }

    fn take(&mut self, said: Said) {
        self.log.write(&said);
        let mut kept = lock(&self.kept);
        kept.edges.add(&said);
        if kept.flows_max == 0 {
            return;
        }
        while kept.flows.len() >= kept.flows_max {
            kept.flows.pop_front();
        }
        kept.flows.push_back(said);
    }
}

/// The access log's file or standard output. An error is said once and the lines are lost until it goes away.
struct Log {
    config: AccessLog,
    out: Box<dyn Write + Send>,
    draws: Seed,
    broken: bool,
}

impl Log {
    fn open(config: AccessLog) -> Result<Self, StartError> {
        let out: Box<dyn Write + Send> = match &config.path {
            None => Box::new(BufWriter::with_capacity(64 * 1024, io::stdout())),
            Some(path) => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|source| StartError::AccessLog { path: path.clone(), source })?;
                Box::new(BufWriter::with_capacity(64 * 1024, file))
            }
        };
        Ok(Self { config, out, draws: Seed(u64::from(std::process::id())), broken: false })
    }

    fn write(&mut self, said: &Said) {
        if said.end.reason().is_none() && !self.sampled() {
            return;
        }
        let written = write_line(&mut self.out, self.config.format, &flow(said));
        self.note(written);
    }

    fn sampled(&mut self) -> bool {
        const WHOLE: u64 = 1_000_000;
        self.config.sample >= 1.0 || (self.draws.below(WHOLE) as f64) < self.config.sample * WHOLE as f64
    }

    fn flush(&mut self) {
        let flushed = self.out.flush();
        self.note(flushed);
    }

    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.broken = false,
            Err(error) if !self.broken => {
                self.broken = true;
                tracing::error!(%error, "cannot write the access log; its lines are lost until this ends");
            }
            Err(_) => {}
        }
    }
}
