//! Which pod and container a process belongs to, by its `/proc/PID/cgroup`.
//!
//! The kubelet gives each pod a cgroup named after its uid, below whatever it was itself given, and the runtime each
//! container one below that. The file has one line for each hierarchy (version 1: one a controller, and `0::`; version 2:
//! `0::` alone), whose path begins at the reader's own cgroup namespace: with `/../..` where that lies beside the pod.

use crate::net::{PodUid, SandboxId};

/// A pod that a path names, and the container below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The pod.
    pub uid: PodUid,
    /// Its container, where the process is in one.
    pub container: Option<SandboxId>,
}

/// Every pod that the text names, the outermost of a path first: a node that is itself a pod of another cluster has two.
/// A pod that several lines name is there once, with the container of the first line that has one.
///
/// Nothing but a whole part of a path counts, so one pod's uid is never seen within another name.
pub fn places(text: &str) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        for place in on_path(path) {
            match found.iter_mut().find(|known| known.uid == place.uid) {
                Some(known) => known.container = known.container.take().or(place.container),
                None => found.push(place),
            }
        }
    }
    found
}

fn on_path(path: &str) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    // A colon parts them where containerd does not know that the kubelet leaves cgroups to systemd:
    // `…/containerd.service/kubepods-pod1.slice:cri-containerd:ID`.
    for part in path.split(['/', ':']) {
        if let Some(uid) = pod_uid(part) {
            found.push(Place { uid, container: None });
        } else if let Some(pod) = found.last_mut()
            && pod.container.is_none()
        {
            pod.container = container_id(part);
        }
    }
    found
}

/// cgroupfs: `pod<uid>`; systemd: `kubepods-besteffort-pod<uid>.slice`, in which `-` stands between slices and is `_` in a uid.
fn pod_uid(part: &str) -> Option<PodUid> {
    let Some(slice) = part.strip_suffix(".slice") else {
        return part.strip_prefix("pod").filter(|uid| is_uid(uid, b'-')).map(|uid| PodUid(uid.into()));
    };
    let (_, uid) = slice.rsplit_once("-pod")?;
    is_uid(uid, b'_').then(|| PodUid(uid.replace('_', "-").into()))
}

/// 8-4-4-4-12 hexadecimal digits, as the API server makes them. A static pod's cgroup has the hash of its file instead.
fn is_uid(text: &str, dash: u8) -> bool {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    text.len() == 36
        && text.bytes().enumerate().all(
            |(at, byte)| {
                if DASHES.contains(&at) { byte == dash } else { is_hex(byte) }
            },
        )
}

/// `ID`, `cri-containerd-ID.scope`, `crio-ID.scope`, `docker-ID.scope`: every runtime's ids are 64 hexadecimal digits.
fn container_id(part: &str) -> Option<SandboxId> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(is_hex)).then(|| SandboxId(id.into()))
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
