//! The tunnels of one local pod on one worker: who dials, who waits, and when a tunnel is let go.
//!
//! Keyed by destination pod, address and expected identity; the own identity is the pod's. Connections that need a
//! tunnel while one is being dialled wait for that dial, as many as it will have streams for; one failure fails all
//! that wait for it. Tunnels are never shared between pods. Does not retry: see [`super::connect`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::Duration;

use adit_core::net::PodUid;
use adit_core::time::{Mono, Now};
use adit_core::world::World;
use adit_proto::hbone::PORT_INBOUND_HBONE;
use adit_proto::{Reason, SpiffeId};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::error::of_tunnel;
use super::legs::Legs;
use super::protocol::STREAMS_MAX;
use super::share::Share;
use super::tunnel::{self, DialStage, DialTimes, Driver, Slot, Towards, Tunnel, TunnelError};
use crate::clock::Clock;
use crate::identity::CertSource;
use crate::telemetry::Shard;
use crate::telemetry::shard::Role;

/// How long a pod may be missing from the world before what its tunnels carry is ended. A file that an editor saves is
/// away for milliseconds; the kernel notices a peer that is no more after 20 s.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(1);

/// Which tunnels may serve a connection.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// The destination pod: a tunnel does not outlive it, whoever has its address next.
    pub(super) pod: PodUid,
    /// Its address (a pod has one per family).
    pub(super) ip: IpAddr,
    /// The identity that it must prove.
    pub(super) expected: SpiffeId,
}

/// A place in a tunnel, and how it came about.
#[derive(Debug)]
pub(super) struct Lease {
    /// The place.
    pub(super) slot: Slot,
    /// Whether the tunnel was there, was waited for, or was dialled for this connection.
    pub(super) origin: Origin,
}

/// How a connection got its tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// It was open.
    Reused,
    /// Another connection was dialling it.
    Joined,
    /// It was dialled for this connection.
    Dialled(DialTimes),
}

/// What a connection needs to dial for itself.
pub(super) struct Dialling {
    /// The pod's sockets.
    pub(super) legs: Legs,
    /// The pod's certificates.
    pub(super) certs: CertSource,
    /// The pod's share of the worker's buffers.
    pub(super) share: Rc<Share>,
    /// Where its handshakes are counted.
    pub(super) shard: Shard,
    /// The clock.
    pub(super) clock: Clock,
    /// The pod's identity.
    pub(super) own: SpiffeId,
    /// How long a tunnel without streams is kept.
    pub(super) idle_timeout: Duration,
}

/// The tunnels of one pod.
pub(super) struct Pool {
    dialling: Dialling,
    peers: RefCell<HashMap<Key, Peers>>,
    /// Dials and drivers. Dropped with the pool, or by [`Pool::close`]: all tunnels break at once.
    tasks: RefCell<Option<JoinSet<()>>>,
    /// Every tunnel that still carries something, retired ones too.
    all: RefCell<Vec<Kept>>,
}

/// A tunnel and the pod at its other end.
struct Kept {
    tunnel: Weak<Tunnel>,
    pod: PodUid,
    missing: Missing,
}

/// Since when a pod is missing from the world.
#[derive(Debug, Default)]
pub(super) struct Missing(Cell<Option<Mono>>);

/// Whether a pod is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    /// It is.
    There,
    /// It is not, and at this instant counts as gone.
    MissingUntil(Mono),
    /// It has been missing for [`GONE_AFTER`].
    Gone,
}

impl Missing {
    /// Notes whether the world has it now.
    pub(super) fn look(&self, is_there: bool, now: Mono) -> Presence {
        if is_there {
            self.0.set(None);
            return Presence::There;
        }
        let until = self.0.get().unwrap_or(now) + GONE_AFTER;
        if now >= until {
            return Presence::Gone;
        }
        self.0.set(self.0.get().or(Some(now)));
        Presence::MissingUntil(until)
    }
}

#[derive(Default)]
struct Peers {
    tunnels: Vec<Rc<Tunnel>>,
    dials: Vec<Dial>,
    next_dial: u64,
}

struct Dial {
    id: u64,
    waiting: Vec<oneshot::Sender<Result<Lease, Rc<TunnelError>>>>,
}

