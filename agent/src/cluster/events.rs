//! What the agent says of a pod to the pod's owner: Kubernetes Events, where there is a cluster to write them to.
//!
//! Saying one never waits and never fails: with a queue that is full, or without a cluster, it is in the log alone.

use std::fmt;
use std::sync::Arc;

use adit_core::net::{ObjectName, PodUid};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Events that wait to be written. Each pod of a node has one or two in a burst, and a node 250 pods at most; what comes
/// beyond is counted.
const QUEUED_MAX: usize = 512;

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Gravity {
    /// It went as it should.
    Normal,
    /// It did not.
    Warning,
}

impl Gravity {
    /// `type` of an Event.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something that happened to a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodEvent {
    /// The pod.
    pub pod: ObjectName,
    /// Its uid.
    pub uid: PodUid,
    /// Whether somebody should look.
    pub gravity: Gravity,
    /// One word in CamelCase, from a closed set, as `Captured` or `CaptureFailed`.
    pub reason: &'static str,
    /// What happened and what to do about it, in a sentence or two; cut at 1,024 bytes. The same words for the same
    /// thing, so that they are counted and not written again.
    pub note: Arc<str>,
}

/// Where Events are said. Cheap to clone.
#[derive(Clone)]
pub struct Events(Option<mpsc::Sender<PodEvent>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Events(cluster)" } else { "Events(log)" })
    }
}

impl Events {
    /// Where there is no cluster: what is said is logged.
    pub(super) fn logged() -> Self {
        Self(None)
    }

    /// For a cluster: what is said is logged, and waits to be written.
    pub(super) fn queued() -> (Self, mpsc::Receiver<PodEvent>) {
        let (queue, written) = mpsc::channel(QUEUED_MAX);
        (Self(Some(queue)), written)
    }

    /// Says that something happened to a pod. The same said again is one Event with a count.
    pub fn say(&self, event: PodEvent) {
        let PodEvent { pod, reason, note, .. } = &event;
        match event.gravity {
            Gravity::Normal => info!(%pod, reason, "{note}"),
            Gravity::Warning => warn!(%pod, reason, "{note}"),
        }
        if let Some(queue) = &self.0
            && queue.try_send(event).is_err()
        {
            metrics::counter!("adit_events_dropped_total").increment(1);
        }
    }
}
