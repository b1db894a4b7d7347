//! Carries out one operation of the pod machine: a call of the data plane, of the rules, or of the cluster.
//!
//! Decides nothing and keeps nothing. What it was given to do may be dropped at any await where
//! [`Op::may_be_abandoned`] says so.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::PodKey;
use adit_core::pods::{Op, Ticket};
use adit_core::redirect::{Sysctl, Wanted};
use adit_proto::Reason;

use super::handover::Predecessors;
use super::sandbox::Sandbox;
use crate::clock::Clock;
use crate::cluster::Announcer;
use crate::dataplane::{Dataplane, OpenError};
use crate::redirect::{self, Applied};

/// How often a drain looks whether anything is left.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

/// Who does it.
#[derive(Clone)]
pub(super) struct Performer {
    pub(super) dataplane: Dataplane,
    pub(super) announcer: Announcer,
    pub(super) clock: Clock,
    /// Whose connections a drain waits for, too.
    pub(super) predecessors: Predecessors,
    /// How long the word that a pod is not captured any more may take; none: as long as it takes.
    pub(super) word_within: Option<Duration>,
}

/// An operation has ended.
#[derive(Debug)]
pub(super) struct Performed {
    pub(super) key: PodKey,
    pub(super) ticket: Ticket,
    pub(super) op: Op,
    /// What it brought, or why it failed, in words.
    pub(super) result: Result<Brought, Arc<str>>,
}

/// What an operation tells beyond that it succeeded.
#[derive(Debug)]
pub(super) enum Brought {
    Nothing,
    /// The rules stand; to be written down, and gone on with by [`Performer::set_sysctls`].
    Ruled(Applied),
    /// Rules were applied.
    Applied(Applied),
    /// Sysctls were put back, but for these.
    Restored(Vec<Sysctl>),
}

impl Performer {
    /// What `op` on `sandbox` comes to; holds copies of what it needs, so that the sandbox may change meanwhile.
    pub(super) fn perform(
        &self,
        sandbox: &Sandbox,
        ticket: Ticket,
        op: Op,
    ) -> impl Future<Output = Performed> + Send + use<> {
        let performer = self.clone();
        let key = sandbox.key();
        let netns = sandbox.netns.clone();
        let mark = sandbox.mark;
        let before = sandbox.sysctls_before();
        let served = match &op {
            Op::OpenSockets(identity) => Some(sandbox.served_as(identity.clone())),
            Op::Redirect(_)
            | Op::Announce
            | Op::Unannounce
            | Op::Unredirect(_)
            | Op::Drain(_)
            | Op::Close(_)
            | Op::RestoreSysctls => None,
        };
        async move {
            let Self { dataplane, announcer, clock, predecessors, word_within } = performer;
            let nothing = |()| Brought::Nothing;
            let result = match &op {
                Op::OpenSockets(_) => {
                    let served = served.expect("made above for this operation");
                    match dataplane.open(served).await {
                        // By this process before another agent took over, and ended.
                        Ok(()) | Err(OpenError::AlreadyOpen(_)) => Ok(Brought::Nothing),
                        Err(error) => Err(words(&error)),
                    }
                }
                Op::Redirect(want) => {
                    let wanted = Wanted::new(mark, Arc::clone(&want.skip));
                    let applied = redirect::apply_rules(&netns, &wanted).await;
                    applied.map(Brought::Ruled).map_err(|error| words(&error))
                }
                Op::Announce | Op::Unannounce => {
                    let captured = matches!(op, Op::Announce);
                    let told = announcer.set_captured(key.uid.clone(), captured);
                    match word_within {
                        None => told.await.map(nothing).map_err(|error| words(&error)),
                        Some(within) => match tokio::time::timeout(within, told).await {
                            Ok(told) => told.map(nothing).map_err(|error| words(&error)),
                            Err(_) => Err("it cannot be said on the pod in time".into()),
                        },
                    }
                }
                Op::Unredirect(part) => {
                    let removed = redirect::remove(&netns, *part).await;
                    removed.map(nothing).map_err(|error| words(&error))
                }
                Op::Drain(until) => {
                    let look = async {
                        let others = || predecessors.may_carry(clock.now().mono, &key.sandbox);
                        while dataplane.live(&key) > 0 || others() {
                            tokio::time::sleep(DRAIN_LOOK).await;
                        }
                    };
                    tokio::select! {
                        () = look => {}
                        () = clock.sleep_until(Some(*until)) => {}
                    }
                    Ok(Brought::Nothing)
                }
                Op::Close(Reason::Drained) => {
                    let cut = dataplane.drain(&key, Duration::ZERO).await;
                    if cut > 0 {
                        tracing::info!(pod = %key.uid, connections = cut, "cut at the end of the drain");
                    }
                    Ok(Brought::Nothing)
                }
                Op::Close(_) => {
                    dataplane.close(&key).await;
                    Ok(Brought::Nothing)
                }
                Op::RestoreSysctls => {
                    let refused = redirect::restore_sysctls(&netns, &before).await;
                    refused.map(Brought::Restored).map_err(|error| words(&error))
                }
            };
            Performed { key, ticket, op, result }
        }
    }

    /// The rest of a [`Op::Redirect`]: what stood is in the journal now.
    pub(super) fn set_sysctls(
        sandbox: &Sandbox,
        (ticket, op): (Ticket, Op),
        applied: Applied,
    ) -> impl Future<Output = Performed> + Send + use<> {
        let (key, netns) = (sandbox.key(), sandbox.netns.clone());
        async move {
            let applied = redirect::apply_sysctls(&netns, applied).await;
            Performed { key, ticket, op, result: Ok(Brought::Applied(applied)) }
        }
    }
}

/// An error with its causes, on one line: it ends in the pod's Event.
pub(super) fn words(error: &dyn Error) -> Arc<str> {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String does not fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::netns::NetnsError;

    #[test]
    fn an_error_is_told_with_its_causes_on_one_line() {
        let error = NetnsError::Open {
            path: "/run/netns/x".into(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        assert_eq!(&*words(&error), "cannot open the network namespace /run/netns/x: entity not found");
    }
}
