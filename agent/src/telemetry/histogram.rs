//! A histogram of durations with fixed buckets, written by one thread and read by another.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, SystemTime};

use adit_core::report::TraceId;

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
    /// By bucket; made when the bucket has its first.
    exemplars: [OnceLock<Box<Newest>>; BOUNDS_US.len() + 1],
}

/// One of the values that a bucket counts, and the connection that it is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exemplar {
    /// By which `adit flows --trace` finds it.
    pub trace: TraceId,
    /// The value, µs.
    pub us: u64,
    /// When the connection was accepted, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The newest exemplar of a bucket. Its one writer never waits; a reader that meets it writing looks again, once.
///
/// A sequence lock: the version is odd while the words are being written, and other than before once they were.
#[derive(Debug, Default)]
struct Newest {
    version: AtomicU64,
    words: [AtomicU64; 4],
}

/// A histogram as the metrics page shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Shown {
    /// What it counted.
    pub counts: Counts,
    /// The newest exemplar of each bucket that has one.
    pub exemplars: BTreeMap<usize, Exemplar>,
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

    /// Adds one value of a connection that was accepted at `accepted`: its bucket's newest exemplar. For a histogram with
    /// one writer.
    pub fn add_of(&self, value: Duration, trace: TraceId, accepted: SystemTime) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let since = accepted.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.exemplars[bucket_of(us)].get_or_init(Box::default).set(Exemplar { trace, us, at_ms });
        self.add(value);
    }

    /// The newest exemplar of each bucket that has one.
    pub fn exemplars(&self) -> impl Iterator<Item = (usize, Exemplar)> {
        self.exemplars.iter().enumerate().filter_map(|(bucket, newest)| Some((bucket, newest.get()?.get()?)))
    }

    /// Reads it. A value added meanwhile is in the buckets, the sum, both or neither.
    pub fn read(&self) -> Counts {
        Counts {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

impl Newest {
    fn set(&self, exemplar: Exemplar) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let low_half = |word: u128| u64::try_from(word & u128::from(u64::MAX)).unwrap_or(0);
        let trace = exemplar.trace.0;
        let words = [low_half(trace >> 64), low_half(trace), exemplar.us, exemplar.at_ms];
        for (kept, word) in self.words.iter().zip(words) {
            kept.store(word, Ordering::Relaxed);
        }
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn get(&self) -> Option<Exemplar> {
        (0..2).find_map(|_| {
            let before = self.version.load(Ordering::Acquire);
            let [high, low, us, at_ms] = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            let after = self.version.load(Ordering::Relaxed);
            let trace = TraceId(u128::from(high) << 64 | u128::from(low));
            (before == after && before.is_multiple_of(2)).then_some(Exemplar { trace, us, at_ms })
        })
    }
}

impl Shown {
    /// Adds what a cell counted; of two exemplars the newer stays.
    pub fn merge(&mut self, cell: &Histogram) {
        self.counts.merge(&cell.read());
        for (bucket, exemplar) in cell.exemplars() {
            let kept = self.exemplars.entry(bucket).or_insert(exemplar);
            if kept.at_ms < exemplar.at_ms {
                *kept = exemplar;
            }
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
    fn each_bucket_keeps_its_newest_exemplar_over_all_cells() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let us = Duration::from_micros;
        let (one, two) = (Histogram::default(), Histogram::default());
        one.add_of(us(90), TraceId(1), at(1));
        one.add_of(us(80), TraceId(2 << 64 | 7), at(3));
        two.add_of(us(70), TraceId(3), at(2));
        two.add_of(us(20_000_000), TraceId(4), at(9));
        two.add(us(400));
        let mut shown = Shown::default();
        shown.merge(&one);
        shown.merge(&two);
        let wanted = [
            (0, Exemplar { trace: TraceId(2 << 64 | 7), us: 80, at_ms: 3000 }),
            (BOUNDS_US.len(), Exemplar { trace: TraceId(4), us: 20_000_000, at_ms: 9000 }),
        ];
        assert_eq!(shown.exemplars, BTreeMap::from(wanted));
        assert_eq!(shown.counts.count(), 5);
    }

    #[test]
    fn a_reader_beside_the_writer_sees_whole_exemplars_only() {
        const ROUNDS: u64 = 20_000;
        let newest = Newest::default();
        let of = |n: u64| Exemplar { trace: TraceId(u128::from(n) << 64 | u128::from(n)), us: n, at_ms: n };
        newest.set(of(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..ROUNDS).for_each(|n| newest.set(of(n))));
            while !writer.is_finished() {
                if let Some(seen) = newest.get() {
                    assert_eq!(seen, of(seen.us));
                }
            }
        });
        assert_eq!(newest.get(), Some(of(ROUNDS - 1)));
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
