//! The series of one edge: looked up once, held by its connections and by the worker's table.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adit_core::report::{ConnectionReport, Stage};
use adit_core::time::Mono;
use adit_proto::Reason;
use metrics::Gauge;

use super::active::Active;
use super::edge::{EdgeKey, Side, connect_phase};
use super::histogram::Histogram;
use super::registry::Registry;

/// The counters of one edge, held by its connections and by the worker's table.
pub(super) struct EdgeSeries {
    opened: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
    active: Gauge,
    to_server: Arc<AtomicU64>,
    to_client: Arc<AtomicU64>,
    retries: OnceCell<Arc<AtomicU64>>,
    connect: Arc<Histogram>,
    tls: OnceCell<Arc<Histogram>>,
    failed: RefCell<Vec<(Reason, Arc<AtomicU64>)>>,
    /// When a connection last began or ended.
    pub(super) used: Cell<Mono>,
}

impl EdgeSeries {
    /// The series of the edge `key`; those that most edges have.
    pub(super) fn new(registry: &Registry, open: &Active, key: &EdgeKey) -> Self {
        let texts = Texts::of(key);
        let labels = texts.labels(key);
        let active = registry.gauge_cell_of("adit_connections_active", &labels);
        open.add(key, &active);
        let counter = |name| registry.counter(name, &labels);
        Self {
            opened: counter("adit_connections_opened_total"),
            closed: counter("adit_connections_closed_total"),
            active: Gauge::from_arc(active),
            to_server: counter("adit_bytes_to_server_total"),
            to_client: counter("adit_bytes_to_client_total"),
            retries: OnceCell::new(),
            connect: registry.histogram("adit_connect_duration_seconds", &labels),
            tls: OnceCell::new(),
            failed: RefCell::default(),
            used: Cell::new(Mono::ZERO),
        }
    }

    /// A connection's connect phase has succeeded.
    pub(super) fn opened(&self, registry: &Registry, report: &ConnectionReport) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.active.increment(1.0);
        self.connect.add_of(connect_phase(report), report.trace, report.opened.wall);
        self.retried(registry, report);
        self.handshook(registry, report);
    }

    /// Counts the handshake of a tunnel, which its first connection tells.
    pub(super) fn handshook(&self, registry: &Registry, report: &ConnectionReport) {
        if let Some(took) = report.stages.get(Stage::Tls) {
            let name = "adit_tls_handshake_duration_seconds";
            let tls = || with_labels(report, &[], |labels| registry.histogram(name, labels));
            self.tls.get_or_init(tls).add_of(took, report.trace, report.opened.wall);
        }
    }

    /// An opened connection has ended.
    pub(super) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.active.decrement(1.0);
    }

    /// Counts attempts after the first.
    pub(super) fn retried(&self, registry: &Registry, report: &ConnectionReport) {
        let retries = u64::from(report.attempts.saturating_sub(1));
        if retries > 0 {
            let made =
                || with_labels(report, &[], |labels| registry.counter("adit_connect_retries_total", labels));
            self.retries.get_or_init(made).fetch_add(retries, Ordering::Relaxed);
        }
    }

    /// A connection was not carried, or was ended, for `reason`.
    pub(super) fn failed(&self, registry: &Registry, report: &ConnectionReport, reason: Reason) {
        let mut failed = self.failed.borrow_mut();
        if let Some((_, counter)) = failed.iter().find(|(known, _)| *known == reason) {
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let with_reason = [("reason", reason.label())];
        let counter = with_labels(report, &with_reason, |labels| {
            registry.counter("adit_connections_failed_total", labels)
        });
        counter.fetch_add(1, Ordering::Relaxed);
        failed.push((reason, counter));
    }

    /// Counts bytes.
    pub(super) fn carried(&self, to_server: u64, to_client: u64) {
        self.to_server.fetch_add(to_server, Ordering::Relaxed);
        self.to_client.fetch_add(to_client, Ordering::Relaxed);
    }
}

/// Makes a series with the labels of a report's edge, and `more`.
fn with_labels<T>(
    report: &ConnectionReport,
    more: &[(&str, &str)],
    make: impl FnOnce(&[(&str, &str)]) -> T,
) -> T {
    let key = EdgeKey::of(report);
    let texts = Texts::of(&key);
    let mut labels = texts.labels(&key).to_vec();
    labels.extend_from_slice(more);
    make(&labels)
}

/// An edge's label values that are made of several words.
struct Texts {
    source: SideTexts,
    destination: SideTexts,
    service: String,
}

struct SideTexts {
    workload: String,
}

impl Texts {
    fn of(key: &EdgeKey) -> Self {
        let side = |side: &Side| SideTexts {
            workload: side
                .workload
                .as_ref()
                .map(|(_, kind, name)| format!("{kind}/{name}"))
                .unwrap_or_default(),
        };
        Self {
            source: side(&key.source),
            destination: side(&key.destination),
            service: key.service.as_ref().map(|(name, port)| format!("{name}:{port}")).unwrap_or_default(),
        }
    }

    fn labels<'l>(&'l self, key: &'l EdgeKey) -> [(&'static str, &'l str); 9] {
        let namespace = |side: &'l Side| side.workload.as_ref().map_or("", |(namespace, ..)| namespace);
        let identity = |side: &'l Side| side.identity.as_ref().map_or("", |identity| identity.as_str());
        [
            ("direction", key.direction.label()),
            ("transport", key.transport.label()),
            ("source_namespace", namespace(&key.source)),
            ("source_workload", &self.source.workload),
            ("source_identity", identity(&key.source)),
            ("destination_namespace", namespace(&key.destination)),
            ("destination_workload", &self.destination.workload),
            ("destination_identity", identity(&key.destination)),
            ("destination_service", &self.service),
        ]
    }
}
