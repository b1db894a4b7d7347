//! Keeps away, for a while, from endpoints that fail again and again.
//!
//! One [`Ejection`] per Service and worker. It knows no clock and no World: instants, the Service's size and chance
//! are arguments. What it says is advice: where nothing else is usable, an ejected endpoint is better than none.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Mono;
use crate::traffic::TrafficSettings;

#[cfg(test)]
mod tests;

/// Ejections drawn apart by up to a tenth to either side, so that what failed together does not return together.
const JITTER_PERCENT: u128 = 10;

/// How long after its last failure, or its return, an endpoint's history is forgotten, in ejection caps. One: an
/// endpoint that fails less often than the longest ejection lasts begins anew.
const FORGET_CAPS: u32 = 1;

/// What one endpoint has done.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Connect failures in a row, since the last success or ejection.
    failures: u32,
    /// Ejections in a row, since the last success.
    ejections: u32,
    /// Ejected until then; may have passed.
    until: Option<Mono>,
    /// When it is forgotten.
    forget: Mono,
}

/// The endpoints of one Service that have failed lately. Bounded by the endpoints that failed within
/// [`FORGET_CAPS`] ejection caps: what is older is dropped with each failure.
#[derive(Clone, Debug)]
pub struct Ejection<K> {
    endpoints: BTreeMap<K, History>,
}

impl<K> Default for Ejection<K> {
    fn default() -> Self {
        Self { endpoints: BTreeMap::new() }
    }
}

impl<K: Clone + Ord> Ejection<K> {
    /// Nothing has failed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a connect failure. Returns for how long the endpoint is ejected, if this was one too many.
    ///
    /// The n-th ejection in a row lasts base · 2^(n-1), drawn a tenth up or down by `draw`, at most the cap. None is
    /// made beyond the settings' share of a Service of `service_size` endpoints; the next failure asks again. Failures
    /// of attempts that were under way when the endpoint was ejected count for nothing.
    pub fn failed(
        &mut self,
        now: Mono,
        key: &K,
        service_size: usize,
        settings: &TrafficSettings,
        draw: u32,
    ) -> Option<Duration> {
        self.endpoints.retain(|_, history| now < history.forget);
        let ejected = self.count(now) + 1;
        let keep = settings.ejection_cap.saturating_mul(FORGET_CAPS);
        let history = self.endpoints.entry(key.clone()).or_default();
        if history.until.is_some_and(|until| now < until) {
            return None;
        }
        history.failures = history.failures.saturating_add(1);
        history.forget = now + keep.max(Duration::from_millis(1));
        let enough = settings.ejection_failures > 0 && history.failures >= settings.ejection_failures;
        if !enough || !within(ejected, service_size, settings.ejection_percent_max) {
            return None;
        }
        let length = length(history.ejections, settings, draw);
        history.failures = 0;
        history.ejections = history.ejections.saturating_add(1);
        history.until = Some(now + length);
        history.forget = history.forget + length;
        Some(length)
    }

    /// Notes a success: the endpoint's history is forgotten, and if it was ejected, it is back.
    pub fn succeeded(&mut self, key: &K) {
        self.endpoints.remove(key);
    }

    /// Whether the endpoint is ejected now.
    pub fn is_ejected(&self, now: Mono, key: &K) -> bool {
        let history = self.endpoints.get(key);
        history.is_some_and(|history| history.until.is_some_and(|until| now < until))
    }

    /// How many endpoints are ejected now.
    pub fn count(&self, now: Mono) -> usize {
        let ejected = |history: &&History| history.until.is_some_and(|until| now < until);
        self.endpoints.values().filter(ejected).count()
    }

    /// Forgets endpoints that are no longer the Service's, so that they do not count against its share.
    pub fn retain(&mut self, mut is_endpoint: impl FnMut(&K) -> bool) {
        self.endpoints.retain(|key, _| is_endpoint(key));
    }
}

/// Whether `ejected` endpoints are at most the allowed share of `size`.
fn within(ejected: usize, size: usize, percent_max: u32) -> bool {
    let allowed = u128::try_from(size).unwrap_or(u128::MAX).saturating_mul(u128::from(percent_max));
    u128::try_from(ejected).unwrap_or(u128::MAX).saturating_mul(100) <= allowed
}

fn length(ejections: u32, settings: &TrafficSettings, draw: u32) -> Duration {
    let cap = settings.ejection_cap;
    let doubled = 2_u32.checked_pow(ejections).and_then(|times| settings.ejection_base.checked_mul(times));
    let nominal = doubled.map_or(cap, |doubled| doubled.min(cap)).as_nanos();
    // From 90 to 110 percent of it; no Duration (below 2^94 ns) overflows here.
    let spread = nominal * 2 * JITTER_PERCENT / 100 * u128::from(draw) / u128::from(u32::MAX);
    let drawn = nominal - nominal * JITTER_PERCENT / 100 + spread;
    Duration::from_nanos(u64::try_from(drawn).unwrap_or(u64::MAX)).min(cap)
}
