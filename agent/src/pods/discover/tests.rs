//! A node whose files are in a folder; the one namespace in it is the test's own.

use std::net::IpAddr;
use std::os::unix::fs::symlink;

use adit_core::discover::By;
use adit_core::net::{ObjectName, SandboxId};

use super::*;

const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";
const OWN: &str = "/proc/self/ns/net";

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["proc", "results", "netns"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// A process of the pod, which started at this tick.
    fn process(&self, pid: u32, name: &str, container: &str, started: u32) -> PathBuf {
        let folder = self.path("proc").join(pid.to_string());
        fs::create_dir_all(folder.join("ns")).unwrap();
        let cgroup = format!("3:cpu:/kubepods/besteffort/pod{UID}/{}\n0::/\n", id(container));
        fs::write(folder.join("cgroup"), cgroup).unwrap();
        let stat = format!("{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0 0");
        fs::write(folder.join("stat"), stat).unwrap();
        symlink(OWN, folder.join("ns/net")).unwrap();
        folder.join("ns/net")
    }

    fn record(&self, netns: &Path) {
        let text = format!(
            r#"{{"containerId":"{}","ifName":"eth0","netns":"{}","cniArgs":[["K8S_POD_UID","{UID}"]],
               "result":{{"ips":[{{"address":"127.0.0.1/8"}}]}}}}"#,
            id("e"),
            netns.display()
        );
        fs::write(self.path("results/bridge-e-eth0"), text).unwrap();
    }

    fn looker(&self, node: u64) -> Looker {
        let results = vec![self.path("none"), self.path("results")];
        Looker::new(self.path("proc"), results, vec![self.path("netns"), self.path("none")], node)
    }

    fn look(&self) -> Result<Found, NotFound> {
        only(self.looker(1).look(vec![sought("127.0.0.1")]))
    }
}

fn only(mut found: Vec<(Sought, Result<Found, NotFound>)>) -> Result<Found, NotFound> {
    assert_eq!(found.len(), 1);
    found.remove(0).1
}

fn sought(ip: &str) -> Sought {
    let ips: Vec<IpAddr> = vec![ip.parse().unwrap()];
    Sought { uid: PodUid(UID.into()), name: ObjectName::new("shop", "web"), ips }
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

fn own() -> u64 {
    Netns::open(Path::new(OWN)).unwrap().inode()
}

#[test]
fn a_sandbox_is_found_by_its_processes_and_known_by_the_path_that_lasts_longest() {
    let node = Node::new();
    node.process(70, "server", "a", 900);
    let pause = node.process(102, "pause", "b", 800);
    let found = node.look().unwrap();
    assert_eq!((found.proof.by, found.proof.sandbox), (By::Processes, SandboxId(id("b").into())));
    assert_eq!((found.path, found.netns.inode()), (pause, own()));
    // A file to which the namespace is bound outlives every process.
    let named = node.path("netns/cni-1");
    symlink(OWN, &named).unwrap();
    assert_eq!(node.look().unwrap().path, named);
    let other = node.path("elsewhere");
    symlink(OWN, &other).unwrap();
    node.record(&other);
    let found = node.look().unwrap();
    assert_eq!((found.proof.by, found.path), (By::Both, other));
    assert_eq!(found.proof.sandbox, SandboxId(id("e").into()));
}

#[test]
fn a_record_of_a_namespace_that_is_gone_or_no_namespace_is_none() {
    let node = Node::new();
    node.record(Path::new("/run/netns/none"));
    assert_eq!(node.look().unwrap_err(), NotFound::NoTrace);
    node.record(Path::new("/etc/hostname"));
    assert_eq!(node.look().unwrap_err(), NotFound::NoTrace);
    node.record(Path::new(OWN));
    assert_eq!(node.look().unwrap().proof.by, By::Record);
}

#[test]
fn what_cannot_be_the_pod_s_is_said() {
    let node = Node::new();
    assert_eq!(node.look().unwrap_err(), NotFound::NoTrace);
    node.process(7, "server", "a", 900);
    let of_the_node = only(node.looker(own()).look(vec![sought("127.0.0.1")]));
    assert_eq!(of_the_node.unwrap_err(), NotFound::NodeNetwork);
    let elsewhere = only(node.looker(1).look(vec![sought("192.0.2.7")]));
    assert!(
        matches!(elsewhere, Err(NotFound::OtherAddresses(found)) if found.contains(&"127.0.0.1".parse().unwrap()))
    );
    fs::remove_dir_all(node.path("proc")).unwrap();
    assert_eq!(node.look().unwrap_err(), NotFound::NotLooked);
}

#[test]
fn damaged_and_vanishing_processes_are_none() {
    let node = Node::new();
    let path = node.process(7, "server", "a", 900);
    for broken in ["8", "9", "10", "self", "1x"] {
        fs::create_dir_all(node.path("proc").join(broken).join("ns")).unwrap();
    }
    let cgroup = fs::read(node.path("proc/7/cgroup")).unwrap();
    fs::write(node.path("proc/9/cgroup"), &cgroup).unwrap();
    fs::write(node.path("proc/10/cgroup"), [0xff, 0xfe]).unwrap();
    fs::write(node.path("proc/1x/cgroup"), &cgroup).unwrap();
    assert_eq!(node.look().unwrap().path, path);
    // Its number belongs to an ordinary file by now.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert_eq!(node.look().unwrap_err(), NotFound::NoTrace);
}

#[test]
fn another_process_of_the_pod_stands_in_for_one_that_has_ended() {
    let node = Node::new();
    let looker = node.looker(1);
    let uid = PodUid(UID.into());
    assert_eq!(looker.other_process(&uid, own()), None);
    let path = node.process(7, "server", "a", 900);
    assert!(looker.is_of_process(&path) && !looker.is_of_process(Path::new("/run/netns/cni-1")));
    assert_eq!(looker.other_process(&uid, own()), Some(path));
    assert_eq!(looker.other_process(&uid, own() + 1), None);
    assert_eq!(looker.other_process(&PodUid("another".into()), own()), None);
}
