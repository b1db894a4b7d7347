//! How long to wait before the API server is asked again.

use std::time::Duration;

use aws_lc_rs::rand;

/// The first bound of a wait.
const BASE: Duration = Duration::from_millis(250);
/// The last one: an API server that is back is found within it by everybody.
const CAP: Duration = Duration::from_secs(15);

/// The wait after `failures` failures in a row (1 = the first): drawn from 0 to min([`CAP`], [`BASE`] · 2^(failures − 1)).
///
/// `draw` is uniform in 0..=u32::MAX. Full jitter, so that replicas and agents do not come back all at once.
pub(crate) fn wait(failures: u32, draw: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    let bound = BASE.saturating_mul(doubled).min(CAP);
    let ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(ms * u64::from(draw) / u64::from(u32::MAX))
}

/// A draw from the system's randomness; the middle where there is none.
pub(crate) fn draw() -> u32 {
    let mut octets = [0; 4];
    match rand::fill(&mut octets) {
        Ok(()) => u32::from_le_bytes(octets),
        Err(_) => u32::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_are_drawn_from_zero_on() {
        for (failures, most) in [(0, 250), (1, 250), (2, 500), (5, 4000), (7, 15_000), (u32::MAX, 15_000)] {
            assert_eq!(wait(failures, u32::MAX), Duration::from_millis(most), "{failures}");
            assert_eq!(wait(failures, 0), Duration::ZERO, "{failures}");
        }
        assert_eq!(wait(2, u32::MAX / 2), Duration::from_millis(249));
    }
}
