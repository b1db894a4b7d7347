//! What the driver keeps of one sandbox beside the machine's state: its namespace, addresses and mark, and what stood
//! in it before. Goes into the journal as an [`Entry`] and comes back from there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use adit_core::discover::Sought;
use adit_core::net::{PodKey, PodUid, SandboxId};
use adit_core::pods::Want;
use adit_core::redirect::{Mark, Sysctl};
use adit_core::workload::Skip;
use adit_proto::SpiffeId;
use adit_proto::cni::{Add, ContainerId, IfName, PodRef};
use nix::libc;
use tokio_util::task::AbortOnDropHandle;

use super::journal::{Captured, Entry};
use crate::dataplane::ServedPod;
use crate::netns::{Netns, NetnsError};
use crate::redirect::Applied;

/// The interface by which the kubelet reaches a pod.
pub(super) const IFNAME: &str = "eth0";

/// One sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) entry: Entry,
    pub(super) netns: Netns,
    pub(super) mark: Mark,
    /// The last application of its rules by this process.
    pub(super) applied: Option<Applied>,
    /// What its rules skip, while they stand.
    pub(super) applied_with: Option<Arc<Skip>>,
    /// How many of its connections are older than its capture and go on in clear.
    pub(super) older: usize,
    /// Why the last operation failed, while it has not succeeded.
    pub(super) trouble: Option<Arc<str>>,
    /// What the watch over its rules found and could not mend.
    pub(super) found: Option<Arc<str>>,
    pub(super) keeping: Option<Keeping>,
    /// It started while no agent could capture it.
    pub(super) late: bool,
}

/// The watch over a sandbox's rules; stops when dropped.
#[derive(Debug)]
pub(super) struct Keeping {
    /// Tells what it finds from what an earlier watch found.
    pub(super) serial: u64,
    pub(super) _task: AbortOnDropHandle<()>,
}

