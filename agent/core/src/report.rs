//! What is said of one connection: the one value from which its access-log line, its metrics and its flow are made.
//!
//! The data path fills a [`ConnectionReport`] in; `agent::telemetry` turns it into output. Knows no socket and no format
//! but its own words.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adit_proto::{Reason, SpiffeId};

use crate::net::{ObjectName, OriginalDst, SourceAddr};
use crate::time::{Mono, Now};
use crate::workload::Workload;

/// Which side of the mesh a report was made on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Direction {
    /// At the client's pod.
    Outbound,
    /// At the server's pod.
    Inbound,
}

impl Direction {
    /// The word in logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How the hop was carried. `Mtls` is said only of a finished handshake.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Transport {
    /// Not decided: the connection ended before.
    #[default]
    None,
    /// In an HBONE tunnel over mutual TLS.
    Mtls,
    /// In clear, to or from a pod or an address of the mesh's world.
    Plaintext,
    /// In clear, to a destination outside the mesh.
    Passthrough,
    /// In clear, from the node's kubelet: a probe.
    Probe,
}

impl Transport {
    /// The word in logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mtls => "mtls",
            Self::Plaintext => "plaintext",
            Self::Passthrough => "passthrough",
            Self::Probe => "probe",
        }
    }
}

/// What was read off the finished handshake of a hop. Shared by the connections of one tunnel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Security {
    /// The peer's identity, verified.
    pub peer: SpiffeId,
    /// The peer certificate's serial, lower-case hex.
    pub peer_serial: Arc<str>,
    /// When the peer's certificate expires.
    pub peer_not_after: SystemTime,
    /// `TLSv1.3`.
    pub version: &'static str,
    /// `TLS13_AES_256_GCM_SHA384`.
    pub suite: &'static str,
    /// The key-exchange group: `X25519MLKEM768`.
    pub group: &'static str,
}

/// The stages of a connection's set-up, each once per connection (the successful attempt's).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Looking the destination up, waiting for an unknown pod included.
    Resolve,
    /// Waiting for a tunnel that another connection is opening.
    PoolWait,
    /// The TCP handshake.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// From the CONNECT to its answer.
    Connect,
    /// From the answer to the first byte of the destination.
    FirstByte,
}

/// How long each stage took, where it took place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stages([Option<u32>; 6]);

impl Stages {
    /// Every stage, in order.
    pub const ALL: [Stage; 6] =
        [Stage::Resolve, Stage::PoolWait, Stage::Tcp, Stage::Tls, Stage::Connect, Stage::FirstByte];

    /// Records a stage; resolution 1 µs, at most 71 minutes.
    pub fn set(&mut self, stage: Stage, took: Duration) {
        self.0[stage as usize] = Some(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// How long a stage took, if it took place.
    pub fn get(&self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize].map(|us| Duration::from_micros(us.into()))
    }
}

impl Stage {
    /// The word in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::PoolWait => "pool_wait",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
        }
    }
}

/// The kernel's view of the tunnel leg (TCP_INFO).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpFacts {
    /// Smoothed round-trip time, µs.
    pub rtt_us: u32,
    /// Least round-trip time seen, µs.
    pub min_rtt_us: u32,
    /// Segments sent again, in all.
    pub retransmits: u32,
}

/// What policy said, and which rule of which policy said it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Whether the connection was allowed.
    pub allowed: bool,
    /// The policy that decided; none where no policy did.
    pub policy: Option<ObjectName>,
    /// The index of its rule.
    pub rule: Option<u32>,
    /// The ALLOW policies that were asked, where it was refused because none of them matched.
    pub unmatched: Option<Box<Unmatched>>,
}

/// ALLOW policies of which none matched, in the order of their names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unmatched {
    /// The first of them, at most [`Unmatched::NAMED_MAX`].
    pub named: Vec<ObjectName>,
    /// How many more there are.
    pub more: u32,
}

impl Unmatched {
    /// How many are named: more than anybody would write for one workload, and 8 names of 25 bytes still fit into the
    /// 256 of the header that tells them to the other side.
    pub const NAMED_MAX: usize = 8;

    /// These, and `more` of which the name is not known.
    pub fn of(mut names: impl Iterator<Item = ObjectName>, more: u32) -> Self {
        let named = names.by_ref().take(Self::NAMED_MAX).collect();
        let beyond = u32::try_from(names.count()).unwrap_or(u32::MAX);
        Self { named, more: more.saturating_add(beyond) }
    }
}

/// A W3C trace id: 16 bytes, not all zero. Both sides of a connection have the same.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// How a connection ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum End {
    /// It is still open: an interim report.
    #[default]
    Open,
    /// Both sides closed it.
    Closed,
    /// It failed, or was ended, for this reason.
    Failed(Reason, Option<Arc<str>>),
}

impl End {
    /// The closed reason, where there is one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Open | Self::Closed => None,
            Self::Failed(reason, _) => Some(*reason),
        }
    }
}

/// One connection, seen from one side.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionReport {
    /// When it was accepted.
    pub opened: Now,
    /// Which side this is.
    pub direction: Direction,
    /// The client's address.
    pub source: SourceAddr,
    /// What the client dialled (outbound), or the pod's address that it was for (inbound).
    pub destination: OriginalDst,
    /// This side's pod.
    pub local: Arc<Workload>,
    /// The other side's pod, where the world knows it. For inbound this is a look-up by address: a hint, not an identity.
    pub remote: Option<Arc<Workload>>,
    /// The service that the client addressed, and its port.
    pub service: Option<(ObjectName, u16)>,
    /// The address that was dialled in the end.
    pub target: Option<SocketAddr>,
    /// How it was carried.
    pub transport: Transport,
    /// What the handshake proved, for [`Transport::Mtls`].
    pub security: Option<Arc<Security>>,
    /// Whether the tunnel was there already; none where there is no tunnel.
    pub tunnel_reused: Option<bool>,
    /// Time of each stage.
    pub stages: Stages,
    /// Connect attempts, the successful one included.
    pub attempts: u16,
    /// Why the last failed attempt failed.
    pub last_failure: Option<Reason>,
    /// TCP_INFO of the tunnel leg, read at the end.
    pub tcp: Option<TcpFacts>,
    /// Bytes from client to server.
    pub bytes_to_server: u64,
    /// Bytes from server to client.
    pub bytes_to_client: u64,
    /// What policy said; the other side's, where it refused.
    pub decision: Option<Decision>,
    /// The policies that would have decided otherwise, were they not `dryRun`.
    pub dry_run: Vec<Decision>,
    /// The trace id of both sides.
    pub trace: TraceId,
}

impl ConnectionReport {
    /// The report of a connection that was just accepted.
    pub fn open(
        opened: Now,
        direction: Direction,
        source: SourceAddr,
        destination: OriginalDst,
        local: Arc<Workload>,
        trace: TraceId,
    ) -> Self {
        Self {
            opened,
            direction,
            source,
            destination,
            local,
            remote: None,
            service: None,
            target: None,
            transport: Transport::None,
            security: None,
            tunnel_reused: None,
            stages: Stages::default(),
            attempts: 0,
            last_failure: None,
            tcp: None,
            bytes_to_server: 0,
            bytes_to_client: 0,
            decision: None,
            dry_run: Vec::new(),
            trace,
        }
    }

    /// How long it has been open at `now`.
    pub fn duration(&self, now: Mono) -> Duration {
        now.since(self.opened.mono)
    }
}
