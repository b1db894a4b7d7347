//! SPIFFE identities: parsing, formatting and the one-URI-SAN rule.
//!
//! Source: SPIFFE-ID.md sections 2 and 2.4, X509-SVID.md section 2. Knows strings only: certificates are
//! parsed by the crates that hold them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest trust domain that the specification allows, in bytes (SPIFFE-ID.md, 2.1).
pub const TRUST_DOMAIN_LEN_MAX: usize = 255;
/// The longest identity that must be supported and may be emitted, in bytes (SPIFFE-ID.md, 2.3).
pub const SPIFFE_ID_LEN_MAX: usize = 2048;

/// Why a string is not a SPIFFE identity. Each variant is one rule of the specification.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The URI does not begin with `spiffe://`.
    #[error("scheme is not spiffe")]
    Scheme,
    /// Longer than [`SPIFFE_ID_LEN_MAX`].
    #[error("longer than {SPIFFE_ID_LEN_MAX} bytes")]
    TooLong,
    /// The trust domain is empty.
    #[error("trust domain is empty")]
    TrustDomainEmpty,
    /// The trust domain is longer than [`TRUST_DOMAIN_LEN_MAX`].
    #[error("trust domain is longer than {TRUST_DOMAIN_LEN_MAX} bytes")]
    TrustDomainTooLong,
    /// The trust domain holds something other than `a-z 0-9 . - _` (so also user info, a port or an escape).
    #[error("trust domain holds {0:?}; only a-z, 0-9, '.', '-' and '_' are allowed")]
    TrustDomainChar(char),
    /// There is no path: this is a trust domain's own identity, not a workload's.
    #[error("path is empty: a workload's identity has one")]
    NoPath,
    /// An empty, `.` or `..` path segment, or a trailing slash.
    #[error("path has an empty, '.' or '..' segment")]
    PathSegment,
    /// The path holds something other than `a-z A-Z 0-9 . - _ /` (so also a query, a fragment or an escape).
    #[error("path holds {0:?}; only letters, digits, '.', '-' and '_' are allowed in a segment")]
    PathChar(char),
    /// A certificate without a URI SAN.
    #[error("certificate has no URI SAN")]
    NoUriSan,
    /// A certificate with more than one URI SAN.
    #[error("certificate has {0} URI SANs; exactly one is allowed")]
    ManyUriSans(usize),
}

