//! How often something is repaired: at once what goes wrong now and then, ever more rarely what another writer undoes
//! again and again. Time is an argument.

use std::time::Duration;

/// So many repairs in a row are made at once.
const AT_ONCE: u32 = 3;
/// The longest wait between two: a pod that starts in between waits as long in the worst case.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// So long without a repair, beyond the wait, and the next is made at once again.
const CALM: Duration = Duration::from_secs(60);

/// The repairs of one thing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    in_a_row: u32,
    last: Duration,
}

impl Pace {
    /// Whether it may be repaired at `now`.
    pub(crate) fn allows(&self, now: Duration) -> bool {
        now.saturating_sub(self.last) >= self.wait()
    }

    /// It was.
    pub(crate) fn repaired(&mut self, now: Duration) {
        let is_in_a_row = now.saturating_sub(self.last) < self.wait() + CALM;
        self.in_a_row = if is_in_a_row { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = now;
    }

    /// What the next repair waits for after the last; zero, then 2, 4, 8 … seconds.
    pub(crate) fn wait(&self) -> Duration {
        match self.in_a_row.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => Duration::from_secs(2_u64.saturating_pow(more.saturating_add(1))).min(WAIT_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which something that is broken all the time is repaired, looked at every second until `end`.
    fn repairs(pace: &mut Pace, start: u64, end: u64) -> Vec<u64> {
        let mut at = Vec::new();
        for second in start..end {
            let now = Duration::from_secs(second);
            if pace.allows(now) {
                pace.repaired(now);
                at.push(second);
            }
        }
        at
    }

    #[test]
    fn another_writer_is_answered_ever_more_rarely() {
        let mut pace = Pace::default();
        assert_eq!(repairs(&mut pace, 0, 300), [0, 1, 2, 4, 8, 16, 32, 64, 124, 184, 244]);
    }

    #[test]
    fn after_calm_it_is_repaired_at_once_again() {
        let mut pace = Pace::default();
        repairs(&mut pace, 0, 300);
        assert_eq!(repairs(&mut pace, 400, 404), [400, 401, 402]);
    }
}
