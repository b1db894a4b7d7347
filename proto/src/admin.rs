//! JSON types of the admin API: served by the agent, read by `adit` and the tests. The access log's JSON lines are
//! [`Flow`]s too.
//!
//! Fields are only ever added; an absent field means "not known" or "did not take place". Times are RFC 3339 in UTC,
//! durations microseconds, sizes bytes, as the names say.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A pod, and who it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Party<'a> {
    /// Its address, with the port where there is one.
    #[serde(default, skip_serializing_if = "str_is_empty")]
    pub addr: Cow<'a, str>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Cow<'a, str>>,
    /// Its pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Cow<'a, str>>,
    /// What made the pod: `Deployment/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Cow<'a, str>>,
    /// Its SPIFFE identity: for the reporting side its own, for the other side only what a handshake proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Cow<'a, str>>,
}

fn str_is_empty(text: &str) -> bool {
    text.is_empty()
}

/// What a finished handshake showed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tls<'a> {
    /// `TLSv1.3`.
    pub version: Cow<'a, str>,
    /// The cipher suite.
    pub suite: Cow<'a, str>,
    /// The key-exchange group.
    pub group: Cow<'a, str>,
    /// The peer certificate's serial, hex.
    pub peer_serial: Cow<'a, str>,
    /// When the peer's certificate expires.
    pub peer_not_after: Cow<'a, str>,
}

/// What policy said of a connection.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Decision<'a> {
    /// Whether it was allowed.
    pub allowed: bool,
    /// `namespace/name` of the policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Cow<'a, str>>,
    /// The index of its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// `namespace/name` of the ALLOW policies that were asked, where it was refused because none of them matched: the
    /// first of them by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<Cow<'a, str>>,
    /// How many more of these there are.
    #[serde(default, skip_serializing_if = "is_none_more")]
    pub unmatched_more: u32,
}

fn is_none_more(count: &u32) -> bool {
    *count == 0
}

/// One connection seen from one side: an access-log line, and an entry of the flow ring.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Flow<'a> {
    /// When it was accepted.
    pub time: Cow<'a, str>,
    /// `open` (an interim report), `closed` or `failed`.
    pub state: Cow<'a, str>,
    /// `outbound` or `inbound`.
    pub direction: Cow<'a, str>,
    /// `mtls`, `plaintext`, `passthrough`, `probe` or `none`.
    pub transport: Cow<'a, str>,
    /// The closed reason, where it failed or was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// What exactly happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Cow<'a, str>>,
    /// The client.
    pub source: Party<'a>,
    /// The server.
    pub destination: Party<'a>,
    /// The service that the client addressed: `namespace/name:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Cow<'a, str>>,
    /// The address that was dialled in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Cow<'a, str>>,
    /// What the hop's handshake showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls<'a>>,
    /// Whether the tunnel was there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_reused: Option<bool>,
    /// Policy's verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision<'a>>,
    /// Policies that would have decided otherwise, were they not `dryRun`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<Decision<'a>>,
    /// Connect attempts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u16,
    /// Why the last failed attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Cow<'a, str>>,
    /// Microseconds of each stage that took place: `resolve`, `pool_wait`, `tcp`, `tls`, `connect`, `first_byte`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages_us: BTreeMap<Cow<'a, str>, u64>,
    /// How long it was, or has been, open.
    pub duration_us: u64,
    /// Smoothed round-trip time of the tunnel leg.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// Least round-trip time of the tunnel leg.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rtt_us: Option<u32>,
    /// Segments of the tunnel leg sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    /// Bytes from client to server.
    pub bytes_to_server: u64,
    /// Bytes from server to client.
    pub bytes_to_client: u64,
    /// The W3C trace id that both sides share.
    pub trace: Cow<'a, str>,
}

fn is_zero(count: &u16) -> bool {
    *count == 0
}

/// The reply of `GET /flows`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Flows<'a> {
    /// The agent's node.
    pub node: String,
    /// The newest last.
    pub flows: Vec<Flow<'a>>,
    /// Reports that were lost because they came faster than they could be written.
    pub dropped: u64,
}

/// One edge: what one workload sent another, as one of the two agents saw it in the window.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Edge {
    /// `outbound`: told by the client's agent; `inbound`: by the server's.
    pub direction: String,
    /// `mtls`, `plaintext`, `passthrough`, `probe` or `none`.
    pub transport: String,
    /// The client: namespace, workload and identity; no address.
    pub source: Party<'static>,
    /// The server: namespace, workload and identity; an address only where it is outside the mesh.
    pub destination: Party<'static>,
    /// `namespace/name:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Connections whose connect phase succeeded, as far as they have been reported: one that stays open is a minute
    /// after that.
    pub opened: u64,
    /// Open now, reported or not.
    pub active: u64,
    /// Connections that failed, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, u64>,
    /// Retries made.
    pub retries: u64,
    /// Bytes from client to server.
    pub bytes_to_server: u64,
    /// Bytes from server to client.
    pub bytes_to_client: u64,
    /// Median and 99th percentile of the connect phase, as upper bounds of their buckets; none without a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_p50_us: Option<u64>,
    /// See `connect_p50_us`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_p99_us: Option<u64>,
    /// TLS version and group of the newest handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// How long that handshake took; a tunnel's first connection tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_handshake_us: Option<u64>,
}

/// The reply of `GET /edges`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Edges {
    /// The agent's node.
    pub node: String,
    /// What the numbers are about: the last so many seconds.
    pub window_s: u64,
    /// Sorted by source, destination, service.
    pub edges: Vec<Edge>,
    /// Connections of edges beyond the bound, summed up as "other": those open now, and those that have ended since the
    /// agent began.
    pub other: u64,
    /// Reports that were lost because they came faster than they could be written.
    pub dropped: u64,
}

/// One pod that this agent knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodStatus {
    /// `namespace/name`.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Where it is in its life: `added`, `listening`, `redirected`, `live`, `draining`, …
    pub state: String,
    /// Wanted in the mesh.
    pub enrolled: bool,
    /// Rules, listeners and certificate verified in place.
    pub captured: bool,
    /// Its identity, where it is enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// `nft` or `legacy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Connections that it has in the data path.
    pub connections: u64,
    /// What its annotations keep out of the mesh: `inbound port 80`, `outbound to 10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    /// What is not as it should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// Of these, the sysctls that capture wants and that cannot be set, by their paths below `/proc/sys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls_refused: Vec<String>,
}

/// One certificate that this agent holds.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertStatus {
    /// The identity.
    pub identity: String,
    /// Its serial, hex; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// From when it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Until when it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// The last failure to renew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The reply of `GET /status`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// The agent's node.
    pub node: String,
    /// Its version and commit.
    pub version: String,
    /// Whether it is ready.
    pub ready: bool,
    /// What is missing, if it is not; each says what and why.
    pub unmet: Vec<String>,
    /// What is wrong without making it unready: broken files, refused objects, sysctls that could not be set.
    pub problems: Vec<String>,
    /// The generation of its snapshot of the world.
    pub world_generation: u64,
    /// Pods, services and policies that it knows.
    pub counts: BTreeMap<String, u64>,
    /// Its pods.
    pub pods: Vec<PodStatus>,
    /// Its certificates.
    pub certificates: Vec<CertStatus>,
}
