//! Why a connection was not carried, or was cut: one enum for each side, each with its closed reason.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use adit_core::resolve::{InboundRefusal, NoRoute};
use adit_core::retry::Failure;
use adit_proto::Reason;
use adit_proto::hbone::Refusal;
use http::StatusCode;
use nix::errno::Errno;

use super::copy::Broken;
use super::protocol::RESET_REFUSED;
use super::tunnel::{StreamError, TunnelError};
use crate::sockets::DialError;

#[cfg(test)]
mod tests;

/// Why a captured connection was not carried, or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum CarryError {
    /// It can go nowhere.
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// The pod has as many connections as it may have.
    #[error("the pod has {0} connections")]
    AcceptLimit(usize),
    /// The pod's share of the budget for buffered bytes is used up.
    #[error("{0} bytes wait for the pod's slow readers")]
    MemoryLimit(usize),
    /// No endpoint became known within the deadline.
    #[error("the pods behind {0} are not known yet")]
    Unknown(SocketAddr),
    /// No tunnel.
    #[error(transparent)]
    Tunnel(Rc<TunnelError>),
    /// No stream.
    #[error(transparent)]
    Stream(StreamError),
    /// One attempt took too long.
    #[error("{0} did not answer in time")]
    AttemptTimeout(SocketAddr),
    /// The whole connect phase took too long.
    #[error("not connected within the deadline; last: {last}")]
    Deadline {
        /// What the last attempt was about.
        last: Box<Self>,
    },
    /// A retry would be worth it, and the budget is used up.
    #[error("retry budget exhausted; last: {last}")]
    BudgetExhausted {
        /// Why the last attempt failed.
        last: Box<Self>,
    },
    /// A plaintext dial failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The client went away while it was being connected.
    #[error("the client reset the connection")]
    ClientGone,
    /// It broke while it was carried.
    #[error("broken: {0}")]
    Broken(BrokenBy),
}

/// How a carried connection broke, seen as client and server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BrokenBy {
    /// The client reset it.
    #[error("reset by the client")]
    Client,
    /// The server reset it.
    #[error("reset by the server")]
    Server,
    /// The peer's agent ended it by policy or revocation.
    #[error("ended by the peer's policy, which its agent's report of the same trace names")]
    PeerPolicy,
    /// The tunnel broke.
    #[error("tunnel broke")]
    Tunnel(Reason),
    /// Half closed and silent.
    #[error("half closed and silent")]
    Idle,
    /// More came for slow readers of the pod than is held.
    #[error("too many bytes wait for the pod's slow readers")]
    Overdrawn,
}

impl BrokenBy {
    /// Where the near side is the client.
    pub(super) fn outbound(broken: &Broken, lost: Option<Reason>) -> Self {
        match broken {
            Broken::NearReset => Self::Client,
            Broken::FarReset(code) if *code == RESET_REFUSED => Self::PeerPolicy,
            Broken::FarReset(_) => Self::Server,
            Broken::TunnelLost(error) => {
                Self::Tunnel(lost.unwrap_or_else(|| super::tunnel::reason_of(error)))
            }
            Broken::Idle => Self::Idle,
            Broken::Overdrawn => Self::Overdrawn,
        }
    }

    /// Where the near side is the server.
    pub(super) fn inbound(broken: &Broken, lost: Option<Reason>) -> Self {
        match broken {
            Broken::NearReset => Self::Server,
            Broken::FarReset(_) => Self::Client,
            Broken::TunnelLost(error) => {
                Self::Tunnel(lost.unwrap_or_else(|| super::tunnel::reason_of(error)))
            }
            Broken::Idle => Self::Idle,
            Broken::Overdrawn => Self::Overdrawn,
        }
    }

    /// The word for it.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Client => Reason::ResetByClient,
            Self::Server => Reason::ResetByServer,
            Self::PeerPolicy => Reason::PeerDenied,
            Self::Tunnel(reason) => reason,
            Self::Idle => Reason::IdleTimeout,
            Self::Overdrawn => Reason::MemoryLimit,
        }
    }
}

impl CarryError {
    /// Metric label and access-log word. Exhaustive: a new variant must pick its word here.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::ClientGone => Reason::ResetByClient,
            Self::NoRoute(error) => error.reason(),
            Self::AcceptLimit(_) => Reason::AcceptLimit,
            Self::MemoryLimit(_) => Reason::MemoryLimit,
            Self::Unknown(_) | Self::Deadline { .. } => Reason::Deadline,
            Self::Tunnel(error) => of_tunnel(error),
            Self::Stream(error) => of_stream(error),
            Self::AttemptTimeout(_) => Reason::ConnectTimeout,
            Self::BudgetExhausted { .. } => Reason::RetryBudgetExhausted,
            Self::Dial(error) => of_dial(error),
            Self::Broken(by) => by.reason(),
        }
    }

    /// What kind of failure of an attempt this is, for the retry table. `reused`: the tunnel was there before.
    pub(super) fn failure(&self, reused: bool) -> Failure {
        match self {
            Self::Stream(StreamError::GoAway) => Failure::GoAway,
            Self::Stream(StreamError::RefusedStream) => Failure::RefusedStream,
            Self::Stream(StreamError::Lost(Reason::TunnelLost) | StreamError::Reset(_)) if reused => {
                Failure::TunnelDead
            }
            Self::Tunnel(_)
            | Self::Stream(_)
            | Self::AttemptTimeout(_)
            | Self::Deadline { .. }
            | Self::Dial(_)
            | Self::NoRoute(_)
            | Self::AcceptLimit(_)
            | Self::MemoryLimit(_)
            | Self::Unknown(_)
            | Self::BudgetExhausted { .. }
            | Self::ClientGone
            | Self::Broken(_) => failure_of(self.reason()),
        }
    }

    /// The whole story in one line, for the report.
    pub(super) fn detail(&self) -> Arc<str> {
        chain(self)
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> Arc<str> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.into()
}