impl Pool {
    /// A pool without tunnels.
    pub(super) fn new(dialling: Dialling) -> Rc<Self> {
        Rc::new(Self {
            dialling,
            peers: RefCell::default(),
            tasks: RefCell::new(Some(JoinSet::new())),
            all: RefCell::default(),
        })
    }

    /// A place in a tunnel to that peer: in an open one, in one being dialled, or in a new one.
    ///
    /// Cancel-safe; the caller bounds the wait. A dial goes on when nobody waits for it any more, within its own
    /// bounds, and may serve the next connection.
    pub(super) async fn lease(self: &Rc<Self>, key: &Key) -> Result<Lease, Rc<TunnelError>> {
        let answer = match self.find(key) {
            Found::Open(slot) => return Ok(Lease { slot, origin: Origin::Reused }),
            Found::Waiting(answer) => answer,
        };
        // Only a closed pool drops a dial without an answer.
        answer.await.unwrap_or_else(|_| Err(Rc::new(TunnelError::PodGone)))
    }

    fn find(self: &Rc<Self>, key: &Key) -> Found {
        let generation = self.dialling.certs.generation(&self.dialling.own);
        let mut all = self.peers.borrow_mut();
        let peers = all.entry(key.clone()).or_default();
        // With another certificate or bundle the old tunnels only finish what they carry.
        peers.tunnels.retain(|tunnel| tunnel.is_open() && tunnel.generation == generation);
        // The fullest one first, so that the others may become idle and go.
        let open =
            peers.tunnels.iter().filter(|tunnel| tunnel.has_room()).max_by_key(|tunnel| tunnel.active());
        if let Some(tunnel) = open {
            return Found::Open(tunnel.slot());
        }
        let (sender, answer) = oneshot::channel();
        match peers.dials.iter_mut().find(|dial| dial.waiting.len() < STREAMS_MAX as usize) {
            Some(dial) => dial.waiting.push(sender),
            None => {
                let id = peers.next_dial;
                peers.next_dial += 1;
                peers.dials.push(Dial { id, waiting: vec![sender] });
                self.spawn(dial(Rc::downgrade(self), key.clone(), id));
            }
        }
        Found::Waiting(answer)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if let Some(tasks) = &mut *self.tasks.borrow_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(task);
        }
    }

    fn finish(&self, key: &Key, id: u64, result: Result<(Tunnel, Driver, DialTimes), TunnelError>) {
        let mut all = self.peers.borrow_mut();
        let peers = all.entry(key.clone()).or_default();
        let Some(at) = peers.dials.iter().position(|dial| dial.id == id) else { return };
        let waiting = peers.dials.swap_remove(at).waiting;
        match result {
            Ok((tunnel, driver, times)) => {
                let tunnel = Rc::new(tunnel);
                peers.tunnels.push(Rc::clone(&tunnel));
                let missing = Missing::default();
                let kept = Kept { tunnel: Rc::downgrade(&tunnel), pod: key.pod.clone(), missing };
                self.all.borrow_mut().push(kept);
                // What changed during the handshake was not asked about it.
                if let Some(reason) = self.dialling.certs.distrusts(&tunnel.peer) {
                    tunnel.cut(reason);
                }
                drop(all);
                self.spawn(driver);
                let origins =
                    std::iter::once(Origin::Dialled(times)).chain(std::iter::repeat(Origin::Joined));
                for (waiter, origin) in waiting.into_iter().zip(origins) {
                    // One that gave up returns its place by dropping it.
                    let _ = waiter.send(Ok(Lease { slot: tunnel.slot(), origin }));
                }
            }
            Err(error) => {
                drop(all);
                let error = Rc::new(error);
                for waiter in waiting {
                    let _ = waiter.send(Err(Rc::clone(&error)));
                }
            }
        }
    }

    /// Lets the tunnels to a peer go after one of them failed a connection: what they carry may finish, nothing new
    /// begins on them. All of them, as what ended one (a restart, a drain) mostly ends the others.
    pub(super) fn retire(&self, key: &Key) {
        if let Some(peers) = self.peers.borrow_mut().get_mut(key) {
            peers.tunnels.clear();
        }
    }

    /// Lets go of what has ended, of tunnels idle for too long or of an old certificate, and of those whose pod is gone
    /// or is not who it was. To be called every few seconds and after each change of the world.
    pub(super) fn sweep(&self, world: &World, now: Now) {
        let generation = self.dialling.certs.generation(&self.dialling.own);
        let idle = |tunnel: &Tunnel| {
            tunnel.idle_since().is_some_and(|since| now.mono.since(since) >= self.dialling.idle_timeout)
        };
        self.peers.borrow_mut().retain(|key, peers| {
            let there = is_there(world, key);
            peers.tunnels.retain(|tunnel| {
                there && tunnel.is_open() && tunnel.generation == generation && !idle(tunnel)
            });
            !peers.tunnels.is_empty() || !peers.dials.is_empty()
        });
        self.all.borrow_mut().retain(|kept| kept.tunnel.strong_count() > 0);
    }

    /// Ends what is carried to pods that stay gone (`pod_gone`); one that terminates is there. To be called after each
    /// change of the world, and at the instant that it returns.
    pub(super) fn cut_gone(&self, world: &World, now: Mono) -> Option<Mono> {
        let all = self.all.borrow();
        let looks =
            all.iter().filter_map(|kept| match kept.missing.look(world.workload(&kept.pod).is_some(), now) {
                Presence::There => None,
                Presence::MissingUntil(until) => Some(until),
                Presence::Gone => {
                    if let Some(tunnel) = kept.tunnel.upgrade() {
                        tunnel.cut(Reason::PodGone);
                    }
                    None
                }
            });
        looks.min()
    }

    /// Breaks the tunnels to peers that are not trusted any more, also those that only finish what they carry.
    pub(super) fn cut_distrusted(&self) {
        for tunnel in self.all.borrow().iter().filter_map(|kept| kept.tunnel.upgrade()) {
            if let Some(reason) = self.dialling.certs.distrusts(&tunnel.peer) {
                tunnel.cut(reason);
            }
        }
    }

    /// Tunnels open now.
    pub(super) fn tunnels(&self) -> usize {
        self.all.borrow().iter().filter(|kept| kept.tunnel.strong_count() > 0).count()
    }

    /// Breaks every tunnel and every dial; later connections fail.
    pub(super) fn close(&self) {
        let tasks = self.tasks.borrow_mut().take();
        drop(tasks);
        self.peers.borrow_mut().clear();
    }
}

