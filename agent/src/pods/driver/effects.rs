//! What the machine wants, started: tasks, watches, files, answers.

use adit_core::net::{PodKey, SandboxId};
use adit_core::pods::{Effect, Event, Op, Ticket, Want};
use adit_core::redirect::Wanted;
use adit_proto::SpiffeId;
use tokio::sync::mpsc;
use tokio::task::Id;
use tokio_util::task::AbortOnDropHandle;

use super::{Driver, Ended, Found, Underway, Watched};
use crate::pods::journal::Captured;
use crate::pods::perform::words;
use crate::pods::sandbox::Keeping;
use crate::redirect::Keeper;

impl Driver {
    pub(super) fn obey(&mut self, effects: Vec<Effect>) {
        self.changed |= !effects.is_empty();
        for effect in effects {
            match effect {
                Effect::Need(id) => self.need(id),
                Effect::Forget(id) => {
                    if let Some(wait) = self.certificates.remove(&id) {
                        wait.abort();
                    }
                    self.needs.forget(id);
                }
                Effect::Do { key, ticket, op } => self.start(&key, ticket, op),
                Effect::Serve(key) => self.keep_in_force(&key),
                Effect::Reply { token, answer } => self.reply(token, answer),
                Effect::JournalWrite { key, captured } => self.journal_write(&key, captured.as_ref()),
                Effect::JournalRemove(key) => self.journal_remove(&key),
            }
        }
    }

    fn need(&mut self, id: SpiffeId) {
        self.needs.need(id.clone());
        self.watch_certificate(id, Watched::Arrival);
    }

    /// Tells when there is a certificate, or none any more; until the identity is forgotten.
    fn watch_certificate(&mut self, id: SpiffeId, what: Watched) {
        let (certs, needed) = (self.certs.clone(), id.clone());
        let watch = self.tasks.spawn(async move {
            match what {
                Watched::Arrival => certs.wait_for(&needed).await,
                Watched::Loss => certs.wait_for_loss(&needed).await,
            }
            Ended::Certificate(needed, what)
        });
        self.certificates.insert(id, watch);
    }

    /// What was waited for has come; the contrary is waited for next.
    pub(super) fn certificate(&mut self, task: Id, id: SpiffeId, came: Watched) {
        // It may have ended in the moment in which its identity was forgotten.
        if self.certificates.get(&id).is_none_or(|watch| watch.id() != task) {
            return;
        }
        self.changed = true;
        let (next, event) = match came {
            Watched::Arrival => (Watched::Loss, Event::IdentityReady(id.clone())),
            Watched::Loss => (Watched::Arrival, Event::IdentityLost(id.clone())),
        };
        self.watch_certificate(id, next);
        self.feed(event);
    }

    fn start(&mut self, key: &PodKey, ticket: Ticket, op: Op) {
        // What the machine allows to be abandoned, or what has ended.
        if let Some(before) = self.underway.remove(key) {
            before.task.abort();
        }
        let Some(sandbox) = self.sandboxes.get_mut(key) else {
            // Journal effects frame every operation, so this is a bug; the machine must not wait for ever for it.
            debug_assert!(false, "an operation on a sandbox that is not kept");
            return;
        };
        match &op {
            // A watch would take these for drift.
            Op::Redirect(_) => {
                sandbox.keeping = None;
                sandbox.found = None;
            }
            Op::Unredirect(_) | Op::Close(_) => {
                sandbox.keeping = None;
                sandbox.found = None;
                sandbox.applied_with = None;
                sandbox.older = 0;
            }
            Op::OpenSockets(_) | Op::Announce | Op::Unannounce | Op::Drain(_) | Op::RestoreSysctls => {}
        }
        let may_be_abandoned = op.may_be_abandoned();
        let work = self.performer.perform(sandbox, ticket, op);
        let task = self.tasks.spawn(async move { Ended::Operation(work.await) });
        self.operations.insert(task.id(), (key.clone(), ticket));
        self.underway.insert(key.clone(), Underway { task, may_be_abandoned });
    }

    /// Watches the rules that were just applied.
    fn keep_in_force(&mut self, key: &PodKey) {
        let Some(sandbox) = self.sandboxes.get_mut(key) else {
            return;
        };
        let (Some(applied), Some(captured)) = (&sandbox.applied, &sandbox.entry.captured) else {
            return;
        };
        let wanted = Wanted::new(sandbox.mark, Want::from(captured).skip);
        let clock = self.performer.clock;
        match Keeper::new(sandbox.netns.clone(), wanted, applied, clock, self.seed.fork()) {
            Ok(keeper) => {
                self.watches += 1;
                let serial = self.watches;
                let watch = keep(keeper, key.clone(), serial, self.found.clone());
                sandbox.keeping =
                    Some(Keeping { serial, _task: AbortOnDropHandle::new(tokio::spawn(watch)) });
            }
            Err(error) => {
                let detail = words(&error);
                tracing::error!(pod = %key.uid, error = %detail, "the pod's rules cannot be watched");
                sandbox.trouble = Some(format!("its rules are not watched: {detail}").into());
            }
        }
    }

    fn journal_write(&mut self, key: &PodKey, captured: Option<&Want>) {
        if !self.sandboxes.contains_key(key)
            && let Some(arrived) = self.arriving.remove(key)
        {
            self.sandboxes.insert(key.clone(), arrived);
        }
        let sandbox = self.sandboxes.get_mut(key).map(|sandbox| {
            sandbox.entry.captured = captured.map(Captured::from);
            sandbox.entry.pod.namespace.clone()
        });
        // Before it is announced: a node that goes down the moment after must not come back and let it pass.
        if let Some(namespace) = sandbox.filter(|_| captured.is_some()) {
            self.hold_back(&namespace);
        }
        self.write(key);
    }

    fn journal_remove(&mut self, key: &PodKey) {
        if let Some(underway) = self.underway.remove(key) {
            underway.task.abort();
        }
        self.sandboxes.remove(key);
        self.show_older();
        let (announcer, uid) = (self.performer.announcer.clone(), key.uid.clone());
        self.tasks.spawn(async move {
            announcer.sandbox_gone(uid).await;
            Ended::Told
        });
        if !self.machine.knows(key) {
            self.arriving.remove(key);
        }
        self.forget(&key.sandbox);
    }

    /// A pod that cannot be written down is captured all the same: after a crash it fails closed, and is said now.
    pub(super) fn write(&mut self, key: &PodKey) {
        let Some(sandbox) = self.sandboxes.get_mut(key) else {
            return;
        };
        if let Err(error) = self.journal.write(&sandbox.entry) {
            tracing::error!(pod = %key.uid, %error, "cannot write the journal: a restart would not find this pod");
            sandbox.trouble = Some("it cannot be written to the journal".into());
        }
    }

    pub(super) fn forget(&self, sandbox: &SandboxId) {
        if let Err(error) = self.journal.remove(sandbox) {
            tracing::error!(%sandbox, %error, "cannot remove a journal entry");
        }
    }
}

/// Tells what a watch finds until the driver is gone.
async fn keep(mut keeper: Keeper, key: PodKey, serial: u64, found: mpsc::Sender<Found>) {
    loop {
        let finding = keeper.next().await;
        let told = Found { key: key.clone(), serial, finding };
        if found.send(told).await.is_err() {
            return;
        }
    }
}
