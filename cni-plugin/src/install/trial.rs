//! Whether the runtime chains drop-ins, found out by whether it calls the plugin. Time is an argument.

use std::time::Duration;

/// How long a drop-in may go uncalled: a pod that starts meanwhile under a runtime that does not chain it is captured
/// late, by the agent's search for running pods.
pub(crate) const CALL_WAIT: Duration = Duration::from_secs(60);

/// What is known of the runtime.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Trial {
    /// There was no drop-in yet.
    #[default]
    Ahead,
    /// There is one since this moment, and no call so far.
    Since(Duration),
    /// It calls.
    Passed,
    /// It did not in time.
    Failed,
}

/// What a look finds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sight {
    /// No drop-in is in place.
    NoDropIn,
    /// One is, and the plugin was not called through it.
    Uncalled,
    /// And it was.
    Called,
}

impl Trial {
    /// What is known after a look. Once it has passed or failed, it stays so.
    pub(crate) fn after(self, sight: Sight, now: Duration) -> Self {
        match (self, sight) {
            (Self::Passed | Self::Failed, _) | (Self::Ahead, Sight::NoDropIn) => self,
            (Self::Ahead | Self::Since(_), Sight::Called) => Self::Passed,
            (Self::Ahead, Sight::Uncalled) => Self::Since(now),
            (Self::Since(since), _) if now.saturating_sub(since) >= CALL_WAIT => Self::Failed,
            (Self::Since(_), _) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sights: &[(u64, Sight)]) -> Trial {
        let each =
            |trial: Trial, (second, sight): &(u64, Sight)| trial.after(*sight, Duration::from_secs(*second));
        sights.iter().fold(Trial::default(), each)
    }

    #[test]
    fn a_runtime_passes_by_its_first_call_and_does_not_fail_later() {
        assert_eq!(after(&[(0, Sight::NoDropIn), (1, Sight::Uncalled), (60, Sight::Called)]), Trial::Passed);
        assert_eq!(
            after(&[(0, Sight::Called), (99, Sight::Uncalled), (999, Sight::Uncalled)]),
            Trial::Passed
        );
    }

    #[test]
    fn a_runtime_that_does_not_call_fails_in_time_though_another_removes_the_drop_in_meanwhile() {
        let sights = [(5, Sight::Uncalled), (30, Sight::NoDropIn), (64, Sight::Uncalled)];
        assert_eq!(after(&sights), Trial::Since(Duration::from_secs(5)));
        assert_eq!(
            after(&[(5, Sight::Uncalled), (30, Sight::NoDropIn), (65, Sight::NoDropIn)]),
            Trial::Failed
        );
        assert_eq!(after(&[(5, Sight::Uncalled), (65, Sight::Uncalled), (66, Sight::Called)]), Trial::Failed);
    }

    #[test]
    fn while_there_is_no_network_no_time_runs() {
        assert_eq!(after(&[(0, Sight::NoDropIn), (500, Sight::NoDropIn)]), Trial::Ahead);
    }
}
