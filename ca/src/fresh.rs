//! Whether this CA knows what is stored: one of several replicas that has lost sight of the others must not sign, as
//! they may have replaced what it signs with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When what is stored was last seen. Cheap to clone; all clones say the same.
#[derive(Clone, Debug)]
pub(crate) struct Fresh(Option<Arc<Seen>>);

#[derive(Debug)]
struct Seen {
    bound: Duration,
    since: Instant,
    /// In milliseconds after `since`, and 1 more; 0: never.
    last_ms: AtomicU64,
}

impl Fresh {
    /// Of a CA that alone holds its store.
    pub(crate) const fn always() -> Self {
        Self(None)
    }

    /// Of a CA that may sign for `bound` after it last saw what is stored.
    pub(crate) fn within(bound: Duration) -> Self {
        Self(Some(Arc::new(Seen { bound, since: Instant::now(), last_ms: AtomicU64::new(0) })))
    }

    /// How long it may sign after it last saw what is stored; `None`: for ever.
    pub(crate) fn bound(&self) -> Option<Duration> {
        self.0.as_ref().map(|seen| seen.bound)
    }

    /// The instant to be given to [`Fresh::seen`]: that before the question, not that of the answer.
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// Notes that what was stored at `at` is known.
    pub(crate) fn seen(&self, at: Instant) {
        if let Some(seen) = &self.0 {
            let ms = u64::try_from(at.duration_since(seen.since).as_millis()).unwrap_or(u64::MAX - 1);
            seen.last_ms.fetch_max(ms + 1, Ordering::Relaxed);
        }
    }

    /// For how long it has not been known; `None` while it is fresh.
    pub(crate) fn lost_for(&self) -> Option<Duration> {
        let seen = self.0.as_ref()?;
        let last = seen.last_ms.load(Ordering::Relaxed);
        let age = match last.checked_sub(1) {
            None => seen.since.elapsed().max(seen.bound),
            Some(ms) => seen.since.elapsed().saturating_sub(Duration::from_millis(ms)),
        };
        (last == 0 || age >= seen.bound).then_some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_that_shares_its_store_is_fresh_for_a_while_after_it_was_seen() {
        assert_eq!(Fresh::always().lost_for(), None);
        let fresh = Fresh::within(Duration::from_secs(100));
        assert!(fresh.lost_for().is_some(), "nothing was seen yet");
        fresh.clone().seen(Fresh::now());
        assert_eq!(fresh.lost_for(), None);
        let short = Fresh::within(Duration::ZERO);
        short.seen(Fresh::now());
        assert!(short.lost_for().is_some());
    }
}
