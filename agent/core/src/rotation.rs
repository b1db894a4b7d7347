//! Decides which identity needs a certificate when: first request, renewal, retry, expiry.
//!
//! A machine: events in, effects out, one deadline. Validity and renewal are judged on the wall clock, retries on
//! the monotonic one; a step of the wall clock is noticed within [`RECHECK`]. Holds no certificate and makes no
//! request: see `identity` in the agent.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use adit_proto::SpiffeId;

use crate::draw::Seed;
use crate::time::{Mono, Now, Validity};

/// How often [`Rotation::tick`] is due while any certificate is held: the longest that a step of the wall clock
/// stays unnoticed. One pass costs a map walk (hundreds of entries).
pub const RECHECK: Duration = Duration::from_secs(30);

/// When to renew and how to retry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Where in a certificate's life its renewal lies, in percent of the life; drawn from here ± `renew_jitter`.
    pub renew_at: u32,
    /// Half the width of the draw, in percent of the life.
    pub renew_jitter: u32,
    /// The bound of the first retry's delay; doubles with each further failure.
    pub backoff_base: Duration,
    /// The bound of every retry's delay. Below it lies a tenth of the certificate's life, where that is less, so
    /// that short lives get their retries too.
    pub backoff_cap: Duration,
}

impl Default for Policy {
    /// 50 % ± 10 %, 1 s to 60 s.
    fn default() -> Self {
        Self {
            renew_at: 50,
            renew_jitter: 10,
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
        }
    }
}

impl Policy {
    /// The longest delay between a failed request and the next one, for a certificate of this life (`None`: none is
    /// held).
    pub fn retry_cap(&self, life: Option<Duration>) -> Duration {
        match life {
            Some(life) => self.backoff_cap.min(self.backoff_base.max(life / 10)),
            None => self.backoff_cap,
        }
    }
}

/// Why a request failed. Each is retried alike: what refuses now (a placement not yet seen) may grant later.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Failure {
    /// No answer: connection, TLS or time-out.
    Unreachable,
    /// The CA answered that it will not issue.
    Refused,
    /// What the CA issued is not what was asked for, is not valid now or is not trusted.
    Unusable,
    /// This side could not ask: its token, key or bundle is missing.
    NotReady,
}

impl Failure {
    /// The word in logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Unusable => "unusable",
            Self::NotReady => "not_ready",
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A pod needs this identity. Idempotent.
    Need(SpiffeId),
    /// No pod needs this identity any more. Idempotent.
    Forget(SpiffeId),
    /// A certificate is at hand: the answer to a request, or one kept from before a restart. A kept one stands for
    /// [`Event::Need`]; if it is not valid any more, that is all it stands for.
    Issued {
        /// Whose it is.
        id: SpiffeId,
        /// Where it comes from: an answer ends the request in flight, a kept one does not.
        from: Source,
        /// Its dates.
        issue: Issue,
    },
    /// The request in flight failed.
    Failed {
        /// Whose it was.
        id: SpiffeId,
        /// How.
        kind: Failure,
    },
    /// The certificate held is revoked, or no longer chains to the bundle: peers refuse it.
    Revoked(SpiffeId),
    /// The bundle changed: what failed for lack of it may work now.
    TrustChanged,
}

/// The dates of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Issue {
    /// From when to when it is valid.
    pub validity: Validity,
    /// The moment of issue: life is counted from here, as `not_before` is dated back.
    pub at: SystemTime,
}

/// Where a certificate comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The CA's answer.
    Answer,
    /// The journal.
    Kept,
}

/// What the caller must do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Ask the CA; answer with [`Event::Issued`] or [`Event::Failed`], exactly once.
    Request(SpiffeId),
    /// Serve the certificate of the [`Event::Issued`] just handled. One that is not named here is thrown away.
    Publish(SpiffeId),
    /// Stop serving this identity's certificate: it has expired. A request is in flight or scheduled.
    Expired(SpiffeId),
    /// Stop serving this identity's certificate and delete every copy: nobody needs it.
    Forget(SpiffeId),
}

/// The certificates of one node. See the module.
#[derive(Debug)]
pub struct Rotation {
    policy: Policy,
    seed: Seed,
    entries: BTreeMap<SpiffeId, Entry>,
    /// When the wall clock is looked at again.
    recheck: Mono,
}

