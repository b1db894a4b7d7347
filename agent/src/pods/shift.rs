//! Whose turn it is: this agent drives the node's pods, until another takes over; then it stands by, with what it
//! carries, and drives them again should that one end before this one has let go.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::life::Ready;
use adit_core::net::PodKey;
use adit_core::pods::Limits;
use adit_proto::SpiffeId;
use adit_proto::cni::{ContainerId, Reply, Request, SERVING_MAX, Serving};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::discover::Looker;
use super::driver::{Driver, Parts};
use super::enrolment::NamespacesFile;
use super::handover::{Heeded, Predecessors, Succession, say};
use super::journal::Journal;
use super::missed::Missed;
use super::model::{ASKS_MAX, BOOT_ID, Config, Links, StartError};
use super::perform::Performer;
use super::sandbox::Sandbox;
use super::server::{self, Asked, Claim};
use super::show::{Shown, Standing};
use crate::shutdown::vital;

/// How often a successor is told what is carried here, and asked how it stands.
const SAY_EVERY: Duration = Duration::from_millis(500);
/// Dials in a row that find nobody, until a successor counts as ended: one that is just being replaced by yet another is
/// away for less.
const GONE_MAX: u32 = 2;
/// How long taking over again pauses after a failure.
const TAKE_PAUSE: Duration = Duration::from_secs(1);

/// What a shift is made of.
pub(super) struct Shift {
    pub(super) config: Config,
    pub(super) links: Links,
    pub(super) seed: Seed,
    /// Tells this agent from another, for its life.
    pub(super) agent: String,
    pub(super) predecessors: Predecessors,
    pub(super) show: watch::Sender<Shown>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) leave: watch::Receiver<Option<Duration>>,
    /// Nothing new is taken any more: there is no way back.
    pub(super) gives_up: watch::Receiver<bool>,
}

/// A turn: the driver, who asks it, and what says that it is its.
pub(super) struct Turn {
    driver: Driver,
    asks: mpsc::Receiver<Asked>,
    claim: Claim,
    server: AbortOnDropHandle<()>,
}

/// How standing by has ended.
enum Stood {
    /// Nobody can ask any more.
    Unasked,
    /// The other agent has ended, or never came: the pods are this one's.
    Again,
}

impl Shift {
    /// Takes the node's pods: puts a socket in place, and takes up what the journal says. Call it inside the control
    /// thread's runtime.
    pub(super) fn take(&mut self) -> Result<Turn, StartError> {
        let config = &self.config;
        let boot = fs::read_to_string(BOOT_ID).map_err(StartError::Boot)?;
        let unusable = |source| StartError::Journal { path: config.journal.clone(), source };
        let journal = Journal::open(&config.journal, boot.trim()).map_err(unusable)?;
        let loaded = journal.load().map_err(unusable)?;
        // Last of what can fail: from here on the plugin gets answers from us, not from an agent before us.
        let (listener, claim) = server::listen(&config.socket)?;
        let (asks, requests) = mpsc::channel(ASKS_MAX);
        let links = &self.links;
        let performer = Performer {
            dataplane: links.dataplane.clone(),
            announcer: links.announcer.clone(),
            clock: links.clock,
            predecessors: self.predecessors.clone(),
            word_within: None,
        };
        let mut driver = Driver::new(Parts {
            limits: Limits { add: config.add_deadline, drain: config.drain_deadline, ..Limits::default() },
            performer,
            needs: links.needs.clone(),
            certs: links.certs.clone(),
            view: links.view.clone(),
            journal,
            unread: loaded.unread,
            missed: Missed::beside(&config.socket),
            looker: Looker::new(
                config.proc.clone(),
                config.cni_results.clone(),
                config.netns_dirs.clone(),
                links.node_inode,
            ),
            events: links.events.clone(),
            namespaces: NamespacesFile::open(&config.state_dir),
            show: self.show.clone(),
            seed: self.seed.fork(),
            claim: claim.clone(),
            ready: links.ready.clone(),
            removal: links.removal.clone(),
            leave: self.leave.clone(),
            standing: self.standing.clone(),
        });
        // Before the caller asks for readiness.
        driver.adopt(loaded.entries);
        let server =
            AbortOnDropHandle::new(tokio::spawn(vital("the CNI socket", server::serve(listener, asks))));
        Ok(Turn { driver, asks: requests, claim, server })
    }

    /// Runs until nobody can ask any more.
    pub(super) async fn run(mut self, first: Turn) {
        let mut turn = first;
        loop {
            let Turn { driver, mut asks, claim, server } = turn;
            let Some(succession) = driver.run(&mut asks).await else { return };
            let identities = succession.identities.clone();
            self.standing.send_modify(|standing| standing.succeeded = Some(Ready(false)));
            if let Stood::Unasked = self.stand_by(succession, &mut asks, &claim).await {
                return;
            }
            tracing::warn!("the agent that took over has ended; taking over from it");
            self.links.announcer.stand_aside(false).await;
            self.links.needs.stand_aside(false);
            turn = self.take_again(&identities).await;
            self.standing.send_modify(|standing| {
                standing.succeeded = None;
                standing.again += 1;
            });
            // What came to the socket of before is asked again.
            drop(server);
        }
    }

