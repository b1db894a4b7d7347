//! The store of all metrics: the recorder behind the `metrics` facade, and the source of the workers' own series.
//!
//! A series is a sum over cells. Each holder (a worker's edge, a macro's call site) counts in a cell that nobody else
//! writes to, found once and kept; a cell whose holder is gone is folded into the series' base, so no count is lost. A
//! series of such cells leaves when it has no holder and has not changed for [`IDLE`]. A macro's series stays: its call
//! site holds it for one statement only, so that nobody holding it says nothing. Rendering reads copies: it holds no lock
//! while it formats.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use adit_core::time::Mono;
use metrics::{Counter, Gauge, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::histogram::{Histogram, Shown};

/// How long a series without holders stays on the page after its last change.
pub const IDLE: Duration = Duration::from_secs(15 * 60);

/// The macros' series whose labels are no closed set: whoever makes one holds it for as long as it means something, and
/// without a holder it leaves as any other.
const HELD: [&str; 2] =
    ["adit_certificate_expiry_timestamp_seconds", "adit_certificate_issued_timestamp_seconds"];

/// All metrics of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Families>>);

type Families = BTreeMap<Arc<str>, Family>;

#[derive(Debug, Default)]
struct Family {
    help: Option<SharedString>,
    series: HashMap<Arc<str>, Series>,
}

#[derive(Debug)]
enum Series {
    Counter(Cells<AtomicU64, u64>),
    Gauge(Cells<AtomicU64, u64>),
    Histogram(Box<Cells<Histogram, Shown>>),
}

/// The cells of one series, and what cells that are gone had counted.
#[derive(Debug)]
struct Cells<C, V> {
    base: V,
    cells: Vec<Arc<C>>,
    /// That of the macros' call sites, which hold it only while they use it: it is never folded into the base, or a
    /// gauge that is set again would count twice.
    shared: Option<Arc<C>>,
    seen: V,
    changed: Mono,
}

/// One family as it is rendered.
#[derive(Clone, Debug)]
pub struct Read {
    /// The metric's name.
    pub name: Arc<str>,
    /// What it counts.
    pub help: Option<SharedString>,
    /// Label text in its written form (`a="b",c="d"`) and value, sorted by label text.
    pub series: Vec<(Arc<str>, Value)>,
}

/// What one series shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(f64),
    /// Durations.
    Histogram(Shown),
}

impl Registry {
    /// Makes this the recorder of the `metrics` macros. A second call in one process (tests) leaves the first in place.
    pub fn install(&self) {
        if metrics::set_global_recorder(self.clone()).is_err() {
            tracing::debug!("another recorder is installed; its metrics stay there");
        }
    }