#[derive(Debug, Default)]
struct Entry {
    /// False only while the answer to a request made before the last `Forget` is awaited.
    needed: bool,
    held: Option<Held>,
    /// The life of the last certificate held.
    life: Option<Duration>,
    request: Request,
    /// Failures since the last success.
    failures: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    validity: Validity,
    life: Duration,
    /// When to renew: drawn once, kept in both clocks. Whichever comes first counts, so that a wall clock set back
    /// does not put it off.
    renew: Instant,
    /// When it has expired, as the wall clock stood at the last tick.
    expiry: Mono,
}

#[derive(Clone, Copy, Debug)]
struct Instant {
    wall: SystemTime,
    mono: Mono,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Request {
    /// Due at once if no certificate is held, else when it is to be renewed.
    #[default]
    Idle,
    InFlight,
    /// Failed; due again then.
    RetryAt(Mono),
}

/// What an identity can be seen to be in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// The validity of the certificate held.
    pub validity: Option<Validity>,
    /// When its renewal is due, on the wall clock.
    pub renew_at: Option<SystemTime>,
    /// Whether a request is in flight.
    pub requesting: bool,
    /// Failures since the last success.
    pub failures: u32,
}

impl Rotation {
    /// A machine that knows no identity.
    pub fn new(policy: Policy, seed: Seed) -> Self {
        Self { policy, seed, entries: BTreeMap::new(), recheck: Mono::ZERO }
    }

    /// Takes one event; returns what the caller must do now, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Need(id) => self.need(id),
            Event::Forget(id) => self.forget(id, &mut effects),
            Event::Issued { id, from, issue } => self.issued(now, id, from, issue, &mut effects),
            Event::Failed { id, kind: _ } => self.failed(now, &id),
            Event::Revoked(id) => self.revoked(now, &id),
            Event::TrustChanged => self.trust_changed(now),
        }
        effects.append(&mut self.tick(now));
        effects
    }

    /// Does what has fallen due by `now`, by either clock.
    pub fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.expired(now) {
                entry.held = None;
                effects.push(Effect::Expired(id.clone()));
            }
            if entry.request_due(now) {
                entry.request = Request::InFlight;
                effects.push(Effect::Request(id.clone()));
            }
            if let Some(held) = &mut entry.held {
                held.aim(now);
            }
        }
        self.recheck = now.mono + RECHECK;
        effects
    }

    /// When to call [`Rotation::tick`] next; `None` while nothing is scheduled.
    pub fn deadline(&self) -> Option<Mono> {
        let held = self.entries.values().any(|entry| entry.held.is_some());
        let due = self.entries.values().filter_map(Entry::due).min();
        due.into_iter().chain(held.then_some(self.recheck)).min()
    }

    /// Every needed identity and what it is in, in order.
    pub fn status(&self) -> impl Iterator<Item = (&SpiffeId, Status)> {
        self.entries.iter().filter(|(_, entry)| entry.needed).map(|(id, entry)| (id, entry.status()))
    }

    fn need(&mut self, id: SpiffeId) {
        self.entries.entry(id).or_default().needed = true;
    }

    fn forget(&mut self, id: SpiffeId, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.needed) else {
            return;
        };
        match entry.request {
            // The entry stays until the answer comes, or a new need would make a second request beside it.
            Request::InFlight => {
                *entry = Entry { needed: false, request: Request::InFlight, ..Entry::default() };
            }
            Request::Idle | Request::RetryAt(_) => {
                self.entries.remove(&id);
            }
        }
        effects.push(Effect::Forget(id));
    }

    fn issued(&mut self, now: Now, id: SpiffeId, from: Source, issue: Issue, effects: &mut Vec<Effect>) {
        match from {
            Source::Answer if !self.answered(&id) => return,
            Source::Answer => {}
            Source::Kept => self.need(id.clone()),
        }
        let entry = self.entries.get_mut(&id).expect("an entry was just found or made");
        match Held::new(now, issue, &self.policy, &mut self.seed) {
            Some(held) => {
                entry.held = Some(held);
                entry.life = Some(held.life);
                entry.failures = 0;
                effects.push(Effect::Publish(id));
            }
            None if from == Source::Answer => entry.fail(now, &self.policy, &mut self.seed),
            None => {}
        }
    }

    fn failed(&mut self, now: Now, id: &SpiffeId) {
        if self.answered(id) {
            let entry = self.entries.get_mut(id).expect("an answered entry is kept while needed");
            entry.fail(now, &self.policy, &mut self.seed);
        }
    }

    /// Ends the request in flight. False if there was none, or nobody wants its outcome any more.
    fn answered(&mut self, id: &SpiffeId) -> bool {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.request == Request::InFlight) else {
            return false;
        };
        entry.request = Request::Idle;
        let needed = entry.needed;
        if !needed {
            self.entries.remove(id);
        }
        needed
    }

    fn revoked(&mut self, now: Now, id: &SpiffeId) {
        if let Some(entry) = self.entries.get_mut(id)
            && entry.held.is_some()
            && entry.request == Request::Idle
        {
            entry.request = Request::RetryAt(now.mono + jitter(self.policy.backoff_base, &mut self.seed));
        }
    }

    fn trust_changed(&mut self, now: Now) {
        for entry in self.entries.values_mut() {
            if let Request::RetryAt(at) = entry.request {
                let soon = now.mono + jitter(self.policy.backoff_base, &mut self.seed);
                entry.request = Request::RetryAt(at.min(soon));
                entry.failures = 0;
            }
        }
    }
}

