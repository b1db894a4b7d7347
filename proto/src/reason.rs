//! The closed set of words for why a connection failed or ended.
//!
//! One word each for the access log, the metric label and the tool, with a hint of what to do. A word never changes
//! its meaning and is never removed. Contains no logic but the table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a connection was not carried, or why it ended other than by both sides closing it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The destination is one of the agent's own ports on an own address.
    Loop,
    /// The pod already has as many connections as the agent accepts for one pod, or a peer as many tunnels to it.
    AcceptLimit,
    /// The pod's share of the agent's budget for buffered bytes is used up, or the agent has no descriptor or no memory left.
    MemoryLimit,
    /// The service has no endpoint that may be used.
    NoEndpoint,
    /// The destination refused the TCP connection.
    Refused,
    /// No route to the destination.
    Unreachable,
    /// The TCP connection was not answered in time.
    ConnectTimeout,
    /// The whole connect phase took longer than its deadline.
    Deadline,
    /// The tunnel to the peer broke.
    TunnelLost,
    /// The connection failed and the service's retry budget allowed no further attempt.
    RetryBudgetExhausted,
    /// The TLS handshake did not finish in time.
    HandshakeTimeout,
    /// Too many TLS handshakes at once.
    HandshakeLimit,
    /// The peer did not agree on HTTP/2.
    Alpn,
    /// The peer showed no client certificate.
    NoClientCertificate,
    /// This pod's own certificate is not there, or has expired.
    OwnCertificateMissing,
    /// The peer proved another identity than the one expected.
    PeerIdentity,
    /// The peer's certificate chains to no root of its trust domain, or breaks the SPIFFE rules.
    PeerUntrusted,
    /// The peer's certificate has expired, or is not valid yet.
    PeerExpired,
    /// The peer's certificate or identity is revoked.
    PeerRevoked,
    /// The peer broke TLS, HTTP/2 or HBONE.
    PeerProtocol,
    /// The peer's agent refused by policy.
    PeerDenied,
    /// The peer's agent could not reach its app.
    PeerAppUnreachable,
    /// The peer's agent says that the address is not its pod's.
    PeerNotThisPod,
    /// A DENY policy matched.
    PolicyDenied,
    /// ALLOW policies select this workload and none matched.
    PolicyNoneMatched,
    /// The agent does not know the policies yet.
    PolicyNotSynced,
    /// Plaintext was refused: PeerAuthentication says STRICT.
    PlaintextRefused,
    /// The peer's request is no CONNECT to an address, or to one of another family than the client's.
    BadConnect,
    /// The CONNECT names an address that is not this pod's.
    NotThisPod,
    /// The app refused the connection.
    AppRefused,
    /// The app did not answer the connection in time.
    AppTimeout,
    /// The connection was allowed when it began and is not any more.
    PolicyChanged,
    /// The connection's identity was revoked while it was open.
    IdentityRevoked,
    /// The pod went away.
    PodGone,
    /// The connection was still open at the drain deadline.
    Drained,
    /// Half closed, and without a byte for the idle time-out.
    IdleTimeout,
    /// The client reset the connection.
    ResetByClient,
    /// The server reset the connection.
    ResetByServer,
    /// The agent ended the connection before its end.
    Aborted,
    /// Inbound from an IPv6 link-local address, which cannot be passed on.
    LinkLocal,
    /// No source port was free for this client towards the app.
    SourcePortsExhausted,
    /// A probe that came through a host port or another host cannot be told from other plaintext.
    ProbeViaHostPort,
}

