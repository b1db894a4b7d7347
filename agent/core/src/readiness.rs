//! Whether the agent is ready, and if not, what is missing and why.
//!
//! Ready means: it knows the policies, its workers serve, the CNI plugin reaches it and the pods of an earlier life are
//! adopted. A pod that cannot be captured, or a certificate that cannot be had, is a problem of that pod, shown elsewhere:
//! an unready agent would take every other pod of the node with it.

use std::num::NonZeroUsize;

use crate::life::Phase;
use crate::redirect::Sysctl;

/// What each part of the agent says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// The kinds of objects that are not read yet.
    pub kinds_missing: Vec<&'static str>,
    /// Whether the data plane's workers run.
    pub workers_running: bool,
    /// Whether the CNI socket is there.
    pub cni_listening: bool,
    /// Pods of the journal that are not adopted yet.
    pub adopting: usize,
    /// What the agent is at: one that ends must get nothing new.
    pub phase: Phase,
    /// The kinds of objects that are not followed at the moment: told beside readiness, as what is known stays in force.
    pub unfollowed: Vec<&'static str>,
    /// What capture does without in some pods: told beside readiness, and no part of it.
    pub sysctls_refused: Vec<SysctlRefused>,
}

impl Facts {
    /// What the agent does without, ready or not, in words.
    pub fn without(&self) -> Vec<String> {
        let unfollowed = (!self.unfollowed.is_empty())
            .then(|| format!("not followed, what is known stays in force: {}", self.unfollowed.join(", ")));
        unfollowed.into_iter().chain(self.sysctls_refused.iter().map(ToString::to_string)).collect()
    }
}

/// A sysctl that capture wants and that cannot be set in so many pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SysctlRefused {
    /// Which.
    pub sysctl: Sysctl,
    /// In how many pods.
    pub pods: NonZeroUsize,
}

impl std::fmt::Display for SysctlRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sysctl, pods } = self;
        write!(f, "{} cannot be set in {pods} pod{}", sysctl.path(), if pods.get() == 1 { "" } else { "s" })
    }
}

/// One thing that must hold and does not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unmet {
    /// Objects of these kinds are not read yet, so policies are not known.
    WorldNotSynced(Vec<&'static str>),
    /// The workers are not running.
    WorkersNotRunning,
    /// The CNI plugin cannot reach the agent.
    CniNotListening,
    /// So many pods of the journal are not adopted yet.
    Adopting(usize),
    /// The agent was told to end.
    Ending(Phase),
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WorldNotSynced(kinds) => write!(f, "not synced yet: {}", kinds.join(", ")),
            Self::WorkersNotRunning => f.write_str("the data plane's workers are not running"),
            Self::CniNotListening => f.write_str("the CNI socket is not there"),
            Self::Adopting(pods) => write!(f, "{pods} pods of the journal are not adopted yet"),
            Self::Ending(phase) => f.write_str(match phase {
                Phase::Awaiting => "the agent was told to end, and goes on as before until another is ready",
                Phase::Draining => "the agent is draining: another has taken over",
                Phase::Leaving => "Adit leaves this node",
                Phase::Serving | Phase::Stopping | Phase::Over(_) => "the agent is draining",
            }),
        }
    }
}

/// Everything that is missing; the agent is ready if nothing is.
pub fn unmet(facts: &Facts) -> Vec<Unmet> {
    let mut unmet = Vec::new();
    if !facts.kinds_missing.is_empty() {
        unmet.push(Unmet::WorldNotSynced(facts.kinds_missing.clone()));
    }
    if !facts.workers_running {
        unmet.push(Unmet::WorkersNotRunning);
    }
    if !facts.cni_listening {
        unmet.push(Unmet::CniNotListening);
    }
    if facts.adopting > 0 {
        unmet.push(Unmet::Adopting(facts.adopting));
    }
    if facts.phase != Phase::Serving {
        unmet.push(Unmet::Ending(facts.phase));
    }
    unmet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_named() {
        let nothing = Facts {
            kinds_missing: vec!["Pod", "Service"],
            adopting: 3,
            phase: Phase::Stopping,
            ..Facts::default()
        };
        let said: Vec<_> = unmet(&nothing).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "not synced yet: Pod, Service",
                "the data plane's workers are not running",
                "the CNI socket is not there",
                "3 pods of the journal are not adopted yet",
                "the agent is draining",
            ]
        );
        let ending = |phase| Unmet::Ending(phase).to_string();
        assert_eq!(ending(Phase::Draining), "the agent is draining: another has taken over");
        let refused =
            SysctlRefused { sysctl: Sysctl::TcpMigrateReq, pods: NonZeroUsize::MIN.saturating_add(1) };
        let all = Facts {
            workers_running: true,
            cni_listening: true,
            sysctls_refused: vec![refused],
            unfollowed: vec!["Pod", "Node"],
            ..Facts::default()
        };
        assert_eq!(unmet(&all), [], "nothing of this is a reason to be unready");
        assert_eq!(
            all.without(),
            [
                "not followed, what is known stays in force: Pod, Node",
                "net/ipv4/tcp_migrate_req cannot be set in 2 pods",
            ]
        );
    }
}