/// Whether the pod is still the one that the tunnel was opened to.
fn is_there(world: &World, key: &Key) -> bool {
    world.workload(&key.pod).is_some_and(|workload| {
        workload.captured && workload.identity == key.expected && workload.pod.ips.contains(&key.ip)
    })
}

enum Found {
    Open(Slot),
    Waiting(oneshot::Receiver<Result<Lease, Rc<TunnelError>>>),
}

/// Dials and reports back. Holds the pool weakly: the pool owns this task, and must be able to go.
async fn dial(pool: Weak<Pool>, key: Key, id: u64) {
    let Some(strong) = pool.upgrade() else { return };
    let dialling = &strong.dialling;
    let (legs, certs) = (dialling.legs.clone(), dialling.certs.clone());
    let (share, clock, own) = (Rc::clone(&dialling.share), dialling.clock, dialling.own.clone());
    let shard = dialling.shard.clone();
    drop(strong);
    let addr = SocketAddr::new(key.ip, PORT_INBOUND_HBONE);
    let towards = Towards { addr, own, expected: key.expected.clone() };
    let result = Box::pin(tunnel::dial(&legs, &certs, &share, clock, &towards)).await;
    count_handshake(&shard, result.as_ref().err());
    if let Some(pool) = pool.upgrade() {
        pool.finish(&key, id, result);
    }
}

/// Counts the handshake of a dial that ended so, if it came to one.
fn count_handshake(shard: &Shard, error: Option<&TunnelError>) {
    match error {
        None | Some(TunnelError::Http { .. }) => shard.handshake(Role::Client, None),
        Some(
            error @ (TunnelError::Tls { .. }
            | TunnelError::Handshake { .. }
            | TunnelError::Timeout { stage: DialStage::Tls, .. }),
        ) => shard.handshake(Role::Client, Some(of_tunnel(error))),
        Some(
            TunnelError::NoCertificate(_)
            | TunnelError::Dial(_)
            | TunnelError::Timeout { stage: DialStage::Tcp, .. }
            | TunnelError::PodGone,
        ) => {}
    }
}