    /// Takes the pods, as often as it needs. `identities` were needed here before.
    async fn take_again(&mut self, identities: &[SpiffeId]) -> Turn {
        loop {
            match self.take() {
                Ok(turn) => {
                    let unneeded = identities.iter().filter(|id| !turn.driver.needs(id));
                    unneeded.for_each(|id| self.links.needs.forget(id.clone()));
                    self.end_unknown(&turn.driver).await;
                    return turn;
                }
                Err(error) => tracing::error!(%error, "cannot take over again; trying on"),
            }
            sleep(TAKE_PAUSE).await;
        }
    }

    /// Ends what is carried for pods that the other agent has let go.
    async fn end_unknown(&self, driver: &Driver) {
        for key in self.links.dataplane.served().into_iter().filter(|key| !driver.captures(key)) {
            self.links.dataplane.close(&key).await;
        }
    }

    async fn stand_by(
        &mut self,
        succession: Succession,
        asks: &mut mpsc::Receiver<Asked>,
        claim: &Claim,
    ) -> Stood {
        let Succession { mut sandboxes, asked, identities: _ } = succession;
        let mut taker = asked.map(rests);
        // Asked of this agent while nobody's socket is in place but its own: asked again of the other, once it is.
        let mut held = Vec::new();
        let mut gone = 0;
        let mut look = interval(SAY_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = asks.recv() => {
                    match asked {
                        Some(asked) if asked.request == Request::Handover => taker = Some(rests(asked)),
                        Some(asked) if claim.is_ours() => held.push(asked),
                        Some(_) => {}
                        None => return Stood::Unasked,
                    }
                    continue;
                }
                () = ended(&mut taker) => taker = None,
                _ = look.tick() => {}
            }
            if claim.is_ours() {
                // It was never there, or has ended before it had its socket in place.
                if taker.is_none() && !*self.gives_up.borrow() {
                    return Stood::Again;
                }
                continue;
            }
            held.clear();
            self.end_gone(&mut sandboxes).await;
            match say(&self.config.socket, self.serving(&sandboxes)).await {
                Heeded::Says { ready, over } => {
                    gone = 0;
                    self.standing.send_if_modified(|standing| {
                        standing.succeeded.replace(Ready(ready)) != Some(Ready(ready))
                    });
                    self.end_over(&mut sandboxes, &over).await;
                }
                Heeded::Gone => gone += 1,
                Heeded::Silent => gone = 0,
            }
            if gone >= GONE_MAX && !*self.gives_up.borrow() {
                return Stood::Again;
            }
        }
    }

    /// What is carried here; where a frame holds no more, those sandboxes with open connections.
    fn serving(&self, sandboxes: &BTreeMap<PodKey, Sandbox>) -> Serving {
        let dataplane = &self.links.dataplane;
        let count = |key: &PodKey| u64::try_from(dataplane.live(key)).unwrap_or(u64::MAX);
        let served = dataplane.served().into_iter().filter_map(|key| {
            let id = sandboxes.get(&key)?.entry.container_id.clone();
            Some((count(&key), id))
        });
        let mut served: Vec<(u64, ContainerId)> = served.collect();
        served.sort_by(|one, other| other.cmp(one));
        served.truncate(SERVING_MAX);
        Serving {
            agent: self.agent.clone(),
            open: served.into_iter().map(|(count, id)| (id, count)).collect(),
        }
    }

    /// Ends what is open in sandboxes that are gone, and forgets what is over by itself.
    async fn end_gone(&self, sandboxes: &mut BTreeMap<PodKey, Sandbox>) {
        let dataplane = &self.links.dataplane;
        let gives_up = *self.gives_up.borrow();
        let is_over = |key: &PodKey, sandbox: &mut Sandbox| {
            !sandbox.is_there() || (gives_up && dataplane.live(key) == 0)
        };
        let over: Vec<PodKey> = sandboxes.extract_if(.., is_over).map(|(key, _)| key).collect();
        for key in over {
            dataplane.close(&key).await;
        }
    }

    /// Cuts what is still open in sandboxes in which the successor has taken all out.
    async fn end_over(&self, sandboxes: &mut BTreeMap<PodKey, Sandbox>, over: &[ContainerId]) {
        let is_over = |_: &PodKey, sandbox: &mut Sandbox| over.contains(&sandbox.entry.container_id);
        let over: Vec<PodKey> = sandboxes.extract_if(.., is_over).map(|(key, _)| key).collect();
        for key in over {
            let cut = self.links.dataplane.drain(&key, Duration::ZERO).await;
            if cut > 0 {
                tracing::info!(pod = %key.uid, connections = cut, "cut, as the pod has left the mesh");
            }
        }
    }
}

/// Answers who asked for the handover; resolves when it has ended or has its socket in place.
fn rests(asked: Asked) -> oneshot::Receiver<()> {
    // One that has gone meanwhile is found out by the other end.
    let _ = asked.reply.send(Reply::Ok);
    asked.gone
}

async fn ended(taker: &mut Option<oneshot::Receiver<()>>) {
    match taker {
        Some(gone) => drop(gone.await),
        None => std::future::pending().await,
    }
}
