//! Whether a failed connect is tried again, after which delay, and within which budget.
//!
//! Three parts that know nothing of one another: [`next`] is the table of what may be retried at all, [`Backoff`] says
//! how long to wait, [`Budget`] whether one more is allowed. Only the connect phase asks: not one byte of the app's
//! has been read by then, so that nothing can happen twice. Does not choose the endpoint: see [`crate::balance`].

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::time::Mono;
use crate::traffic::TrafficSettings;

#[cfg(test)]
mod tests;

/// What went wrong with one attempt.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Failure {
    /// A pooled tunnel turned out to be dead when it was used.
    TunnelDead,
    /// The peer said GOAWAY before it took the stream.
    GoAway,
    /// The peer refused the stream unprocessed (REFUSED_STREAM).
    RefusedStream,
    /// The endpoint's pod has gone from the World.
    PodGone,
    /// The peer's agent refused the TCP connection.
    Refused,
    /// There is no route to the peer's agent.
    Unreachable,
    /// The attempt took too long.
    Timeout,
    /// The connection was cut before or within the TLS handshake, without an alert that says why.
    TlsCut,
    /// The peer's agent could not reach its app (503).
    AppUnreachable503,
    /// The peer's agent says that the address is not its pod's (400).
    NotThisPod400,
    /// The peer proved another identity than the expected one.
    Identity,
    /// A certificate was not accepted, by either side, or the own one is missing.
    Certificate,
    /// The peer refused by policy (401, 403).
    Denied,
    /// The peer broke TLS, HTTP/2 or HBONE, or did not agree on HTTP/2.
    Protocol,
}

/// What has been tried for one connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attempts {
    /// Retries so far that the budget paid for.
    pub retries: u32,
    /// How many of them the settings allow.
    pub retries_max: u32,
    /// The one retry that is free of budget has been used.
    pub free_used: bool,
    /// The destination has been looked up again after a 400.
    pub looked_up: bool,
}

impl Attempts {
    /// None yet.
    pub fn new(settings: &TrafficSettings) -> Self {
        Self { retries_max: settings.retries_max, ..Self::default() }
    }

    /// Notes that what [`next`] said is being done.
    pub fn record(&mut self, next: Next) {
        match next {
            Next::AtOnce => self.free_used = true,
            Next::Another => self.retries = self.retries.saturating_add(1),
            Next::SameAfterLookup => {
                self.retries = self.retries.saturating_add(1);
                self.looked_up = true;
            }
            Next::Give => {}
        }
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Next {
    /// Try again now, on a fresh tunnel, or at another endpoint if the pod has gone. Free of budget and delay.
    AtOnce,
    /// Wait, ask the budget, and try another endpoint, or the same one where there is no other.
    Another,
    /// Look the destination up again, wait, ask the budget, and try what was found.
    SameAfterLookup,
    /// Give up.
    Give,
}

/// What to do after an attempt failed.
///
/// `by_service`: the app dialled a Service rather than a pod. `another_exists`: there is a usable endpoint that was not
/// tried. Passthrough connections are never retried and never ask.
pub fn next(failure: Failure, attempts: &Attempts, by_service: bool, another_exists: bool) -> Next {
    let may_retry = attempts.retries < attempts.retries_max;
    let another = if may_retry { Next::Another } else { Next::Give };
    match failure {
        Failure::PodGone if !another_exists => Next::Give,
        Failure::TunnelDead | Failure::GoAway | Failure::RefusedStream | Failure::PodGone => {
            // The free one is for what a pool or a drain brings about. A second time in a row it is a failure like
            // any other, and the budget decides.
            if attempts.free_used { another } else { Next::AtOnce }
        }
        Failure::Refused | Failure::Unreachable | Failure::Timeout | Failure::TlsCut => another,
        Failure::AppUnreachable503 if by_service && another_exists => another,
        Failure::AppUnreachable503 => Next::Give,
        Failure::NotThisPod400 if may_retry && !attempts.looked_up => Next::SameAfterLookup,
        Failure::NotThisPod400 => Next::Give,
        Failure::Identity | Failure::Certificate | Failure::Denied | Failure::Protocol => Next::Give,
    }
}

/// How long to wait before a retry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    retries_max: u32,
}

impl Backoff {
    /// From the settings of a Service.
    pub fn new(settings: &TrafficSettings) -> Self {
        Self { base: settings.backoff_base, cap: settings.backoff_cap, retries_max: settings.retries_max }
    }

