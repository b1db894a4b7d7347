//! The CA's own watch of pods: all of the cluster's, of which only what placement needs is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::client::{ApiError, ApiServer};
use super::watch::{self, Heard, SILENCE_MAX, Versioned, Which};
use crate::placement::{Phase, Pod, PodName, Pods};

const PATH: &str = "/api/v1/pods";

/// A watch that was not heard of for so long may have missed anything: it is given up after [`SILENCE_MAX`], and then
/// it takes a moment to be opened anew.
const STALE_AFTER: Duration = SILENCE_MAX.saturating_add(Duration::from_secs(10));

/// A pod, as far as it is read. What else the API server sends is dropped while it is parsed.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SeenPod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    namespace: Arc<str>,
    #[serde(default)]
    name: Arc<str>,
    #[serde(default)]
    uid: Arc<str>,
    #[serde(default)]
    resource_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<Arc<str>>,
    service_account_name: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    phase: Option<String>,
}

impl Versioned for SeenPod {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl SeenPod {
    fn name(&self) -> PodName {
        let Meta { namespace, name, .. } = &self.metadata;
        PodName { namespace: Arc::clone(namespace), name: Arc::clone(name) }
    }

    /// Takes it into `pods`. One that is not scheduled is nowhere.
    fn join(self, pods: &mut Pods) {
        let name = self.name();
        let Some(node) = self.spec.node_name.filter(|node| !node.is_empty()) else {
            return pods.remove(&name);
        };
        let phase = match self.status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Phase::Finished,
            Some(_) | None => Phase::Going,
        };
        let account = self.spec.service_account_name.unwrap_or_default();
        pods.put(name, &node, Pod { uid: self.metadata.uid, account, phase });
    }
}

/// What is known of the pods. Cheap to clone; all clones know the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownPods(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    pods: Pods,
    /// When the watch was last heard of; none before the first list.
    heard: Option<Instant>,
}

impl KnownPods {
    /// Keeps it up to date, for ever.
    pub(crate) async fn follow(self, api: ApiServer) {
        watch::follow(api, "pods", PATH, |heard| self.take(heard)).await;
    }

    fn take(&self, heard: Heard<SeenPod>) {
        let mut known = self.lock();
        known.heard = Some(Instant::now());
        match heard {
            Heard::All(all) => {
                let mut pods = Pods::default();
                all.into_iter().for_each(|pod| pod.join(&mut pods));
                known.pods = pods;
            }
            Heard::Put(pod) => pod.join(&mut known.pods),
            Heard::Gone(pod) => known.pods.remove(&pod.name()),
            Heard::Alive => {}
        }
    }

    /// Whether all pods are known, as of a moment ago.
    pub(crate) fn are_current(&self) -> bool {
        self.lock().heard.is_some_and(|heard| heard.elapsed() < STALE_AFTER)
    }

    /// Asks what is known; `None` if that may be out of date.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Pods) -> T) -> Option<T> {
        let known = self.lock();
        let is_current = known.heard.is_some_and(|heard| heard.elapsed() < STALE_AFTER);
        is_current.then(|| question(&known.pods))
    }

    /// How many pods are known, and how many seconds ago the watch was last heard of.
    pub(crate) fn size_and_age(&self) -> (usize, Option<u64>) {
        let known = self.lock();
        (known.pods.len(), known.heard.map(|heard| heard.elapsed().as_secs()))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere can have lost one event at most; the next list mends it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pods of one node, asked of the API server itself.
pub(crate) async fn on_node(api: &ApiServer, node: &str) -> Result<Pods, ApiError> {
    // Without resourceVersion: the latest there is, not what some cache has.
    let (all, _) = watch::list::<SeenPod>(api, "the node's pods", PATH, Which::OnNode(node)).await?;
    let mut pods = Pods::default();
    all.into_iter().for_each(|pod| pod.join(&mut pods));
    Ok(pods)
}
