//! How long to wait before an API server is asked again.

use std::time::Duration;

use adit_core::draw::Seed;

/// The wait after the first failure, at most.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait: an API server that comes back is heard of within half of that, on the average.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Full jitter: anything between nothing and a bound that doubles with each failure ("Exponential Backoff And Jitter",
/// AWS Architecture Blog). A thousand agents whose API server comes back do not all ask at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure.
    pub(super) fn next(&mut self, seed: &mut Seed) -> Duration {
        let bound = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        let bound = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(seed.below(bound + 1))
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew_after_success() {
        let mut seed = Seed(1);
        let mut longest = [Duration::ZERO; 12];
        for _ in 0..500 {
            let mut backoff = Backoff::default();
            for longest in &mut longest {
                *longest = (*longest).max(backoff.next(&mut seed));
            }
        }
        assert!(longest[0] <= FIRST && longest[1] > FIRST && longest[1] <= 2 * FIRST, "{longest:?}");
        assert!(longest.iter().all(|wait| *wait <= WAIT_MAX), "{longest:?}");
        assert!(longest[11] > WAIT_MAX / 2, "{longest:?}");
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.next(&mut seed) <= WAIT_MAX);
        backoff.reset();
        assert!(backoff.next(&mut seed) <= FIRST);
    }
}
