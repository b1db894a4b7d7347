//! Drives [`adit_core::life`]: from the first signal to the end, by what the other parts say.

use std::sync::Arc;
use std::time::Duration;

use adit_core::life::{End, Facts, Life, Phase};
use adit_proto::cni::Removal;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::clock::Clock;
use crate::dataplane::Dataplane;
use crate::health::Readiness;
use crate::pods::{Pods, Standing};
use crate::shutdown::Signals;

/// How often it is looked whether anything is open still, while that matters.
const LOOK: Duration = Duration::from_millis(100);

/// The driver, and what it tells and asks.
pub(super) struct Ending {
    pub(super) life: Life,
    /// How long what is open may go on where Adit leaves.
    pub(super) uninstall: Duration,
    pub(super) signals: Signals,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) pods: Arc<Pods>,
    pub(super) dataplane: Dataplane,
    pub(super) readiness: Readiness,
    /// What the source of truth says of the installation.
    pub(super) leaves: watch::Receiver<Removal>,
    /// What the installer of the CNI plugin is answered.
    pub(super) answer: watch::Sender<Removal>,
    pub(super) clock: Clock,
}

impl Ending {
    /// Runs until it is time to end; a second signal ends it at once, with pods left as they are.
    pub(super) async fn run(&mut self) -> End {
        describe();
        let mut told = false;
        let mut phase = Phase::Serving;
        show(phase);
        loop {
            let removal = *self.leaves.borrow_and_update();
            self.say(removal, told);
            let standing = *self.standing.borrow_and_update();
            let facts = Facts {
                told_to_end: told,
                succeeded: standing.succeeded,
                leaves: removal == Removal::Leaves,
                released: standing.released,
                open: self.dataplane.live_in_all(),
            };
            let next = self.life.look(self.clock.now().mono, &facts);
            if next != phase {
                phase = next;
                self.enter(phase).await;
            }
            if let Phase::Over(end) = phase {
                return end;
            }
            let counts = matches!(phase, Phase::Stopping | Phase::Draining);
            tokio::select! {
                () = self.signals.next() => {
                    if told {
                        tracing::info!("told to end once more: ending at once");
                        return End::Captured;
                    }
                    told = true;
                }
                Ok(()) = self.standing.changed() => {}
                Ok(()) = self.leaves.changed() => {}
                () = self.clock.sleep_until(self.life.deadline()) => {}
                () = sleep(LOOK), if counts => {}
            }
        }
    }

    /// What an installer is answered. Without a signal nothing is taken off a node; it comes to both in the same moment,
    /// in whatever order.
    fn say(&self, removal: Removal, told: bool) {
        let answer = match removal {
            Removal::Leaves if !told => Removal::Undecided,
            Removal::Leaves | Removal::Undecided | Removal::Stays => removal,
        };
        self.answer.send_if_modified(|said| std::mem::replace(said, answer) != answer);
    }

    async fn enter(&self, phase: Phase) {
        self.readiness.update(|facts| facts.phase = phase);
        show(phase);
        let open = self.dataplane.live_in_all();
        match phase {
            Phase::Serving | Phase::Over(_) => {}
            Phase::Awaiting => {
                tracing::info!(open, "told to end: going on as before until another agent is ready")
            }
            Phase::Stopping => tracing::info!(open, "draining: open connections may go on for a while"),
            Phase::Draining => {
                tracing::info!(open, "draining: another agent has taken over, nothing new is taken");
                self.pods.refuse_new().await;
            }
            Phase::Leaving => {
                tracing::info!(open, "Adit leaves this node: every pod goes out of the mesh");
                self.pods.leave(self.uninstall);
            }
        }
    }
}

const GAUGE: &str = "adit_agent_phase";

fn describe() {
    metrics::describe_gauge!(
        GAUGE,
        "What the agent is at, 1 for one of: serving; awaiting (told to end, until another is ready); stopping (none came); draining (another has taken over); leaving (Adit is taken off the node)."
    );
}

fn show(phase: Phase) {
    let names = [
        (Phase::Serving, "serving"),
        (Phase::Awaiting, "awaiting"),
        (Phase::Stopping, "stopping"),
        (Phase::Draining, "draining"),
        (Phase::Leaving, "leaving"),
    ];
    for (one, name) in names {
        metrics::gauge!(GAUGE, "phase" => name).set(f64::from(u8::from(one == phase)));
    }
}
