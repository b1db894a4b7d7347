//! Connections that are older than a pod's capture: counted until they have ended, and closed where STRICT forbids them.
//!
//! None can come anew while the rules stand, so a pod without any is not looked at again until its rules were written
//! again.

use std::collections::BTreeSet;

use adit_core::authz::peer_mode;
use adit_core::net::PodKey;
use adit_core::policy::PeerMode;
use adit_core::workload::Skip;

use super::Driver;
use crate::netns::Netns;
use crate::node::{self, Direction, NodeError, Older};

impl Driver {
    /// Looks at those pods that had some.
    pub(super) fn look_at_older_again(&mut self) {
        let with: Vec<PodKey> = self
            .sandboxes
            .iter()
            .filter(|(_, sandbox)| sandbox.older > 0)
            .map(|(key, _)| key.clone())
            .collect();
        for key in with {
            self.look_at_older(&key);
        }
    }

    /// Counts what is older than this pod's capture, and closes what must not go on. Blocks for about 2 µs a socket of
    /// the pod.
    pub(super) fn look_at_older(&mut self, key: &PodKey) {
        let Some(sandbox) = self.sandboxes.get_mut(key) else {
            return;
        };
        let found = match &sandbox.applied_with {
            Some(skip) => older(&sandbox.netns, sandbox.mark.value(), skip),
            None => Ok(Vec::new()),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(pod = %key.uid, %error, "cannot tell which connections are older than its capture");
                return;
            }
        };
        let world = self.view.world();
        // To a pod that is on its way out of the mesh STRICT does not apply any more.
        let is_enrolled = world.workload(&key.uid).is_some_and(|workload| workload.enrolment.is_enrolled());
        let modes = world.peer_modes_for(&key.uid).filter(|_| is_enrolled);
        let (forbidden, left): (Vec<Older>, Vec<Older>) = found.into_iter().partition(|older| {
            let strict = |mode: PeerMode| matches!(mode, PeerMode::Strict);
            older.direction == Direction::Inbound
                && modes.is_some_and(|modes| strict(peer_mode(modes, older.local.port()).0))
        });
        let mut count = left.len();
        if !forbidden.is_empty() {
            match node::close(&sandbox.netns, &forbidden) {
                Ok(closed) => {
                    tracing::info!(pod = %key.uid, connections = closed, "closed what is in clear and older than its capture: STRICT");
                    metrics::counter!("adit_older_connections_closed_total")
                        .increment(u64::try_from(closed).unwrap_or(u64::MAX));
                }
                Err(error) => {
                    tracing::error!(pod = %key.uid, %error, "cannot close connections in clear that STRICT forbids");
                    count += forbidden.len();
                }
            }
        }
        self.changed |= std::mem::replace(&mut sandbox.older, count) != count;
        self.show_older();
    }

    pub(super) fn show_older(&self) {
        let all: usize = self.sandboxes.values().map(|sandbox| sandbox.older).sum();
        metrics::gauge!("adit_older_connections").set(all as f64);
    }
}

/// Two looks: the kernel's list is no snapshot, and a carried connection that opens or ends meanwhile may be in it with
/// one of its two sockets only.
fn older(netns: &Netns, mark: u32, skip: &Skip) -> Result<Vec<Older>, NodeError> {
    let first = node::older(netns, mark, skip)?;
    if first.is_empty() {
        return Ok(first);
    }
    let ends = |older: &Older| (older.local, older.remote);
    let again: BTreeSet<_> = node::older(netns, mark, skip)?.iter().map(ends).collect();
    Ok(first.into_iter().filter(|older| again.contains(&ends(older))).collect())
}
