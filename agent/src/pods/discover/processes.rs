//! The node's processes that are in pods' cgroups.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use adit_core::discover::cgroup::places;
use adit_core::net::{PodUid, SandboxId};

/// Processes looked at, at most: what a kernel lets one node have by default (kernel.pid_max 4194304, of which systemd
/// allows tasks, threads included, 15 %) is far beyond; at 50 µs each these are 3 s.
const PROCESSES_MAX: usize = 65_536;
/// What is read of one file, in bytes: a cgroup path of the longest names, once for each of version 1's 14 hierarchies, is
/// 14 KiB in practice.
const FILE_LEN_MAX: u64 = 64 * 1024;
/// How the programs are called that hold a sandbox: Kubernetes', containerd's, CRI-O's and Docker's.
const PAUSE: &str = "pause";

/// A process of a pod.
#[derive(Debug)]
pub(super) struct Found {
    /// The number of its network namespace.
    pub(super) netns: u64,
    /// The path of that.
    pub(super) path: PathBuf,
    pub(super) container: Option<SandboxId>,
    pub(super) is_pause: bool,
    /// In clock ticks since the boot.
    pub(super) started: u64,
}

/// The processes of these pods. A process that ends meanwhile is none.
pub(super) fn of_pods(
    proc: &Path,
    wanted: impl Fn(&PodUid) -> bool,
) -> io::Result<BTreeMap<PodUid, Vec<Found>>> {
    let mut found: BTreeMap<PodUid, Vec<Found>> = BTreeMap::new();
    let mut text = String::new();
    let processes =
        fs::read_dir(proc)?.flatten().filter(|entry| is_process(&entry.file_name().to_string_lossy()));
    for process in processes.take(PROCESSES_MAX) {
        let process = process.path();
        if read(&process.join("cgroup"), &mut text).is_err() {
            continue;
        }
        let place = places(&text).into_iter().find(|place| wanted(&place.uid));
        let Some(place) = place else { continue };
        let path = process.join("ns/net");
        let Ok(netns) = fs::metadata(&path) else { continue };
        if read(&process.join("stat"), &mut text).is_err() {
            continue;
        }
        let (is_pause, started) = name_and_start(&text);
        let living = Found { netns: netns.ino(), path, container: place.container, is_pause, started };
        found.entry(place.uid).or_default().push(living);
    }
    Ok(found)
}

fn is_process(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

fn read(path: &Path, into: &mut String) -> io::Result<()> {
    into.clear();
    File::open(path)?.take(FILE_LEN_MAX).read_to_string(into).map(drop)
}

/// Of `PID (NAME) STATE PPID …`, where the name may hold anything: the 22nd field is when it started.
fn name_and_start(stat: &str) -> (bool, u64) {
    let Some((front, rest)) = stat.rsplit_once(')') else { return (false, u64::MAX) };
    let is_pause = front.split_once('(').is_some_and(|(_, name)| name == PAUSE);
    // The third is the first of the rest.
    let started = rest.split_whitespace().nth(22 - 3).and_then(|field| field.parse().ok());
    (is_pause, started.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_start_are_read_whatever_the_name() {
        let rest = "S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(name_and_start(&format!("7 (pause) {rest}")), (true, 4711));
        assert_eq!(name_and_start(&format!("7 (a) b (c) {rest}")), (false, 4711));
        assert_eq!(name_and_start("7 (pause) S 1"), (true, u64::MAX));
        assert_eq!(name_and_start(""), (false, u64::MAX));
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let (is_pause, started) = name_and_start(&own);
        assert!(!is_pause && started < u64::MAX);
    }
}
