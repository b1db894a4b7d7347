//! A histogram of durations with fixed buckets, written by one thread and read by another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds: from 100 µs (a connect on the same node takes about that) to 10 s.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Counts per bucket (the last is "more"), and the sum in microseconds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// A histogram read at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Per bucket, not cumulative; the last is "more than the last bound".
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// The sum of all values, µs.
    pub sum_us: u64,
}

impl Histogram {
    /// Adds one value.
    pub fn add(&self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Reads it. A value added meanwhile is in the buckets, the sum, both or neither.
    pub fn read(&self) -> Counts {
        Counts {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

impl Counts {
    /// Adds one value.
    pub fn add(&mut self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper bound of the bucket that holds the `percent`th percentile, µs; none without values.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (count * percent).div_ceil(100).max(1);
        let mut below = 0;
        for (bound, n) in BOUNDS_US.iter().zip(self.buckets) {
            below += n;
            if below >= rank {
                return Some(*bound);
            }
        }
        Some(u64::MAX)
    }
}

/// The index of the bucket for a value in microseconds.
pub fn bucket_of(us: u64) -> usize {
    BOUNDS_US.partition_point(|bound| *bound < us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        assert_eq!(bucket_of(100), 0);
        assert_eq!(bucket_of(101), 1);
        assert_eq!(bucket_of(u64::MAX), BOUNDS_US.len());
    }

    #[test]
    fn percentiles_are_upper_bounds_of_their_buckets() {
        let histogram = Histogram::default();
        for _ in 0..99 {
            histogram.add(Duration::from_micros(90));
        }
        histogram.add(Duration::from_millis(3));
        let counts = histogram.read();
        assert_eq!(counts.count(), 100);
        assert_eq!(counts.percentile_us(50), Some(100));
        assert_eq!(counts.percentile_us(99), Some(100));
        assert_eq!(counts.percentile_us(100), Some(5_000));
        assert_eq!(Counts::default().percentile_us(50), None);
    }
}
