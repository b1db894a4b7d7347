//! Everything the agent says about connections and about itself: access log, metrics, flows, edges, process log.
//!
//! The data path opens a [`Report`] per connection on its worker's [`Shard`] and closes it once. Counters are added up
//! there; lines, flows and edges are made from the closed report on a thread of their own ([`hub`]), so that no
//! connection waits for output. Knows no socket of the data path.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;

pub mod access_log;
pub mod edges;
pub mod histogram;
pub mod hub;
pub mod log;
pub mod process;
pub mod registry;
pub mod render;
pub mod shard;

#[cfg(test)]
mod tests;

pub use hub::Flowing;
pub use registry::Registry;
pub use shard::{Report, Shard};

/// What is said, where, and how much of it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The process log's filter, in `tracing`'s directive form. Default `info`. Reloaded live.
    pub log_level: String,
    /// The process log's form. Default `text`.
    pub log_format: Format,
    /// The access log.
    pub access_log: AccessLog,
    /// Reports kept in memory for `adit flows`. Default 10,000: at 0.7 KiB each, 7 MiB.
    pub flows_kept: usize,
    /// Edges kept in memory for `adit edges`; further ones are summed up as "other". Default 4,096.
    pub edges_kept: usize,
    /// How often an open connection is reported. Default 60 s.
    #[serde(deserialize_with = "crate::units::duration")]
    pub interim_interval: Duration,
}

/// The access log's configuration.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AccessLog {
    /// `json` or `text`. Default `json`.
    pub format: Format,
    /// The share of connections that ended well which is written, 0 to 1. Refused and failed ones always are. Default 1.
    pub sample: f64,
    /// The file it is appended to. Default: standard output.
    pub path: Option<PathBuf>,
}

/// The form of a log.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// One line of words for people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: "info".into(),
            log_format: Format::Text,
            access_log: AccessLog::default(),
            flows_kept: 10_000,
            edges_kept: 4096,
            interim_interval: Duration::from_secs(60),
        }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { format: Format::Json, sample: 1.0, path: None }
    }
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The access log's file cannot be appended to.
    #[error("cannot open the access log {path}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that writes could not be started.
    #[error("cannot start the telemetry thread")]
    Thread(#[source] io::Error),
}

/// What the data path is given: makes one [`Shard`] per worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    registry: Registry,
    hub: hub::Sender,
    interim_interval: Duration,
}

impl Reporter {
    /// The part of telemetry that belongs to one worker thread. Not `Send`: make it on that thread.
    pub fn shard(&self, clock: Clock) -> Shard {
        Shard::new(self.registry.clone(), self.hub.clone(), clock, self.interim_interval)
    }

    /// A reporter whose reports end in `sink`, for tests of the data path.
    pub fn to(sink: std::sync::mpsc::SyncSender<hub::Said>) -> Self {
        Self {
            registry: Registry::default(),
            hub: hub::Sender::new(sink),
            interim_interval: Duration::from_secs(60),
        }
    }
}

/// Starts telemetry: what the data path reports to, and what admin reads.
pub fn start(config: Config, clock: Clock, node: Arc<str>) -> Result<(Reporter, Flowing), StartError> {
    let registry = Registry::default();
    registry.install();
    shard::describe();
    let (sender, flowing) = hub::start(&config, clock, node, registry.clone())?;
    let reporter = Reporter { registry, hub: sender, interim_interval: config.interim_interval };
    Ok((reporter, flowing))
}
