//! One measurement: a load on one path, with both agents' CPU over it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::client::{Load, Report};
use super::mesh::{Bench, Path};
use super::usage::{at_rest, cpu_seconds};

/// What a load did on one path, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What the client says.
    pub report: Report,
    /// CPU of both agents together, their logs and metrics included, in seconds.
    pub agents_cpu: f64,
}

impl Measured {
    /// What was done per second.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^53")]
    pub fn rate(&self) -> f64 {
        self.report.done as f64 / self.report.seconds
    }

    /// Agent CPU-seconds per thing done.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^53")]
    pub fn cpu_each(&self) -> f64 {
        self.agents_cpu / self.report.done as f64
    }
}

/// How long both agents must have used no CPU before what they wrote counts as written.
const LOGS_WRITTEN: Duration = Duration::from_millis(150);

/// Runs `load` on `path` for so long.
pub(super) fn measure(bench: &Bench, path: Path, load: Load, duration: Duration) -> Result<Measured> {
    let pids = bench.agents()?;
    let used = || -> Result<f64> { Ok(cpu_seconds(pids[0])? + cpu_seconds(pids[1])?) };
    let pair = bench.pair(path);
    let before = used()?;
    let [kind, count, rate] = load.words();
    let millis = duration.as_millis().to_string();
    let server = IpAddr::from(pair.server.host.v4).to_string();
    let said = pair
        .client
        .host
        .netns
        .command(std::env::current_exe()?)
        .args(["client", &server, &kind, &count, &rate, &millis])
        .bound(duration + crate::WAIT_MAX)
        .ok()
        .with_context(|| format!("{kind} by the {path:?} path"))?;
    // The logs of what has just ended are still being written.
    let after = at_rest(LOGS_WRITTEN, used)?;
    let report = serde_json::from_str(&said).context("the client's report")?;
    Ok(Measured { report, agents_cpu: after - before })
}
