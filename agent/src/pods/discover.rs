//! Looks for the sandboxes of running pods that no CNI ADD named: in the processes of the node, by their cgroups, and in
//! what the container runtime keeps of its CNI results. What proves what is [`adit_core::discover`]'s.

mod processes;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use adit_core::discover::{Cached, CachedNetns, Evidence, NotFound, Process, Proof, Sought, judge};
use adit_core::net::PodUid;

use super::perform::words;
use crate::netns::Netns;
use crate::node;
use processes::Found as Living;
use records::Record;

/// Namespaces that are bound to a file, at most: one a sandbox.
const NAMED_MAX: usize = 16_384;

/// Where it is looked.
#[derive(Clone, Debug)]
pub(super) struct Looker {
    proc: PathBuf,
    cni_results: Vec<PathBuf>,
    netns_dirs: Vec<PathBuf>,
    /// The number of the node's own namespace.
    node: u64,
}

/// A pod's sandbox, with its namespace held open.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) proof: Proof,
    pub(super) netns: Netns,
    /// By which a restarted agent can open it: of a file where there is one, or else of a process.
    pub(super) path: PathBuf,
}

impl Looker {
    /// `proc` is where processes are seen, `cni_results` and `netns_dirs` are folders of the runtime's; of these any may be
    /// absent. `node` is the number of the node's own namespace.
    pub(super) fn new(proc: PathBuf, cni_results: Vec<PathBuf>, netns_dirs: Vec<PathBuf>, node: u64) -> Self {
        Self { proc, cni_results, netns_dirs, node }
    }

    /// Looks once for all of these. Blocks for about 50 µs a process of the node, and as long for each sandbox's record.
    pub(super) fn look(&self, sought: Vec<Sought>) -> Vec<(Sought, Result<Found, NotFound>)> {
        let uids: BTreeSet<&PodUid> = sought.iter().map(|sought| &sought.uid).collect();
        let wanted = |uid: &PodUid| uids.contains(uid);
        let mut living = match processes::of_pods(&self.proc, wanted) {
            Ok(living) => living,
            Err(error) => {
                tracing::warn!(proc = %self.proc.display(), %error, "cannot look at the node's processes");
                return sought.into_iter().map(|sought| (sought, Err(NotFound::NotLooked))).collect();
            }
        };
        let mut records = records::of_pods(&self.cni_results, wanted);
        let named = self.named();
        let look = |sought: Sought| {
            let living = living.remove(&sought.uid).unwrap_or_default();
            let records = records.remove(&sought.uid).unwrap_or_default();
            let found = Look::at(self.node, living, &records).judge(&sought, &named);
            (sought, found)
        };
        sought.into_iter().map(look).collect()
    }

    /// Whether a path is of a process, and so may end before its namespace does.
    pub(super) fn is_of_process(&self, path: &Path) -> bool {
        path.starts_with(&self.proc)
    }

    /// The path of another process of this pod in this namespace: that by which it was known has ended.
    pub(super) fn other_process(&self, uid: &PodUid, netns: u64) -> Option<PathBuf> {
        let living = processes::of_pods(&self.proc, |other| other == uid).ok()?;
        living.into_values().flatten().find(|living| living.netns == netns).map(|living| living.path)
    }

    /// The files that namespaces are bound to, by number.
    fn named(&self) -> BTreeMap<u64, PathBuf> {
        let files = self.netns_dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let numbered = files.filter_map(|file| Some((fs::metadata(file.path()).ok()?.ino(), file.path())));
        numbered.take(NAMED_MAX).collect()
    }
}

/// What was seen of one pod.
struct Look {
    evidence: Evidence,
    /// Each namespace that was opened, with the paths of it, the best first.
    open: BTreeMap<u64, (Netns, Vec<PathBuf>)>,
}

impl Look {
    fn at(node: u64, mut living: Vec<Living>, records: &[Record]) -> Self {
        let mut look = Self { evidence: Evidence { node, ..Evidence::default() }, open: BTreeMap::new() };
        for record in records {
            let netns = record.netns.as_deref().map(|path| look.open(path, None));
            let netns = match netns {
                Some(Some(number)) => CachedNetns::Is(number),
                Some(None) => CachedNetns::Gone,
                None => CachedNetns::Unsaid,
            };
            let (sandbox, ips) = (record.sandbox.clone(), record.ips.clone());
            look.evidence.cached.push(Cached { sandbox, netns, ips });
        }
        // The one that holds the sandbox outlives the others.
        living.sort_by_key(|living| (!living.is_pause, living.started));
        for Living { netns, path, container, is_pause, started } in living {
            if netns != node && look.open(&path, Some(netns)) != Some(netns) {
                // It has ended meanwhile.
                continue;
            }
            look.evidence.processes.push(Process { netns, container, is_pause, started });
        }
        look
    }

    /// Opens a namespace and reads its addresses, unless that was done; returns its number, if it is that which is
    /// expected and no ordinary file.
    fn open(&mut self, path: &Path, expected: Option<u64>) -> Option<u64> {
        if let Some((_, paths)) = expected.and_then(|number| self.open.get_mut(&number)) {
            paths.push(path.to_owned());
            return expected;
        }
        let netns = Netns::open(path).ok()?;
        // A process's number may have gone to another since it was looked at.
        let number = netns.inode();
        if expected.is_some_and(|expected| expected != number) {
            return None;
        }
        match node::addresses_in(&netns) {
            Ok(addresses) => {
                self.evidence.addresses.insert(number, addresses.into_iter().collect());
            }
            Err(error) => {
                tracing::warn!(netns = %path.display(), error = %words(&error), "cannot read the addresses in a namespace");
            }
        }
        self.open.entry(number).or_insert((netns, Vec::new())).1.push(path.to_owned());
        Some(number)
    }

    fn judge(mut self, sought: &Sought, named: &BTreeMap<u64, PathBuf>) -> Result<Found, NotFound> {
        let proof = judge(sought, &self.evidence)?;
        let (netns, paths) = self.open.remove(&proof.netns).ok_or(NotFound::Unopened)?;
        // Held open, its number is nobody else's.
        let from_record =
            self.evidence.cached.iter().any(|cached| cached.netns == CachedNetns::Is(proof.netns));
        let best = if from_record { None } else { named.get(&proof.netns) };
        let path = best.or_else(|| paths.first()).cloned().ok_or(NotFound::Unopened)?;
        Ok(Found { proof, netns, path })
    }
}

#[cfg(test)]
mod tests;
