//! What proves that a network namespace is a pod's.
//!
//! Three proofs: a process of the pod's cgroup lives in it (the kubelet's word and the kernel's); the runtime's record of
//! its last CNI result names it (libcni's cache, of which entries outlive their sandbox); its addresses are those of the
//! pod's status. The addresses must agree in any case. Beside them:
//! - a process suffices: with the record, which then names the sandbox, or without (a runtime that keeps it elsewhere);
//! - the record alone suffices only where no process of the pod was seen in any pod's namespace, as where the node's
//!   processes are hidden from the agent: else it may be of an earlier sandbox, and the pod be called captured that is not.
//!
//! Two namespaces for which as much speaks: neither is taken, since the wrong one would leave the pod in clear.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::net::{ObjectName, PodUid, SandboxId};

/// A pod to be looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sought {
    /// Which.
    pub uid: PodUid,
    /// Its name.
    pub name: ObjectName,
    /// The addresses of its status; never empty: without one it has no sandbox.
    pub ips: Vec<IpAddr>,
}

/// A process of the pod's cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Process {
    /// The number of its network namespace.
    pub netns: u64,
    /// Its container.
    pub container: Option<SandboxId>,
    /// It is called as the process that only holds a sandbox.
    pub is_pause: bool,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
}

/// Which namespace the runtime's record names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CachedNetns {
    /// This one, which is there.
    Is(u64),
    /// One that is not there any more.
    Gone,
    /// None: older libcni does not write it down.
    Unsaid,
}

/// The runtime's record of a CNI result for the pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cached {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its namespace.
    pub netns: CachedNetns,
    /// The addresses that it was given.
    pub ips: Vec<IpAddr>,
}

/// What a look at the node has shown of one pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Evidence {
    /// The number of the node's own namespace: a pod's never.
    pub node: u64,
    /// The processes of its cgroup.
    pub processes: Vec<Process>,
    /// The runtime's records of it.
    pub cached: Vec<Cached>,
    /// The addresses in each namespace that a process or a record names, where they could be read.
    pub addresses: BTreeMap<u64, BTreeSet<IpAddr>>,
}

/// What a namespace was found by, beside its addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// Its processes and the runtime's record.
    Both,
    /// Its processes.
    Processes,
    /// The runtime's record.
    Record,
}

/// A pod's sandbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proof {
    /// The number of its namespace.
    pub netns: u64,
    /// Its container id, by which the runtime will take it down.
    pub sandbox: SandboxId,
    /// Found by.
    pub by: By,
}

/// Why a pod's sandbox is not known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotFound {
    /// Nothing on the node is the pod's.
    NoTrace,
    /// All of its processes are in the node's own namespace.
    NodeNetwork,
    /// Not one of its namespaces has the addresses of its status.
    OtherAddresses(BTreeSet<IpAddr>),
    /// As much speaks for several namespaces.
    Ambiguous(usize),
    /// Its namespace is known, and the container id of its sandbox is not.
    NoSandboxId,
    /// Its namespace is gone again, or cannot be opened.
    Unopened,
    /// Its sandbox is in the journal, in words that this agent cannot use.
    Unread,
    /// The runtime has just taken it down.
    Deleted,
    /// The node could not be looked at.
    NotLooked,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTrace => f.write_str(
                "no process of the pod, and no record of the container runtime, names its network namespace",
            ),
            Self::NodeNetwork => {
                f.write_str("all processes of the pod are in the node's own network namespace")
            }
            Self::OtherAddresses(found) => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "its network namespace does not have the addresses of its status but {}",
                    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
                )
            }
            Self::Ambiguous(count) => write!(f, "as much speaks for {count} network namespaces"),
            Self::NoSandboxId => f.write_str("the container id of its sandbox is not known"),
            Self::Unopened => f.write_str("its network namespace cannot be opened"),
            Self::Unread => {
                f.write_str("its journal entry is of another version, or cannot be used at present")
            }
            Self::Deleted => f.write_str("its sandbox is being removed"),
            Self::NotLooked => {
                f.write_str("the node's processes cannot be looked at; the agent's log says more")
            }
        }
    }
}

/// What speaks for one namespace.
struct Candidate {
    netns: u64,
    by: By,
}

