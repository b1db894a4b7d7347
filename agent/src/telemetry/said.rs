//! What the workers tell the telemetry thread, and the bounded queue between: it never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use adit_core::report::{ConnectionReport, End};
use adit_core::time::Mono;

/// Reports that may wait. At 0.7 KiB each 11 MiB, and at one look each 25 ms room for 650,000 connections a second.
pub const QUEUE_LEN_MAX: usize = 16 * 1024;
/// One closed or interim report, as it goes to the telemetry thread.
#[derive(Clone, Debug)]
pub struct Said {
    /// What is said.
    pub report: Box<ConnectionReport>,
    /// How it ended, or that it is open.
    pub end: End,
    /// When this was said.
    pub at: Mono,
    /// Whether this is the first report of the connection.
    pub first: bool,
    /// Whether the connection was carried: its connect phase succeeded.
    pub carried: bool,
    /// How long the connect phase took, if it did.
    pub connect_phase: Duration,
    /// Bytes since the report before.
    pub new_bytes_to_server: u64,
    /// Bytes since the report before.
    pub new_bytes_to_client: u64,
}

/// The workers' end of the queue.
#[derive(Clone, Debug)]
pub struct Sender {
    queue: SyncSender<Said>,
    dropped: Arc<AtomicU64>,
}

impl Sender {
    /// An end whose reports go to `queue`.
    pub fn new(queue: SyncSender<Said>) -> Self {
        Self { queue, dropped: Arc::default() }
    }

    /// An end, and the other one; at most [`QUEUE_LEN_MAX`] reports wait between them.
    pub(super) fn channel() -> (Self, Receiver<Said>) {
        let (queue, said) = sync_channel(QUEUE_LEN_MAX);
        (Self::new(queue), said)
    }

    /// How many reports could not be said.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Says it, or counts that it could not.
    pub fn say(&self, said: Said) {
        if self.queue.try_send(said).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
