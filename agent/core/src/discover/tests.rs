use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::cgroup::{Place, places};
use super::*;
use crate::net::{ObjectName, PodUid, SandboxId};
use crate::time::Mono;

const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";
const OTHER: &str = "2c48913c-b29f-11e7-9350-020968147797";
const ID: &str = "0f3c1bd2a4e5968778695a4b3c2d1e0f00112233445566778899aabbccddeeff";
const ID_2: &str = "ffeeddccbbaa99887766554433221100f0e1d2c3b4a5968778695a4b3c2d1e0f";

fn place(uid: &str, container: Option<&str>) -> Place {
    Place { uid: PodUid(uid.into()), container: container.map(|id| SandboxId(id.into())) }
}

fn check(text: &str, wanted: &[(&str, Option<&str>)]) {
    let text = text
        .replace("UID_", &UID.replace('-', "_"))
        .replace("UID", UID)
        .replace("ID2", ID_2)
        .replace("ID", ID);
    let wanted: Vec<Place> = wanted.iter().map(|(uid, container)| place(uid, *container)).collect();
    assert_eq!(places(&text), wanted, "{text}");
}

#[test]
fn a_process_of_a_pod_is_told_under_every_driver_version_and_runtime() {
    let ours = [(UID, Some(ID))];
    // Version 1 with cgroupfs, as a real cluster wrote it: a line a controller, and the empty one of version 2.
    check(
        "12:pids:/kubepods/besteffort/podUID/ID\n11:cpuset:/kubepods/besteffort/podUID/ID\n\
         1:name=systemd:/kubepods/besteffort/podUID/ID\n0::/\n",
        &ours,
    );
    for path in [
        // Guaranteed pods have no folder of their class.
        "/kubepods/podUID/ID",
        "/kubepods/burstable/podUID/ID",
        // Read from another cgroup namespace.
        "/../../burstable/podUID/ID",
        "/../podUID/ID",
        "/../../../kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope",
        // Below a cgroup root that the kubelet was given.
        "/adit7/node1/kubepods/podUID/ID",
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID_.slice/cri-containerd-ID.scope",
        // systemd: containerd, CRI-O with its inner group, Docker, and containerd that does not know of systemd.
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope",
        "/kubepods.slice/kubepods-podUID_.slice/crio-ID.scope/container",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/docker-ID.scope",
        "/system.slice/containerd.service/kubepods-besteffort-podUID_.slice:cri-containerd:ID",
        // cgroupfs: CRI-O, Docker, and a container that makes groups of its own.
        "/kubepods/besteffort/podUID/crio-ID",
        "/kubepods/besteffort/podUID/docker/ID",
        "/kubepods/besteffort/podUID/ID/system.slice/nginx.service",
        "/kubepods/besteffort/podUID/ID/ID2",
    ] {
        check(&format!("0::{path}\n"), &ours);
        check(&format!("4:memory:{path}\n0::/\n"), &ours);
        check(&format!("13:cpu,cpuacct:{path}\n"), &ours);
    }
    // The pod's own group, and the lines in whichever order.
    check("0::/kubepods/besteffort/podUID\n", &[(UID, None)]);
    check("3:cpu:/kubepods/podUID\n2:pids:/kubepods/podUID/ID\n", &ours);
    check("0::/kubepods.slice/kubepods-podUID_.slice/crio-conmon-ID.scope\n", &ours);
}

#[test]
fn what_is_no_pods_is_nobodys() {
    for path in [
        "/",
        "/init.scope",
        "/system.slice/kubelet.service",
        "/podruntime.slice/kubelet.service",
        "/machine.slice/libpod-ID.scope",
        "/user.slice/user-1000.slice/podman.service",
        "/docker/ID",
        // A static pod: the hash of its file.
        "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID",
        // Not a whole part.
        "/kubepods/xpodUID/ID",
        "/kubepods/podUIDx/ID",
        "/kubepods/podUID_/ID",
        "/kubepods.slice/kubepods-podUID.slice/ID",
        "/kubepods.slice/kubepods-podUID_.scope/ID",
        "/kubepods.slice/kubepodsUID_.slice/ID",
        "/kubepods/UID/ID",
    ] {
        check(&format!("0::{path}\n"), &[]);
    }
    for text in ["", "\n", "0::", "0:", "kubepods/podUID", "0:podUID"] {
        check(text, &[]);
    }
    // Ids of other lengths are no containers'.
    check("0::/kubepods/podUID/abc\n", &[(UID, None)]);
    check("0::/kubepods/podUID/IDa\n", &[(UID, None)]);
}

