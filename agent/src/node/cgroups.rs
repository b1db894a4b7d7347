//! Tells a pod's cgroups from the node's other ones, by the number that the kernel keeps with a socket.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The number of the root of the hierarchy; also what a socket has on a node with cgroup v1.
const ROOT: u64 = 1;
/// Cgroups whose kind is remembered: the kubelet's and the node's services, some hundred.
const KNOWN_MAX: usize = 1024;
/// Directories looked at in one search: 500 pods with 3 containers each are 3,500.
const SEARCHED_MAX: usize = 65_536;

/// What is known of a node's cgroups. Their numbers are never used twice (kernfs, on 64-bit systems).
#[derive(Debug)]
pub(super) struct Cgroups {
    root: PathBuf,
    of_a_pod: Mutex<HashMap<u64, bool>>,
}

impl Cgroups {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), of_a_pod: Mutex::default() }
    }

    /// Whether a cgroup belongs to a pod. One that is not found does: it is not the kubelet's.
    pub(super) fn is_of_a_pod(&self, cgroup: u64) -> bool {
        if cgroup == ROOT {
            return false;
        }
        if let Some(known) = self.known().get(&cgroup) {
            return *known;
        }
        let found = search(&self.root, cgroup);
        let of_a_pod = found.as_deref().is_none_or(is_pod_path);
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(cgroup, of_a_pod);
        of_a_pod
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<u64, bool>> {
        self.of_a_pod.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path below `root` of the directory with this inode number, the kernel's number of a cgroup.
fn search(root: &Path, inode: u64) -> Option<PathBuf> {
    let mut unread = vec![PathBuf::new()];
    for _ in 0..SEARCHED_MAX {
        let below = unread.pop()?;
        let path = root.join(&below);
        if std::fs::metadata(&path).is_ok_and(|found| found.ino() == inode) {
            return Some(below);
        }
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        unread.extend(folders.map(|entry| below.join(entry.file_name())));
    }
    None
}

/// The kubelet keeps all pods below one cgroup: `kubepods` with the cgroupfs driver, `kubepods.slice` with systemd's,
/// either below another where the kubelet was given a cgroup root.
fn is_pod_path(path: &Path) -> bool {
    path.iter().any(|name| name.to_string_lossy().contains("kubepods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_from_services_by_where_they_lie() {
        for (path, pod) in [
            ("kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/abc", true),
            ("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-1.scope", true),
            ("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice", true),
            ("system.slice/kubelet.service", false),
            ("", false),
        ] {
            assert_eq!(is_pod_path(Path::new(path)), pod, "{path}");
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_number_and_an_unknown_one_is_taken_for_a_pods() {
        let root = tempfile::tempdir().unwrap();
        let number = |path: &str| {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
            std::fs::metadata(root.path().join(path)).unwrap().ino()
        };
        let kubelet = number("system.slice/kubelet.service");
        let pod = number("kubepods/pod1");
        let cgroups = Cgroups::new(root.path());
        assert!(!cgroups.is_of_a_pod(kubelet));
        assert!(cgroups.is_of_a_pod(pod));
        assert!(cgroups.is_of_a_pod(u64::MAX));
        assert!(!cgroups.is_of_a_pod(ROOT));
    }
}
