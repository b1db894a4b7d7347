//! Two agents of one node: how the later takes over from the earlier, and what each tells the other.
//!
//! The later asks for the handover before it reads or writes anything of the node's; once answered, the earlier changes
//! nothing any more. Then the later puts its own socket in place and takes up what the journal says. From there on the
//! earlier says again and again what it still carries, and is told whether its successor serves and what must end.
//! Whose socket is in place owns the pods, whatever was said or lost: `super::server::Claim`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_core::net::{PodKey, SandboxId};
use adit_core::time::Mono;
use adit_proto::SpiffeId;
use adit_proto::cni::{ContainerId, Reply, Request, Serving};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::sandbox::{Sandbox, sandbox_id};
use super::server::{Asked, exchange};

/// How long the earlier agent may take to rest: its operations take milliseconds, ten seconds at the most. One that is
/// frozen or hangs does not keep its successor from serving.
const REST_WAIT: Duration = Duration::from_secs(5);
/// How long a successor may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// How long an agent that has said nothing counts as carrying what it last said: twenty words of its.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// How long it may say nothing until it counts as frozen: four words of its.
const FROZEN_AFTER: Duration = Duration::from_secs(2);
/// Agents before this one that are heard at once: each upgrade adds one, for as long as its connections last.
const PREDECESSORS_MAX: usize = 16;

/// The agent before this one, asked to rest. It does until this is dropped, or a socket is in place of its own.
#[derive(Debug, Default)]
pub struct Rest {
    stream: Option<UnixStream>,
}

impl Rest {
    /// Asks whoever listens at `socket`, if anybody does. After this nobody but the caller changes what the node's agents
    /// share, unless the earlier one is frozen, or of a release that knows no handover.
    pub async fn ask(socket: &Path) -> Self {
        let mut stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, "cannot reach the agent before this one; taking over from it all the same");
                return Self::default();
            }
        };
        match timeout(REST_WAIT, exchange(&mut stream, &Request::Handover)).await {
            Ok(Ok(Reply::Ok)) => tracing::info!("the agent before this one rests: taking over from it"),
            Ok(Ok(other)) => tracing::warn!(?other, "the agent before this one does not know what to say"),
            Ok(Err(error)) => tracing::info!(%error, "taking over from an agent that knows no handover"),
            Err(_) => tracing::warn!("the agent before this one does not answer; taking over from it"),
        }
        Self { stream: Some(stream) }
    }

    /// Whether somebody was there.
    pub(super) fn is_of_somebody(&self) -> bool {
        self.stream.is_some()
    }
}

/// What is left of a driver whose pods another agent has.
pub(super) struct Succession {
    /// Every sandbox that it kept.
    pub(super) sandboxes: BTreeMap<PodKey, Sandbox>,
    /// The identities that pods held.
    pub(super) identities: Vec<SpiffeId>,
    /// Who asked for it, and waits; none where somebody has taken over unasked.
    pub(super) asked: Option<Asked>,
}

/// What the agents before this one say that they carry. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Predecessors(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    agents: BTreeMap<String, (Mono, BTreeMap<SandboxId, u64>)>,
    /// One is there that has not said anything; since when.
    expected: Option<Mono>,
}

impl Predecessors {
    /// One is there, and has not spoken yet.
    pub(super) fn expect(&self, now: Mono) {
        self.heard().expected = Some(now);
    }

    /// Takes what one says.
    pub(super) fn hear(&self, now: Mono, said: &Serving) {
        let mut heard = self.heard();
        heard.expected = None;
        heard.forget_silent(now);
        if said.open.is_empty() {
            heard.agents.remove(&said.agent);
        } else if heard.agents.contains_key(&said.agent) || heard.agents.len() < PREDECESSORS_MAX {
            let open = said.open.iter().map(|(id, count)| (sandbox_id(id), *count)).collect();
            heard.agents.insert(said.agent.clone(), (now, open));
        }
    }

    /// How many connections of a sandbox they say that they carry.
    pub(super) fn open(&self, now: Mono, sandbox: &SandboxId) -> usize {
        let mut heard = self.heard();
        heard.forget_silent(now);
        let counts = heard.agents.values().filter_map(|(_, open)| open.get(sandbox));
        let open = counts.fold(0_u64, |sum, count| sum.saturating_add(*count));
        usize::try_from(open).unwrap_or(usize::MAX)
    }