/// The retry table's word for a reason. Exhaustive: a new reason must be judged here.
fn failure_of(reason: Reason) -> Failure {
    match reason {
        Reason::Refused => Failure::Refused,
        Reason::Unreachable | Reason::SourcePortsExhausted => Failure::Unreachable,
        Reason::ConnectTimeout | Reason::HandshakeTimeout | Reason::Deadline => Failure::Timeout,
        Reason::TunnelLost | Reason::ResetByServer | Reason::HandshakeLimit => Failure::TlsCut,
        Reason::PeerAppUnreachable => Failure::AppUnreachable503,
        Reason::PeerNotThisPod => Failure::NotThisPod400,
        Reason::PeerIdentity => Failure::Identity,
        Reason::PeerDenied => Failure::Denied,
        // This side's own bounds: no other endpoint helps, and this one is not to blame.
        Reason::AcceptLimit | Reason::MemoryLimit => Failure::Denied,
        Reason::PodGone => Failure::PodGone,
        Reason::NoClientCertificate
        | Reason::OwnCertificateMissing
        | Reason::PeerUntrusted
        | Reason::PeerExpired
        | Reason::PeerRevoked
        | Reason::IdentityRevoked => Failure::Certificate,
        Reason::Loop
        | Reason::NoEndpoint
        | Reason::RetryBudgetExhausted
        | Reason::Alpn
        | Reason::PeerProtocol
        | Reason::PolicyDenied
        | Reason::PolicyNoneMatched
        | Reason::PolicyNotSynced
        | Reason::PlaintextRefused
        | Reason::BadConnect
        | Reason::NotThisPod
        | Reason::AppRefused
        | Reason::AppTimeout
        | Reason::PolicyChanged
        | Reason::Drained
        | Reason::IdleTimeout
        | Reason::ResetByClient
        | Reason::Aborted
        | Reason::LinkLocal
        | Reason::ProbeViaHostPort => Failure::Protocol,
    }
}

/// Failures that mean that nobody was reached.
pub(super) fn is_of_the_network(failure: Failure) -> bool {
    match failure {
        Failure::TunnelDead
        | Failure::GoAway
        | Failure::Refused
        | Failure::Unreachable
        | Failure::Timeout
        | Failure::TlsCut => true,
        Failure::RefusedStream
        | Failure::PodGone
        | Failure::AppUnreachable503
        | Failure::NotThisPod400
        | Failure::Identity
        | Failure::Certificate
        | Failure::Denied
        | Failure::Protocol => false,
    }
}

/// Failures that count against the endpoint: it, or the way to it, does not work.
pub(super) fn is_of_the_endpoint(failure: Failure) -> bool {
    match failure {
        Failure::Refused
        | Failure::Unreachable
        | Failure::Timeout
        | Failure::TlsCut
        | Failure::AppUnreachable503
        | Failure::Identity
        | Failure::Protocol => true,
        Failure::TunnelDead
        | Failure::GoAway
        | Failure::RefusedStream
        | Failure::PodGone
        | Failure::NotThisPod400
        | Failure::Certificate
        | Failure::Denied => false,
    }
}

/// Failures after which the tunnels to the peer serve nothing new.
pub(super) fn ends_tunnel(failure: Failure) -> bool {
    match failure {
        Failure::TunnelDead
        | Failure::GoAway
        | Failure::RefusedStream
        | Failure::PodGone
        | Failure::Timeout
        | Failure::TlsCut
        | Failure::Certificate
        | Failure::Protocol
        | Failure::NotThisPod400 => true,
        Failure::Refused
        | Failure::Unreachable
        | Failure::AppUnreachable503
        | Failure::Identity
        | Failure::Denied => false,
    }
}

pub(super) fn of_tunnel(error: &TunnelError) -> Reason {
    match error {
        TunnelError::NoCertificate(error) => error.reason(),
        TunnelError::Dial(error) => of_dial(error),
        TunnelError::Timeout { stage: super::tunnel::DialStage::Tcp, .. } => Reason::ConnectTimeout,
        TunnelError::Timeout { stage: super::tunnel::DialStage::Tls, .. } => Reason::HandshakeTimeout,
        TunnelError::Tls { source, .. } => crate::identity::tls::reason_of(source),
        TunnelError::Handshake { source, .. } => source.reason(),
        TunnelError::Http { source, .. } => super::tunnel::reason_of(source),
        TunnelError::PodGone => Reason::PodGone,
    }
}

