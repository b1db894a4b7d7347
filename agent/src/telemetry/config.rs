//! What is said, where, and how much of it; and why it cannot be.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

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
    /// How often an open connection is reported; not 0. Default 60 s.
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
    /// The file it is appended to, opened anew at SIGHUP. Default: standard output.
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
