//! Writes the condition `Accepted` of the three kinds of policies, by one replica at a time, and only where it changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::sync::{Notify, watch as signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::accepted::{KINDS, Place, Policies, PolicyKind, Told};
use super::client::{ApiServer, Form};
use super::leader::{Leader, RENEWED};
use super::watch::{self, Heard};
use super::{Settings, backoff};
use crate::serial::Serial;
use crate::stamp::Stamp;

/// Changes within so long are judged together: an apply of a folder comes as one event an object.
const GATHERED: Duration = Duration::from_millis(50);
/// How many are written before the Lease is looked at again: at 3 ms each, within a second.
const WRITTEN_AT_ONCE_MAX: usize = 256;

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
    let mut rounds = Rounds::default();
    loop {
        let is_over = async |again| match again {
            Some(again) => tokio::time::sleep_until(again).await,
            None => std::future::pending().await,
        };
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
            () = is_over(rounds.again) => {}
            // Either way it is over: told to stop, or nobody is left who could tell.
            _ = stopped.changed() => break,
        }
        if rounds.is_due(leader.holds()) {
            failures.note(rounds.write(&api, &known).await);
        }
    }
    if let Err(error) = leader.release().await {
        tracing::warn!(
            error = crate::report(&error),
            "another replica writes statuses only after this one's Lease"
        );
    }
}

/// Writes what is due, a round at a time.
#[derive(Default)]
struct Rounds {
    /// Where the last round ended: the next one begins after it, or what always fails would keep others from their turn.
    last: Option<Place>,
    failures: u32,
    /// When to write next without being told that something has changed.
    again: Option<Instant>,
}

impl Rounds {
    /// Whether to write now. What has changed during a wait is written after it. Who does not hold the Lease waits for
    /// nothing but that, and then begins at once.
    fn is_due(&mut self, holds: bool) -> bool {
        if !holds {
            self.again = None;
        }
        holds && self.again.is_none_or(|again| again <= Instant::now())
    }

    /// One round; of what fails, the first one's reason. A policy that has changed or gone meanwhile comes again by
    /// itself.
    async fn write(&mut self, api: &ApiServer, known: &Known) -> Result<(), String> {
        let mut due = known.with(|policies| policies.due(Stamp::of(SystemTime::now())));
        // In the order of their places.
        let begin = due.partition_point(|due| self.last.as_ref().is_some_and(|last| due.place <= *last));
        due.rotate_left(begin);
        let has_more = due.len() > WRITTEN_AT_ONCE_MAX;
        due.truncate(WRITTEN_AT_ONCE_MAX);
        let mut failed = Ok(());
        for due in due {
            let Place { kind, namespace, name } = &due.place;
            let what = format!("write the status of {kind} {namespace}/{name}");
            let body = (Form::MergePatch, &due.patch);
            let sent = api.send::<Told>(&what, Method::PATCH, &due.place.status_path(), body).await;
            match sent {
                Ok(told) => known.with(|policies| policies.written(&due, told)),
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    failed = failed.and_then(|()| Err(crate::report(&error)));
                    if !error.is_of_one() {
                        self.last = Some(due.place);
                        break;
                    }
                }
            }
            self.last = Some(due.place);
        }
        self.failures = if failed.is_ok() { 0 } else { self.failures.saturating_add(1) };
        self.again = match failed {
            Err(_) => Some(Instant::now() + backoff::wait(self.failures, backoff::draw())),
            Ok(()) if has_more => Some(Instant::now()),
            Ok(()) => None,
        };
        failed
    }
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

#[cfg(test)]
mod tests;
