//! Keeps the own Lease, `adit-node-NODE` in Adit's own namespace: that this agent lives, which release it is, and which
//! trust bundle its handshakes use. The CA waits for the last before it signs with a new root.
//!
//! Made where it is missing, never deleted: it goes with its Node, or with the namespace.

use std::time::Duration;

use adit_core::draw::Seed;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::backoff::Backoff;
use super::client::{Api, ApiError};
use super::times::micros;
use crate::clock::Clock;

/// How often it is renewed: a node's own Lease is renewed every 10 s, and nobody acts on this one within seconds.
const RENEW_EVERY: Duration = Duration::from_secs(30);
/// After how long without renewal people may take this agent for gone, in seconds: a restart of the API server, and one
/// renewal that is lost. The CA does not: an agent that is cut off from the API server serves its pods with the bundle
/// that it has, so a change of root waits for it, or for its Node's deletion, which takes the Lease along.
const LEASE_SECONDS: u64 = 120;
/// The trust bundle that is in use.
const GENERATION: &str = "adit.dev/bundle-generation";
/// Which release the agent is.
const VERSION: &str = "adit.dev/version";

/// What it says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Says {
    /// The trust bundle in use; 0: none yet.
    pub(super) generation: u64,
    /// The uid of the own Node's object, once it was seen.
    pub(super) node_uid: Option<String>,
    /// Another agent of the node renews it.
    pub(super) aside: bool,
}

/// Whose it is.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) node: String,
    pub(super) namespace: String,
    pub(super) version: String,
}

/// Renews it, at once where it says something new, until nobody says anything any more.
pub(super) async fn keep(
    api: Api,
    holder: Holder,
    clock: Clock,
    mut seed: Seed,
    mut says: watch::Receiver<Says>,
) {
    let mut backoff = Backoff::default();
    loop {
        let now = says.borrow_and_update().clone();
        if now.aside {
            if says.changed().await.is_err() {
                return;
            }
            continue;
        }
        let wait = match renew(&api, &holder, &now, micros(clock.now().wall)).await {
            Ok(()) => {
                backoff.reset();
                RENEW_EVERY
            }
            Err(error) => {
                match error.code() {
                    Some(403) => warn!(%error, "cannot renew the own Lease"),
                    Some(_) | None => debug!(%error, "cannot renew the own Lease"),
                }
                backoff.next(&mut seed)
            }
        };
        tokio::select! {
            changed = says.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn renew(api: &Api, holder: &Holder, says: &Says, at: String) -> Result<(), ApiError> {
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", holder.namespace);
    let object = object(holder, says, &at);
    match api.patch(&format!("{leases}/{}", name(holder)), &object).await {
        Err(error) if error.code() == Some(404) => api.post(&leases, &object).await.map(drop),
        renewed => renewed.map(drop),
    }
}

fn name(holder: &Holder) -> String {
    format!("adit-node-{}", holder.node)
}

/// The whole object, and as well what is merged into the one that is there.
fn object(holder: &Holder, says: &Says, at: &str) -> Value {
    let mut object = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name(holder),
            "namespace": holder.namespace,
            "annotations": {GENERATION: says.generation.to_string(), VERSION: holder.version},
        },
        "spec": {
            "holderIdentity": holder.node,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": at,
        },
    });
    if let Some(uid) = &says.node_uid {
        object["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": holder.node, "uid": uid}]);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_says_what_the_ca_reads_and_goes_with_its_node() {
        let holder = Holder { node: "n1".into(), namespace: "adit-system".into(), version: "0.1.0".into() };
        let says = Says { generation: 7, ..Says::default() };
        let lease = object(&holder, &says, "2026-01-01T00:00:00.000000Z");
        assert_eq!(lease["metadata"]["name"], "adit-node-n1");
        assert_eq!(lease["metadata"]["annotations"][GENERATION], "7");
        assert_eq!(lease["metadata"].get("ownerReferences"), None);
        let says = Says { node_uid: Some("u".into()), ..says };
        let owner = &object(&holder, &says, "")["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["name"], &owner["uid"]),
            (&"Node".into(), &"n1".into(), &"u".into())
        );
    }
}
