//! The telemetry thread: what the workers say, turned into access-log lines, kept flows and edges.
//!
//! The queue between is bounded and never waits: what does not fit is dropped and counted. The thread looks every
//! [`TICK`] instead of being woken, which spares the data path a system call for each connection.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::time::Mono;
use adit_proto::admin;

use super::access_log::{flow, write_line};
use super::active::Active;
use super::config::{AccessLog, Config, StartError};
use super::edges::Edges;
use super::process;
use super::registry::Registry;
use super::said::{Said, Sender};
use crate::clock::Clock;
use crate::shutdown::vital_thread;

#[cfg(test)]
mod tests;

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
    reopen: Arc<AtomicBool>,
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

    /// Has the access log's file opened anew, as after it was renamed; what was said before stays in the old one. Does not
    /// wait for it. Where it cannot be opened, the old one is written on.
    pub fn reopen_access_log(&self) {
        self.reopen.store(true, Ordering::Release);
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
    active: Active,
) -> Result<(Sender, Flowing), StartError> {
    let (sender, said) = Sender::channel();
    let kept = Arc::new(Mutex::new(Kept {
        flows: VecDeque::new(),
        flows_max: config.flows_kept,
        edges: Edges::new(config.edges_kept, active.clone()),
    }));
    let dropped = sender.dropped();
    let rounds = Arc::<AtomicU64>::default();
    let reopen = Arc::<AtomicBool>::default();
    let flowing = Flowing {
        node,
        clock,
        registry: registry.clone(),
        kept: Arc::clone(&kept),
        dropped,
        rounds: Arc::clone(&rounds),
        reopen: Arc::clone(&reopen),
    };
    let log = Log::open(config.access_log.clone(), registry.counter("adit_access_log_lost_total", &[]))?;
    let lost = registry.counter("adit_reports_dropped_total", &[]);
    let counted = sender.dropped();
    let thread = Thread { said, kept, log, clock, registry, active, dropped: counted, lost, rounds, reopen };
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
    active: Active,
    dropped: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    /// How often the queue was emptied.
    rounds: Arc<AtomicU64>,
    /// Whether the access log's file is to be opened anew.
    reopen: Arc<AtomicBool>,
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
                self.active.expire();
            }
            self.lost.store(self.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
            thread::sleep(TICK);
        }
    }

    /// Takes all that is there; false once no worker can say anything any more.
    fn drain(&mut self) -> bool {
        // Asked first: what is said after it was asked for goes to the new file.
        if self.reopen.swap(false, Ordering::Acquire) {
            self.log.reopen();
        }
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

/// The access log's file or standard output. An error is said once; lines are lost until it goes away, and counted.
struct Log {
    config: AccessLog,
    out: BufWriter<Box<dyn Write + Send>>,
    /// The line that is being made: it is written whole or not at all.
    line: Vec<u8>,
    lost: Arc<AtomicU64>,
    draws: Seed,
    broken: bool,
}

impl Log {
    /// Room for the lines of some rounds.
    const BUFFER_LEN: usize = 64 * 1024;

    /// `lost` counts the lines that could not be written.
    fn open(config: AccessLog, lost: Arc<AtomicU64>) -> Result<Self, StartError> {
        let out: Box<dyn Write + Send> = match &config.path {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(
                open_file(path).map_err(|source| StartError::AccessLog { path: path.clone(), source })?,
            ),
        };
        Ok(Self::to(out, config, lost))
    }

    fn to(out: Box<dyn Write + Send>, config: AccessLog, lost: Arc<AtomicU64>) -> Self {
        let draws = Seed(u64::from(std::process::id()));
        let out = BufWriter::with_capacity(Self::BUFFER_LEN, out);
        Self { config, out, line: Vec::new(), lost, draws, broken: false }
    }

    /// Opens the file anew, if it is one.
    fn reopen(&mut self) {
        let Some(path) = self.config.path.clone() else { return };
        match open_file(&path) {
            Ok(file) => {
                self.flush();
                // What the old file did not take is given up with it, and not tried again while it is dropped.
                self.lost.fetch_add(self.waiting(), Ordering::Relaxed);
                let fresh = BufWriter::with_capacity(Self::BUFFER_LEN, Box::new(file) as Box<_>);
                drop(std::mem::replace(&mut self.out, fresh).into_parts());
                tracing::info!(path = %path.display(), "the access log's file is opened anew");
            }
            Err(error) => {
                let path = path.display();
                tracing::error!(%error, %path, "the access log's file cannot be opened anew; the old one is written on");
            }
        }
    }

    fn write(&mut self, said: &Said) {
        if said.end.reason().is_none() && !self.sampled() {
            return;
        }
        self.line.clear();
        let written = write_line(&mut self.line, self.config.format, &flow(said))
            .and_then(|()| self.out.write_all(&self.line));
        if written.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.note(written);
    }

    fn sampled(&mut self) -> bool {
        const WHOLE: u64 = 1_000_000;
        self.config.sample >= 1.0 || (self.draws.below(WHOLE) as f64) < self.config.sample * WHOLE as f64
    }

    /// What cannot be written stays buffered, to be tried again.
    fn flush(&mut self) {
        let flushed = self.out.flush();
        self.note(flushed);
    }

    /// Lines that have not left, or not whole. Counted as they stand there: the buffer also empties itself, when a line
    /// does not fit, and an error leaves in it only what was not taken.
    fn waiting(&self) -> u64 {
        self.out.buffer().iter().map(|byte| u64::from(*byte == b'\n')).sum()
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

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