    /// A counter cell of its own.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Arc<AtomicU64> {
        self.counter_cell(name, label_text(labels.iter().copied()))
    }

    /// A gauge cell of its own; the series shows the sum. Its value is the bits of an `f64`, as `metrics` has it.
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Gauge {
        Gauge::from_arc(self.gauge_cell(name, label_text(labels.iter().copied())))
    }

    /// A histogram cell of its own.
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Arc<Histogram> {
        self.histogram_cell(name, label_text(labels.iter().copied()))
    }

    /// Folds cells whose holders are gone and drops series without holders that have been idle for [`IDLE`].
    pub fn expire(&self, now: Mono) {
        for (name, family) in &mut *self.lock() {
            let held_only = HELD.contains(&&**name);
            family.series.retain(|_, series| series.keep(now, held_only));
        }
    }

    /// Everything there is, families by name. Copies: nothing is locked afterwards, nor while they are sorted.
    pub fn read(&self) -> Vec<Read> {
        let mut all = self.copy();
        for family in &mut all {
            family.series.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        all
    }

    fn copy(&self) -> Vec<Read> {
        let families = self.lock();
        let kept = families.iter().filter(|(_, family)| !family.series.is_empty());
        kept.map(|(name, family)| {
            let series = family.series.iter().map(|(labels, series)| (Arc::clone(labels), series.value()));
            Read { name: Arc::clone(name), help: family.help.clone(), series: series.collect() }
        })
        .collect()
    }

    /// The counter's value now; 0 if there is no such series. For tests and the admin API.
    pub fn counter_value(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let text = label_text(labels.iter().copied());
        match self.lock().get(name).and_then(|family| family.series.get(text.as_str())).map(Series::value) {
            Some(Value::Counter(value)) => value,
            Some(Value::Gauge(_) | Value::Histogram(_)) | None => 0,
        }
    }

    /// Does `work` while all metrics are being read, which holds the lock.
    #[cfg(test)]
    pub(super) fn while_read<T>(&self, work: impl FnOnce() -> T) -> T {
        let _read = self.lock();
        work()
    }

    fn counter_cell(&self, name: &str, labels: String) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(0));
        match self.series(&mut self.lock(), name, labels, || Series::Counter(Cells::default())) {
            Series::Counter(cells) => cells.cells.push(Arc::clone(&cell)),
            Series::Gauge(_) | Series::Histogram(_) => kind_clash(name),
        }
        cell
    }

    /// As [`Registry::gauge`], to be read as well.
    pub(super) fn gauge_cell_of(&self, name: &str, labels: &[(&str, &str)]) -> Arc<AtomicU64> {
        self.gauge_cell(name, label_text(labels.iter().copied()))
    }

    fn gauge_cell(&self, name: &str, labels: String) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(0));
        match self.series(&mut self.lock(), name, labels, || Series::Gauge(Cells::default())) {
            Series::Gauge(cells) => cells.cells.push(Arc::clone(&cell)),
            Series::Counter(_) | Series::Histogram(_) => kind_clash(name),
        }
        cell
    }

    fn histogram_cell(&self, name: &str, labels: String) -> Arc<Histogram> {
        let cell = Arc::new(Histogram::default());
        match self.series(&mut self.lock(), name, labels, || Series::Histogram(Box::default())) {
            Series::Histogram(cells) => cells.cells.push(Arc::clone(&cell)),
            Series::Counter(_) | Series::Gauge(_) => kind_clash(name),
        }
        cell
    }

    fn series<'f>(
        &self,
        families: &'f mut MutexGuard<'_, Families>,
        name: &str,
        labels: String,
        new: impl FnOnce() -> Series,
    ) -> &'f mut Series {
        if !families.contains_key(name) {
            families.insert(name.into(), Family::default());
        }
        let family = families.get_mut(name).expect("the family was inserted if it was absent");
        family.series.entry(labels.into()).or_insert_with(new)
    }

    fn lock(&self) -> MutexGuard<'_, Families> {
        // A panic while it was held can only have left one count out.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, name: &KeyName, help: SharedString) {
        self.lock().entry(name.as_str().into()).or_default().help = Some(help);
    }
}

/// One name used for two kinds of metric: a mistake in this program. The cell counts, and is not shown.
fn kind_clash(name: &str) {
    debug_assert!(false, "the metric {name} is used as two kinds");
    tracing::error!(name, "a metric's name is used for two kinds; one of them is not shown");
}

impl<C, V: Default> Default for Cells<C, V> {
    fn default() -> Self {
        Self { base: V::default(), cells: Vec::new(), shared: None, seen: V::default(), changed: Mono::ZERO }
    }
}

impl<C, V: Clone + PartialEq> Cells<C, V> {
    /// The sum over all cells.
    fn sum(&self, add: impl Fn(&mut V, &C)) -> V {
        let mut sum = self.base.clone();
        for cell in self.cells.iter().chain(&self.shared) {
            add(&mut sum, cell);
        }
        sum
    }

