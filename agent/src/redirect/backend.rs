//! Which iptables a namespace uses, and what stands in it.
//!
//! The kernel keeps the rules of iptables-nft and iptables-legacy apart, and runs both; each program shows only its
//! own. So the choice is made per namespace: the one that holds our rules, else the one that holds anybody's, else
//! nft if it works, else legacy.

use std::fmt;

use adit_core::redirect::{self as plan, Drift, Family, Wanted};
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::command;
use super::error::RedirectError;
use crate::netns::Netns;

/// An implementation of iptables.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// iptables-nft: rules in nf_tables.
    Nft,
    /// iptables-legacy: rules in x_tables.
    Legacy,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

impl Backend {
    fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    fn save_program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-save",
            (Self::Nft, Family::V6) => "ip6tables-nft-save",
            (Self::Legacy, Family::V4) => "iptables-legacy-save",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-save",
        }
    }

    pub(super) fn restore_program(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-restore",
            (Self::Nft, Family::V6) => "ip6tables-nft-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
        }
    }

    /// Wait 5 s for the lock, which the pod's own iptables may hold; leave the rest of each table alone.
    pub(super) fn restore_args(self) -> &'static [&'static str] {
        &["-w", "5", "--noflush"]
    }

    fn tables_file(family: Family) -> &'static str {
        match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }
}

/// The text of iptables-save, per family.
pub(super) struct Standing {
    pub(super) backend: Backend,
    pub(super) saves: Vec<(Family, String)>,
}

impl Standing {
    /// What stands, of the back end that shall be used here.
    pub(super) async fn read(netns: &Netns) -> Result<Self, RedirectError> {
        let families = families(netns)?;
        let legacy_used = legacy_tables(netns, "")?;
        let nft = Self::read_if_it_works(netns, Backend::Nft, &families).await?.ok();
        if let Some(nft) = nft.as_ref().filter(|nft| nft.holds_ours() || !legacy_used) {
            return Ok(Self { backend: nft.backend, saves: nft.saves.clone() });
        }
        let legacy = Self::read_if_it_works(netns, Backend::Legacy, &families).await?;
        match (nft, legacy) {
            (None, Err(error)) => Err(RedirectError::NoBackend { source: Box::new(error) }),
            (Some(nft), Err(_)) => Ok(nft),
            (None, Ok(legacy)) => Ok(legacy),
            (Some(_), Ok(legacy)) if legacy.holds_ours() => Ok(legacy),
            (Some(nft), Ok(legacy)) if legacy.holds_others() && !nft.holds_others() => Ok(legacy),
            (Some(nft), Ok(_)) => Ok(nft),
        }
    }

    /// What stands, of every back end that has been used here. Fails only if none works.
    pub(super) async fn read_all(netns: &Netns) -> Result<Vec<Self>, RedirectError> {
        let families = families(netns)?;
        let mut all = Vec::new();
        let nft = Self::read_if_it_works(netns, Backend::Nft, &families).await?;
        let worked = nft.is_ok();
        all.extend(nft.ok());
        if legacy_tables(netns, "")? || !worked {
            match Self::read_if_it_works(netns, Backend::Legacy, &families).await? {
                Ok(legacy) => all.push(legacy),
                Err(error) if !worked => {
                    return Err(RedirectError::NoBackend { source: Box::new(error) });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// What stands, or, inside, why this back end does not work here. Outside: it may work, but could not be asked;
    /// the other one must not be taken for that.
    async fn read_if_it_works(
        netns: &Netns,
        backend: Backend,
        families: &[Family],
    ) -> Result<Result<Self, RedirectError>, RedirectError> {
        match Self::read_backend(netns, backend, families).await {
            Err(error) if error.means_no_backend() => Ok(Err(error)),
            other => other.map(Ok),
        }
    }

    /// What stands, of this back end.
    pub(super) async fn read_backend(
        netns: &Netns,
        backend: Backend,
        families: &[Family],
    ) -> Result<Self, RedirectError> {
        let runs = families.iter().map(|family| async move {
            (*family, command::run(netns, backend.save_program(*family), &[], "").await)
        });
        let mut saves = Vec::new();
        for (family, save) in futures_util::future::join_all(runs).await {
            saves.push((family, save?));
        }
        Ok(Self { backend, saves })
    }

    pub(super) fn families(&self) -> Vec<Family> {
        self.saves.iter().map(|(family, _)| *family).collect()
    }

    pub(super) fn holds_ours(&self) -> bool {
        self.saves.iter().any(|(_, save)| plan::holds_ours(save))
    }

    pub(super) fn compare(&self, wanted: &Wanted) -> Vec<Drift> {
        self.saves.iter().flat_map(|(family, save)| plan::compare(save, wanted, *family)).collect()
    }

    fn holds_others(&self) -> bool {
        self.saves.iter().any(|(_, save)| plan::holds_others(save))
    }

    /// Whether the pod has nat rules where our programs do not show them. Which of the two comes first depends on
    /// which nat table was made later.
    pub(super) async fn other_backend_has_nat_rules(&self, netns: &Netns) -> Result<bool, RedirectError> {
        // Asking iptables-legacy would make the table; the kernel's list tells without.
        if self.backend == Backend::Nft && !legacy_tables(netns, "nat")? {
            return Ok(false);
        }
        let other = Self::read_if_it_works(netns, self.backend.other(), &self.families()).await?;
        Ok(other.is_ok_and(|other| other.saves.iter().any(|(_, save)| plan::holds_others_nat(save))))
    }
}

/// The families that the kernel has.
fn families(netns: &Netns) -> Result<Vec<Family>, RedirectError> {
    let v6 = netns.run(|| Socket::new(Domain::IPV6, Type::STREAM.cloexec(), None))?;
    match v6 {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(vec![Family::V4]),
        Ok(_) | Err(_) => Ok(Family::BOTH.to_vec()),
    }
}

/// Whether iptables-legacy has been used here, with this table (`""`: any). The kernel lists a table from its first
/// use on; without x_tables the file does not exist.
fn legacy_tables(netns: &Netns, table: &str) -> Result<bool, RedirectError> {
    let read = |family| std::fs::read_to_string(Backend::tables_file(family)).unwrap_or_default();
    let names = netns.run(|| Family::BOTH.map(read))?;
    let mut lines = names.iter().flat_map(|names| names.lines());
    Ok(lines.any(|name| table.is_empty() || name == table))
}