#[test]
fn a_pod_of_a_cluster_within_a_pod_is_both() {
    let inner = OTHER;
    check(
        &format!("0::/kubepods/besteffort/podUID/ID/kubelet/kubepods/burstable/pod{inner}/ID2\n"),
        &[(UID, Some(ID)), (inner, Some(ID_2))],
    );
}

fn any_uid() -> impl Strategy<Value = String> {
    "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
}

fn any_path(uid: String) -> impl Strategy<Value = String> {
    let escaped = uid.replace('-', "_");
    (prop::sample::select(vec![true, false]), "[0-9a-f]{64}", "(/[a-z.]{1,8}){0,3}").prop_map(
        move |(systemd, id, front)| {
            if systemd {
                format!("{front}/kubepods-besteffort-pod{escaped}.slice/crio-{id}.scope")
            } else {
                format!("{front}/kubepods/pod{uid}/{id}")
            }
        },
    )
}

proptest! {
    #[test]
    fn a_pods_process_is_never_taken_for_anothers(
        (uid, path) in any_uid().prop_flat_map(|uid| (Just(uid.clone()), any_path(uid))),
    ) {
        let found = places(&format!("0::{path}\n"));
        prop_assert_eq!(found.len(), 1, "{}", path);
        prop_assert_eq!(&*found[0].uid.0, uid.as_str());
        prop_assert!(found[0].container.is_some());
    }

    /// A byte more, less, or other in the uid: another pod, or none.
    #[test]
    fn a_uid_that_differs_by_a_byte_is_another(
        (uid, path) in any_uid().prop_flat_map(|uid| (Just(uid.clone()), any_path(uid))),
        at in 0..36_usize,
        byte in "[0-9a-f_-]",
        how in 0..3,
    ) {
        let escaped = uid.replace('-', "_");
        let written = if path.contains(&escaped) { escaped } else { uid.clone() };
        let mut other = written.clone();
        match how {
            0 => other.replace_range(at..=at, &byte),
            1 => other.insert_str(at, &byte),
            _ => other.replace_range(at..=at, ""),
        }
        let path = path.replace(&written, &other);
        let found = places(&format!("0::{path}\n"));
        prop_assert_eq!(found.iter().any(|place| *place.uid.0 == *uid), other == written, "{}", path);
    }

    #[test]
    fn no_text_is_too_much(text in "(?s).{0,200}") {
        let _ = places(&text);
    }
}

const NODE: u64 = 1;

fn sought(ips: &[&str]) -> Sought {
    Sought { uid: PodUid(UID.into()), name: ObjectName::new("shop", "web"), ips: addresses(ips) }
}

