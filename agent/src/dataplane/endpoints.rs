//! What one worker knows of the endpoints it has dialled: how busy, how fast, failing or not, whose client's, and
//! what retries their Services may still cost.
//!
//! The state beside the pure decisions of `adit_core::{balance, ejection, retry}`. Everything in it is bounded by what
//! was used lately; [`Endpoints::sweep`] forgets the rest.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_core::balance::{self, Load};
use adit_core::draw::Seed;
use adit_core::ejection::Ejection;
use adit_core::net::{ObjectName, PodUid};
use adit_core::resolve::{Candidate, Via};
use adit_core::retry::Budget;
use adit_core::time::Mono;
use adit_core::traffic::TrafficSettings;

/// What is not used for so long is forgotten: longer than the longest default ejection and budget interval.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Clients that are remembered by their endpoint (about 150 B each, 10 MiB). Beyond, a client's endpoint follows from
/// its address alone, and changes only when the Service's endpoints do.
const PINNED_MAX: usize = 65_536;

/// What a budget is kept for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Spender {
    /// A Service, from a source namespace.
    Service(ObjectName, Arc<str>),
    /// A pod dialled by its own address, from a source namespace.
    Pod(PodUid, Arc<str>),
}

/// What one worker knows of endpoints.
pub(super) struct Endpoints {
    loads: RefCell<HashMap<SocketAddr, Rc<Busy>>>,
    ejections: RefCell<HashMap<ObjectName, Used<Ejection<SocketAddr>>>>,
    budgets: RefCell<HashMap<Spender, Used<Budget>>>,
    pinned: RefCell<HashMap<(ObjectName, IpAddr), Pinned>>,
    workers: NonZeroU32,
}

struct Used<T> {
    value: T,
    at: Mono,
}

struct Pinned {
    endpoint: SocketAddr,
    until: Mono,
}

#[derive(Debug, Default)]
struct Busy {
    active: Cell<u32>,
    latency_us: Cell<u32>,
    used: Cell<Mono>,
}

impl Busy {
    /// What is known of its latency, in microseconds: half as much for each second without a connection. An endpoint
    /// that was slow once is tried again, or nobody would learn that it is not any more.
    fn latency_at(&self, now: Mono) -> u32 {
        let idle = u32::try_from(now.since(self.used.get()).as_secs()).unwrap_or(u32::MAX);
        self.latency_us.get().checked_shr(idle).unwrap_or(0)
    }
}

/// Counts a connection, or an attempt at one, at its endpoint until dropped.
#[derive(Debug)]
pub(super) struct InUse(Rc<Busy>);

impl InUse {
    /// A connect without a handshake took so long: smoothed over the last eight or so.
    pub(super) fn connected(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.0.latency_us.get();
        self.0.latency_us.set(if old == 0 { took } else { old - old / 8 + took / 8 });
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

/// Which endpoints a choice is among.
pub(super) struct Choice<'a> {
    /// All of them.
    pub(super) candidates: &'a [Candidate],
    /// The Service, where one was addressed.
    pub(super) service: Option<&'a ObjectName>,
    /// The client, where the Service wants it to stay with its endpoint.
    pub(super) client: Option<IpAddr>,
    /// Already tried by this connection.
    pub(super) tried: &'a [SocketAddr],
}

impl Endpoints {
    /// Nothing is known. `workers`: how many share a budget's floor.
    pub(super) fn new(workers: NonZeroU32) -> Self {
        Self {
            loads: RefCell::default(),
            ejections: RefCell::default(),
            budgets: RefCell::default(),
            pinned: RefCell::default(),
            workers,
        }
    }

