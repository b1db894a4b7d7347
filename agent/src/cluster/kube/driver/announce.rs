//! The driver's part that says which pods of the node are captured: what [`super::super::captures`] owes is written to
//! the API server, and who waits for it is told.

use adit_core::net::PodUid;
use adit_core::world::Change;
use adit_objects::skip::CAPTURE_ANNOTATION;
use bytes::Bytes;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::super::super::model::{AnnounceError, Done};
use super::super::captures::{Standing, Write, Written};
use super::super::client::ApiError;
use super::{Answer, Driver, path, version};

impl Driver {
    pub(super) fn want(&mut self, uid: PodUid, captured: bool, done: Done) {
        self.look_for_successor();
        if self.captures.is_aside() {
            let _ = done.send(Err(AnnounceError::Succeeded));
            return;
        }
        // Before it is written to the API server: another agent of this node must not take it for a stranger's.
        if let Some(Err(error)) = self.links.kept.as_ref().map(|copy| copy.announce(&uid, captured)) {
            warn!(%error, pod = %uid, "cannot write down that a pod is announced");
        }
        match self.captures.want(&uid, captured) {
            Standing::Owed => self.waiting.entry(uid).or_default().push((captured, done)),
            Standing::Done => {
                self.show_captured();
                // Who asked may be gone.
                let _ = done.send(Ok(()));
            }
            Standing::Unknown => {
                let result = if captured { Err(AnnounceError::NoPod) } else { Ok(()) };
                let _ = done.send(result);
            }
        }
    }

    pub(super) fn write_annotations(&mut self) {
        let now = self.now();
        if self.captures.deadline().is_some_and(|at| at <= now) {
            self.look_for_successor();
        }
        for write in self.captures.due(now) {
            let api = self.links.api.clone();
            self.asked.spawn(async move {
                let value = write.captured.then_some("enabled");
                // With the uid: a pod that took this one's name meanwhile is left alone.
                let patch = json!({
                    "metadata": {"uid": *write.uid.0, "annotations": {CAPTURE_ANNOTATION: value}},
                });
                let answer = api.patch(&path(&write.pod), &patch).await;
                Answer::Written(write, answer)
            });
        }
    }

    /// Says and does nothing more once another agent of this node has taken over, as in an upgrade.
    fn look_for_successor(&mut self) {
        let is_succeeded = self.links.kept.as_mut().is_some_and(|copy| !copy.is_owned());
        if !is_succeeded || self.captures.is_aside() {
            return;
        }
        info!("another agent of this node has taken over; it says what is captured");
        self.captures.stand_aside(true);
        for (_, done) in std::mem::take(&mut self.waiting).into_values().flatten() {
            let _ = done.send(Err(AnnounceError::Succeeded));
        }
    }

    pub(super) fn written(&mut self, write: &Write, answer: Result<Bytes, ApiError>) {
        let result = match &answer {
            Ok(object) => {
                let value: Value = serde_json::from_slice(object).unwrap_or_default();
                Written::Acknowledged(version(&value))
            }
            // 422: another pod by the same name, as its uid cannot be changed.
            Err(error) if matches!(error.code(), Some(404 | 422)) => Written::Gone,
            Err(error) => {
                warn!(pod = %write.pod, captured = write.captured, %error, "cannot write the annotation");
                Written::Failed
            }
        };
        self.captures.written(write, result, self.now(), &mut self.links.seed);
        self.show_captured();
        for (captured, done) in self.waiting.remove(&write.uid).unwrap_or_default() {
            let result = match (self.captures.standing(&write.uid), &answer) {
                (Standing::Owed, Ok(_)) => {
                    // Something else was written before this.
                    self.waiting.entry(write.uid.clone()).or_default().push((captured, done));
                    continue;
                }
                (Standing::Owed, Err(error)) => Err(AnnounceError::Api(error.to_string().into())),
                (Standing::Unknown, _) if captured => Err(AnnounceError::NoPod),
                (Standing::Done | Standing::Unknown, _) => Ok(()),
            };
            let _ = done.send(result);
        }
    }

    /// Lets the own World see which of the own pods are announced.
    pub(super) fn show_captured(&mut self) {
        let node = self.links.own.settings.node.clone();
        self.builder.apply(Change::Captured { node, pods: self.captures.captured() });
        if self.is_published {
            self.links.publisher.publish(self.builder.freeze());
        }
    }

    /// Forgets what was announced of pods that are no more.
    pub(super) fn forget_gone(&mut self) {
        let world = self.builder.freeze();
        let gone = self.captures.keep_only(|uid| world.workload(uid).is_some());
        if !gone.is_empty() {
            self.look_for_successor();
        }
        // While another agent of this node says what is captured, these files are its own.
        let copy = self.links.kept.as_ref().filter(|_| !self.captures.is_aside());
        for uid in gone {
            if let Some(Err(error)) = copy.map(|copy| copy.announce(&uid, false)) {
                warn!(%error, pod = %uid, "cannot write down that a pod is gone");
            }
            for (captured, done) in self.waiting.remove(&uid).unwrap_or_default() {
                let _ = done.send(if captured { Err(AnnounceError::NoPod) } else { Ok(()) });
            }
        }
    }

    /// Forgets what an earlier life announced of pods that went while no agent was there.
    pub(super) fn forget_strangers(&mut self) {
        self.look_for_successor();
        let world = self.builder.freeze();
        if let Some(copy) = &self.links.kept
            && !self.captures.is_aside()
        {
            copy.forget_strangers(|uid| world.workload(uid).is_some());
        }
    }
}