fn addresses(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn process(netns: u64, container: Option<&str>, started: u64) -> Process {
    let container = container.map(|id| SandboxId(id.into()));
    Process { netns, container, is_pause: false, started }
}

fn pause(netns: u64, container: &str) -> Process {
    Process { is_pause: true, ..process(netns, Some(container), 5) }
}

fn cached(sandbox: &str, netns: CachedNetns, ips: &[&str]) -> Cached {
    Cached { sandbox: SandboxId(sandbox.into()), netns, ips: addresses(ips) }
}

fn evidence(processes: Vec<Process>, cached: Vec<Cached>, there: &[(u64, &[&str])]) -> Evidence {
    let addresses = there.iter().map(|(netns, ips)| (*netns, addresses(ips).into_iter().collect())).collect();
    Evidence { node: NODE, processes, cached, addresses }
}

fn found(netns: u64, sandbox: &str, by: By) -> Result<Proof, NotFound> {
    Ok(Proof { netns, sandbox: SandboxId(sandbox.into()), by })
}

const IP: &str = "10.1.0.7";
const V6: &str = "fd00::7";

#[test]
fn processes_record_and_addresses_together_name_the_sandbox() {
    let there: &[(u64, &[&str])] = &[(9, &["127.0.0.1", IP, V6])];
    let processes = vec![pause(9, "pause"), process(9, Some("app"), 6)];
    let record = cached("sandbox", CachedNetns::Is(9), &[IP]);
    let all = evidence(processes.clone(), vec![record], there);
    assert_eq!(judge(&sought(&[IP, V6]), &all), found(9, "sandbox", By::Both));
    // An older libcni, which does not write the namespace down.
    let unsaid = cached("sandbox", CachedNetns::Unsaid, &[IP]);
    let all = evidence(processes.clone(), vec![unsaid], there);
    assert_eq!(judge(&sought(&[IP]), &all), found(9, "sandbox", By::Both));
    // No record: the pause container is the sandbox; without one, the first container.
    assert_eq!(judge(&sought(&[IP]), &evidence(processes, vec![], there)), found(9, "pause", By::Processes));
    let processes = vec![process(9, None, 1), process(9, Some("second"), 8), process(9, Some("first"), 6)];
    assert_eq!(judge(&sought(&[IP]), &evidence(processes, vec![], there)), found(9, "first", By::Processes));
}

#[test]
fn a_namespace_without_the_pods_addresses_is_none() {
    let processes = vec![pause(9, "pause")];
    let record = cached("sandbox", CachedNetns::Is(9), &["10.1.0.8"]);
    let all = evidence(processes.clone(), vec![record], &[(9, &["10.1.0.8"])]);
    let other = NotFound::OtherAddresses(addresses(&["10.1.0.8"]).into_iter().collect());
    assert_eq!(judge(&sought(&[IP]), &all), Err(other.clone()));
    // All of them.
    assert!(matches!(judge(&sought(&[IP, "10.1.0.8"]), &all), Err(NotFound::OtherAddresses(_))));
    assert_eq!(judge(&sought(&[IP]), &evidence(processes, vec![], &[])), Err(NotFound::Unopened));
    assert_eq!(
        other.to_string(),
        "its network namespace does not have the addresses of its status but 10.1.0.8"
    );
}

#[test]
fn a_container_s_own_namespaces_within_the_pod_are_not_the_pod_s() {
    let processes =
        vec![pause(9, "pause"), process(10, Some("docker-in-docker"), 70), process(NODE, Some("x"), 2)];
    let all = evidence(processes, vec![], &[(9, &[IP]), (10, &["172.17.0.2"]), (NODE, &[IP])]);
    assert_eq!(judge(&sought(&[IP]), &all), found(9, "pause", By::Processes));
}

#[test]
fn a_pod_in_the_node_s_network_or_nowhere_is_not_found() {
    let hosted = evidence(vec![process(NODE, Some("app"), 5)], vec![], &[(NODE, &[IP])]);
    assert_eq!(judge(&sought(&[IP]), &hosted), Err(NotFound::NodeNetwork));
    assert_eq!(judge(&sought(&[IP]), &evidence(vec![], vec![], &[])), Err(NotFound::NoTrace));
    let stale = evidence(vec![], vec![cached("old", CachedNetns::Gone, &[IP])], &[]);
    assert_eq!(judge(&sought(&[IP]), &stale), Err(NotFound::NoTrace));
}

#[test]
fn a_record_alone_suffices_only_where_no_process_is_seen() {
    let record = || cached("sandbox", CachedNetns::Is(9), &[IP]);
    let hidden = evidence(vec![], vec![record()], &[(9, &[IP])]);
    assert_eq!(judge(&sought(&[IP]), &hidden), found(9, "sandbox", By::Record));
    // The pod lives elsewhere: the record is of an earlier sandbox whose file was left.
    let stale = evidence(vec![pause(10, "pause")], vec![record()], &[(9, &[IP]), (10, &["10.1.0.8"])]);
    assert!(matches!(judge(&sought(&[IP]), &stale), Err(NotFound::OtherAddresses(_))));
    // The record is never the sandbox of another namespace's processes.
    let both = evidence(vec![pause(10, "pause")], vec![record()], &[(9, &[IP]), (10, &[IP])]);
    assert_eq!(judge(&sought(&[IP]), &both), found(10, "pause", By::Processes));
}

#[test]
fn what_is_ambiguous_is_not_taken() {
    let there: &[(u64, &[&str])] = &[(9, &[IP]), (10, &[IP])];
    let two = evidence(vec![pause(9, "a"), pause(10, "b")], vec![], there);
    assert_eq!(judge(&sought(&[IP]), &two), Err(NotFound::Ambiguous(2)));
    // The record decides between them.
    let one =
        evidence(vec![pause(9, "a"), pause(10, "b")], vec![cached("b", CachedNetns::Is(10), &[IP])], there);
    assert_eq!(judge(&sought(&[IP]), &one), found(10, "b", By::Both));
    let records = vec![cached("a", CachedNetns::Is(9), &[IP]), cached("b", CachedNetns::Is(10), &[IP])];
    assert_eq!(judge(&sought(&[IP]), &evidence(vec![], records, there)), Err(NotFound::Ambiguous(2)));
    // Two records of one namespace: that of the sandbox whose process is there, or none.
    let records = || vec![cached("a", CachedNetns::Unsaid, &[IP]), cached("b", CachedNetns::Unsaid, &[IP])];
    let there: &[(u64, &[&str])] = &[(9, &[IP])];
    assert_eq!(
        judge(&sought(&[IP]), &evidence(vec![pause(9, "b")], records(), there)),
        found(9, "b", By::Both)
    );
    let unnamed = evidence(vec![process(9, None, 5)], records(), there);
    assert_eq!(judge(&sought(&[IP]), &unnamed), Err(NotFound::NoSandboxId));
    assert_eq!(
        judge(&sought(&[IP]), &evidence(vec![process(9, None, 5)], vec![], there)),
        Err(NotFound::NoSandboxId)
    );
}

fn at(ms: u64) -> Mono {
    Mono::from_millis(ms)
}

#[test]
fn who_is_new_or_has_moved_is_looked_for_at_once_and_who_is_gone_no_more() {
    let mut searches = Searches::new(Limits::default());
    assert_eq!(searches.deadline(), None);
    assert!(searches.seek(at(100), vec![sought(&[IP])]));
    assert_eq!(searches.deadline(), Some(at(100)));
    assert_eq!(searches.due(at(100)), [sought(&[IP])]);
    assert_eq!((searches.due(at(100)), searches.deadline()), (vec![], None), "one look at a time");
    assert!(!searches.seek(at(200), vec![sought(&[IP])]), "the same again");
    assert!(searches.seek(at(300), vec![sought(&[V6])]));
    // The answer to what was asked before.
    searches.missed(at(400), &sought(&[IP]), NotFound::NoTrace);
    assert_eq!(searches.seen().next().unwrap().why, None);
    assert_eq!(searches.due(at(400)), [sought(&[V6])]);
    assert!(searches.seek(at(500), vec![]));
    searches.missed(at(600), &sought(&[V6]), NotFound::NoTrace);
    assert_eq!((searches.deadline(), searches.seen().count()), (None, 0));
}

#[test]
fn looks_in_vain_become_rarer_and_fall_together() {
    let mut searches = Searches::new(Limits::default());
    let pods: BTreeMap<u32, Sought> =
        (0..50).map(|n| (n, Sought { uid: PodUid(format!("pod-{n}").into()), ..sought(&[IP]) })).collect();
    let mut looks = 0;
    let mut now = at(0);
    while now < at(3_600_000) {
        // One a second comes, for the first minute.
        let come = usize::try_from(now.0.as_secs() + 1).unwrap();
        searches.seek(now, pods.values().take(come).cloned().collect());
        let due = searches.due(now);
        looks += usize::from(!due.is_empty());
        due.iter().for_each(|sought| searches.missed(now, sought, NotFound::NoTrace));
        let Some(next) = searches.deadline() else { break };
        assert!(next > now);
        now = if come < pods.len() { next.min(now + Duration::from_secs(1)) } else { next };
    }
    assert!(looks <= 3600 / 8 + 120, "{looks} looks in an hour");
    assert_eq!(searches.seen().filter(|seen| seen.looks > 55).count(), pods.len());
}