    /// Which candidate to try: the client's own endpoint, or the better of two at random; ejected ones only where
    /// nothing else is left, and tried ones only after these. `None`: none that may be dialled now.
    pub(super) fn choose(&self, choice: &Choice<'_>, now: Mono, seed: &mut Seed) -> Option<usize> {
        let known = |candidate: &Candidate| candidate.via != Via::Unknown;
        let fresh = |candidate: &Candidate| known(candidate) && !choice.tried.contains(&candidate.addr);
        let sound =
            |candidate: &Candidate| fresh(candidate) && !self.is_ejected(choice.service, candidate, now);
        if let (Some(service), Some(client)) = (choice.service, choice.client)
            && let Some(at) = self.own_endpoint(choice.candidates, service, client, sound, now)
        {
            return Some(at);
        }
        let loads = self.loads.borrow();
        let load = |candidate: &Candidate| {
            loads.get(&candidate.addr).map_or_else(Load::default, |busy| Load {
                active: busy.active.get(),
                latency_us: busy.latency_at(now),
            })
        };
        balance::pick(choice.candidates, sound, load, seed)
            .or_else(|| balance::pick(choice.candidates, fresh, load, seed))
            .or_else(|| balance::pick(choice.candidates, known, load, seed))
    }

    /// The endpoint that a client was with, or, for a new one, that its address hashes to (highest random weight): so
    /// all workers choose alike without asking each other.
    fn own_endpoint(
        &self,
        candidates: &[Candidate],
        service: &ObjectName,
        client: IpAddr,
        usable: impl Fn(&Candidate) -> bool,
        now: Mono,
    ) -> Option<usize> {
        let pinned = self.pinned.borrow();
        let held = pinned.get(&(service.clone(), client)).filter(|held| now < held.until);
        let held = held.and_then(|held| {
            candidates.iter().position(|candidate| candidate.addr == held.endpoint && usable(candidate))
        });
        held.or_else(|| {
            let weight = |candidate: &Candidate| {
                let mut hasher = DefaultHasher::new();
                (client, candidate.addr).hash(&mut hasher);
                (std::cmp::Reverse(candidate.tier), hasher.finish())
            };
            let usable = candidates.iter().enumerate().filter(|(_, candidate)| usable(candidate));
            usable.max_by_key(|(_, candidate)| weight(candidate)).map(|(at, _)| at)
        })
    }

    /// Lets a client stay with its endpoint for `timeout`.
    pub(super) fn pin(
        &self,
        service: &ObjectName,
        client: IpAddr,
        endpoint: SocketAddr,
        now: Mono,
        timeout: Duration,
    ) {
        let mut pinned = self.pinned.borrow_mut();
        let key = (service.clone(), client);
        if pinned.len() < PINNED_MAX || pinned.contains_key(&key) {
            pinned.insert(key, Pinned { endpoint, until: now + timeout });
        }
    }

    /// Whether another endpoint than the tried ones could be dialled.
    pub(super) fn another_exists(&self, candidates: &[Candidate], tried: &[SocketAddr]) -> bool {
        candidates.iter().any(|candidate| candidate.via != Via::Unknown && !tried.contains(&candidate.addr))
    }

    /// Counts an attempt, and then the connection, at its endpoint.
    pub(super) fn begin(&self, endpoint: SocketAddr, now: Mono) -> InUse {
        let mut loads = self.loads.borrow_mut();
        let busy = Rc::clone(loads.entry(endpoint).or_default());
        busy.active.set(busy.active.get() + 1);
        busy.used.set(now);
        InUse(busy)
    }

    /// Notes how an attempt at a Service's endpoint ended; says for how long the endpoint is ejected, if it is.
    pub(super) fn failed(
        &self,
        service: &ObjectName,
        endpoint: SocketAddr,
        size: usize,
        settings: &TrafficSettings,
        (now, seed): (Mono, &mut Seed),
    ) -> Option<Duration> {
        let mut ejections = self.ejections.borrow_mut();
        let ejection =
            ejections.entry(service.clone()).or_insert_with(|| Used { value: Ejection::new(), at: now });
        ejection.at = now;
        let draw = u32::try_from(seed.below(1 << 32)).unwrap_or(u32::MAX);
        ejection.value.failed(now, &endpoint, size, settings, draw)
    }

