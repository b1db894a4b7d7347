//! Who calls, and whether what they ask for runs on their node: TokenReview, then the CA's own watch of pods, then, on
//! a miss, the API server itself.
//!
//! The watch is ahead of the agents' questions by a third of a second, but now and then a little behind: so nobody is
//! refused by what it knows alone. One list a second and node serves all who wait for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use adit_proto::SpiffeId;
use tokio::time::Instant;

use super::client::{ApiError, ApiServer};
use super::pods::{self, KnownPods};
use super::review::{self, NotAnAgent};
use super::{Account, Settings, jwt};
use crate::caller::{Unauthenticated, bearer};
use crate::placement::{Claim, NotThere, Pods};

/// Least time between two lists of one node's pods.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// How many requests of one node may wait for its list; a node asks for a few certificates at a time.
const WAITING_MAX: usize = 16;
/// How long one may wait: with what TokenReview may take before, less than the 10 s that a request may take in all.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How many nodes are remembered beyond those that are asked about just now.
const NODES_MAX: usize = 4096;

/// Answers who calls and what runs where.
#[derive(Debug)]
pub(crate) struct Agents {
    api: ApiServer,
    settings: Settings,
    pods: KnownPods,
    nodes: Mutex<HashMap<Arc<str>, Arc<Node>>>,
    lists: Lists,
}

/// How often the watch did not suffice, by what the list then showed.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    found: AtomicU64,
    absent: AtomicU64,
    failed: AtomicU64,
}

impl Lists {
    /// By result.
    pub(crate) fn now(&self) -> [(&'static str, u64); 3] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [("found", of(&self.found)), ("absent", of(&self.absent)), ("failed", of(&self.failed))]
    }
}

/// What is remembered of a node about which the API server was asked.
#[derive(Debug, Default)]
struct Node {
    waiting: AtomicUsize,
    last: tokio::sync::Mutex<Option<Listed>>,
}

#[derive(Debug)]
struct Listed {
    began: Instant,
    pods: Pods,
}

/// Why it is not known who calls.
#[derive(Debug, thiserror::Error)]
pub enum NotKnown {
    /// The request carries no bearer token.
    #[error(transparent)]
    Token(#[from] Unauthenticated),
    /// The token is not an agent's.
    #[error(transparent)]
    Agent(#[from] NotAnAgent),
    /// The API server could not be asked.
    #[error(transparent)]
    Away(#[from] ApiError),
}

/// Why it is not known that the wanted account runs on the caller's node.
#[derive(Debug, thiserror::Error)]
pub enum NotPlaced {
    /// The calling pod is not where its token says.
    #[error("the calling pod {pod} {}", not_there(*why))]
    Caller {
        /// The pod.
        pod: String,
        /// What is wrong with it.
        why: NotThere,
    },
    /// No pod of the account is there.
    #[error("no pod of {account} is scheduled on node {node}, or all are finished")]
    Absent {
        /// What was wanted.
        account: Account,
        /// Where.
        node: Arc<str>,
    },
    /// The identity is no service account's.
    #[error("{0} is no service account's identity: spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    NoAccount(SpiffeId),
    /// Too many of this node wait already, or for too long.
    #[error("requests of node {0} wait for the list of its pods; come back")]
    Busy(Arc<str>),
    /// The API server could not be asked.
    #[error(transparent)]
    Away(#[from] ApiError),
}

fn not_there(why: NotThere) -> &'static str {
    match why {
        NotThere::Gone => "is gone: no pod of that name and uid is scheduled",
        NotThere::Finished => "is finished",
        NotThere::Elsewhere => "is on another node than its token says",
    }
}

impl Agents {
    pub(crate) fn new(api: ApiServer, settings: Settings, pods: KnownPods) -> Self {
        Self { api, settings, pods, nodes: Mutex::default(), lists: Lists::default() }
    }

    /// What is known of the pods.
    pub(crate) fn pods(&self) -> &KnownPods {
        &self.pods
    }

    /// How often the watch did not suffice.
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Who sends this `authorization`, by what its token says and the API server confirms. It is not asked of a token
    /// that says itself that it is no agent's.
    pub(crate) async fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Claim, NotKnown> {
        let header = authorization.ok_or(Unauthenticated::Absent)?;
        let token = bearer(header).and_then(|token| std::str::from_utf8(token).ok());
        let token = token.ok_or(Unauthenticated::NotBearer)?;
        jwt::check(token, &self.settings, now)?;
        Ok(review::review(&self.api, &self.settings, token).await??)
    }

    /// Whether the calling pod is there and `wanted` is the identity of a pod on its node.
    pub(crate) async fn place(&self, claim: &Claim, wanted: &SpiffeId) -> Result<(), NotPlaced> {
        let (namespace, name) =
            wanted.service_account().ok_or_else(|| NotPlaced::NoAccount(wanted.clone()))?;
        let account = Account { namespace: namespace.to_owned(), name: name.to_owned() };
        let began = Instant::now();
        if let Some(Ok(())) = self.pods.ask(|pods| judge(pods, claim, &account)) {
            return Ok(());
        }
        let asked = tokio::time::timeout(WAIT_MAX, self.ask_api(claim, &account, began)).await;
        let found = asked.unwrap_or_else(|_| Err(NotPlaced::Busy(Arc::clone(&claim.node))));
        let count = match &found {
            Ok(()) => &self.lists.found,
            Err(NotPlaced::Caller { .. } | NotPlaced::Absent { .. } | NotPlaced::NoAccount(_)) => {
                &self.lists.absent
            }
            Err(NotPlaced::Busy(_) | NotPlaced::Away(_)) => &self.lists.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Decides by a list of the node's pods that began after `began`.
    async fn ask_api(&self, claim: &Claim, account: &Account, began: Instant) -> Result<(), NotPlaced> {
        let node = self.node(&claim.node);
        let _waits = Waits::begin(&node).ok_or_else(|| NotPlaced::Busy(Arc::clone(&claim.node)))?;
        let mut last = node.last.lock().await;
        if let Some(listed) = last.as_ref() {
            if listed.began >= began {
                return judge(&listed.pods, claim, account);
            }
            tokio::time::sleep_until(listed.began + LIST_EVERY).await;
        }
        // While it waited, the watch may have caught up.
        if let Some(Ok(())) = self.pods.ask(|pods| judge(pods, claim, account)) {
            return Ok(());
        }
        let began = Instant::now();
        let pods = pods::on_node(&self.api, &claim.node).await?;
        let judged = judge(&pods, claim, account);
        *last = Some(Listed { began, pods });
        judged
    }

    fn node(&self, name: &Arc<str>) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES_MAX {
            nodes.retain(|_, node| Arc::strong_count(node) > 1);
        }
        Arc::clone(nodes.entry(Arc::clone(name)).or_default())
    }
}

/// One request that waits; counted for as long as it lives.
struct Waits<'a>(&'a Node);

impl<'a> Waits<'a> {
    fn begin(node: &'a Node) -> Option<Self> {
        let waits = Self(node);
        let before = node.waiting.fetch_add(1, Ordering::Relaxed);
        (before < WAITING_MAX).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn judge(pods: &Pods, claim: &Claim, account: &Account) -> Result<(), NotPlaced> {
    pods.check(claim).map_err(|why| NotPlaced::Caller {
        pod: format!("{}/{}", claim.pod.namespace, claim.pod.name),
        why,
    })?;
    if pods.runs(&claim.node, account) {
        return Ok(());
    }
    Err(NotPlaced::Absent { account: account.clone(), node: Arc::clone(&claim.node) })
}

#[cfg(test)]
mod tests;
