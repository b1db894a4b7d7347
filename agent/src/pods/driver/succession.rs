//! How the loop ends where another agent takes over; and the way out of the node, where Adit leaves it.

use std::time::Duration;

use adit_core::pods::Event;
use tokio::task::{Id, JoinError};

use super::{Driver, Ended};
use crate::node;
use crate::pods::handover::Succession;
use crate::pods::server::Asked;
use crate::pods::show::Shown;

/// How long it may take to say on a pod that it is not captured any more, where Adit leaves the node: who takes it off
/// may have taken away the right to, or the API server.
const WORD_WITHIN: Duration = Duration::from_secs(5);

impl Driver {
    /// Comes to rest for who asked: what is under way ends, and is in the journal; who waits for an answer asks again, and
    /// finds the other agent. From then on nothing that both use is changed by this process.
    pub(super) async fn hand_over(mut self, asked: Asked) -> Succession {
        tracing::info!("another agent takes over");
        self.stop_what_may_be();
        // Rules and listeners: ended, not left half done. What only asks or answers is waited for by nobody.
        while !self.operations.is_empty()
            && let Some(ended) = self.tasks.join_next_with_id().await
        {
            self.note(ended);
        }
        self.put_aside(Some(asked)).await
    }

    /// Comes to rest where somebody has taken over already: what is under way is not this agent's any more.
    pub(super) async fn succeeded(mut self) -> Succession {
        tracing::info!("another agent has taken over");
        self.stop_what_may_be();
        self.put_aside(None).await
    }

    fn stop_what_may_be(&mut self) {
        for sandbox in self.sandboxes.values_mut() {
            sandbox.keeping = None;
        }
        self.certificates.values().for_each(|watch| watch.abort());
        let abandoned = self.underway.values().filter(|underway| underway.may_be_abandoned);
        abandoned.for_each(|underway| underway.task.abort());
    }

    /// Writes down what an operation brought, and starts its second half, if it has one. The machine is not told: it
    /// would go on.
    fn note(&mut self, ended: Result<(Id, Ended), JoinError>) {
        match ended {
            Ok((id, Ended::Operation(performed))) => {
                self.operations.remove(&id);
                if let Some(performed) = self.go_on(performed) {
                    // Kept with the sandbox; the outcome is the machine's alone.
                    let _ = self.performed(performed);
                }
            }
            Ok((_, Ended::Certificate(..) | Ended::Told | Ended::Looked(_) | Ended::Collected)) => {}
            Err(error) => {
                self.operations.remove(&error.id());
                if error.is_panic() {
                    tracing::error!(%error, "an operation panicked");
                }
            }
        }
    }

    async fn put_aside(mut self, asked: Option<Asked>) -> Succession {
        self.performer.announcer.stand_aside(true).await;
        self.needs.stand_aside(true);
        self.show.send_modify(|shown| *shown = Shown { adopting: 0, ..shown.clone() });
        Succession {
            sandboxes: std::mem::take(&mut self.sandboxes),
            identities: self.certificates.keys().cloned().collect(),
            asked,
        }
    }

    /// Closes what an agent before this one listens with beside us, where it says nothing any more. Blocks for some 100 µs
    /// a pod.
    pub(super) fn close_beside(&self) {
        if !self.performer.predecessors.are_silent(self.performer.clock.now().mono) {
            return;
        }
        let own = match node::own_sockets() {
            Ok(own) => own,
            Err(error) => {
                tracing::warn!(%error, "cannot tell which listeners are another agent's");
                return;
            }
        };
        let mut closed = 0;
        for (key, sandbox) in self.sandboxes.iter().filter(|(_, sandbox)| sandbox.entry.captured.is_some()) {
            match node::close_beside(&sandbox.netns, &own) {
                Ok(count) => closed += count,
                Err(error) => {
                    tracing::warn!(pod = %key.uid, %error, "cannot close another agent's listeners")
                }
            }
        }
        if closed > 0 {
            tracing::warn!(
                listeners = closed,
                "an agent before this one hangs: closed what it listened with"
            );
        }
    }

    /// Begins to take every pod out of the mesh, if that was said.
    pub(super) fn leave(&mut self) {
        let Some(drain) = *self.leave.borrow_and_update() else { return };
        self.leaving = true;
        self.changed = true;
        self.performer.word_within = Some(WORD_WITHIN);
        self.feed(Event::Leaving { drain });
    }

    /// Tells once nothing of ours stands in any pod. What was never taken in may still be captured.
    pub(super) fn say_whether_released(&self) {
        let all_known = self.unread.is_empty() && self.unopened.is_empty();
        if self.leaving && all_known && self.machine.is_released() {
            self.standing.send_if_modified(|standing| !std::mem::replace(&mut standing.released, true));
        }
    }
}
