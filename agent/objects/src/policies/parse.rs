//! The strings in which fields are written.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use adit_core::policy::{Pattern, ServiceAccount};
use adit_proto::SpiffeId;
use ipnet::{IpNet, Ipv4Net};

use crate::problem::Wrong;

const SCHEME: &str = "spiffe://";

/// A port: decimal digits without sign or leading zero, 1 to 65535.
pub(crate) fn port(text: &str) -> Result<u16, Wrong> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    match text.parse() {
        Ok(port) if plain => Ok(port),
        Ok(_) | Err(_) => Err(Wrong::Port(text.to_owned())),
    }
}

/// An address, IPv4-mapped IPv6 as IPv4. Leading zeros are refused: some read them as octal.
pub(crate) fn address(text: &str) -> Result<IpAddr, Wrong> {
    let parsed: Result<IpAddr, _> = text.parse();
    parsed.map(|ip| ip.to_canonical()).map_err(|_| Wrong::Address(text.to_owned()))
}

/// An address, or a block of them; host bits are cut off, IPv4-mapped IPv6 is IPv4.
pub(crate) fn cidr(text: &str) -> Result<IpNet, Wrong> {
    let bad = || Wrong::Cidr(text.to_owned());
    let Some((ip, len)) = text.split_once('/') else {
        return address(text).map(IpNet::from).map_err(|_| bad());
    };
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let plain = len == "0" || (!len.starts_with('0') && len.bytes().all(|byte| byte.is_ascii_digit()));
    let len: u8 = len.parse().map_err(|_| bad())?;
    if !plain {
        return Err(bad());
    }
    let net = match ip {
        IpAddr::V6(ip) => mapped(ip, len).map_or_else(|| IpNet::new(ip.into(), len), |net| Ok(net.into())),
        IpAddr::V4(_) => IpNet::new(ip, len),
    };
    net.map(|net| net.trunc()).map_err(|_| bad())
}

/// The IPv4 block that an IPv4-mapped one is.
fn mapped(ip: Ipv6Addr, len: u8) -> Option<Ipv4Net> {
    Ipv4Net::new(ip.to_ipv4_mapped()?, len.checked_sub(96)?).ok()
}

/// A principal: an identity with or without its scheme, or a pattern of one.
pub(crate) fn principal(text: &str) -> Result<Pattern, Wrong> {
    let bare = text.strip_prefix(SCHEME).unwrap_or(text);
    let pattern = Pattern::parse(bare).ok_or_else(|| Wrong::Pattern(text.to_owned()))?;
    let bad = || Wrong::Principal(text.to_owned());
    match pattern {
        Pattern::Any => Ok(Pattern::Any),
        Pattern::Exact(whole) => {
            let id: SpiffeId = format!("{SCHEME}{whole}").parse().map_err(|_| bad())?;
            Ok(Pattern::Exact(id.without_scheme().into()))
        }
        // Trust domains compare without case, and identities hold them in lower case.
        Pattern::Prefix(prefix) if is_path(&prefix) => Ok(Pattern::Prefix(match prefix.split_once('/') {
            Some((domain, path)) => format!("{}/{path}", domain.to_ascii_lowercase()).into(),
            None => prefix.to_ascii_lowercase().into(),
        })),
        Pattern::Suffix(suffix) if is_path(&suffix) => Ok(Pattern::Suffix(suffix)),
        Pattern::Prefix(_) | Pattern::Suffix(_) => Err(bad()),
    }
}

/// A namespace, or a pattern of one.
pub(crate) fn namespace(text: &str) -> Result<Pattern, Wrong> {
    let pattern = Pattern::parse(text).ok_or_else(|| Wrong::Pattern(text.to_owned()))?;
    match &pattern {
        Pattern::Any => Ok(pattern),
        Pattern::Exact(part) | Pattern::Prefix(part) | Pattern::Suffix(part) => match is_segment(part) {
            true => Ok(pattern),
            false => Err(Wrong::Namespace(text.to_owned())),
        },
    }
}

/// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of the policy's own namespace.
pub(crate) fn service_account(text: &str, own: &Arc<str>) -> Result<ServiceAccount, Wrong> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (namespace.into(), name),
        None => (Arc::clone(own), text),
    };
    match is_segment(&namespace) && is_segment(name) {
        true => Ok(ServiceAccount { namespace, name: name.into() }),
        false => Err(Wrong::ServiceAccount(text.to_owned())),
    }
}

/// A label's key and value (Kubernetes' syntax): anything else selects nothing, without a word.
pub(crate) fn label(key: &str, value: &str) -> Result<(Arc<str>, Arc<str>), Wrong> {
    let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
    let good = !prefix.is_empty()
        && prefix.len() <= 253
        && is_name(prefix)
        && !name.is_empty()
        && is_label(name)
        && is_label(value);
    match good {
        true => Ok((key.into(), value.into())),
        false => Err(Wrong::Label(format!("{key}={value}"))),
    }
}

fn is_label(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63 && is_name(text) && ends(text.bytes().next()) && ends(text.bytes().last())
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// One segment of an identity's path (SPIFFE-ID.md, 2.2).
fn is_segment(text: &str) -> bool {
    !text.is_empty() && is_name(text)
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_name)
}
