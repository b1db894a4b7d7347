//! The pod at the other end of a tunnel that it opened: whether the world still has it, and it still needs the tunnel.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use adit_core::time::Mono;
use adit_core::world::World;
use adit_proto::SpiffeId;

use super::account::Account;
use super::pool::{Missing, Presence};

/// Who opened a tunnel. Shared by the tunnel and by the pod's sweep.
pub(super) struct Caller {
    id: SpiffeId,
    /// The true client's, whatever its CONNECTs say.
    ip: IpAddr,
    account: Rc<Account>,
    /// The world had the pod at this address: the address is the pod's own, and if it goes the pod has.
    known: Cell<bool>,
    missing: Missing,
    gone: Cell<bool>,
    /// Since when the tunnel carries no stream; none while it does.
    idle_since: Cell<Option<Mono>>,
    idle: Cell<bool>,
}

impl Caller {
    /// `account`: the tunnel's, whose driver is woken when the tunnel is to end. It carries no stream yet.
    pub(super) fn new(id: SpiffeId, ip: IpAddr, account: Rc<Account>, now: Mono) -> Rc<Self> {
        Rc::new(Self {
            id,
            ip,
            account,
            known: Cell::new(false),
            missing: Missing::default(),
            gone: Cell::new(false),
            idle_since: Cell::new(Some(now)),
            idle: Cell::new(false),
        })
    }

    /// Finds it gone if it stays missing from the world; says when to look again at the latest. One whose address is
    /// translated on its way is no pod's, and never missed.
    pub(super) fn look(&self, world: &World, now: Mono) -> Option<Mono> {
        let holder = world.workload_by_ip(self.ip);
        let is_there = holder.is_some_and(|workload| workload.identity == self.id);
        self.known.set(self.known.get() || is_there);
        match self.missing.look(is_there || !self.known.get(), now) {
            Presence::There => None,
            Presence::MissingUntil(until) => Some(until),
            Presence::Gone => {
                self.gone.set(true);
                self.account.wake_driver();
                None
            }
        }
    }

    /// Notes that its tunnel carries a stream, or, with when the last one ended, none.
    pub(super) fn idle_since(&self, since: Option<Mono>) {
        self.idle_since.set(since);
        self.idle.set(false);
    }

    /// Finds its tunnel idle if it has carried no stream for so long.
    pub(super) fn look_idle(&self, now: Mono, idle_max: Duration) {
        if self.idle_since.get().is_some_and(|since| now.since(since) >= idle_max) {
            self.idle.set(true);
            self.account.wake_driver();
        }
    }

    /// Whether its tunnel is to be ended in order.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.get()
    }

    /// Whether its tunnel is to be broken.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }
}