impl Entry {
    fn expired(&self, now: Now) -> bool {
        self.held.is_some_and(|held| now.wall > held.validity.not_after)
    }

    fn request_due(&self, now: Now) -> bool {
        self.needed
            && match self.request {
                Request::InFlight => false,
                Request::RetryAt(at) => now.mono >= at,
                Request::Idle => self.held.is_none_or(|held| held.renew.reached(now)),
            }
    }

    /// The monotonic instant at which something is due; an entry that waits for an answer still expires.
    fn due(&self) -> Option<Mono> {
        let request = match self.request {
            Request::InFlight => None,
            Request::RetryAt(at) => Some(at),
            Request::Idle => self.held.map(|held| held.renew.mono),
        };
        request.into_iter().chain(self.held.map(|held| held.expiry)).min()
    }

    fn fail(&mut self, now: Now, policy: &Policy, seed: &mut Seed) {
        let doubled = policy.backoff_base.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX));
        let bound = doubled.min(policy.retry_cap(self.life));
        self.failures = self.failures.saturating_add(1);
        self.request = Request::RetryAt(now.mono + jitter(bound, seed));
    }

    fn status(&self) -> Status {
        Status {
            validity: self.held.map(|held| held.validity),
            renew_at: self.held.map(|held| held.renew.wall),
            requesting: self.request == Request::InFlight,
            failures: self.failures,
        }
    }
}

impl Held {
    /// `None` where the certificate is not valid now.
    fn new(now: Now, issue: Issue, policy: &Policy, seed: &mut Seed) -> Option<Self> {
        if !issue.validity.contains(now.wall) {
            return None;
        }
        let life = issue.validity.left(issue.at);
        let drawn = seed.below(u64::from(2 * policy.renew_jitter * 100 + 1));
        let drawn = u32::try_from(drawn).expect("a draw below a 32-bit bound fits 32 bits");
        let share = policy.renew_at.saturating_sub(policy.renew_jitter) * 100 + drawn;
        let wall = issue.at + life.mul_f64(f64::from(share) / 10_000.0);
        let mono = now.mono + wall.duration_since(now.wall).unwrap_or(Duration::ZERO);
        let mut held =
            Self { validity: issue.validity, life, renew: Instant { wall, mono }, expiry: Mono::ZERO };
        held.aim(now);
        Some(held)
    }

    /// Sets the expiry timer by the wall clock as it is now.
    fn aim(&mut self, now: Now) {
        // One millisecond past: the certificate's last instant is still valid.
        self.expiry = now.mono + self.validity.left(now.wall) + Duration::from_millis(1);
    }
}

impl Instant {
    fn reached(&self, now: Now) -> bool {
        now.mono >= self.mono || now.wall >= self.wall
    }
}

/// Past this many doublings every sane cap is reached; the bound keeps the shift in range.
const DOUBLINGS_MAX: u32 = 20;

/// Full jitter: uniform in `0..=bound`, in whole milliseconds.
fn jitter(bound: Duration, seed: &mut Seed) -> Duration {
    let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX - 1);
    Duration::from_millis(seed.below(bound_ms.saturating_add(1)))
}

#[cfg(test)]
mod tests;