    /// Notes a success.
    pub(super) fn succeeded(&self, service: &ObjectName, endpoint: SocketAddr) {
        if let Some(ejection) = self.ejections.borrow_mut().get_mut(service) {
            ejection.value.succeeded(&endpoint);
        }
    }

    fn is_ejected(&self, service: Option<&ObjectName>, candidate: &Candidate, now: Mono) -> bool {
        service.is_some_and(|service| {
            let ejections = self.ejections.borrow();
            ejections.get(service).is_some_and(|ejection| ejection.value.is_ejected(now, &candidate.addr))
        })
    }

    /// A first attempt earns a part of a retry.
    pub(super) fn attempted(&self, spender: &Spender, settings: &TrafficSettings, now: Mono) {
        self.with_budget(spender, settings, now, |budget| budget.attempt(now));
    }

    /// Whether a retry may be made now; if so it is paid for.
    pub(super) fn may_retry(&self, spender: &Spender, settings: &TrafficSettings, now: Mono) -> bool {
        self.with_budget(spender, settings, now, |budget| budget.withdraw(now))
    }

    fn with_budget<T>(
        &self,
        spender: &Spender,
        settings: &TrafficSettings,
        now: Mono,
        ask: impl FnOnce(&mut Budget) -> T,
    ) -> T {
        let mut budgets = self.budgets.borrow_mut();
        if let Some(known) = budgets.get_mut(spender) {
            known.at = now;
            known.value.update(settings);
            return ask(&mut known.value);
        }
        let mut budget = Budget::new(settings, self.workers);
        let answer = ask(&mut budget);
        budgets.insert(spender.clone(), Used { value: budget, at: now });
        answer
    }

    /// Endpoints that are ejected now.
    pub(super) fn ejected(&self, now: Mono) -> usize {
        self.ejections.borrow().values().map(|ejection| ejection.value.count(now)).sum()
    }

    /// Forgets what has not been used for long. To be called every few seconds.
    pub(super) fn sweep(&self, now: Mono) {
        let recent = |at: Mono| now.since(at) < FORGET_AFTER;
        self.loads.borrow_mut().retain(|_, busy| busy.active.get() > 0 || recent(busy.used.get()));
        self.ejections.borrow_mut().retain(|_, used| recent(used.at) || used.value.count(now) > 0);
        self.budgets.borrow_mut().retain(|_, used| recent(used.at));
        self.pinned.borrow_mut().retain(|_, pinned| now < pinned.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn candidates() -> Vec<Candidate> {
        let via = || Via::Plaintext(adit_core::resolve::PlaintextCause::Outside);
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 80));
        (1..=8).map(|n| Candidate { addr: at(n), workload: None, via: via(), tier: 0 }).collect()
    }

    #[test]
    fn a_client_stays_with_its_endpoint_until_its_time_out_after_its_last_connection() {
        let endpoints = Endpoints::new(NonZeroU32::MIN);
        let (candidates, service) = (candidates(), ObjectName::new("shop", "web"));
        let client = IpAddr::from([10, 0, 0, 9]);
        let chosen = |now: Mono| {
            let choice =
                Choice { candidates: &candidates, service: Some(&service), client: Some(client), tried: &[] };
            candidates[endpoints.choose(&choice, now, &mut Seed(7)).unwrap()].addr
        };
        let at = |secs: u64| Mono::default() + Duration::from_secs(secs);
        // A new client's endpoint follows from its address; it is with another one only because that carried it.
        let by_address = chosen(at(0));
        let other = candidates.iter().find(|candidate| candidate.addr != by_address).unwrap().addr;
        endpoints.pin(&service, client, other, at(0), TIMEOUT);
        assert_eq!(chosen(at(59)), other);
        // Each connection counts the time anew.
        endpoints.pin(&service, client, other, at(59), TIMEOUT);
        endpoints.sweep(at(118));
        assert_eq!(chosen(at(118)), other);
        assert_eq!(chosen(at(119)), by_address, "60 s after its last connection");
        endpoints.sweep(at(119));
        assert!(endpoints.pinned.borrow().is_empty(), "and forgotten");
    }
}
