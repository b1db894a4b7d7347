//! Writes the condition `Accepted` of the three kinds of policies, by one replica at a time, and only where it changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::sync::{Notify, watch as signal};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::Settings;
use super::accepted::{Due, KINDS, Policies, PolicyKind, Told};
use super::client::{ApiServer, Form};
use super::leader::{Leader, RENEWED};
use super::watch::{self, Heard};
use crate::serial::Serial;
use crate::stamp::Stamp;

/// Changes within so long are judged together: an apply of a folder comes as one event an object.
const GATHERED: Duration = Duration::from_millis(50);
/// How many are written before the Lease is looked at again: at 3 ms each, within a second.
const WRITTEN_AT_ONCE_MAX: usize = 256;
/// How long to wait after a status could not be written.
const AGAIN: Duration = Duration::from_secs(2);

/// What the watches know, and that it has changed.
#[derive(Clone)]
struct Known {
    policies: Arc<Mutex<Policies>>,
    changed: Arc<Notify>,
}

impl Known {
    fn with<T>(&self, work: impl FnOnce(&mut Policies) -> T) -> T {
        // A panic elsewhere can have lost one event at most; the next list mends it.
        work(&mut self.policies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, kind: PolicyKind, heard: Heard<Told>) {
        self.with(|policies| match heard {
            Heard::All(all) => policies.replace(kind, all),
            Heard::Put(told) => policies.put(kind, told),
            Heard::Gone(told) => policies.remove(kind, &told),
            Heard::Alive => {}
        });
        self.changed.notify_one();
    }
}

/// Watches the policies and writes their statuses, until `stopped` changes; then another replica may at once.
pub(crate) async fn write(api: ApiServer, settings: Settings, mut stopped: signal::Receiver<()>) {
    let known = Known {
        policies: Arc::new(Mutex::new(Policies::new(settings.namespace.clone()))),
        changed: Arc::new(Notify::new()),
    };
    // Aborted with this function.
    let mut watches = JoinSet::new();
    for kind in KINDS {
        let (api, known) = (api.clone(), known.clone());
        watches.spawn(watch::follow(api, kind.what, kind.path, move |heard| known.take(kind, heard)));
    }
    let mut leader = Leader::new(api.clone(), settings.namespace.clone(), own_name(&settings));
    let mut renewals = tokio::time::interval(RENEWED);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        tokio::select! {
            _ = renewals.tick() => {
                let held = leader.holds();
                failures.note(leader.renew().await.map_err(|error| crate::report(&error)));
                if !leader.holds() || held {
                    continue;
                }
                tracing::info!("this replica writes the policies' statuses now");
            }
            () = known.changed.notified() => tokio::time::sleep(GATHERED).await,
            // Either way it is over: told to stop, or nobody is left who could tell.
            _ = stopped.changed() => break,
        }
        if leader.holds() {
            let mut due = known.with(|policies| policies.due(Stamp::of(SystemTime::now())));
            let has_more = due.len() > WRITTEN_AT_ONCE_MAX;
            due.truncate(WRITTEN_AT_ONCE_MAX);
            let written = write_all(&api, due, &known).await;
            let failed = written.is_err();
            failures.note(written);
            if failed {
                tokio::time::sleep(AGAIN).await;
            }
            if failed || has_more {
                known.changed.notify_one();
            }
        }
    }
    if let Err(error) = leader.release().await {
        tracing::warn!(
            error = crate::report(&error),
            "another replica writes statuses only after this one's Lease"
        );
    }
}

/// Writes these; of those that fail, the first one's reason. A policy that has changed or gone meanwhile comes again by
/// itself.
async fn write_all(api: &ApiServer, due: Vec<Due>, known: &Known) -> Result<(), String> {
    let mut failed = Ok(());
    for Due { place, patch } in due {
        let what = format!("write the status of {} {}/{}", place.kind, place.namespace, place.name);
        let path = place.status_path();
        let sent = api.send::<Told>(&what, Method::PATCH, &path, (Form::MergePatch, &patch)).await;
        match sent {
            Ok(told) => known.with(|policies| policies.written(&place, told)),
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) if failed.is_ok() => failed = Err(crate::report(&error)),
            Err(_) => {}
        }
    }
    failed
}

/// What was complained of last, so that it is said once.
#[derive(Default)]
struct Failures(Option<String>);

impl Failures {
    fn note(&mut self, done: Result<(), String>) {
        match done {
            Ok(()) => self.0 = None,
            Err(error) => {
                if self.0.as_ref() != Some(&error) {
                    tracing::warn!(error, "policies' statuses are not written; it is tried again");
                    self.0 = Some(error);
                }
            }
        }
    }
}

/// This replica's name in the Lease: its pod's, and something that a process of the same name before it had not.
fn own_name(settings: &Settings) -> String {
    let host = settings.replica.clone().or_else(|| std::env::var("HOSTNAME").ok());
    let drawn = Serial::draw().map(|serial| serial.to_string()).unwrap_or_default();
    format!("{}_{}", host.as_deref().unwrap_or("adit-ca"), drawn.get(..8).unwrap_or_default())
}
