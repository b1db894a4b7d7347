//! The machine that the figures are of.

use std::fs;
use std::thread;

use anyhow::{Context, Result};

/// The host's congestion control: what a new namespace begins with.
pub(super) fn congestion() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").context("no TCP")?;
    Ok(name.trim().to_owned())
}

/// Cores, processor, kernel and memory in one line.
pub(super) fn machine() -> Result<String> {
    let cores = thread::available_parallelism()?;
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let cpu = read("/proc/cpuinfo")?;
    let model = value(&cpu, "model name").unwrap_or("an unnamed processor");
    // A virtual machine's model name may say no more than the maker's.
    let kind = value(&cpu, "cpu family").zip(value(&cpu, "model\t"));
    let kind = kind.map(|(family, model)| format!(" (family {family}, model {model})")).unwrap_or_default();
    let memory = read("/proc/meminfo")?;
    let kib = value(&memory, "MemTotal").and_then(|kib| kib.split(' ').next()?.parse::<u64>().ok());
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let gib = kib.unwrap_or(0) >> 20;
    Ok(format!("{cores} cores of {model}{kind}, {gib} GiB, Linux {}", kernel.trim()))
}

/// The value of the first `key : value`.
fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_follows_its_key() {
        assert_eq!(value("a : 1\nmodel name\t: A CPU\n", "model name"), Some("A CPU"));
        assert_eq!(value("MemTotal:       24684204 kB\n", "MemTotal"), Some("24684204 kB"));
        assert_eq!(value("", "x"), None);
    }
}
