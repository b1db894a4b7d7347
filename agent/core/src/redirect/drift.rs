//! How a pod's namespace can differ from what is wanted: what a comparison finds, and what a repair reports.

use std::fmt;

use super::model::{Family, Sysctl, Table};

/// One way in which a namespace is not as wanted.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Drift {
    /// The jump to a chain of ours is missing, doubled, or not the first rule.
    Jump {
        /// Which iptables.
        family: Family,
        /// Which table.
        table: Table,
        /// The chain jumped to.
        chain: &'static str,
    },
    /// A chain of ours is missing or holds other rules.
    Rules {
        /// Which iptables.
        family: Family,
        /// Which table.
        table: Table,
        /// The chain.
        chain: &'static str,
    },
    /// A chain named like ours that is not wanted there (another version's).
    Stale {
        /// Which iptables.
        family: Family,
        /// Which table.
        table: Table,
        /// The chain.
        chain: String,
    },
    /// The policy rule is missing.
    PolicyRule(Family),
    /// The route behind the policy rule is missing.
    PolicyRoute(Family),
    /// A sysctl was changed.
    Sysctl(Sysctl),
    /// Nothing of the agent's listens on one of its ports. No edit mends this.
    Listener {
        /// Of the listener.
        family: Family,
        /// Of the listener.
        port: u16,
    },
    /// An unmarked connection did not arrive at the agent. No edit mends this if nothing else has drifted.
    Probe(Family),
    /// The pod has nat rules of the other back end, which may come before ours. No edit mends this.
    OtherBackend,
}

impl Drift {
    /// Whether applying the plan again mends it.
    pub fn mended_by_rules(&self) -> bool {
        match self {
            Self::Jump { .. }
            | Self::Rules { .. }
            | Self::Stale { .. }
            | Self::PolicyRule(_)
            | Self::PolicyRoute(_)
            | Self::Sysctl(_) => true,
            Self::Listener { .. } | Self::Probe(_) | Self::OtherBackend => false,
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump { family, table, chain } => write!(f, "{family} {table}: jump to {chain}"),
            Self::Rules { family, table, chain } => write!(f, "{family} {table}: rules of {chain}"),
            Self::Stale { family, table, chain } => write!(f, "{family} {table}: stale chain {chain}"),
            Self::PolicyRule(family) => write!(f, "{family} policy rule"),
            Self::PolicyRoute(family) => write!(f, "{family} policy route"),
            Self::Sysctl(sysctl) => write!(f, "sysctl {}", sysctl.path()),
            Self::Listener { family, port } => write!(f, "{family} listener on {port}"),
            Self::Probe(family) => write!(f, "{family} capture probe"),
            Self::OtherBackend => f.write_str("nat rules of the other iptables back end"),
        }
    }
}
