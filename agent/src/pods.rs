//! Drives [`adit_core::pods`]: every sandbox of this node, from the CNI socket, World and the journal to listeners,
//! rules, certificate and annotation.
//!
//! Decides nothing: what a sandbox needs next is the machine's, who is enrolled is World's. This file starts the driver
//! and shows it; the loop is in `driver`, the socket in `server`, what survives a restart in `journal`, and what two
//! agents of one node do in an upgrade in `shift` and `handover`.

mod answer;
mod discover;
mod driver;
mod enrolment;
mod handover;
mod journal;
mod missed;
mod model;
mod perform;
mod sandbox;
mod server;
mod shift;
mod show;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::{PodKey, PodUid, SandboxId};
use adit_proto::admin::PodStatus;
use adit_proto::cni::Serving;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::dataplane::Dataplane;
use crate::shutdown::vital;
pub use handover::Rest;
use handover::{Predecessors, say};
pub use model::{Config, Links, StartError};
pub use server::ListenError;
use shift::Shift;
pub use show::{Shown, Standing};

/// The running driver. Dropping it stops it; rules, annotations and journal stay as they are, for the next agent.
pub struct Pods {
    config: Config,
    shown: watch::Receiver<Shown>,
    dataplane: Dataplane,
    clock: Clock,
    /// Tells this agent from another.
    agent: String,
    predecessors: Predecessors,
    standing: watch::Receiver<Standing>,
    leave: watch::Sender<Option<Duration>>,
    gives_up: watch::Sender<bool>,
    _shift: AbortOnDropHandle<()>,
}

/// Takes up what the journal knows, then listens for the CNI plugin. Call it inside the control thread's runtime.
///
/// `rest` is the agent before this one, which must rest already ([`Rest::ask`]).
pub fn start(config: Config, links: Links, mut seed: Seed, rest: Rest) -> Result<Pods, StartError> {
    let (dataplane, clock) = (links.dataplane.clone(), links.clock);
    let predecessors = Predecessors::default();
    if rest.is_of_somebody() {
        predecessors.expect(clock.now().mono);
    }
    let agent = format!("{:016x}", seed.draw());
    let (show, shown) = watch::channel(Shown { pods: Arc::from(Vec::new()), adopting: 0 });
    let (stand, standing) = watch::channel(Standing::default());
    let (leave, leaves) = watch::channel(None);
    let (gives_up, given_up) = watch::channel(false);
    show::describe();
    let mut shift = Shift {
        config: config.clone(),
        links,
        seed,
        agent: agent.clone(),
        predecessors: predecessors.clone(),
        show,
        standing: stand,
        leave: leaves,
        gives_up: given_up,
    };
    let first = shift.take()?;
    // The socket is in place: the other agent's rest needs nobody to hold it.
    drop(rest);
    let shift = AbortOnDropHandle::new(tokio::spawn(vital("pods", shift.run(first))));
    Ok(Pods {
        config,
        shown,
        dataplane,
        clock,
        agent,
        predecessors,
        standing,
        leave,
        gives_up,
        _shift: shift,
    })
}

impl Pods {
    /// Every sandbox, as the admin API shows it.
    pub fn status(&self) -> Vec<PodStatus> {
        let mut pods = self.shown.borrow().pods.to_vec();
        for pod in &mut pods {
            let key = PodKey {
                uid: PodUid(pod.uid.as_str().into()),
                sandbox: SandboxId(pod.sandbox.as_str().into()),
            };
            let others = self.predecessors.open(self.clock.now().mono, &key.sandbox);
            let all = self.dataplane.live(&key).saturating_add(others);
            pod.connections = u64::try_from(all).unwrap_or(u64::MAX);
        }
        pods
    }

    /// Pods of the journal that are not verified yet and have had no trouble, for readiness.
    pub fn adopting(&self) -> usize {
        self.shown.borrow().adopting
    }

    /// Whose the pods are, and whether Adit has left them.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Takes nothing new any more, for good: listeners are closed, and peers asked to open no further streams. What is
    /// open goes on. Only where another agent listens beside this one.
    pub async fn refuse_new(&self) {
        self.gives_up.send_replace(true);
        for key in self.dataplane.served() {
            self.dataplane.refuse_new(&key).await;
        }
    }

    /// Takes every pod out of the mesh, for good; what is open may go on for so long. [`Standing::released`] says when it
    /// is done.
    pub fn leave(&self, drain: Duration) {
        self.leave.send_replace(Some(drain));
    }

    /// Ends what is still open (`drained`). Returns how many connections were.
    pub async fn cut(&self) -> usize {
        let mut cut = 0;
        for key in self.dataplane.served() {
            cut += self.dataplane.drain(&key, Duration::ZERO).await;
        }
        cut
    }

    /// Tells a successor that this agent carries nothing any more.
    pub async fn farewell(&self) {
        if self.standing.borrow().succeeded.is_some() {
            let nothing = Serving { agent: self.agent.clone(), open: BTreeMap::new() };
            // One that does not hear it waits for a few seconds more.
            let _ = say(&self.config.socket, nothing).await;
        }
    }

    /// Changes whenever [`Pods::status`] does, but for numbers of connections.
    pub fn changes(&self) -> watch::Receiver<Shown> {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests;
