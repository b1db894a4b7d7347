//! Keeps one pod's capture in force: notices what changed, repairs it at once, and says what it found.
//!
//! Two sockets inside the namespace announce changes of rules, routes, addresses and links. What they cannot announce
//! (the legacy back end, lost events, whatever else might stop packets) is found by a round every 20 s: a functional
//! probe of each family, and the nf_tables generation.

use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::redirect::{Drift, Family, Wanted};
use adit_core::time::Mono;
use nix::sys::socket::SockProtocol;

use super::apply::{Applied, Condition, apply, listeners_missing, verify};
use super::backend::Backend;
use super::error::RedirectError;
use super::generation::Generation;
use super::sysctls;
use crate::clock::Clock;
use crate::netns::Netns;
use crate::sockets::netlink::Announcements;
use crate::sockets::probe::{Probed, probe};

/// Between two rounds.
pub const ROUND_EVERY: Duration = Duration::from_secs(20);
/// The full text is compared at least so often, whatever the round found.
const FULL_EVERY: Duration = Duration::from_secs(600);
/// Between two comparisons that events ask for: a pod that changes its rules all the time costs 5 ms of CPU at most so
/// often (1 % of a core).
const COMPARE_SPACING: Duration = Duration::from_millis(500);
/// A probe is answered in 50 µs; a worker may be busy.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// The second try, before anything is declared broken.
const PROBE_WAIT_AGAIN: Duration = Duration::from_secs(5);
/// Comparisons in a row that may fail by themselves (no process can be started) before capture counts as broken,
/// while the probes say that it holds: one a round, a minute.
const UNVERIFIED_MAX: u32 = 3;
/// Group 7 of nfnetlink: NFNLGRP_NFTABLES.
const NFTABLES_GROUPS: u32 = 1 << 6;
/// Groups of rtnetlink: link 1, IPv4 address 5, route 7, rule 8, IPv6 address 9, route 11, rule 19.
const ROUTE_GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// What a [`Keeper`] found, each told once.
#[derive(Debug)]
pub enum Finding {
    /// This had drifted, and is as wanted again.
    Repaired {
        /// What had drifted.
        drift: Vec<Drift>,
        /// Of the repair; its `sysctls_before` are not those from before the enrolment.
        applied: Applied,
    },
    /// Capture does not hold, and cannot be made to: the pod must no longer be announced as captured. Told again when
    /// `drift` changes; tried again every round.
    Broken {
        /// What differs; empty if that could not be found out.
        drift: Vec<Drift>,
        /// Why the repair or the comparison failed.
        error: Option<RedirectError>,
    },
    /// Capture holds again after [`Finding::Broken`].
    Mended,
    /// The pod has nat rules of the other back end; capture holds nevertheless.
    OtherBackend,
}

/// Watches one pod. Drop it to stop.
#[derive(Debug)]
pub struct Keeper {
    netns: Netns,
    wanted: Wanted,
    conditions: Vec<Condition>,
    backend: Backend,
    clock: Clock,
    draws: Seed,
    nftables: Option<Announcements>,
    routes: Announcements,
    generation: Option<Generation>,
    seen_generation: Option<u32>,
    next_round: Mono,
    next_full: Mono,
    last_compare: Option<Mono>,
    unverified: u32,
    told: Told,
}

/// What was last told, so that each state is told once.
#[derive(Debug, Eq, PartialEq)]
enum Told {
    Sound,
    OtherBackend,
    Broken(Vec<Drift>),
}

