//! Hands on what one part says to another that must not know it, and keeps the gauges.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_core::readiness::{Facts, SysctlRefused};
use adit_core::redirect::Sysctl;
use adit_core::trust::TrustBundle;
use adit_proto::admin::PodStatus;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::config::{Config, NodeFacts};
use crate::health::Readiness;
use crate::pods::Pods;
use crate::telemetry::Flowing;
use crate::telemetry::log::Level;
use crate::view::View;

/// How often gauges that no event changes are set, and unused memory is given back.
const SHOW_EVERY: Duration = Duration::from_secs(10);
/// How often the configuration file is looked at: a mounted ConfigMap takes a minute to change anyway.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Gives each new trust bundle of the World to the identity driver: neither knows the other.
pub(super) async fn hand_on_trust(mut view: View, trust: watch::Sender<Arc<TrustBundle>>) {
    loop {
        if let Some(bundle) = view.latest().trust() {
            trust.send_if_modified(|old| {
                let differs = **old != **bundle;
                *old = Arc::clone(bundle);
                differs
            });
        }
        view.changed().await;
    }
}

/// Tells the CA, by way of the source of truth, which bundle handshakes use by now.
pub(super) async fn acknowledge(mut acknowledged: watch::Receiver<u64>, cluster: Cluster) {
    loop {
        let generation = *acknowledged.borrow_and_update();
        cluster.acknowledge_bundle(generation).await;
        if acknowledged.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the facts of readiness true, and says so once when the agent is ready for the first time.
pub(super) async fn report_readiness(
    mut view: View,
    cluster: Cluster,
    pods: Arc<Pods>,
    readiness: Readiness,
    ready: watch::Sender<bool>,
) {
    let mut said = false;
    let mut pods_seen = pods.changes();
    let mut shown = cluster.changes();
    loop {
        view.latest();
        shown.mark_unchanged();
        let refused = refused_anywhere(&pods.status());
        readiness.update(|facts| {
            *facts = Facts {
                kinds_missing: cluster.kinds_missing(),
                workers_running: true,
                cni_listening: true,
                adopting: pods.adopting(),
                phase: facts.phase,
                unfollowed: cluster.unfollowed(),
                sysctls_refused: refused,
            };
        });
        let is_ready = readiness.unmet().is_empty();
        ready.send_if_modified(|said| std::mem::replace(said, is_ready) != is_ready);
        if !said && is_ready {
            said = true;
            say_ready();
        }
        tokio::select! {
            () = view.changed() => {}
            _ = pods_seen.changed() => {}
            changed = shown.changed() => if changed.is_err() { return },
        }
    }
}

/// What capture does without, in at least one pod.
fn refused_anywhere(pods: &[PodStatus]) -> Vec<SysctlRefused> {
    let refused = sysctls_refused(pods);
    refused
        .filter_map(|(sysctl, pods)| Some(SysctlRefused { sysctl, pods: NonZeroUsize::new(pods)? }))
        .collect()
}

/// In how many pods each sysctl that capture wants cannot be set; in none, as a rule.
fn sysctls_refused(pods: &[PodStatus]) -> impl Iterator<Item = (Sysctl, usize)> + '_ {
    let lacks =
        |sysctl: Sysctl| move |pod: &&PodStatus| pod.sysctls_refused.iter().any(|it| it == sysctl.path());
    Sysctl::ALL.into_iter().map(move |sysctl| (sysctl, pods.iter().filter(lacks(sysctl)).count()))
}

/// The line that scripts and tests wait for. Nobody may be there to read it: then it is not said.
fn say_ready() {
    let _ = writeln!(io::stdout(), "adit-agent ready");
}

/// Keeps the gauges that count what there is.
pub(super) async fn show(mut view: View, pods: Arc<Pods>, version: &'static str) {
    metrics::gauge!("adit_build_info", "version" => version).set(1.0);
    let mut pods_seen = pods.changes();
    let mut upkeep = tokio::time::interval(SHOW_EVERY);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let status = pods.status();
        let count = |wanted: fn(&PodStatus) -> bool| status.iter().filter(|pod| wanted(pod)).count() as f64;
        metrics::gauge!("adit_pods", "state" => "enrolled").set(count(|pod| pod.enrolled));
        metrics::gauge!("adit_pods", "state" => "captured").set(count(|pod| pod.captured));
        metrics::gauge!("adit_pods", "state" => "known").set(count(|_| true));
        for (sysctl, pods) in sysctls_refused(&status) {
            metrics::gauge!("adit_sysctls_refused", "sysctl" => sysctl.path()).set(pods as f64);
        }
        view.latest();
        tokio::select! {
            () = view.changed() => {}
            _ = pods_seen.changed() => {}
            _ = upkeep.tick() => give_back(),
        }
    }
}

