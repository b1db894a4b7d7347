//! HBONE: what the two agents of a tunnel agree on (HTTP/2 CONNECT over mutual TLS 1.3).
//!
//! The same ports, headers and statuses as Istio's ztunnel and Envoy, so that either may be the peer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Reason;

/// In the pod: where its outbound TCP is redirected to.
pub const PORT_OUTBOUND: u16 = 15001;
/// In the pod: where its inbound plaintext TCP is redirected to.
pub const PORT_INBOUND_PLAINTEXT: u16 = 15006;
/// In the pod: inbound HBONE.
pub const PORT_INBOUND_HBONE: u16 = 15008;
/// The agent's own ports in a pod: a connection or CONNECT to one of them on an own address is refused (`loop`).
pub const PORTS_RESERVED: [u16; 3] = [PORT_OUTBOUND, PORT_INBOUND_PLAINTEXT, PORT_INBOUND_HBONE];

/// The ALPN protocol of a tunnel (RFC 9113, 3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// W3C Trace Context header; both sides of a connection report the same trace id.
pub const HEADER_TRACEPARENT: &str = "traceparent";
/// W3C Baggage header: hints about the source workload, never trusted for a decision.
pub const HEADER_BAGGAGE: &str = "baggage";
/// RFC 7239: the client's true address, `for="10.0.0.1:1234"`.
pub const HEADER_FORWARDED: &str = "forwarded";
/// Why a CONNECT was refused, in a reply: `policy_denied; policy="ns/name"; rule=0`.
pub const HEADER_ADIT_REASON: &str = "adit-reason";
/// The longest value of [`HEADER_ADIT_REASON`] that is sent or read, in bytes: a policy's longest name
/// (63 + 1 + 253) is cut, not refused.
pub const REFUSAL_LEN_MAX: usize = 256;

/// Why a CONNECT's `:authority` is no destination.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuthorityError {
    /// Not `ip:port` or `[ip]:port`.
    #[error("authority is not ip:port")]
    Form,
    /// Port 0, or an address that no connection can have (unspecified, multicast, broadcast).
    #[error("authority is no address that can be connected to")]
    Unusable,
}

/// Reads a CONNECT's `:authority`. Names are refused: the destination is always an address.
///
/// An IPv4-mapped IPv6 address is the same destination as the IPv4 address, and is returned as that.
pub fn parse_authority(text: &str) -> Result<SocketAddr, AuthorityError> {
    let addr: SocketAddr = text.parse().map_err(|_| AuthorityError::Form)?;
    let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let unusable = addr.port() == 0
        || addr.ip().is_unspecified()
        || addr.ip().is_multicast()
        || addr.ip() == Ipv4Addr::BROADCAST
        || matches!(addr, SocketAddr::V6(v6) if v6.scope_id() != 0);
    if unusable { Err(AuthorityError::Unusable) } else { Ok(addr) }
}

/// Prints a destination as a CONNECT's `:authority`: `10.0.0.1:80` or `[fd00::1]:80`.
pub fn format_authority(dst: SocketAddr) -> String {
    SocketAddr::new(dst.ip().to_canonical(), dst.port()).to_string()
}

/// What a reply's `adit-reason` says: the reason, and which policy's which rule where one decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The closed word.
    pub reason: Reason,
    /// `namespace/name` of the policy that refused.
    pub policy: Option<String>,
    /// The index of its rule.
    pub rule: Option<u32>,
}

impl Refusal {
    /// Prints the header's value, at most [`REFUSAL_LEN_MAX`] bytes; a longer policy name loses its end.
    pub fn format(&self) -> String {
        let mut text = self.reason.label().to_owned();
        if let Some(policy) = &self.policy {
            let rule = self.rule.map(|rule| format!("; rule={rule}")).unwrap_or_default();
            let room = REFUSAL_LEN_MAX - text.len() - "; policy=\"\"".len() - rule.len();
            let shown: String =
                policy.chars().filter(|c| c.is_ascii_graphic() && *c != '"').take(room).collect();
            text.push_str(&format!("; policy=\"{shown}\"{rule}"));
        }
        text
    }

    /// Reads a peer's header value; `None` if it is too long or begins with no known reason.
    ///
    /// Unknown parameters are ignored, so that later versions may add some.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > REFUSAL_LEN_MAX {
            return None;
        }
        let mut parts = text.split(';').map(str::trim);
        let reason = Reason::from_label(parts.next()?)?;
        let (mut policy, mut rule) = (None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("policy", value)) => policy = Some(value.trim_matches('"').to_owned()),
                Some(("rule", value)) => rule = value.parse().ok(),
                Some(_) | None => {}
            }
        }
        Some(Self { reason, policy, rule })
    }
}

/// Whether `ip` is IPv6 link-local, where a spoofed dial cannot be made.
pub fn is_link_local_v6(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_authority_is_an_address_and_a_port() {
        assert_eq!(parse_authority("10.0.0.1:80"), Ok("10.0.0.1:80".parse().unwrap()));
        assert_eq!(parse_authority("[fd00::1]:80"), Ok("[fd00::1]:80".parse().unwrap()));
        assert_eq!(parse_authority("[::ffff:10.0.0.1]:80"), Ok("10.0.0.1:80".parse().unwrap()));
        for text in
            ["", "10.0.0.1", "web:80", "10.0.0.1:99999", "http://10.0.0.1:80", "10.0.0.1:80/x", "fd00::1:80x"]
        {
            assert_eq!(parse_authority(text), Err(AuthorityError::Form), "{text}");
        }
        for text in
            ["10.0.0.1:0", "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80"]
        {
            assert_eq!(parse_authority(text), Err(AuthorityError::Unusable), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_policy_and_rule_and_stays_short() {
        let refusal =
            Refusal { reason: Reason::PolicyDenied, policy: Some("shop/no-bots".into()), rule: Some(2) };
        assert_eq!(refusal.format(), "policy_denied; policy=\"shop/no-bots\"; rule=2");
        assert_eq!(Refusal::parse(&refusal.format()), Some(refusal.clone()));
        let long = Refusal { policy: Some(format!("shop/{}", "x".repeat(400))), ..refusal };
        assert_eq!(long.format().len(), REFUSAL_LEN_MAX);
        assert_eq!(Refusal::parse("nonsense; policy=\"a\""), None);
        assert_eq!(Refusal::parse(&"x".repeat(300)), None);
    }

    proptest! {
        #[test]
        fn any_authority_parses_or_is_refused_and_prints_back(text in ".{0,40}") {
            if let Ok(addr) = parse_authority(&text) {
                prop_assert_eq!(parse_authority(&format_authority(addr)), Ok(addr));
            }
        }

        #[test]
        fn any_refusal_header_parses_or_is_refused(text in ".{0,300}") {
            let _ = Refusal::parse(&text);
        }
    }
}
