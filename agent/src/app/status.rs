//! What the admin API shows of everything but telemetry.

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_core::world::World;
use adit_proto::admin::{CertStatus, Status};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::health::Readiness;
use crate::identity::{Identity, IdentityStatus, Keeping};
use crate::pods::Pods;
use crate::telemetry::access_log::rfc3339;
use crate::view::View;

/// Reads the state of every part, anew at each call.
pub(super) fn reader(
    config: &Config,
    version: &'static str,
    view: &View,
    cluster: &Cluster,
    identity: &Arc<Identity>,
    pods: &Arc<Pods>,
    readiness: &Readiness,
) -> Box<dyn Fn() -> Status + Send + Sync> {
    let (node, view, cluster) = (config.node.clone(), view.clone(), cluster.clone());
    let (identity, pods, readiness) = (Arc::clone(identity), Arc::clone(pods), readiness.clone());
    Box::new(move || {
        let world = view.world();
        let unmet = readiness.unmet();
        let mut problems = cluster.problems();
        problems.extend(keys_not_kept(identity.keeping()));
        problems.extend(readiness.without());
        Status {
            node: node.clone(),
            version: version.into(),
            ready: unmet.is_empty(),
            unmet,
            problems,
            world_generation: world.generation(),
            counts: counts(&world),
            pods: pods.status(),
            certificates: identity.status().iter().map(certificate).collect(),
        }
    })
}

fn keys_not_kept(keeping: &Keeping) -> Option<String> {
    const SO: &str = "keys are in memory only, a restarted agent needs the CA";
    match keeping {
        Keeping::Tmpfs(_) => None,
        Keeping::NotTmpfs(path) => Some(format!("{} is not on tmpfs: {SO}", path.display())),
        Keeping::Unusable(path, error) => Some(format!("{} cannot be used ({error}): {SO}", path.display())),
        Keeping::Off => Some(format!("identity.journal is null: {SO}")),
    }
}

fn counts(world: &World) -> BTreeMap<String, u64> {
    let counts = world.counts();
    [
        ("workloads", counts.workloads),
        ("enrolled", counts.enrolled),
        ("captured", counts.captured),
        ("nameless", counts.nameless),
        ("namespaces", counts.namespaces),
        ("services", counts.services),
        ("endpoint_slices", counts.endpoint_slices),
        ("nodes", counts.nodes),
        ("authorization_policies", counts.authorization_policies),
        ("peer_authentications", counts.peer_authentications),
        ("traffic_policies", counts.traffic_policies),
    ]
    .into_iter()
    .map(|(what, count)| (what.to_owned(), u64::try_from(count).unwrap_or(u64::MAX)))
    .collect()
}

fn certificate(status: &IdentityStatus) -> CertStatus {
    CertStatus {
        identity: status.id.to_string(),
        serial: status.serial.as_deref().map(str::to_owned),
        not_before: status.validity.map(|validity| rfc3339(validity.not_before)),
        not_after: status.validity.map(|validity| rfc3339(validity.not_after)),
        last_error: status.last_failure.as_ref().map(|(_, what)| what.to_string()),
    }
}