    /// Folds what nobody holds; says whether the series stays. `held_only`: also a macro's needs a holder.
    fn keep(&mut self, now: Mono, held_only: bool, add: impl Fn(&mut V, &C) + Copy) -> bool {
        let sum = self.sum(add);
        if sum != self.seen {
            self.seen = sum;
            self.changed = now;
        }
        let base = &mut self.base;
        self.cells.retain(|cell| {
            let held = Arc::strong_count(cell) > 1;
            if !held {
                add(base, cell);
            }
            held
        });
        let kept = self.shared.as_ref().is_some_and(|cell| !held_only || Arc::strong_count(cell) > 1);
        kept || !self.cells.is_empty() || now.since(self.changed) < IDLE
    }
}

impl Series {
    fn keep(&mut self, now: Mono, held_only: bool) -> bool {
        match self {
            Self::Counter(cells) => cells.keep(now, held_only, add_count),
            Self::Gauge(cells) => cells.keep(now, held_only, add_gauge),
            Self::Histogram(cells) => cells.keep(now, held_only, add_histogram),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Counter(cells) => Value::Counter(cells.sum(add_count)),
            Self::Gauge(cells) => Value::Gauge(f64::from_bits(cells.sum(add_gauge))),
            Self::Histogram(cells) => Value::Histogram(cells.sum(add_histogram)),
        }
    }
}

fn add_count(sum: &mut u64, cell: &AtomicU64) {
    *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
}

fn add_gauge(sum: &mut u64, cell: &AtomicU64) {
    *sum = (f64::from_bits(*sum) + f64::from_bits(cell.load(Ordering::Relaxed))).to_bits();
}

fn add_histogram(sum: &mut Shown, cell: &Histogram) {
    sum.merge(cell);
}

/// `a="b",c="d"`, escaped as the Prometheus text format asks; empty values are left out, as they mean absence.
pub fn label_text<'l>(labels: impl Iterator<Item = (&'l str, &'l str)>) -> String {
    let mut text = String::new();
    for (key, value) in labels.filter(|(_, value)| !value.is_empty()) {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(text, "{comma}{key}=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

fn key_text(key: &Key) -> String {
    label_text(key.labels().map(|label| (label.key(), label.value())))
}

impl HistogramFn for Histogram {
    /// The facade's values are seconds.
    fn record(&self, seconds: f64) {
        self.add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO));
    }
}

