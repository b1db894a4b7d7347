//! The process' own gauges, under the names that Prometheus client libraries share.

use std::fs;

use metrics::Gauge;

use super::registry::Registry;

/// Bytes in a page, and ticks in a second: both fixed in the Linux ABI of the architectures that Adit is built for.
const PAGE: f64 = 4096.0;
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time, memory and open descriptors.
pub struct Gauges {
    cpu: Gauge,
    memory: Gauge,
    descriptors: Gauge,
}

impl Gauges {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        Self {
            cpu: registry.gauge("process_cpu_seconds_total", &[]),
            memory: registry.gauge("process_resident_memory_bytes", &[]),
            descriptors: registry.gauge("process_open_fds", &[]),
        }
    }

    /// Reads them from /proc; what cannot be read keeps its last value.
    pub fn read(&self) {
        if let Some(seconds) = cpu_seconds(&fs::read_to_string("/proc/self/stat").unwrap_or_default()) {
            self.cpu.set(seconds);
        }
        if let Some(bytes) = resident_bytes(&fs::read_to_string("/proc/self/statm").unwrap_or_default()) {
            self.memory.set(bytes);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // Less the descriptor of this very listing.
            self.descriptors.set(entries.count().saturating_sub(1) as f64);
        }
    }
}

/// utime + stime: fields 14 and 15 of proc(5), counted after the command's closing parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// The second field of statm(5), in pages.
fn resident_bytes(statm: &str) -> Option<f64> {
    statm.split(' ').nth(1)?.parse::<f64>().ok().map(|pages| pages * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_command_with_spaces_and_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 3 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
        assert_eq!(resident_bytes("900 25 3 1 0 9 0\n"), Some(25.0 * PAGE));
    }
}
