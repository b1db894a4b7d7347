//! What tasks and watches came to, taken in and given to the machine.

use std::sync::Arc;

use adit_core::net::PodKey;
use adit_core::pods::{Drift, Event, Failure, Op, Ticket};
use tokio::task::{Id, JoinError};

use super::{Driver, Ended, Found, Underway};
use crate::pods::perform::{Brought, Performed, Performer, words};
use crate::pods::show;
use crate::redirect::Finding;

impl Driver {
    pub(super) fn found(&mut self, found: Found) {
        let Found { key, serial, finding } = found;
        let Some(sandbox) = self.sandboxes.get_mut(&key) else {
            return;
        };
        if sandbox.keeping.as_ref().is_none_or(|keeping| keeping.serial != serial) {
            return;
        }
        self.changed = true;
        let drift = match finding {
            Finding::Repaired { drift, applied } => {
                metrics::counter!("adit_capture_repairs_total").increment(1);
                tracing::warn!(pod = %key.uid, ?drift, "repaired what captures the pod");
                sandbox.applied = Some(applied);
                sandbox.found = None;
                Drift::Repaired
            }
            Finding::Broken { drift, error } => {
                let what: Vec<String> = drift.iter().map(ToString::to_string).collect();
                let why = error.map(|error| words(&error)).unwrap_or_default();
                tracing::error!(pod = %key.uid, ?drift, error = %why, "the pod is not captured any more");
                sandbox.found = Some(format!("not as it should be: {} {why}", what.join(", ")).into());
                Drift::Unrepairable
            }
            Finding::Mended => {
                sandbox.found = None;
                Drift::Repaired
            }
            Finding::OtherBackend => {
                tracing::warn!(pod = %key.uid, "the pod has nat rules of the other iptables back end");
                sandbox.found = Some("the pod has nat rules of the other iptables back end".into());
                return;
            }
        };
        self.feed(Event::Drifted { key, drift });
    }

    pub(super) fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (key, ticket, outcome) = match ended {
            Ok((task, Ended::Certificate(id, now))) => return self.certificate(task, id, now),
            Ok((_, Ended::Told | Ended::Collected)) => return,
            Ok((_, Ended::Looked(found))) => return self.looked(found),
            Ok((id, Ended::Operation(performed))) => {
                self.operations.remove(&id);
                let Some(performed) = self.go_on(performed) else { return };
                self.performed(performed)
            }
            Err(error) => {
                if let Some((_, these)) = self.looking.take_if(|(task, _)| *task == error.id()) {
                    tracing::error!(%error, "a look for running pods panicked");
                    self.lost_look(&these);
                    return;
                }
                let operation = self.operations.remove(&error.id());
                // What was abandoned has been replaced already.
                let Some((key, ticket)) = operation.filter(|_| error.is_panic()) else {
                    return;
                };
                tracing::error!(pod = %key.uid, %error, "an operation panicked");
                (key, ticket, Err(Failure::Failed("the agent failed; see its log".into())))
            }
        };
        self.feed(Event::Done { key, ticket, outcome });
    }

    /// An operation in two halves: between them the journal learns what the second will change, so that an end at any
    /// point loses nothing of what stood before.
    pub(super) fn go_on(&mut self, performed: Performed) -> Option<Performed> {
        let Performed { key, ticket, op, result } = performed;
        let applied = match result {
            Ok(Brought::Ruled(applied)) => applied,
            result @ (Ok(Brought::Nothing | Brought::Applied(_) | Brought::Restored(_)) | Err(_)) => {
                return Some(Performed { key, ticket, op, result });
            }
        };
        let Some(sandbox) = self.sandboxes.get_mut(&key) else {
            return Some(Performed { key, ticket, op, result: Ok(Brought::Nothing) });
        };
        sandbox.stood_before(&applied);
        let rest = Performer::set_sysctls(sandbox, (ticket, op), applied);
        self.write(&key);
        let task = self.tasks.spawn(async move { Ended::Operation(rest.await) });
        self.operations.insert(task.id(), (key.clone(), ticket));
        self.underway.insert(key, Underway { task, may_be_abandoned: false });
        None
    }

    /// Notes what an operation brought.
    pub(super) fn performed(&mut self, performed: Performed) -> (PodKey, Ticket, Result<(), Failure>) {
        let Performed { key, ticket, op, result } = performed;
        self.changed = true;
        let outcome = match (result, self.sandboxes.get_mut(&key)) {
            (Ok(brought), Some(sandbox)) => {
                sandbox.trouble = None;
                match brought {
                    Brought::Nothing | Brought::Ruled(_) => {}
                    Brought::Applied(applied) => {
                        sandbox.applied(applied);
                        if let Op::Redirect(want) = &op {
                            sandbox.applied_with = Some(Arc::clone(&want.skip));
                        }
                        self.write(&key);
                        self.look_at_older(&key);
                    }
                    Brought::Restored(refused) => {
                        if !refused.is_empty() {
                            tracing::warn!(pod = %key.uid, ?refused, "sysctls cannot be put back");
                        }
                        sandbox.restored();
                    }
                }
                Ok(())
            }
            (Err(detail), Some(sandbox)) => {
                metrics::counter!("adit_capture_failures_total", "step" => show::step(&op)).increment(1);
                tracing::warn!(pod = %key.uid, step = show::step(&op), error = %detail, "cannot go on with a pod");
                sandbox.trouble = Some(Arc::clone(&detail));
                Err(Failure::Failed(detail))
            }
            (_, None) => Ok(()),
        };
        (key, ticket, outcome)
    }
}