impl Recorder for Registry {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut families = self.lock();
        match self.series(&mut families, key.name(), key_text(key), || Series::Counter(Cells::default())) {
            Series::Counter(cells) => Counter::from_arc(cells.shared()),
            Series::Gauge(_) | Series::Histogram(_) => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let mut families = self.lock();
        match self.series(&mut families, key.name(), key_text(key), || Series::Gauge(Cells::default())) {
            Series::Gauge(cells) => Gauge::from_arc(cells.shared()),
            Series::Counter(_) | Series::Histogram(_) => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        let mut families = self.lock();
        match self.series(&mut families, key.name(), key_text(key), || Series::Histogram(Box::default())) {
            Series::Histogram(cells) => metrics::Histogram::from_arc(cells.shared()),
            Series::Counter(_) | Series::Gauge(_) => metrics::Histogram::noop(),
        }
    }
}

impl<C: Default, V> Cells<C, V> {
    /// The cell that all call sites of the macros share: they look it up each time and must not add one each.
    fn shared(&mut self) -> Arc<C> {
        Arc::clone(self.shared.get_or_insert_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_cell_keeps_counting_however_long_it_was_idle() {
        let registry = Registry::default();
        let cell = registry.counter("adit_x_total", &[("a", "b")]);
        cell.fetch_add(3, Ordering::Relaxed);
        registry.expire(Mono::ZERO);
        registry.expire(Mono(IDLE * 3));
        cell.fetch_add(1, Ordering::Relaxed);
        assert_eq!(registry.counter_value("adit_x_total", &[("a", "b")]), 4);
    }

    #[test]
    fn a_series_without_holders_keeps_its_count_and_leaves_after_the_idle_time() {
        let registry = Registry::default();
        registry.counter("adit_x_total", &[]).fetch_add(5, Ordering::Relaxed);
        let start = Mono::from_millis(1);
        registry.expire(start);
        assert_eq!(registry.counter_value("adit_x_total", &[]), 5);
        registry.counter("adit_x_total", &[]).fetch_add(2, Ordering::Relaxed);
        registry.expire(start + IDLE / 2);
        assert_eq!(registry.counter_value("adit_x_total", &[]), 7);
        registry.expire(start + IDLE);
        assert_eq!(registry.counter_value("adit_x_total", &[]), 7);
        registry.expire(start + IDLE / 2 + IDLE);
        assert!(registry.read().is_empty());
    }

    #[test]
    fn a_gauge_that_is_set_again_has_its_last_value() {
        let registry = Registry::default();
        metrics::with_local_recorder(&registry, || {
            for round in 1..4 {
                metrics::gauge!("adit_x", "worker" => "data-0".to_owned()).set(5.0);
                registry.expire(Mono::from_millis(round));
            }
        });
        assert_eq!(registry.read()[0].series[0].1, Value::Gauge(5.0));
    }

    #[test]
    fn a_series_of_a_macro_stays_however_long_nothing_changes_it() {
        let registry = Registry::default();
        metrics::with_local_recorder(&registry, || {
            metrics::gauge!("adit_build_info", "version" => "1").set(1.0);
            metrics::gauge!("adit_object_errors").set(0.0);
            metrics::counter!("adit_connection_panics_total").increment(1);
            metrics::histogram!("adit_x_seconds").record(0.5);
        });
        for hours in 0..24 {
            registry.expire(Mono(Duration::from_secs(3600 * hours)));
        }
        assert_eq!(registry.read().len(), 4, "{:?}", registry.read());
        metrics::with_local_recorder(&registry, || {
            metrics::counter!("adit_connection_panics_total").increment(1);
        });
        assert_eq!(registry.counter_value("adit_connection_panics_total", &[]), 2);
    }

    #[test]
    fn a_certificates_series_stay_while_its_identity_is_needed_and_leave_after_it() {
        let registry = Registry::default();
        let gauges = metrics::with_local_recorder(&registry, || {
            HELD.map(|name| {
                let gauge = metrics::gauge!(name, "identity" => "spiffe://a.b/x");
                gauge.set(5.0);
                gauge
            })
        });
        registry.expire(Mono::ZERO);
        registry.expire(Mono(IDLE * 3));
        assert_eq!(registry.read().len(), HELD.len());
        drop(gauges);
        registry.expire(Mono(IDLE * 3));
        assert!(registry.read().is_empty());
    }

    #[test]
    fn gauges_and_histograms_of_two_workers_add_up() {
        let registry = Registry::default();
        let (one, two) = (registry.gauge("adit_active", &[]), registry.gauge("adit_active", &[]));
        one.increment(2.0);
        two.increment(3.0);
        one.decrement(1.0);
        let (a, b) = (registry.histogram("adit_s", &[]), registry.histogram("adit_s", &[]));
        a.add(Duration::from_micros(50));
        b.add(Duration::from_secs(1));
        let read = registry.read();
        assert_eq!(read[0].series[0].1, Value::Gauge(4.0));
        match &read[1].series[0].1 {
            Value::Histogram(shown) => {
                assert_eq!((shown.counts.count(), shown.counts.sum_us), (2, 1_000_050));
            }
            Value::Counter(_) | Value::Gauge(_) => panic!("a histogram was registered"),
        }
    }

    #[test]
    fn label_values_are_escaped_and_empty_ones_left_out() {
        let labels = [("a", "x\"y\\z\nw"), ("empty", ""), ("b", "c")];
        assert_eq!(label_text(labels.into_iter()), "a=\"x\\\"y\\\\z\\nw\",b=\"c\"");
    }
}