/// A SPIFFE trust domain, always lower case.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// Accepts upper case, as the comparison is case-insensitive, and stores lower case.
    fn from_str(name: &str) -> Result<Self, SpiffeIdError> {
        if name.is_empty() {
            return Err(SpiffeIdError::TrustDomainEmpty);
        }
        if name.len() > TRUST_DOMAIN_LEN_MAX {
            return Err(SpiffeIdError::TrustDomainTooLong);
        }
        match name.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_')) {
            Some(c) => Err(SpiffeIdError::TrustDomainChar(c)),
            None => Ok(Self(name.to_ascii_lowercase().into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// A workload's SPIFFE identity: a trust domain and a non-empty path. Cheap to clone.
///
/// Equality is that of the specification: the trust domain without regard to case, the path with it.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    /// The whole URI in its canonical form.
    uri: Arc<str>,
    /// Where the path begins in `uri`; its first byte is a slash.
    path_at: u16,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// The identity `spiffe://<domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// Fails only where the names are no Kubernetes names, or the whole is too long.
    pub fn of_service_account(
        domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        // A slash inside a name would move the border between namespace and account.
        if namespace.contains('/') || service_account.contains('/') {
            return Err(SpiffeIdError::PathChar('/'));
        }
        format!("{SCHEME}{domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI, `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without its scheme, as policies may write it: `cluster.local/ns/shop/sa/web`.
    pub fn without_scheme(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.path_at)]
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.uri[usize::from(self.path_at)..]
    }

    /// Namespace and service account, where the path has Kubernetes' form `/ns/<namespace>/sa/<service account>`.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }

    /// The identity of a certificate, given the URI SANs that it holds.
    ///
    /// A validator must refuse a certificate with more than one URI SAN, whatever else they say (X509-SVID.md, 2).
    pub fn from_uri_sans<'a>(sans: impl IntoIterator<Item = &'a str>) -> Result<Self, SpiffeIdError> {
        let mut sans = sans.into_iter();
        let first = sans.next().ok_or(SpiffeIdError::NoUriSan)?;
        match sans.count() {
            0 => first.parse(),
            more => Err(SpiffeIdError::ManyUriSans(more + 1)),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        if uri.len() > SPIFFE_ID_LEN_MAX {
            return Err(SpiffeIdError::TooLong);
        }
        let scheme = uri.get(..SCHEME.len()).ok_or(SpiffeIdError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(SpiffeIdError::Scheme);
        }
        let rest = &uri[SCHEME.len()..];
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => {
                rest.parse::<TrustDomain>()?;
                return Err(SpiffeIdError::NoPath);
            }
        };
        let domain: TrustDomain = domain.parse()?;
        check_path(path)?;
        let path_at = SCHEME.len() + domain.as_str().len();
        Ok(Self {
            uri: format!("{SCHEME}{domain}{path}").into(),
            path_at: u16::try_from(path_at).map_err(|_| SpiffeIdError::TooLong)?,
        })
    }
}

/// Checks a path that begins with a slash.
fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let segments = &path[1..];
    if segments.is_empty() {
        return Err(SpiffeIdError::NoPath);
    }
    for segment in segments.split('/') {
        if matches!(segment, "" | "." | "..") {
            return Err(SpiffeIdError::PathSegment);
        }
        if let Some(c) =
            segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        {
            return Err(SpiffeIdError::PathChar(c));
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(uri: &str) -> Result<String, SpiffeIdError> {
        uri.parse::<SpiffeId>().map(|id| id.to_string())
    }

    #[test]
    fn a_service_account_has_kubernetes_form() {
        let domain = "cluster.local".parse().unwrap();
        let id = SpiffeId::of_service_account(&domain, "shop", "web.v2").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web.v2");
        assert_eq!(id.without_scheme(), "cluster.local/ns/shop/sa/web.v2");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.service_account(), Some(("shop", "web.v2")));
        assert!(SpiffeId::of_service_account(&domain, "shop/sa/root", "x").is_err());
    }

    #[test]
    fn scheme_and_trust_domain_compare_without_case_and_path_with_it() {
        assert_eq!(id("SPIFFE://Cluster.Local/ns/A"), Ok("spiffe://cluster.local/ns/A".into()));
        assert_ne!(id("spiffe://a/X"), id("spiffe://a/x"));
    }

    #[test]
    fn every_rule_of_the_specification_refuses_by_name() {
        use SpiffeIdError as E;
        for (uri, error) in [
            ("", E::Scheme),
            ("http://a/b", E::Scheme),
            ("spiffe:/a/b", E::Scheme),
            ("spiffe:///b", E::TrustDomainEmpty),
            ("spiffe://", E::TrustDomainEmpty),
            ("spiffe://a", E::NoPath),
            ("spiffe://a/", E::NoPath),
            ("spiffe://a/b/", E::PathSegment),
            ("spiffe://a//b", E::PathSegment),
            ("spiffe://a/./b", E::PathSegment),
            ("spiffe://a/../b", E::PathSegment),
            ("spiffe://u@a/b", E::TrustDomainChar('@')),
            ("spiffe://a:80/b", E::TrustDomainChar(':')),
            ("spiffe://[::1]/b", E::TrustDomainChar('[')),
            ("spiffe://a%41/b", E::TrustDomainChar('%')),
            ("spiffe://a?q/b", E::TrustDomainChar('?')),
            ("spiffe://a/b?q", E::PathChar('?')),
            ("spiffe://a/b#f", E::PathChar('#')),
            ("spiffe://a/b%20", E::PathChar('%')),
            ("spiffe://a/é", E::PathChar('é')),
        ] {
            assert_eq!(id(uri), Err(error), "{uri}");
        }
        assert_eq!(id("spiffe://10.0.0.1/b"), Ok("spiffe://10.0.0.1/b".into()));
    }

    #[test]
    fn lengths_are_those_of_the_specification() {
        let fits = format!("spiffe://{}/b", "a".repeat(TRUST_DOMAIN_LEN_MAX));
        assert!(id(&fits).is_ok());
        let long = format!("spiffe://{}/b", "a".repeat(TRUST_DOMAIN_LEN_MAX + 1));
        assert_eq!(id(&long), Err(SpiffeIdError::TrustDomainTooLong));
        let whole = "spiffe://a/".len();
        assert!(id(&format!("spiffe://a/{}", "b".repeat(SPIFFE_ID_LEN_MAX - whole))).is_ok());
        assert_eq!(
            id(&format!("spiffe://a/{}", "b".repeat(SPIFFE_ID_LEN_MAX - whole + 1))),
            Err(SpiffeIdError::TooLong)
        );
    }

    #[test]
    fn a_certificate_has_exactly_one_uri_san() {
        assert_eq!(SpiffeId::from_uri_sans([]), Err(SpiffeIdError::NoUriSan));
        assert!(SpiffeId::from_uri_sans(["spiffe://a/b"]).is_ok());
        assert_eq!(
            SpiffeId::from_uri_sans(["spiffe://a/b", "https://a/b"]),
            Err(SpiffeIdError::ManyUriSans(2))
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_prints_back(uri in ".{0,64}") {
            if let Ok(id) = uri.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
            }
        }

        #[test]
        fn a_made_identity_parses_back(
            domain in "[a-z0-9._-]{1,40}", ns in "[a-z0-9]{1,20}", sa in "[a-z0-9][a-z0-9.-]{0,20}",
        ) {
            let domain: TrustDomain = domain.parse().unwrap();
            let made = SpiffeId::of_service_account(&domain, &ns, &sa).unwrap();
            prop_assert_eq!(made.service_account(), Some((ns.as_str(), sa.as_str())));
            prop_assert_eq!(made.as_str().parse::<SpiffeId>().unwrap(), made);
        }
    }
}