impl Keeper {
    /// Begins to watch a pod to which `applied` has been applied. Call it inside a tokio runtime.
    ///
    /// `seed` spreads the rounds of many pods evenly over [`ROUND_EVERY`].
    pub fn new(
        netns: Netns,
        wanted: Wanted,
        applied: &Applied,
        clock: Clock,
        mut seed: Seed,
    ) -> Result<Self, RedirectError> {
        let open = |protocol, groups| Announcements::open(&netns, protocol, groups);
        let routes = open(SockProtocol::NetlinkRoute, ROUTE_GROUPS).map_err(RedirectError::Netlink)?;
        // A kernel without nf_tables has neither of the two; rounds then compare the full text.
        let nftables = open(SockProtocol::NetlinkNetFilter, NFTABLES_GROUPS).ok();
        let generation = Generation::open(&netns).ok();
        let round = u64::try_from(ROUND_EVERY.as_millis()).unwrap_or(u64::MAX);
        let now = clock.now().mono;
        Ok(Self {
            netns,
            wanted,
            conditions: applied.conditions.clone(),
            backend: applied.backend,
            clock,
            nftables,
            routes,
            generation,
            seen_generation: None,
            next_round: now + Duration::from_millis(seed.below(round)),
            next_full: now + FULL_EVERY,
            draws: seed,
            last_compare: None,
            unverified: 0,
            told: Told::Sound,
        })
    }

    /// Watches until there is something to tell. Dropped in the middle of a repair, it may leave the repair undone;
    /// the next call finds that.
    pub async fn next(&mut self) -> Finding {
        loop {
            let compare = tokio::select! {
                () = changed(self.nftables.as_ref()) => true,
                () = changed(Some(&self.routes)) => true,
                () = self.clock.sleep_until(Some(self.next_round)) => self.round_needs_comparison().await,
            };
            if !compare {
                continue;
            }
            if let Some(last) = self.last_compare {
                self.clock.sleep_until(Some(last + COMPARE_SPACING)).await;
            }
            self.last_compare = Some(self.clock.now().mono);
            let found = self.compare_and_repair().await;
            if let Some(finding) = self.news(found) {
                return finding;
            }
        }
    }

    /// One round; whether it calls for the full comparison.
    async fn round_needs_comparison(&mut self) -> bool {
        let now = self.clock.now().mono;
        self.next_round = now + ROUND_EVERY;
        let generation = self.generation.as_mut().and_then(Generation::now);
        let moved = generation.is_none() || generation != self.seen_generation;
        let unsound = self.told != Told::Sound;
        let due = now >= self.next_full;
        moved
            || unsound
            || due
            || self.backend == Backend::Legacy
            || self.unannounced_drift()
            || !self.probe_all(PROBE_WAIT).await.is_empty()
    }

    /// Whether something has drifted that nothing announces and no probe shows: sysctls, and listeners of the ports that
    /// the probe does not go to. 100 µs. What cannot be read is looked at by the comparison.
    fn unannounced_drift(&self) -> bool {
        let families = match self.conditions.contains(&Condition::NoIpv6) {
            true => vec![Family::V4],
            false => Family::BOTH.to_vec(),
        };
        let changed =
            sysctls::changed(&self.netns).map(|changed| changed.into_iter().map(Drift::Sysctl).collect());
        let missing = listeners_missing(&self.netns, &families);
        match (changed, missing) {
            (Ok(changed), Ok(missing)) => !self.not_tolerated([changed, missing].concat()).is_empty(),
            (_, _) => true,
        }
    }

    /// Compares everything, repairs what can be, and probes.
    async fn compare_and_repair(&mut self) -> Found {
        self.next_full = self.clock.now().mono + FULL_EVERY;
        let mut found = Found::default();
        if let Err(error) = self.repair(&mut found).await {
            found.error = Some(error);
        }
        let mut unanswered = self.probe_all(PROBE_WAIT).await;
        if !unanswered.is_empty() {
            unanswered = self.probe_all(PROBE_WAIT_AGAIN).await;
        }
        found.left.extend(unanswered.into_iter().map(Drift::Probe));
        found
    }

    async fn repair(&mut self, found: &mut Found) -> Result<(), RedirectError> {
        let before = self.not_tolerated(verify(&self.netns, &self.wanted).await?);
        found.left.clone_from(&before);
        if before.iter().any(Drift::mended_by_rules) {
            let applied = apply(&self.netns, &self.wanted).await?;
            self.conditions.clone_from(&applied.conditions);
            self.backend = applied.backend;
            found.applied = Some(applied);
            found.left = self.not_tolerated(verify(&self.netns, &self.wanted).await?);
        }
        found.repaired = before.into_iter().filter(|drift| !found.left.contains(drift)).collect();
        Ok(())
    }

