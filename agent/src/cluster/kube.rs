//! The source of truth in a cluster: follows an API server, and writes there what this agent has captured.
//!
//! ```text
//! API server -> follow (one per collection) -> News -> driver -> WorldBuilder -> Publisher
//!            <- annotation, Lease, Events   <------------'
//! ```
//!
//! [`follow`] lists and watches, and goes on through whatever the API server does; [`watched`] says what is followed and
//! what of each object is read; [`driver`] alone knows what it means. [`captures`] decides which annotation is owed,
//! [`removal`] whether Adit leaves, [`mod@kept`] keeps what was accepted for the next agent. Status of policies is the CA's
//! to write.

mod backoff;
mod bundle;
mod captures;
pub(super) mod client;
pub(super) mod config;
mod driver;
mod follow;
mod kept;
mod lease;
mod removal;
mod said;
#[cfg(test)]
mod tests;
mod times;
mod watched;
mod watches;
mod wrongs;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use adit_core::draw::Seed;
use adit_proto::cni::Removal;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use self::client::Api;
pub use self::config::Config;
use self::driver::{Driver, Links};
use self::kept::Kept;
use self::watched::{Watched, kept};
use super::events::Events;
use super::model::{Command, Own, Shown, StartError};
use crate::clock::Clock;
use crate::shutdown::vital;
use crate::view::Publisher;

/// News that wait: a page of 500 objects each, pruned, so about 8 MiB at the most.
const NEWS_MAX: usize = 8;
/// Below the agent's folder on tmpfs: what was accepted, for the next agent.
pub const COPY_DIR: &str = "kube";
/// Which boot of the node this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What was started.
pub(super) struct Started {
    pub(super) driver: JoinHandle<()>,
    pub(super) removal: watch::Receiver<Removal>,
    pub(super) events: Events,
}

/// Begins to follow the API server, from what an earlier life kept. Waits for nothing.
pub(super) fn start(
    config: &Config,
    own: Own,
    clock: Clock,
    publisher: Publisher,
    shown: watch::Sender<Shown>,
    inbox: mpsc::Receiver<Command>,
    mut seed: Seed,
) -> Result<Started, StartError> {
    let api = Api::open(config)?;
    let kept_files = own.copy_dir.as_ref().map(|dir| open_copy(dir.join(COPY_DIR), &mut seed)).transpose()?;
    let (removal, removal_seen) = watch::channel(Removal::Undecided);
    let (lease, lease_says) = watch::channel(lease::Says::default());
    let (events, events_said) = Events::queued();
    let node = own.settings.node.0.to_string();
    let system_namespace = Arc::clone(&own.settings.system_namespace);
    let holder = lease::Holder {
        node: node.clone(),
        namespace: system_namespace.to_string(),
        version: own.version.clone(),
    };

    let mut tasks = JoinSet::new();
    let keeping = lease::keep(api.clone(), holder, clock, seed.fork(), lease_says);
    tasks.spawn(vital("the own Lease", keeping));
    let writing = said::write_events(api.clone(), node, clock, seed.fork(), events_said);
    tasks.spawn(vital("events", writing));
    let (news, news_told) = mpsc::channel(NEWS_MAX);
    let (list_anew, anew) = watch::channel(());
    for of in kept().chain([Watched::DaemonSet, Watched::OwnNamespace]) {
        let path = of.path(&system_namespace, &config.daemon_set);
        let following = follow::follow(api.clone(), of, path, seed.fork(), news.clone(), anew.clone());
        tasks.spawn(vital("a watch", following));
    }

    let links =
        Links { own, api, clock, publisher, shown, removal, lease, list_anew, kept: kept_files, seed };
    let mut driver = Driver::new(links);
    driver.recall();
    let driver = tokio::spawn(vital("the source of truth", async move {
        driver.run(news_told, inbox).await;
        drop(tasks);
    }));
    Ok(Started { driver, removal: removal_seen, events })
}

/// Opens the copy of this boot.
fn open_copy(dir: PathBuf, seed: &mut Seed) -> Result<Kept, StartError> {
    let owner = format!("{} {:016x}", std::process::id(), seed.draw());
    let boot = fs::read_to_string(BOOT_ID);
    let opened = boot.and_then(|boot| Kept::open(dir.clone(), boot.trim(), &owner));
    opened.map_err(|source| StartError::Copy { dir, source })
}
