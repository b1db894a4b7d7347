//! The only time types of the core: a monotonic instant, the wall clock beside it, and a validity.
//!
//! Nothing here reads a clock: every value is an argument.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

/// A monotonic instant: time since an origin that the caller chose once (the process's start).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mono(pub Duration);

impl Mono {
    /// The origin.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// An instant so many milliseconds after the origin.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Now {
    /// For spans and deadlines; never steps.
    pub mono: Mono,
    /// For certificates and log lines; may step.
    pub wall: SystemTime,
}

impl Now {
    /// The monotonic origin, at this wall time.
    pub const fn at_start(wall: SystemTime) -> Self {
        Self { mono: Mono::ZERO, wall }
    }

    /// Both clocks moved on by the same span.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self { mono: self.mono + span, wall: self.wall + span }
    }
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// First valid instant.
    pub not_before: SystemTime,
    /// Last valid instant.
    pub not_after: SystemTime,
}

impl Validity {
    /// Whether `wall` lies within, both ends included (RFC 5280, 4.1.2.5).
    pub fn contains(&self, wall: SystemTime) -> bool {
        self.not_before <= wall && wall <= self.not_after
    }

    /// What is left at `wall`; zero once expired.
    pub fn left(&self, wall: SystemTime) -> Duration {
        self.not_after.duration_since(wall).unwrap_or(Duration::ZERO)
    }
}
