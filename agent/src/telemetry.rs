//! Everything the agent says about connections and about itself: access log, metrics, flows, edges, process log.
//!
//! The data path opens a [`Report`] per connection on its worker's [`Shard`] and closes it once. Counters are added up
//! there; lines, flows and edges are made from the closed report on a thread of their own ([`hub`]), so that no
//! connection waits for output. Knows no socket of the data path.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;

pub mod access_log;
pub mod active;
mod config;
pub mod edge;
pub mod edges;
mod help;
pub mod histogram;
pub mod hub;
pub mod log;
pub mod process;
pub mod registry;
pub mod render;
pub mod said;
mod series;
pub mod shard;

#[cfg(test)]
mod tests;

pub use config::{AccessLog, Config, Format, StartError};
pub use hub::Flowing;
pub use registry::Registry;
pub use shard::{Report, Shard};

/// What the data path is given: makes one [`Shard`] per worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    registry: Registry,
    active: active::Active,
    hub: said::Sender,
    interim_interval: Duration,
}

impl Reporter {
    /// The part of telemetry that belongs to one worker thread. Not `Send`: make it on that thread.
    pub fn shard(&self, clock: Clock) -> Shard {
        let (registry, active) = (self.registry.clone(), self.active.clone());
        Shard::new(registry, active, self.hub.clone(), clock, self.interim_interval)
    }

    /// Where its counters are.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A reporter whose reports end in `sink`, for tests of the data path.
    pub fn to(sink: std::sync::mpsc::SyncSender<said::Said>) -> Self {
        Self {
            registry: Registry::default(),
            active: active::Active::default(),
            hub: said::Sender::new(sink),
            interim_interval: Duration::from_secs(60),
        }
    }
}

/// Starts telemetry: what the data path reports to, and what admin reads.
pub fn start(config: Config, clock: Clock, node: Arc<str>) -> Result<(Reporter, Flowing), StartError> {
    let registry = Registry::default();
    registry.install();
    help::describe();
    let active = active::Active::default();
    let (sender, flowing) = hub::start(&config, clock, node, registry.clone(), active.clone())?;
    let reporter = Reporter { registry, active, hub: sender, interim_interval: config.interim_interval };
    Ok((reporter, flowing))
}