/// Lets the allocator give back what has been unused for a second: mimalloc does so when a thread ends. Left to itself
/// it keeps what a burst took until the next one: 8 MiB after a list of 20,000 pods.
fn give_back() {
    if let Err(error) = std::thread::Builder::new().name("give-back".into()).spawn(|| {}) {
        // It costs memory, nothing else.
        tracing::debug!(%error, "cannot start a thread");
    }
}

/// What SIGHUP, or a change of the file, reads again.
pub struct Reload {
    /// The configuration file of the start.
    pub path: PathBuf,
    /// How it was when it was read at the start, or before.
    pub seen: Stamp,
    /// The process log's level, the only key that can change live.
    pub level: Level,
}

/// Takes the log level anew at each SIGHUP and at each change of the file, and names every part in which the file differs
/// and which needs a restart. SIGHUP also opens the access log's file anew, for whoever has renamed it.
pub(super) async fn reload(mut hangup: Signal, started_with: Config, reload: Reload, flowing: Flowing) {
    let mut seen = reload.seen;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            signal = hangup.recv() => match signal {
                Some(()) => flowing.reopen_access_log(),
                None => return,
            },
            _ = look.tick() => if !Stamp::of(&reload.path).is_news(seen) { continue },
        }
        // Before it is read: what changes from here on is the next look's.
        seen = Stamp::of(&reload.path);
        take(&started_with, &reload);
    }
}

/// Reads the file and takes what can be taken.
fn take(started_with: &Config, reload: &Reload) {
    let config = match Config::load(&reload.path, &NodeFacts::from_env()) {
        Ok(config) => config,
        Err(errors) => {
            tracing::error!("not reloaded: {errors}");
            return;
        }
    };
    match reload.level.set(&config.telemetry.log_level) {
        Ok(()) => tracing::info!(level = config.telemetry.log_level, "the log level is reloaded"),
        Err(error) => tracing::error!(%error, "the log level is not reloaded"),
    }
    for part in started_with.differing_parts(&config) {
        tracing::warn!("{part} differs from what the agent was started with; it takes effect with a restart");
    }
}

/// What tells one state of a file from another: another file by that name, or other content. None: it is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    /// That of the file now.
    pub fn of(path: &Path) -> Self {
        let stamp = |file: fs::Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
        Self(fs::metadata(path).ok().map(stamp))
    }

    /// Whether there is something to read other than `seen`. A file that is away is being replaced, or forgotten.
    fn is_news(self, seen: Self) -> bool {
        self.0.is_some() && self != seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_news_once_it_was_written_or_replaced_and_not_while_it_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        fs::write(&path, "node: one\n").unwrap();
        let first = Stamp::of(&path);
        assert!(!Stamp::of(&path).is_news(first));
        fs::write(&path, "node: other\n").unwrap();
        let second = Stamp::of(&path);
        assert!(second.is_news(first));
        fs::rename(&path, dir.path().join("away")).unwrap();
        assert!(!Stamp::of(&path).is_news(second));
        fs::write(&path, "node: other\n").unwrap();
        assert!(Stamp::of(&path).is_news(second), "another file with the same content");
    }

    #[test]
    fn a_refused_sysctl_is_counted_by_pods_and_told_only_where_there_is_one() {
        let without = |paths: &[&str]| PodStatus {
            sysctls_refused: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..PodStatus::default()
        };
        let migrate = Sysctl::TcpMigrateReq;
        let pods = [without(&[migrate.path()]), without(&[]), without(&[migrate.path()])];
        let told: Vec<_> = refused_anywhere(&pods).iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("{} cannot be set in 2 pods", migrate.path())]);
        let counted: Vec<_> = sysctls_refused(&pods).collect();
        let expected = Sysctl::ALL.map(|sysctl| (sysctl, if sysctl == migrate { 2 } else { 0 }));
        assert_eq!(counted, expected, "the gauge shows the others as 0");
    }
}
