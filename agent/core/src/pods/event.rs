//! What the machine of sandboxes takes and returns: events, operations, effects, refusals, and what can be seen.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use adit_proto::{Reason, SpiffeId};

use crate::net::{PodKey, PodUid, SandboxId};
use crate::redirect::Part;
use crate::time::Mono;
use crate::workload::Skip;

/// The most sandboxes that are kept at once. Kubernetes' limit is 110 pods a node by default and 1,000 are seen; a
/// sandbox that is being released counts until it is.
pub const PODS_MAX: usize = 4096;

/// The machine's spans.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// From an ADD to its answer. Less than the 30 s that the plugin gives a reached agent.
    pub add: Duration,
    /// From a DEL to its answer, should closing take longer: the pod goes in any case.
    pub del: Duration,
    /// How long what is open may go on after un-enrolment.
    pub drain: Duration,
    /// How long an identity that no pod holds any more is kept for the next one: a sandbox that is made anew must come up
    /// without the CA, and that takes the runtime some seconds.
    pub keep: Duration,
    /// Before the first repetition of what failed; doubled each time.
    pub retry_first: Duration,
    /// The longest time before a repetition.
    pub retry_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            add: Duration::from_secs(25),
            del: Duration::from_secs(2),
            drain: Duration::from_secs(3600),
            keep: Duration::from_secs(30),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

/// Which of the sandboxes of this boot one is: they are numbered as they come, over restarts. Of two of one pod the later
/// one is the pod's. 0 was written by an agent that kept no order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Arrival(pub u64);

/// Who waits for an answer; the driver's number for a connection of the CNI socket.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(pub u64);

/// One start of one operation; its outcome names it, so that an outcome of an abandoned one is told apart.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub(super) u64);

/// How an enrolled pod is to be captured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Want {
    /// Under which identity.
    pub identity: SpiffeId,
    /// What is not redirected.
    pub skip: Arc<Skip>,
}

/// What the labels say of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wish {
    /// Not known yet: World has not synced, or does not know the pod.
    Unknown,
    /// Not to be captured.
    Out,
    /// To be captured.
    In(Want),
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The runtime made a sandbox and waits.
    CniAdd {
        /// The sandbox.
        key: PodKey,
        /// When it came, or came again.
        arrival: Arrival,
        /// Who waits.
        token: Token,
        /// What the labels say.
        wish: Wish,
        /// The pod object already says that it is captured: its sandbox is being re-made.
        announced: bool,
    },
    /// The runtime removes a sandbox; or the agent itself found it to be gone from a GC's list, then nobody waits.
    CniDel {
        /// The sandbox.
        sandbox: SandboxId,
        /// Who waits.
        token: Option<Token>,
    },
    /// The runtime asks whether a sandbox is as it should be.
    CniCheck {
        /// The sandbox.
        sandbox: SandboxId,
        /// Who waits.
        token: Token,
    },
    /// A sandbox from before this process, found in the journal; perhaps after a later one of its pod.
    Adopted {
        /// The sandbox.
        key: PodKey,
        /// When it came.
        arrival: Arrival,
        /// As what it was captured, if it was: its rules may stand, in full or in part.
        captured: Option<Want>,
        /// The pod object says that it is captured.
        announced: bool,
    },
    /// The labels want this pod captured. May be repeated; only a difference does anything.
    Wanted {
        /// The pod.
        uid: PodUid,
        /// How.
        want: Want,
    },
    /// The labels do not want this pod captured. May be repeated.
    Unwanted {
        /// The pod.
        uid: PodUid,
    },
    /// The pod has a deletion timestamp. May be repeated.
    Terminating {
        /// The pod.
        uid: PodUid,
    },
    /// There is a certificate for an identity that was needed.
    IdentityReady(SpiffeId),
    /// There is a certificate no more. What is captured stays so, and fails closed; nothing new is.
    IdentityLost(SpiffeId),
    /// An operation has ended.
    Done {
        /// Whose.
        key: PodKey,
        /// Which start of it.
        ticket: Ticket,
        /// How.
        outcome: Result<(), Failure>,
    },
    /// What stands in a captured pod's namespace was found not to be what should.
    Drifted {
        /// The pod.
        key: PodKey,
        /// And now?
        drift: Drift,
    },
    /// The sandbox's namespace is gone without a DEL.
    SandboxGone(PodKey),
    /// Adit leaves the node: every pod goes out of the mesh, whatever the labels say from now on, and none comes in.
    Leaving {
        /// How long what is open may go on, where that is less than un-enrolment gives it.
        drain: Duration,
    },
}

/// What became of a difference between what stands and what should.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drift {
    /// It is as it should be again.
    Repaired,
    /// It could not be repaired: the pod is not captured until this says otherwise.
    Unrepairable,
}

