//! The metrics page: Prometheus text format 0.0.4 and OpenMetrics 1.0, chosen by the scraper's `Accept`.

use std::fmt::Write as _;

use super::histogram::{BOUNDS_US, Exemplar, Shown};
use super::registry::{Read, Value};

/// The two text formats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Page {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Page {
    /// What the scraper asked for with its `Accept` header.
    pub fn of_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The reply's `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Prints all families.
    pub fn print(self, families: &[Read]) -> String {
        let mut out = String::new();
        for family in families {
            self.print_family(&mut out, family);
        }
        if self == Self::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }

    fn print_family(self, out: &mut String, family: &Read) {
        let Some((_, first)) = family.series.first() else {
            return;
        };
        // A counter that is set, as it is the kernel that counts, and in fractions.
        let is_set_counter = family.name.ends_with("_total");
        let kind = match first {
            Value::Counter(_) => "counter",
            Value::Gauge(_) if is_set_counter => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(_) => "histogram",
        };
        // OpenMetrics names the family of a counter without the suffix of its sample.
        let base = match (self, first) {
            (Self::OpenMetrics, Value::Counter(_) | Value::Gauge(_)) => {
                family.name.strip_suffix("_total").unwrap_or(&family.name)
            }
            (Self::OpenMetrics, Value::Histogram(_)) | (Self::Prometheus, _) => &family.name,
        };
        // Writing to a String does not fail.
        if let Some(help) = &family.help {
            let _ = writeln!(out, "# HELP {base} {}", help.replace('\\', "\\\\").replace('\n', "\\n"));
        }
        let _ = writeln!(out, "# TYPE {base} {kind}");
        for (labels, value) in &family.series {
            match value {
                Value::Counter(count) => {
                    let suffix =
                        if self == Self::OpenMetrics && base == &*family.name { "_total" } else { "" };
                    let _ = writeln!(out, "{}{suffix}{} {count}", family.name, braces(labels));
                }
                Value::Gauge(value) => {
                    let _ = writeln!(out, "{}{} {value}", family.name, braces(labels));
                }
                Value::Histogram(shown) => self.print_histogram(out, &family.name, labels, shown),
            }
        }
    }

    fn print_histogram(self, out: &mut String, name: &str, labels: &str, shown: &Shown) {
        let counts = &shown.counts;
        let comma = if labels.is_empty() { "" } else { "," };
        let exemplar = |bucket| match self {
            Self::OpenMetrics => shown.exemplars.get(&bucket).map(after_sample).unwrap_or_default(),
            Self::Prometheus => String::new(),
        };
        let mut below = 0;
        for (bucket, (bound, n)) in BOUNDS_US.iter().zip(counts.buckets).enumerate() {
            below += n;
            let bound = Seconds(*bound);
            let _ =
                writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}{}", exemplar(bucket));
        }
        let count = counts.count();
        let last = exemplar(BOUNDS_US.len());
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}{last}");
        let _ = writeln!(out, "{name}_sum{} {}", braces(labels), Seconds(counts.sum_us));
        let _ = writeln!(out, "{name}_count{} {count}", braces(labels));
    }
}

/// An exemplar as it stands after a sample (OpenMetrics 1.0, Exemplars): labels, value, time in seconds.
fn after_sample(exemplar: &Exemplar) -> String {
    let Exemplar { trace, us, at_ms } = exemplar;
    format!(" # {{trace_id=\"{trace}\"}} {} {}", Seconds(*us), Seconds(at_ms.saturating_mul(1000)))
}

fn braces(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

/// Microseconds printed as seconds, exactly and with at least one decimal.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = format!("{:06}", self.0 % 1_000_000);
        let micros = micros.trim_end_matches('0');
        write!(f, "{}.{}", self.0 / 1_000_000, if micros.is_empty() { "0" } else { micros })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use adit_core::report::TraceId;

    use super::*;
    use crate::telemetry::Registry;

    fn registry() -> Registry {
        let registry = Registry::default();
        registry
            .counter("adit_connections_opened_total", &[("direction", "inbound")])
            .fetch_add(2, Ordering::Relaxed);
        registry.gauge("adit_connections_active", &[]).set(1.0);
        registry.gauge("process_cpu_seconds_total", &[]).set(1.5);
        registry
            .histogram("adit_connect_duration_seconds", &[("direction", "inbound")])
            .add(Duration::from_micros(300));
        registry
    }

    #[test]
    fn the_prometheus_page_has_cumulative_buckets_in_seconds() {
        let page = Page::Prometheus.print(&registry().read());
        for line in [
            "# TYPE adit_connections_opened_total counter",
            "adit_connections_opened_total{direction=\"inbound\"} 2",
            "adit_connections_active 1",
            "process_cpu_seconds_total 1.5",
            "adit_connect_duration_seconds_bucket{direction=\"inbound\",le=\"0.00025\"} 0",
            "adit_connect_duration_seconds_bucket{direction=\"inbound\",le=\"0.0005\"} 1",
            "adit_connect_duration_seconds_bucket{direction=\"inbound\",le=\"10.0\"} 1",
            "adit_connect_duration_seconds_bucket{direction=\"inbound\",le=\"+Inf\"} 1",
            "adit_connect_duration_seconds_sum{direction=\"inbound\"} 0.0003",
            "adit_connect_duration_seconds_count{direction=\"inbound\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        assert!(!page.contains("# EOF"));
    }

    #[test]
    fn a_buckets_newest_connection_is_its_exemplar_in_openmetrics_only() {
        let registry = Registry::default();
        let accepted = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        registry.histogram("adit_connect_duration_seconds", &[]).add_of(
            Duration::from_micros(300),
            TraceId(0xabc),
            accepted,
        );
        let line = "adit_connect_duration_seconds_bucket{le=\"0.0005\"} 1";
        let exemplar = "# {trace_id=\"00000000000000000000000000000abc\"} 0.0003 1700000000.25";
        let page = Page::OpenMetrics.print(&registry.read());
        assert!(page.lines().any(|l| l == format!("{line} {exemplar}")), "{page}");
        assert_eq!(page.matches(" # ").count(), 1, "{page}");
        let page = Page::Prometheus.print(&registry.read());
        assert!(page.lines().any(|l| l == line) && !page.contains(" # "), "{page}");
    }

    #[test]
    fn the_openmetrics_page_names_counter_families_without_suffix_and_ends() {
        let page = Page::OpenMetrics.print(&registry().read());
        assert!(page.contains("# TYPE adit_connections_opened counter\n"), "{page}");
        assert!(page.contains("adit_connections_opened_total{direction=\"inbound\"} 2\n"), "{page}");
        assert!(
            page.contains("# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total 1.5\n"),
            "{page}"
        );
        assert!(page.ends_with("# EOF\n"));
        assert_eq!(
            Page::of_accept("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
            Page::OpenMetrics
        );
        assert_eq!(Page::of_accept("text/plain"), Page::Prometheus);
    }
}
