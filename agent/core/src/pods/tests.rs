//! The machine in hand-written stories, and held to its laws through random histories.

use std::sync::Arc;

use super::*;
use crate::workload::Skip;

mod enrolment;
mod histories;
mod node;
mod release;
mod repair;
mod restart;
mod sandboxes;
mod story;

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn want(account: &str) -> Want {
    Want { identity: id(account), skip: Arc::new(Skip::default()) }
}

fn key(uid: &str, sandbox: &str) -> PodKey {
    PodKey { uid: PodUid(uid.into()), sandbox: SandboxId(sandbox.into()) }
}
