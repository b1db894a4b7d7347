//! What World says of a pod that the runtime names, and of the namespaces, for the times when nobody can be asked.
//!
//! The rule who is enrolled is World's; here it is only looked up, and what is not known yet is told from what is not
//! wanted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adit_core::net::{ObjectName, PodUid};
use adit_core::pods::{Want, Wish};
use adit_core::workload::{Enrolment, Workload};
use adit_core::world::World;
use adit_proto::cni::{Membership, NAMESPACES_FILE, Namespaces, PodRef};

/// Where the kubelet got a pod from; anything but `api` is a static pod.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// What is known of a pod when its sandbox arrives.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Known {
    /// Whether it is to be captured.
    pub(super) wish: Wish,
    /// Its object says that it is.
    pub(super) announced: bool,
    /// It is being deleted.
    pub(super) terminating: bool,
}

/// What World says of a pod, or else the CNI message and the namespaces of an earlier run.
pub(super) fn known(
    world: &World,
    pod: &PodRef,
    annotations: Option<&BTreeMap<String, String>>,
    before: &Namespaces,
) -> Known {
    if let Some(workload) = world.workload(&PodUid(pod.uid.as_str().into())) {
        return Known {
            wish: wish(workload),
            announced: workload.captured,
            terminating: workload.pod.terminating,
        };
    }
    let source = annotations.and_then(|all| all.get(CONFIG_SOURCE));
    let named = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
    // A static pod's object has another uid than the runtime knows.
    let is_static = source.is_some_and(|source| source != "api")
        || world.workload_by_name(&named).is_some_and(|workload| workload.pod.is_static);
    let settings = world.settings();
    let excluded = *settings.system_namespace == *pod.namespace
        || settings.excluded_namespaces.contains(pod.namespace.as_str());
    // As without the agent: a pod of a namespace in which nothing was enrolled does not wait for the API server.
    let let_through = !has_synced(world) && before.passes(&pod.namespace);
    let out = is_static || excluded || let_through;
    Known { wish: if out { Wish::Out } else { Wish::Unknown }, announced: false, terminating: false }
}

/// Whether a pod is to be captured, and how.
pub(super) fn wish(workload: &Workload) -> Wish {
    if workload.enrolment.is_enrolled() { Wish::In(want(workload)) } else { Wish::Out }
}

/// How a pod is captured, if it is.
pub(super) fn want(workload: &Workload) -> Want {
    Want { identity: workload.identity.clone(), skip: Arc::clone(&workload.skip) }
}

/// Whether anything has been published yet.
pub(super) fn has_synced(world: &World) -> bool {
    world.generation() > 0
}

/// What can be said of namespaces from their pods. One without any stays unknown, so its pods wait.
pub(super) fn memberships(world: &World) -> Namespaces {
    let settings = world.settings();
    let mut found: BTreeMap<String, Membership> = settings
        .excluded_namespaces
        .iter()
        .chain([&settings.system_namespace])
        .map(|name| (name.to_string(), Membership::Excluded))
        .collect();
    for workload in world.workloads() {
        let namespace = workload.pod.name.namespace.to_string();
        match workload.enrolment {
            Enrolment::ByPod | Enrolment::ByNamespace => {
                found.insert(namespace, Membership::Enrolled);
            }
            // The namespace's label would have enrolled it.
            Enrolment::NotAsked => {
                found.entry(namespace).or_insert(Membership::Unenrolled);
            }
            Enrolment::ExcludedNamespace => {
                found.insert(namespace, Membership::Excluded);
            }
            // These say nothing of what another pod of the namespace would be.
            Enrolment::OptedOut | Enrolment::HostNetwork | Enrolment::StaticPod => {}
        }
    }
    Namespaces::new(found)
}

/// `STATE_DIR/namespaces.json`.
#[derive(Debug)]
pub(super) struct NamespacesFile {
    path: PathBuf,
    /// As it stands on disk.
    pub(super) kept: Namespaces,
}

impl NamespacesFile {
    /// Reads what an earlier run kept; nothing, if that cannot be read.
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(NAMESPACES_FILE);
        let kept = fs::read(&path).ok().and_then(|bytes| Namespaces::parse(&bytes));
        Self { path, kept: kept.unwrap_or_default() }
    }

    /// Writes `now` in its place, if it differs.
    pub(super) fn keep(&mut self, now: Namespaces) -> io::Result<()> {
        if now == self.kept {
            return Ok(());
        }
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let temp = self.path.with_extension("json.new");
        let mut file = fs::File::create(&temp)?;
        file.write_all(&serde_json::to_vec(&now)?)?;
        // It is read after a power cut: without this the rename may come to disk before the text.
        file.sync_all()?;
        fs::rename(&temp, &self.path)?;
        self.kept = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
