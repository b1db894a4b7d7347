//! HBONE: what the two agents of a tunnel agree on (HTTP/2 CONNECT over mutual TLS 1.3).
//!
//! The same ports, headers and statuses as Istio's ztunnel and Envoy, so that either may be the peer.

use std::fmt;
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

/// What a reply's `adit-reason` says: the reason, which policy's which rule where one decided, and which ALLOW policies
/// were asked where it was that none of them matched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The closed word.
    pub reason: Reason,
    /// `namespace/name` of the policy that refused.
    pub policy: Option<String>,
    /// The index of its rule.
    pub rule: Option<u32>,
    /// `namespace/name` of the ALLOW policies of which none matched: as many as fit.
    pub unmatched: Vec<String>,
    /// How many more of these there are.
    pub more: u32,
}

impl Refusal {
    /// A refusal that no policy decided.
    pub const fn of(reason: Reason) -> Self {
        Self { reason, policy: None, rule: None, unmatched: Vec::new(), more: 0 }
    }

    /// Prints the header's value, at most [`REFUSAL_LEN_MAX`] bytes; a longer policy name loses its end.
    pub fn format(&self) -> String {
        let mut text = self.reason.label().to_owned();
        if let Some(policy) = &self.policy {
            let rule = self.rule.map(|rule| format!("; rule={rule}")).unwrap_or_default();
            let room = REFUSAL_LEN_MAX - text.len() - "; policy=\"\"".len() - rule.len();
            let shown: String = printable(policy).take(room).collect();
            text.push_str(&format!("; policy=\"{shown}\"{rule}"));
        }
        if !self.unmatched.is_empty() {
            text.push_str(&self.format_unmatched(REFUSAL_LEN_MAX - text.len()));
        }
        text
    }

    /// Whole names while they fit into `room` bytes, and how many are left out.
    fn format_unmatched(&self, room: usize) -> String {
        let (begin, end) = ("; unmatched=\"", "\"; more=4294967295");
        let mut text = begin.to_owned();
        let mut named = 0;
        for name in &self.unmatched {
            let comma = if named == 0 { "" } else { "," };
            let name: String = printable(name).collect();
            if text.len() + comma.len() + name.len() + end.len() > room {
                break;
            }
            text.push_str(comma);
            text.push_str(&name);
            named += 1;
        }
        let left_out = u32::try_from(self.unmatched.len() - named).unwrap_or(u32::MAX);
        match (named, self.more.saturating_add(left_out)) {
            (_, 0) => text.push('"'),
            // No room for a single name: the reason alone says that none matched.
            (0, _) => text.clear(),
            (_, more) => text.push_str(&format!("\"; more={more}")),
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
        let mut refusal = Self::of(reason);
        for part in parts {
            match part.split_once('=') {
                Some(("policy", value)) => refusal.policy = Some(value.trim_matches('"').to_owned()),
                Some(("rule", value)) => refusal.rule = value.parse().ok(),
                Some(("unmatched", value)) => {
                    let names = value.trim_matches('"').split(',').filter(|name| !name.is_empty());
                    refusal.unmatched = names.map(str::to_owned).collect();
                }
                Some(("more", value)) => refusal.more = value.parse().unwrap_or(0),
                Some(_) | None => {}
            }
        }
        Some(refusal)
    }
}

/// As people read it: `policy_denied by shop/no-bots, rule 2`; `policy_none_matched of shop/a, shop/b and 3 more`.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.label())?;
        if let Some(policy) = &self.policy {
            write!(f, " by {policy}")?;
        }
        if let Some(rule) = self.rule {
            write!(f, ", rule {rule}")?;
        }
        if !self.unmatched.is_empty() {
            write!(f, " of {}", self.unmatched.join(", "))?;
        }
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        Ok(())
    }
}

/// What of a name may stand in a quoted list of the header; names of Kubernetes objects are all of it.
fn printable(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | ';' | ','))
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
        let refusal = Refusal {
            policy: Some("shop/no-bots".into()),
            rule: Some(2),
            ..Refusal::of(Reason::PolicyDenied)
        };
        assert_eq!(refusal.format(), "policy_denied; policy=\"shop/no-bots\"; rule=2");
        assert_eq!(Refusal::parse(&refusal.format()), Some(refusal.clone()));
        let long = Refusal { policy: Some(format!("shop/{}", "x".repeat(400))), ..refusal.clone() };
        assert_eq!(long.format().len(), REFUSAL_LEN_MAX);
        assert_eq!(refusal.to_string(), "policy_denied by shop/no-bots, rule 2");
        assert_eq!(Refusal::parse("nonsense; policy=\"a\""), None);
        assert_eq!(Refusal::parse(&"x".repeat(300)), None);
    }

    #[test]
    fn a_refusal_names_the_policies_of_which_none_matched_as_far_as_they_fit() {
        let refusal = |names: &[&str], more| Refusal {
            unmatched: names.iter().map(|name| (*name).to_owned()).collect(),
            more,
            ..Refusal::of(Reason::PolicyNoneMatched)
        };
        let two = refusal(&["shop/a", "shop/b"], 0);
        assert_eq!(two.format(), "policy_none_matched; unmatched=\"shop/a,shop/b\"");
        assert_eq!(Refusal::parse(&two.format()), Some(two.clone()));
        assert_eq!(two.to_string(), "policy_none_matched of shop/a, shop/b");

        let long = "x".repeat(150);
        let half = refusal(&["shop/a", &long, &long], 7);
        assert!(half.format().len() <= REFUSAL_LEN_MAX);
        assert_eq!(Refusal::parse(&half.format()), Some(refusal(&["shop/a", &long], 8)));
        assert_eq!(refusal(&["shop/a"], 7).to_string(), "policy_none_matched of shop/a and 7 more");
        assert_eq!(refusal(&[&"x".repeat(300)], 0).format(), "policy_none_matched");
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