    /// Whether one has fallen silent without having ended: frozen, or killed.
    pub(super) fn are_silent(&self, now: Mono) -> bool {
        let mut heard = self.heard();
        heard.forget_silent(now);
        let since = heard.agents.values().map(|(spoke, _)| *spoke).chain(heard.expected);
        since.min().is_some_and(|since| now.since(since) >= FROZEN_AFTER)
    }

    /// Whether they may carry any: as long as one has not spoken yet, they may.
    pub(super) fn may_carry(&self, now: Mono, sandbox: &SandboxId) -> bool {
        self.open(now, sandbox) > 0 || self.heard().expected.is_some()
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn forget_silent(&mut self, now: Mono) {
        self.agents.retain(|_, (spoke, _)| now.since(*spoke) < SILENT_MAX);
        self.expected = self.expected.filter(|since| now.since(*since) < SILENT_MAX);
    }
}

/// What a successor says.
#[derive(Debug)]
pub(super) enum Heeded {
    /// Whether it serves every pod, and the sandboxes in which nothing of ours stands any more.
    Says { ready: bool, over: Vec<ContainerId> },
    /// Nobody listens: it has ended.
    Gone,
    /// It did not answer in time, or otherwise than it should: it may only be busy.
    Silent,
}

/// Says to whoever listens at `socket` what is carried here.
pub(super) async fn say(socket: &Path, serving: Serving) -> Heeded {
    let told = async {
        let mut stream = UnixStream::connect(socket).await?;
        exchange(&mut stream, &Request::Serving(serving)).await
    };
    match timeout(ANSWER_WAIT, told).await {
        Ok(Ok(Reply::Successor { ready, over })) => Heeded::Says { ready, over },
        Ok(Err(error)) if is_nobody(&error) => Heeded::Gone,
        Ok(Ok(_) | Err(_)) | Err(_) => Heeded::Silent,
    }
}

/// Whether nobody listens there: the socket of one that has ended refuses.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving(agent: &str, open: &[(&str, u64)]) -> Serving {
        let open = open.iter().map(|(id, count)| (ContainerId::try_from((*id).to_owned()).unwrap(), *count));
        Serving { agent: agent.into(), open: open.collect() }
    }

    #[test]
    fn what_several_agents_carry_is_counted_until_they_end_or_fall_silent() {
        let all = Predecessors::default();
        let at = Mono::from_millis;
        let a = SandboxId("a".into());
        assert!(!all.may_carry(at(0), &a));
        all.expect(at(0));
        assert!(all.may_carry(at(1), &a), "nobody knows yet");
        assert_eq!(all.open(at(1), &a), 0);
        all.hear(at(1000), &serving("one", &[("a", 2), ("b", 1)]));
        all.hear(at(2000), &serving("two", &[("a", 3)]));
        assert_eq!(all.open(at(2000), &a), 5);
        all.hear(at(3000), &serving("one", &[]));
        assert_eq!(all.open(at(3000), &a), 3, "it has ended");
        assert!(!all.are_silent(at(3999)));
        assert!(all.are_silent(at(4000)), "as if it were frozen");
        assert_eq!(all.open(at(11_999), &a), 3);
        assert_eq!(all.open(at(12_000), &a), 0, "it was killed");
        all.expect(at(20_000));
        assert!(!all.may_carry(at(30_000), &a), "nobody is expected for ever");
    }

    #[test]
    fn agents_without_end_are_not_kept() {
        let all = Predecessors::default();
        for number in 0..100 {
            all.hear(Mono::ZERO, &serving(&number.to_string(), &[("a", 1)]));
        }
        assert_eq!(all.open(Mono::ZERO, &SandboxId("a".into())), PREDECESSORS_MAX);
    }

    #[tokio::test]
    async fn where_nobody_listens_there_is_nobody_to_rest() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cni.sock");
        assert!(!Rest::ask(&socket).await.is_of_somebody());
        assert!(matches!(say(&socket, serving("a", &[])).await, Heeded::Gone));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(!Rest::ask(&socket).await.is_of_somebody(), "it was killed");
        assert!(matches!(say(&socket, serving("a", &[])).await, Heeded::Gone));
    }
}
