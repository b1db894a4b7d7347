//! The pod at the other end of a tunnel that it opened: whether the world still has it.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

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
}

impl Caller {
    /// `account`: the tunnel's, whose driver is woken when the pod has gone.
    pub(super) fn new(id: SpiffeId, ip: IpAddr, account: Rc<Account>) -> Rc<Self> {
        let (known, missing, gone) = (Cell::new(false), Missing::default(), Cell::new(false));
        Rc::new(Self { id, ip, account, known, missing, gone })
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

    /// Whether its tunnel is to be broken.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }
}
