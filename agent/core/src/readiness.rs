//! Whether the agent is ready, and if not, what is missing and why.
//!
//! Ready means: it knows the policies, its workers serve, the CNI plugin reaches it and the pods of an earlier life are
//! adopted. A pod that cannot be captured, or a certificate that cannot be had, is a problem of that pod, shown elsewhere:
//! an unready agent would take every other pod of the node with it.

use std::num::NonZeroUsize;

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
    /// Whether the agent drains: it must get nothing new.
    pub draining: bool,
    /// What capture does without in some pods: told beside readiness, and no part of it.
    pub sysctls_refused: Vec<SysctlRefused>,
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
    /// The agent is going away.
    Draining,
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WorldNotSynced(kinds) => write!(f, "not synced yet: {}", kinds.join(", ")),
            Self::WorkersNotRunning => f.write_str("the data plane's workers are not running"),
            Self::CniNotListening => f.write_str("the CNI socket is not there"),
            Self::Adopting(pods) => write!(f, "{pods} pods of the journal are not adopted yet"),
            Self::Draining => f.write_str("the agent is draining"),
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
    if facts.draining {
        unmet.push(Unmet::Draining);
    }
    unmet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_named() {
        let nothing =
            Facts { kinds_missing: vec!["Pod", "Service"], adopting: 3, draining: true, ..Facts::default() };
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
        let refused =
            SysctlRefused { sysctl: Sysctl::TcpMigrateReq, pods: NonZeroUsize::MIN.saturating_add(1) };
        let all = Facts {
            workers_running: true,
            cni_listening: true,
            sysctls_refused: vec![refused],
            ..Facts::default()
        };
        assert_eq!(unmet(&all), [], "a sysctl is no reason to be unready");
        assert_eq!(refused.to_string(), "net/ipv4/tcp_migrate_req cannot be set in 2 pods");
    }
}