fn of_stream(error: &StreamError) -> Reason {
    match error {
        StreamError::Refused(refused) => refused.reason(),
        StreamError::Reset(code) if *code == RESET_REFUSED => Reason::PeerDenied,
        StreamError::GoAway | StreamError::RefusedStream | StreamError::Reset(_) => Reason::TunnelLost,
        StreamError::Lost(reason) => *reason,
    }
}

/// The closed reason for a failed dial.
pub(super) fn of_dial(error: &DialError) -> Reason {
    match error {
        DialError::Netns(_) => Reason::PodGone,
        DialError::PortsExhausted(_) => Reason::SourcePortsExhausted,
        DialError::Socket { source, .. } | DialError::Connect { source, .. } => of_connect(source),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "std's enum; whatever else connect() says, nobody was reached"
)]
fn of_connect(error: &io::Error) -> Reason {
    if is_own_lack(error) {
        return Reason::MemoryLimit;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::Refused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::Unreachable,
    }
}

/// Whether it is this process or this node that has no descriptor or no memory left, whatever was dialled.
fn is_own_lack(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw)
        .is_some_and(|errno| [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM].contains(&errno))
}

/// The same for a dial to the pod's own app.
fn of_app_dial(error: &DialError) -> Reason {
    match error {
        DialError::Netns(_) => Reason::PodGone,
        DialError::PortsExhausted(_) => Reason::SourcePortsExhausted,
        DialError::Socket { source, .. } if is_own_lack(source) => Reason::MemoryLimit,
        DialError::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => Reason::AppTimeout,
        DialError::Socket { .. } | DialError::Connect { .. } => Reason::AppRefused,
    }
}

/// Why an inbound connection was not served, or was cut.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// The peer's request is no CONNECT to an address.
    #[error("not a CONNECT to an address")]
    BadConnect,
    /// It is not for this pod's app.
    #[error(transparent)]
    NotForUs(#[from] InboundRefusal),
    /// It may be for an address that only the kernel knows as the pod's, and the kernel could not be asked.
    #[error("cannot tell whether {ip} is the pod's")]
    WhoseUnknown {
        /// The address.
        ip: IpAddr,
        /// Why not.
        source: io::Error,
    },
    /// The pod has as many connections as it may have.
    #[error("the pod has {0} connections")]
    AcceptLimit(usize),
    /// The pod's share of the budget for buffered bytes is used up.
    #[error("{0} bytes wait for the pod's slow readers")]
    MemoryLimit(usize),
    /// Policy refused it.
    #[error("refused by policy: {0}")]
    Denied(Box<Refusal>),
    /// Policy allowed it when it began, and does not any more.
    #[error("no longer allowed: {0}")]
    NoLongerAllowed(Box<Refusal>),
    /// The app could not be dialled.
    #[error(transparent)]
    App(DialError),
    /// The app did not answer in time.
    #[error("the app at {0} did not answer in time")]
    AppTimeout(SocketAddr),
    /// The client went away.
    #[error("the client reset the connection")]
    ClientGone,
    /// It broke while it was carried.
    #[error("broken: {0}")]
    Broken(BrokenBy),
}

impl ServeError {
    /// Metric label and access-log word. Exhaustive: a new variant must pick its word here.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::BadConnect => Reason::BadConnect,
            Self::NotForUs(refusal) => refusal.reason(),
            Self::WhoseUnknown { source, .. } if is_own_lack(source) => Reason::MemoryLimit,
            Self::WhoseUnknown { .. } => Reason::NotThisPod,
            Self::AcceptLimit(_) => Reason::AcceptLimit,
            Self::MemoryLimit(_) => Reason::MemoryLimit,
            Self::Denied(refusal) => refusal.reason,
            Self::NoLongerAllowed(refusal) if refusal.reason == Reason::PlaintextRefused => refusal.reason,
            Self::NoLongerAllowed(_) => Reason::PolicyChanged,
            Self::App(error) => of_app_dial(error),
            Self::AppTimeout(_) => Reason::AppTimeout,
            Self::ClientGone => Reason::ResetByClient,
            Self::Broken(by) => by.reason(),
        }
    }

    /// What the other side is told of it.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(refusal) => Refusal::clone(refusal),
            Self::BadConnect
            | Self::NotForUs(_)
            | Self::WhoseUnknown { .. }
            | Self::AcceptLimit(_)
            | Self::MemoryLimit(_)
            | Self::NoLongerAllowed(_)
            | Self::App(_)
            | Self::AppTimeout(_)
            | Self::ClientGone
            | Self::Broken(_) => Refusal::of(self.reason()),
        }
    }

    /// What a CONNECT is answered with.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::BadConnect | Self::NotForUs(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) | Self::NoLongerAllowed(_) => StatusCode::FORBIDDEN,
            Self::WhoseUnknown { .. }
            | Self::AcceptLimit(_)
            | Self::MemoryLimit(_)
            | Self::App(_)
            | Self::AppTimeout(_)
            | Self::ClientGone
            | Self::Broken(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