    /// Without what this kernel cannot have.
    fn not_tolerated(&self, drift: Vec<Drift>) -> Vec<Drift> {
        let tolerated = |drift: &Drift| match drift {
            Drift::PolicyRoute(Family::V6) => {
                // Tried again whenever something changes, so that switching IPv6 on is noticed.
                self.conditions.contains(&Condition::NoIpv6Route) && !ipv6_is_on(&self.netns)
            }
            Drift::Sysctl(sysctl) => self.conditions.contains(&Condition::SysctlRefused(*sysctl)),
            Drift::PolicyRoute(Family::V4)
            | Drift::Jump { .. }
            | Drift::Rules { .. }
            | Drift::Stale { .. }
            | Drift::PolicyRule(_)
            | Drift::Listener { .. }
            | Drift::Probe(_)
            | Drift::OtherBackend => false,
        };
        drift.into_iter().filter(|drift| !tolerated(drift)).collect()
    }

    /// The families whose probe did not arrive at the agent within `wait`.
    async fn probe_all(&mut self, wait: Duration) -> Vec<Family> {
        let mut lost = Vec::new();
        for family in Family::BOTH {
            let port = u16::try_from(self.draws.below(u64::from(u16::MAX))).unwrap_or(1);
            match tokio::time::timeout(wait, probe(&self.netns, family, port)).await {
                Ok(Ok(Probed::Captured | Probed::NoRoute)) => {}
                Ok(Ok(Probed::NotListening | Probed::NotCaptured) | Err(_)) | Err(_) => lost.push(family),
            }
        }
        lost
    }

    /// What of it has not been told.
    fn news(&mut self, found: Found) -> Option<Finding> {
        // Compared again in the next round until that succeeds.
        self.seen_generation = None;
        self.unverified = if found.error.is_some() { self.unverified.saturating_add(1) } else { 0 };
        if let Some(error) = &found.error
            && found.left.is_empty()
            && self.unverified < UNVERIFIED_MAX
        {
            tracing::warn!(netns = %self.netns.path().display(), %error, "cannot verify a pod's capture");
            return None;
        }
        if found.error.is_none() {
            // A change that comes between the comparison and this was announced, and is looked at next.
            self.seen_generation = self.generation.as_mut().and_then(Generation::now);
        }
        let other_backend_only = found.left.iter().all(|drift| *drift == Drift::OtherBackend);
        let state = match (found.left.is_empty() && found.error.is_none(), other_backend_only) {
            (true, _) => Told::Sound,
            (false, true) if found.error.is_none() => Told::OtherBackend,
            (false, _) => Told::Broken(found.left.clone()),
        };
        let was = std::mem::replace(&mut self.told, state);
        match &self.told {
            Told::Broken(drift) if was != self.told => {
                Some(Finding::Broken { drift: drift.clone(), error: found.error })
            }
            Told::Broken(_) => None,
            Told::Sound | Told::OtherBackend if matches!(was, Told::Broken(_)) => Some(Finding::Mended),
            Told::OtherBackend if was == Told::Sound => Some(Finding::OtherBackend),
            Told::Sound | Told::OtherBackend => {
                let applied = found.applied.filter(|_| !found.repaired.is_empty())?;
                Some(Finding::Repaired { drift: found.repaired, applied })
            }
        }
    }
}

/// What one comparison found.
#[derive(Debug, Default)]
struct Found {
    repaired: Vec<Drift>,
    applied: Option<Applied>,
    left: Vec<Drift>,
    error: Option<RedirectError>,
}

/// Returns when something was announced; never without a socket, or with a broken one: rounds find the rest.
async fn changed(socket: Option<&Announcements>) {
    match socket {
        Some(socket) if socket.next().await.is_ok() => {}
        Some(_) | None => std::future::pending().await,
    }
}

/// Whether lo takes IPv6 routes.
fn ipv6_is_on(netns: &Netns) -> bool {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    netns.run(read).is_ok_and(|value| value.is_ok_and(|value| value.trim() == "0"))
}
