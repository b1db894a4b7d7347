//! The process log: `tracing` to standard error, its level reloadable.

use std::io;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::config::Format;

/// Changes the level while the process runs.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

/// Why a filter was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// It is no directive.
    #[error("log-level {level:?} is no filter")]
    Filter {
        /// What was given.
        level: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The subscriber is gone.
    #[error("the log's level cannot be changed any more")]
    Gone(#[source] reload::Error),
}

/// Judges a filter without taking it; the error says what is wrong with it.
pub fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop).map_err(|error| match error {
        LevelError::Filter { source, .. } => format!("is no filter: {source}"),
        LevelError::Gone(error) => error.to_string(),
    })
}

/// Starts the process log. A second call in one process (tests) leaves the first in place.
pub fn init(level: &str, format: Format) -> Result<Level, LevelError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let base = tracing_subscriber::registry().with(filter);
    let installed = match format {
        Format::Json => base.with(fmt::layer().json().with_writer(io::stderr)).try_init(),
        Format::Text => base.with(fmt::layer().with_ansi(false).with_writer(io::stderr)).try_init(),
    };
    drop(installed);
    Ok(Level(handle))
}

impl Level {
    /// Takes a new filter.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        self.0.reload(filter(level)?).map_err(LevelError::Gone)
    }
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let wrong = |source| LevelError::Filter { level: level.to_owned(), source };
    // kube's client calls every request that fails an error, a dozen a second while an API server is away. Who asked says
    // it, once.
    let quiet = "kube_client::client::builder=off".parse().map_err(wrong)?;
    Ok(EnvFilter::try_new(level).map_err(wrong)?.add_directive(quiet))
}