/// How an operation failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The namespace is gone: nothing can be done in it, or need be.
    SandboxGone,
    /// Anything else, in words for the pod's Event.
    Failed(Arc<str>),
}

/// One operation on one sandbox. Each ends with [`Event::Done`], unless it was abandoned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Open all its listeners and serve them.
    OpenSockets(SpiffeId),
    /// Bring its rules to what is wanted, from whatever stands.
    Redirect(Want),
    /// Say on the pod object that it is captured.
    Announce,
    /// Say there that it is not.
    Unannounce,
    /// Take a part of its rules out.
    Unredirect(Part),
    /// Wait until none of its connections is left, or until this instant.
    Drain(Mono),
    /// Close its listeners, and what is left on them for this reason: `drained` or `pod_gone`. Does not fail.
    Close(Reason),
    /// Put its sysctls back to what stood before.
    RestoreSysctls,
}

impl Op {
    /// Whether another operation on the pod may be started before this one has ended; its outcome then counts no
    /// more. The executor stops what it has not finished.
    pub fn may_be_abandoned(&self) -> bool {
        match self {
            Self::Announce | Self::Unannounce | Self::Drain(_) => true,
            Self::OpenSockets(_)
            | Self::Redirect(_)
            | Self::Unredirect(_)
            | Self::Close(_)
            | Self::RestoreSysctls => false,
        }
    }

    pub(super) fn same_kind(&self, other: &Self) -> bool {
        mem::discriminant(self) == mem::discriminant(other)
    }
}

/// What must be done now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// See to a certificate for this identity, and tell when there is one ([`Event::IdentityReady`]).
    Need(SpiffeId),
    /// No pod holds this identity any more.
    Forget(SpiffeId),
    /// Start an operation, abandoning the one under way on this sandbox.
    Do {
        /// On which sandbox.
        key: PodKey,
        /// To be named in the outcome.
        ticket: Ticket,
        /// What.
        op: Op,
    },
    /// The rules stand: watch them, and take new connections (again).
    Serve(PodKey),
    /// Answer who waits.
    Reply {
        /// Who.
        token: Token,
        /// What.
        answer: Result<(), Refusal>,
    },
    /// Keep what a restart must know, before anything that follows.
    JournalWrite {
        /// Of which sandbox.
        key: PodKey,
        /// As what it is, or is about to be, captured.
        captured: Option<Want>,
    },
    /// The sandbox is released: drop all that is kept of it, and stop what is under way.
    JournalRemove(PodKey),
}

/// Why an ADD or a CHECK is answered with an error.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Its time is up.
    #[error("not captured in time: {0}")]
    Deadline(Lacking),
    /// The pod is being deleted: its start is given up.
    #[error("the pod is being deleted")]
    Terminating,
    /// The sandbox is being removed.
    #[error("the sandbox is being removed")]
    Deleted,
    /// An operation failed.
    #[error("{0}")]
    Failed(Arc<str>),
    /// A CHECK found the pod not captured.
    #[error("the pod is enrolled but not captured: {0}")]
    NotCaptured(Lacking),
    /// There are [`PODS_MAX`] sandboxes already.
    #[error("{PODS_MAX} sandboxes are kept already")]
    TooMany,
}

/// What a pod that is not captured lacks first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Lacking {
    /// To be known from the API or the directory.
    Enrolment,
    /// Listeners.
    Listeners,
    /// A certificate.
    Certificate(SpiffeId),
    /// Its rules, or rules that hold.
    Rules,
    /// The acknowledged annotation.
    Annotation,
    /// Nothing: it is on its way out.
    Release,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrolment => f.write_str("it is not known yet whether the pod is enrolled"),
            Self::Listeners => f.write_str("its listeners are not open"),
            Self::Certificate(id) => write!(f, "no certificate for {id}"),
            Self::Rules => f.write_str("its redirect rules are not in place"),
            Self::Annotation => f.write_str("its annotation is not acknowledged"),
            Self::Release => f.write_str("it is being released from an earlier capture"),
        }
    }
}

/// Where a sandbox stands, for those who look on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// Known; nothing of ours in it.
    Added,
    /// From before a restart; not verified yet.
    Adopted,
    /// Its listeners are open.
    Listening,
    /// Its rules stand too; certificate or annotation is missing, or it could not be repaired.
    Redirected,
    /// Captured: listeners, rules, certificate and annotation.
    Live,
    /// On its way out; what was open goes on.
    Draining,
    /// Removed by the runtime; being released.
    Gone,
}

/// One sandbox, for those who look on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen<'p> {
    /// Which.
    pub key: &'p PodKey,
    /// Where it stands.
    pub state: State,
    /// Whether the labels want it captured.
    pub enrolled: bool,
    /// What it lacks to be captured, if it is wanted and is not.
    pub lacking: Option<Lacking>,
    /// It is of before a restart, and its first verification has not come to an end.
    pub adopting: bool,
}