/// Why an entry of the journal is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stale {
    #[error("its namespace is gone")]
    Gone(#[source] NetnsError),
    #[error("its path belongs to another namespace now")]
    Other,
    #[error("its mark is none")]
    Mark,
    /// It may be there: nothing is forgotten, and it is looked at again.
    #[error("its namespace cannot be opened now")]
    Unopened(Box<Entry>, #[source] NetnsError),
}

impl Sandbox {
    /// A sandbox that the runtime has made.
    pub(super) fn arrived(add: Add, mark: Mark) -> Result<Self, NetnsError> {
        let netns = Netns::open(Path::new(&add.netns))?;
        let entry = Entry {
            arrival: 0,
            container_id: add.container_id,
            ifname: add.ifname,
            pod: add.pod,
            netns: add.netns.into(),
            inode: netns.inode(),
            ips: add.ips,
            mark: mark.value(),
            captured: None,
            backend: None,
            sysctls_before: Vec::new(),
        };
        Ok(Self::new(entry, netns, mark))
    }

    /// The sandbox `id` of a running pod that nobody named, whose namespace can be opened again by `path`; none where `id`
    /// cannot be a container's.
    pub(super) fn found(
        id: &SandboxId,
        netns: Netns,
        path: PathBuf,
        sought: &Sought,
        mark: Mark,
    ) -> Option<Self> {
        let container_id = ContainerId::try_from(id.0.to_string()).ok()?;
        let pod = PodRef {
            namespace: sought.name.namespace.to_string(),
            name: sought.name.name.to_string(),
            uid: sought.uid.to_string(),
        };
        let entry = Entry {
            arrival: 0,
            container_id,
            ifname: IfName::try_from(IFNAME.to_owned()).ok()?,
            pod,
            netns: path,
            inode: netns.inode(),
            ips: sought.ips.clone(),
            mark: mark.value(),
            captured: None,
            backend: None,
            sysctls_before: Vec::new(),
        };
        Some(Self::new(entry, netns, mark))
    }

    /// A sandbox of an earlier life of the agent, if it is still there.
    pub(super) fn recalled(entry: Entry) -> Result<Self, Stale> {
        let netns = match Netns::open(&entry.netns) {
            Ok(netns) => netns,
            Err(error) if says_gone(&error) => return Err(Stale::Gone(error)),
            Err(error) => return Err(Stale::Unopened(Box::new(entry), error)),
        };
        if netns.inode() != entry.inode {
            return Err(Stale::Other);
        }
        let mark = Mark::new(entry.mark).ok_or(Stale::Mark)?;
        Ok(Self::new(entry, netns, mark))
    }

    /// One of which this process has done and seen nothing yet.
    fn new(entry: Entry, netns: Netns, mark: Mark) -> Self {
        Self {
            entry,
            netns,
            mark,
            applied: None,
            applied_with: None,
            older: 0,
            trouble: None,
            found: None,
            keeping: None,
            late: false,
        }
    }

    pub(super) fn key(&self) -> PodKey {
        PodKey {
            uid: PodUid(self.entry.pod.uid.as_str().into()),
            sandbox: sandbox_id(&self.entry.container_id),
        }
    }

    /// Whether its namespace is still mounted where it was. The handle held here keeps it alive, not its file.
    ///
    /// Where that cannot be told (no descriptor left) it is: what is gone is closed, with all of its connections.
    pub(super) fn is_there(&self) -> bool {
        match Netns::open(&self.entry.netns) {
            Ok(netns) => netns.inode() == self.entry.inode,
            Err(error) => !says_gone(&error),
        }
    }

    pub(super) fn served_as(&self, identity: SpiffeId) -> ServedPod {
        ServedPod {
            key: self.key(),
            netns: self.netns.clone(),
            ips: self.entry.ips.clone(),
            mark: self.mark.value(),
            identity,
        }
    }

    /// Notes what an application of the rules found.
    pub(super) fn applied(&mut self, applied: Applied) {
        self.stood_before(&applied);
        self.applied = Some(applied);
    }

    /// Notes what stood, or stands and is about to be changed. Of the values from before, the first are the true ones.
    pub(super) fn stood_before(&mut self, applied: &Applied) {
        self.entry.backend = Some(applied.backend);
        for (sysctl, value) in &applied.sysctls_before {
            let path = sysctl.path();
            if self.entry.sysctls_before.iter().all(|(known, _)| known != path) {
                self.entry.sysctls_before.push((path.to_owned(), value.clone()));
            }
        }
    }

    /// The sysctls to put back.
    pub(super) fn sysctls_before(&self) -> Vec<(Sysctl, String)> {
        let known = |path: &str| Sysctl::ALL.into_iter().find(|sysctl| sysctl.path() == path);
        let before = self.entry.sysctls_before.iter();
        before.filter_map(|(path, value)| Some((known(path)?, value.clone()))).collect()
    }

    /// Nothing of ours stands in it any more.
    pub(super) fn restored(&mut self) {
        self.entry.sysctls_before.clear();
        self.entry.backend = None;
        self.applied = None;
        self.trouble = None;
        self.found = None;
    }
}

/// Whether a namespace that cannot be opened is not there, rather than not to be opened now.
fn says_gone(error: &NetnsError) -> bool {
    match error {
        NetnsError::NotNamespace { .. } => true,
        NetnsError::Open { source, .. } => {
            matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH))
        }
        NetnsError::Enter { .. } | NetnsError::Nested => false,
    }
}

/// The machine's name for a container.
pub(super) fn sandbox_id(container: &ContainerId) -> SandboxId {
    SandboxId(container.as_str().into())
}

impl From<&Want> for Captured {
    fn from(want: &Want) -> Self {
        let ends = |ranges: &[adit_core::workload::PortRange]| {
            ranges.iter().map(|range| (*range.start(), *range.end())).collect()
        };
        Self {
            identity: want.identity.clone(),
            skip_outbound_ports: ends(&want.skip.outbound_ports),
            skip_outbound_cidrs: want.skip.outbound_cidrs.clone(),
            skip_inbound_ports: ends(&want.skip.inbound_ports),
        }
    }
}