impl Reason {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 42] = [
        Self::Loop,
        Self::AcceptLimit,
        Self::MemoryLimit,
        Self::NoEndpoint,
        Self::Refused,
        Self::Unreachable,
        Self::ConnectTimeout,
        Self::Deadline,
        Self::TunnelLost,
        Self::RetryBudgetExhausted,
        Self::HandshakeTimeout,
        Self::HandshakeLimit,
        Self::Alpn,
        Self::NoClientCertificate,
        Self::OwnCertificateMissing,
        Self::PeerIdentity,
        Self::PeerUntrusted,
        Self::PeerExpired,
        Self::PeerRevoked,
        Self::PeerProtocol,
        Self::PeerDenied,
        Self::PeerAppUnreachable,
        Self::PeerNotThisPod,
        Self::PolicyDenied,
        Self::PolicyNoneMatched,
        Self::PolicyNotSynced,
        Self::PlaintextRefused,
        Self::BadConnect,
        Self::NotThisPod,
        Self::AppRefused,
        Self::AppTimeout,
        Self::PolicyChanged,
        Self::IdentityRevoked,
        Self::PodGone,
        Self::Drained,
        Self::IdleTimeout,
        Self::ResetByClient,
        Self::ResetByServer,
        Self::Aborted,
        Self::LinkLocal,
        Self::SourcePortsExhausted,
        Self::ProbeViaHostPort,
    ];

    /// The word in logs, metrics and on the wire.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::AcceptLimit => "accept_limit",
            Self::MemoryLimit => "memory_limit",
            Self::NoEndpoint => "no_endpoint",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Deadline => "deadline",
            Self::TunnelLost => "tunnel_lost",
            Self::RetryBudgetExhausted => "retry_budget_exhausted",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeLimit => "handshake_limit",
            Self::Alpn => "alpn",
            Self::NoClientCertificate => "no_client_certificate",
            Self::OwnCertificateMissing => "own_certificate_missing",
            Self::PeerIdentity => "peer_identity",
            Self::PeerUntrusted => "peer_untrusted",
            Self::PeerExpired => "peer_expired",
            Self::PeerRevoked => "peer_revoked",
            Self::PeerProtocol => "peer_protocol",
            Self::PeerDenied => "peer_denied",
            Self::PeerAppUnreachable => "peer_app_unreachable",
            Self::PeerNotThisPod => "peer_not_this_pod",
            Self::PolicyDenied => "policy_denied",
            Self::PolicyNoneMatched => "policy_none_matched",
            Self::PolicyNotSynced => "policy_not_synced",
            Self::PlaintextRefused => "plaintext_refused",
            Self::BadConnect => "bad_connect",
            Self::NotThisPod => "not_this_pod",
            Self::AppRefused => "app_refused",
            Self::AppTimeout => "app_timeout",
            Self::PolicyChanged => "policy_changed",
            Self::IdentityRevoked => "identity_revoked",
            Self::PodGone => "pod_gone",
            Self::Drained => "drained",
            Self::IdleTimeout => "idle_timeout",
            Self::ResetByClient => "reset_by_client",
            Self::ResetByServer => "reset_by_server",
            Self::Aborted => "aborted",
            Self::LinkLocal => "link_local",
            Self::SourcePortsExhausted => "source_ports_exhausted",
            Self::ProbeViaHostPort => "probe_via_host_port",
        }
    }

    /// What an operator should look at or do.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Loop => "Nothing should dial 15001, 15006 or 15008 itself; look at what chose this port.",
            Self::AcceptLimit => "Close idle connections or raise dataplane.connections-per-pod.",
            Self::MemoryLimit => {
                "Find the slow readers in the agent's flows, or raise dataplane.buffer-budget; for descriptors raise its limit of open files."
            }
            Self::NoEndpoint => {
                "Look at the Service's EndpointSlices: is a pod ready, and does internalTrafficPolicy leave one on this node?"
            }
            Self::Refused => "Nothing listens on that address and port.",
            Self::Unreachable => {
                "Look at the node's routes and NetworkPolicies; port 15008 must be allowed between pods, in and out."
            }
            Self::ConnectTimeout => {
                "A NetworkPolicy or firewall drops the packets; port 15008 must be allowed between pods, in and out."
            }
            Self::Deadline => {
                "Look at the stages in the report; the deadline is TrafficPolicy's connectTimeout."
            }
            Self::TunnelLost => {
                "The peer's agent went away or the network was cut; new connections use a new tunnel."
            }
            Self::RetryBudgetExhausted => "Many attempts fail: find out why before raising the budget.",
            Self::HandshakeTimeout => "The peer is overloaded, or what listens on 15008 is no agent.",
            Self::HandshakeLimit => {
                "A peer opens tunnels faster than they can be finished; look at the source address."
            }
            Self::Alpn => "What listens on 15008 is no HBONE agent.",
            Self::NoClientCertificate => "Only agents of the mesh may dial 15008.",
            Self::OwnCertificateMissing => {
                "Look at the agent's log for what the CA answered, and at the CA's own."
            }
            Self::PeerIdentity => {
                "The address now belongs to another pod, or the peer uses the wrong certificate."
            }
            Self::PeerUntrusted => {
                "Compare the `bundle-generation` of both nodes (Lease adit-node-NODE, or status/NODE.yaml) with the trust bundle's."
            }
            Self::PeerExpired => "Look at the CA's reachability from the peer's node, and at both clocks.",
            Self::PeerRevoked => {
                "It is on the kill list, `revoked.json` in the trust bundle; `adit.dev/restore` or `adit-ca revoke --undo` takes it off."
            }
            Self::PeerProtocol => "The peer is no agent, or of an incompatible version.",
            Self::PeerDenied => {
                "The policy is named in the report; where a carried connection was cut, in the peer's of the same trace."
            }
            Self::PeerAppUnreachable => "The app does not listen on that port in its pod.",
            Self::PeerNotThisPod => "The address was just reassigned; a new connection looks it up again.",
            Self::PolicyDenied => "The policy and its rule are named in the report.",
            Self::PolicyNoneMatched => {
                "Add a rule for this source to a policy that the report names, or look at the identity it really has."
            }
            Self::PolicyNotSynced => "The agent waits for its first sync; look at its readiness.",
            Self::PlaintextRefused => "Enrol the client, or let the port be PERMISSIVE with portLevelMtls.",
            Self::BadConnect => "The peer is no HBONE client, or mixes IPv4 and IPv6.",
            Self::NotThisPod => "The peer's view is old; it looks the address up again.",
            Self::AppRefused => "Nothing listens on that port in the pod.",
            Self::AppTimeout => "The app's accept queue is full.",
            Self::PolicyChanged => {
                "A policy, a label or a PeerAuthentication changed; it is named in the report."
            }
            Self::IdentityRevoked => {
                "It is on the kill list, `revoked.json` in the trust bundle; `adit.dev/restore` or `adit-ca revoke --undo` takes it off."
            }
            Self::PodGone => "The pod was deleted while the connection was open.",
            Self::Drained => {
                "Raise `drain-within`, `pods.drain-deadline` or `uninstall-drain` if such connections must outlive it."
            }
            Self::IdleTimeout => "One side closed and the other never did; look at the app.",
            Self::ResetByClient => "The client ended it without closing; often a time-out of its own.",
            Self::ResetByServer => "The server ended it without closing; look at its log.",
            Self::Aborted => "The agent stopped or crashed; look at its log.",
            Self::LinkLocal => "Use a global or unique local address.",
            Self::SourcePortsExhausted => {
                "Too many connections of one client to one port; widen ip_local_port_range in the pod."
            }
            Self::ProbeViaHostPort => "Aim the probe at the pod's own port.",
        }
    }

    /// The reason with this word.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label() == label)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_unique_and_is_what_serde_writes() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_label(reason.label()), Some(reason));
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("{:?}", reason.label()));
            assert!(reason.hint().ends_with(['.', '?']), "{reason}");
        }
    }
}