/// Decides which sandbox is the pod's.
pub fn judge(sought: &Sought, evidence: &Evidence) -> Result<Proof, NotFound> {
    let node = evidence.node;
    let lived_in: BTreeSet<u64> =
        evidence.processes.iter().map(|process| process.netns).filter(|netns| *netns != node).collect();
    let recorded: BTreeSet<u64> =
        evidence.cached.iter().filter_map(Cached::is).filter(|netns| *netns != node).collect();
    if lived_in.is_empty() && recorded.is_empty() {
        return Err(if evidence.processes.is_empty() { NotFound::NoTrace } else { NotFound::NodeNetwork });
    }
    let all: BTreeSet<u64> = lived_in.union(&recorded).copied().collect();
    let has_its_addresses = |netns: &u64| {
        let there = evidence.addresses.get(netns);
        there.is_some_and(|there| sought.ips.iter().all(|ip| there.contains(ip)))
    };
    let with_addresses: Vec<Candidate> = all
        .iter()
        .copied()
        .filter(has_its_addresses)
        .map(|netns| Candidate { netns, by: by(netns, lived_in.contains(&netns), evidence) })
        .collect();
    if with_addresses.is_empty() {
        let read: Vec<&BTreeSet<IpAddr>> =
            all.iter().filter_map(|netns| evidence.addresses.get(netns)).collect();
        if read.is_empty() {
            return Err(NotFound::Unopened);
        }
        return Err(NotFound::OtherAddresses(read.into_iter().flatten().copied().collect()));
    }
    let is = |wanted: By| move |candidate: &&Candidate| candidate.by == wanted;
    for proof in [By::Both, By::Processes, By::Record] {
        if proof == By::Record && !lived_in.is_empty() {
            break;
        }
        let mut these = with_addresses.iter().filter(is(proof));
        match (these.next(), these.count()) {
            (None, _) => {}
            (Some(one), 0) => {
                let sandbox = sandbox(one, evidence).ok_or(NotFound::NoSandboxId)?;
                return Ok(Proof { netns: one.netns, sandbox, by: one.by });
            }
            (Some(_), more) => return Err(NotFound::Ambiguous(more + 1)),
        }
    }
    // Only records of namespaces in which the pod does not live.
    Err(NotFound::OtherAddresses(
        lived_in.iter().filter_map(|netns| evidence.addresses.get(netns)).flatten().copied().collect(),
    ))
}

impl Cached {
    fn is(&self) -> Option<u64> {
        match self.netns {
            CachedNetns::Is(netns) => Some(netns),
            CachedNetns::Gone | CachedNetns::Unsaid => None,
        }
    }

    /// Whether it may be of this namespace: it names it, or it names none and has its addresses.
    fn is_of(&self, netns: u64, evidence: &Evidence) -> bool {
        let agrees = || {
            let there = evidence.addresses.get(&netns);
            !self.ips.is_empty() && there.is_some_and(|there| self.ips.iter().all(|ip| there.contains(ip)))
        };
        match self.netns {
            CachedNetns::Is(named) => named == netns,
            CachedNetns::Gone => false,
            CachedNetns::Unsaid => agrees(),
        }
    }
}

fn by(netns: u64, is_lived_in: bool, evidence: &Evidence) -> By {
    match (is_lived_in, evidence.cached.iter().any(|cached| cached.is_of(netns, evidence))) {
        (true, true) => By::Both,
        (true, false) => By::Processes,
        (false, _) => By::Record,
    }
}

/// By the runtime's record; else the container of the process that holds the sandbox, which is the first of it: the runtime
/// starts that before any other. CRI-O may have none: then the first container's id must do, for which no DEL will come;
/// that its namespace is gone is found all the same.
fn sandbox(candidate: &Candidate, evidence: &Evidence) -> Option<SandboxId> {
    let recorded: BTreeSet<&SandboxId> = evidence
        .cached
        .iter()
        .filter(|cached| cached.is_of(candidate.netns, evidence))
        .map(|cached| &cached.sandbox)
        .collect();
    let here = || evidence.processes.iter().filter(|process| process.netns == candidate.netns);
    let first = here()
        .filter(|process| process.container.is_some())
        .min_by_key(|process| (!process.is_pause, process.started));
    let first = first.and_then(|process| process.container.as_ref());
    match recorded.iter().next() {
        Some(one) if recorded.len() == 1 => Some((*one).clone()),
        // Of several records only that of the sandbox whose processes are here.
        Some(_) => first.filter(|first| recorded.contains(first)).cloned(),
        None => first.cloned(),
    }
}