    /// How long to wait before retry `retry` (0 = the first), or `None` to give up: there have been as many as allowed.
    ///
    /// Drawn from [0, min(cap, base · 2^retry)], both ends included, by `draw`, uniform in all of `u32`.
    /// Source: "full jitter" (Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
    pub fn delay(&self, retry: u32, draw: u32) -> Option<Duration> {
        if retry >= self.retries_max {
            return None;
        }
        let doubled = 2_u32.checked_pow(retry).and_then(|times| self.base.checked_mul(times));
        let longest = doubled.map_or(self.cap, |doubled| doubled.min(self.cap));
        // In u128 no product of a Duration (below 2^94 ns) and a draw overflows.
        let nanos = longest.as_nanos() * u128::from(draw) / u128::from(u32::MAX);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// What one retry costs, in the unit of deposits: a first attempt deposits `budget_percent` of it.
const RETRY_COST: u64 = 100;

/// Slots in which deposits expire together. Ten, so that the default 10 s expire by the second.
const SLOTS: u32 = 10;

/// How many retries a worker may make towards one Service for one source namespace.
///
/// A first attempt deposits a part of a retry (a tenth by default), which expires after the interval (10 s), a slot at
/// a time (1 s). Apart from deposits there is a floor: one retry each floor interval (100 ms), never saved up. With the
/// defaults, for every prefix of every history:
/// retries ≤ 0.1 · first attempts + 10 · seconds + 1, and for every 10 s window:
/// retries ≤ 0.1 · first attempts of the 21 s that end with it + 101.
/// Of N workers each gives a retry by its floor N times as rarely. Counts in integers: nothing is lost by rounding.
#[derive(Clone, Debug)]
pub struct Budget {
    percent: u64,
    slot: Duration,
    floor: Option<Duration>,
    workers: NonZeroU32,
    /// Deposits that have not expired: which slot, how much. By slot; at most [`SLOTS`] + 1 of them; none of 0.
    deposits: VecDeque<(u128, u64)>,
    /// When the floor gave its last retry.
    floor_used: Option<Mono>,
}

impl Budget {
    /// The budget of one of `workers` workers, empty.
    pub fn new(settings: &TrafficSettings, workers: NonZeroU32) -> Self {
        let mut budget = Self {
            percent: 0,
            slot: Duration::ZERO,
            floor: None,
            workers,
            deposits: VecDeque::new(),
            floor_used: None,
        };
        budget.update(settings);
        budget
    }

    /// Takes new settings. What is deposited stays, unless it would expire at another time now.
    pub fn update(&mut self, settings: &TrafficSettings) {
        self.percent = u64::from(settings.budget_percent);
        let interval = settings.budget_floor_interval;
        self.floor = interval.map(|interval| interval.saturating_mul(self.workers.get()));
        let slot = (settings.budget_interval / SLOTS).max(Duration::from_millis(1));
        if slot != self.slot {
            self.slot = slot;
            self.deposits.clear();
        }
    }

    /// Notes a first attempt.
    pub fn attempt(&mut self, now: Mono) {
        let slot = self.expire(now);
        if self.percent == 0 {
            return;
        }
        match self.deposits.back_mut() {
            Some((last, amount)) if *last >= slot => *amount = amount.saturating_add(self.percent),
            Some(_) | None => self.deposits.push_back((slot, self.percent)),
        }
    }

    /// Whether a retry may be made now; if so, it is paid for. The floor pays first, as it cannot be saved up.
    pub fn withdraw(&mut self, now: Mono) -> bool {
        self.expire(now);
        self.withdraw_floor(now) || self.withdraw_deposits()
    }

    fn withdraw_floor(&mut self, now: Mono) -> bool {
        let Some(interval) = self.floor else { return false };
        if self.floor_used.is_some_and(|used| now.since(used) < interval) {
            return false;
        }
        self.floor_used = Some(now);
        true
    }

    /// Pays by deposits, the oldest first.
    fn withdraw_deposits(&mut self) -> bool {
        let total = self.deposits.iter().fold(0_u64, |sum, (_, amount)| sum.saturating_add(*amount));
        if total < RETRY_COST {
            return false;
        }
        let mut due = RETRY_COST;
        while let Some((_, amount)) = self.deposits.front_mut() {
            if *amount > due {
                *amount -= due;
                break;
            }
            due -= *amount;
            self.deposits.pop_front();
        }
        true
    }

    /// Forgets what has expired; returns the current slot.
    fn expire(&mut self, now: Mono) -> u128 {
        let slot = now.0.as_nanos() / self.slot.as_nanos();
        while self.deposits.front().is_some_and(|(made, _)| made + u128::from(SLOTS) < slot) {
            self.deposits.pop_front();
        }
        slot
    }
}
