//! The agent's only clock. Everything that needs the time or a timer is given a [`Clock`].

use std::time::SystemTime;

use adit_core::time::{Mono, Now};
use tokio::time::Instant;

/// Both clocks, and a timer on the monotonic one. Cheap to clone; all clones share one origin.
///
/// Monotonic time is tokio's, so a test with paused time moves it; [`Clock::paused`] moves the wall clock with it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall: Wall,
}

#[derive(Clone, Copy, Debug)]
enum Wall {
    /// The system's, steps included.
    System,
    /// This, at the origin, and moving with monotonic time.
    From(SystemTime),
}

impl Clock {
    /// The system's clocks; the monotonic origin is now.
    pub fn real() -> Self {
        Self { origin: Instant::now(), wall: Wall::System }
    }

    /// A wall clock that shows `wall` now and moves with tokio's time (for tests with paused time).
    pub fn paused(wall: SystemTime) -> Self {
        Self { origin: Instant::now(), wall: Wall::From(wall) }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let since = self.origin.elapsed();
        let wall = match self.wall {
            Wall::System => SystemTime::now(),
            Wall::From(start) => start + since,
        };
        Now { mono: Mono(since), wall }
    }

    /// Returns at `deadline`, at once if it has passed, never if there is none. Cancel-safe.
    pub async fn sleep_until(&self, deadline: Option<Mono>) {
        match deadline {
            Some(at) => tokio::time::sleep_until(self.origin + at.0).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_moves_both_clocks_alike() {
        let clock = Clock::paused(SystemTime::UNIX_EPOCH);
        clock.sleep_until(Some(Mono::from_millis(1500))).await;
        let now = clock.now();
        assert_eq!(now.mono, Mono::from_millis(1500));
        assert_eq!(now.wall, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_returns_at_once_and_none_never() {
        let clock = Clock::paused(SystemTime::UNIX_EPOCH);
        clock.sleep_until(Some(Mono::ZERO)).await;
        assert!(tokio::time::timeout(Duration::from_secs(3600), clock.sleep_until(None)).await.is_err());
    }
}