impl From<&Captured> for Want {
    fn from(captured: &Captured) -> Self {
        let ranges = |ends: &[(u16, u16)]| ends.iter().map(|(first, last)| *first..=*last).collect();
        Self {
            identity: captured.identity.clone(),
            skip: Arc::new(Skip {
                outbound_ports: ranges(&captured.skip_outbound_ports),
                outbound_cidrs: captured.skip_outbound_cidrs.clone(),
                inbound_ports: ranges(&captured.skip_inbound_ports),
                invalid: None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::Backend;

    fn add(netns: &str) -> Add {
        Add {
            container_id: ContainerId::try_from("c0ffee".to_owned()).unwrap(),
            netns: netns.into(),
            ifname: IfName::try_from("eth0".to_owned()).unwrap(),
            pod: PodRef { namespace: "shop".into(), name: "web".into(), uid: "u1".into() },
            ips: vec![],
            annotations: None,
            cgroup: None,
        }
    }

    fn own() -> Sandbox {
        Sandbox::arrived(add("/proc/self/ns/net"), Mark::from_draw(7 << 32)).unwrap()
    }

    #[test]
    fn a_sandbox_survives_a_restart_only_with_its_own_namespace() {
        let sandbox = own();
        let again = Sandbox::recalled(sandbox.entry.clone()).unwrap();
        assert_eq!((again.key(), again.mark), (sandbox.key(), sandbox.mark));
        assert!(again.is_there());
        let other = Entry { inode: sandbox.entry.inode + 1, ..sandbox.entry.clone() };
        assert!(matches!(Sandbox::recalled(other), Err(Stale::Other)));
        let gone = Entry { netns: "/run/netns/none".into(), ..sandbox.entry.clone() };
        assert!(matches!(Sandbox::recalled(gone), Err(Stale::Gone(_))));
        // What cannot be opened for another reason, here too many symbolic links, may still be there.
        let dir = tempfile::tempdir().unwrap();
        let netns = dir.path().join("loop");
        std::os::unix::fs::symlink(&netns, &netns).unwrap();
        let unopened = Entry { netns, ..sandbox.entry };
        let Err(Stale::Unopened(kept, _)) = Sandbox::recalled(unopened.clone()) else {
            panic!("it is forgotten")
        };
        assert_eq!(*kept, unopened);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_refused() {
        assert!(Sandbox::arrived(add("/run/netns/none"), Mark::from_draw(7 << 32)).is_err());
        assert!(Sandbox::arrived(add("/etc/hostname"), Mark::from_draw(7 << 32)).is_err());
    }

    #[test]
    fn a_namespace_is_gone_only_if_its_file_is() {
        let gone = |path: &str| says_gone(&Netns::open(Path::new(path)).unwrap_err());
        for path in ["/run/netns/none", "/etc/hostname/none", "/etc/hostname", "/proc/4194305/ns/net"] {
            assert!(gone(path), "{path}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::EACCES, libc::ENOMEM] {
            let source = std::io::Error::from_raw_os_error(errno);
            assert!(!says_gone(&NetnsError::Open { path: "/run/netns/x".into(), source }), "{errno}");
        }
    }

    #[test]
    fn what_is_wanted_survives_the_journal() {
        let want = Want {
            identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            skip: Arc::new(Skip {
                outbound_ports: vec![53..=53, 9000..=9100],
                outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                inbound_ports: vec![8080..=8080],
                invalid: None,
            }),
        };
        assert_eq!(Want::from(&Captured::from(&want)), want);
    }

    #[test]
    fn sysctls_keep_the_value_of_before_the_first_change() {
        let mut sandbox = own();
        let applied = |value: &str| Applied {
            backend: Backend::Nft,
            sysctls_before: vec![(Sysctl::TcpMigrateReq, value.to_owned())],
            conditions: vec![],
        };
        sandbox.stood_before(&applied("0"));
        assert_eq!(sandbox.applied, None, "nothing has been changed yet");
        sandbox.applied(applied("0"));
        sandbox.applied(applied("2"));
        assert_eq!(sandbox.sysctls_before(), [(Sysctl::TcpMigrateReq, "0".to_owned())]);
        sandbox.restored();
        assert_eq!(sandbox.sysctls_before(), []);
    }
}
