//! Decides whether a caller may have a certificate for an identity.
//!
//! Pure: who the caller is has been established by [`crate::caller`]; what the certificate looks like is
//! [`crate::issue`]'s job, which takes the [`Grant`] that only this file makes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use adit_proto::{SpiffeId, TrustDomain};

/// Who asks, as proven by its token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The node whose agent this is.
    pub node: Arc<str>,
    /// What it may ask for.
    pub allowed: Arc<[Allowed]>,
}

/// Why a caller may have what it asks for.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// Its token is good for these.
    Token(Arc<[Allowed]>),
    /// A pod of exactly this identity was found on its node.
    Placed(SpiffeId),
}

impl Evidence {
    fn covers(&self, wanted: &SpiffeId) -> bool {
        match self {
            Self::Token(allowed) => allowed.iter().any(|allowed| allowed.covers(wanted)),
            Self::Placed(found) => found == wanted,
        }
    }
}

/// Identities that a caller may ask for: one, or all below a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowed {
    /// Exactly this identity.
    One(SpiffeId),
    /// Written `spiffe://domain/path/*`: every identity whose path goes on below. The text ends with a slash.
    Below(String),
}

impl Allowed {
    /// Whether this entry covers `id`.
    pub fn covers(&self, id: &SpiffeId) -> bool {
        match self {
            Self::One(allowed) => allowed == id,
            Self::Below(prefix) => id.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for Allowed {
    type Err = adit_proto::spiffe::SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix('*') {
            Some(prefix) if prefix.ends_with('/') => {
                // A segment in the star's place must give an identity; its canonical form is what is compared.
                let one: SpiffeId = format!("{prefix}x").parse()?;
                let canonical = one.as_str();
                Ok(Self::Below(canonical[..canonical.len() - 1].to_owned()))
            }
            Some(_) | None => text.parse().map(Self::One),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(id) => write!(f, "{id}"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Leave to issue a certificate for one identity. Only [`attest`] makes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    identity: SpiffeId,
}

impl Grant {
    /// The identity that the certificate shall carry.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The same, if its identity has not been revoked meanwhile.
    pub fn still(self, revoked: &BTreeSet<SpiffeId>) -> Result<Self, NotGranted> {
        if revoked.contains(&self.identity) {
            return Err(NotGranted::Revoked { wanted: self.identity });
        }
        Ok(self)
    }

    /// For the leaf by which [`crate::root`] checks that key, chain and roots belong together; it is thrown away.
    pub(crate) fn for_probe(domain: &TrustDomain) -> Self {
        let identity = SpiffeId::of_service_account(domain, "adit-system", "probe")
            .expect("a trust domain has at most 255 bytes, so this stays below the limit");
        Self { identity }
    }
}

/// Why a caller may not have an identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotGranted {
    /// The identity belongs to a trust domain that this CA does not issue for.
    #[error("{wanted} is not in trust domain {issued}, the only one that this CA issues for")]
    TrustDomain {
        /// What was asked for.
        wanted: SpiffeId,
        /// What this CA issues for.
        issued: TrustDomain,
    },
    /// The token does not allow it.
    #[error("node {node} may not have {wanted}: its token does not allow it")]
    NotAllowed {
        /// Who asked.
        node: Arc<str>,
        /// What was asked for.
        wanted: SpiffeId,
    },
    /// The identity is on the kill list.
    #[error("{wanted} is revoked")]
    Revoked {
        /// What was asked for.
        wanted: SpiffeId,
    },
}

/// Grants `wanted` to the agent of `node` if it lies in `domain`, is not revoked, and `evidence` is for it.
///
/// The trust domain is asked first and the token second, so that the answer tells a caller nothing about identities
/// that are none of its business.
pub fn attest(
    node: &Arc<str>,
    evidence: &Evidence,
    wanted: SpiffeId,
    domain: &TrustDomain,
    revoked: &BTreeSet<SpiffeId>,
) -> Result<Grant, NotGranted> {
    let wanted = of_domain(wanted, domain)?;
    if !evidence.covers(&wanted) {
        let node = Arc::clone(node);
        return Err(NotGranted::NotAllowed { node, wanted });
    }
    Grant { identity: wanted }.still(revoked)
}

/// `wanted`, if this CA issues for its trust domain: asked before anything is looked for.
pub fn of_domain(wanted: SpiffeId, domain: &TrustDomain) -> Result<SpiffeId, NotGranted> {
    if wanted.trust_domain() == domain.as_str() {
        return Ok(wanted);
    }
    Err(NotGranted::TrustDomain { wanted, issued: domain.clone() })
}

#[cfg(test)]
pub(crate) fn grant_for_test(identity: &str) -> Grant {
    Grant { identity: identity.parse().unwrap() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], revoked: &[&str], wanted: &str) -> Result<(), String> {
        let evidence = Evidence::Token(allowed.iter().map(|text| text.parse().unwrap()).collect());
        let revoked = revoked.iter().map(|id| id.parse().unwrap()).collect();
        let domain = "cluster.local".parse().unwrap();
        let grant = attest(&"node-a".into(), &evidence, wanted.parse().unwrap(), &domain, &revoked);
        match grant {
            Ok(grant) => {
                assert_eq!(grant.identity().as_str(), wanted);
                Ok(())
            }
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    #[test]
    fn an_allowed_identity_is_granted_and_no_other() {
        assert_eq!(check(&[WEB], &[], WEB), Ok(()));
        for wanted in [
            "spiffe://cluster.local/ns/shop/sa/webb",
            "spiffe://cluster.local/ns/shop/sa/we",
            "spiffe://cluster.local/ns/shop/sa/web/x",
        ] {
            let refused = check(&[WEB], &[], wanted).unwrap_err();
            assert_eq!(refused, format!("node node-a may not have {wanted}: its token does not allow it"));
        }
        assert!(check(&[], &[], WEB).is_err());
    }

    #[test]
    fn a_star_covers_what_lies_below_it() {
        let shop = ["spiffe://CLUSTER.local/ns/shop/*"];
        assert_eq!(check(&shop, &[], WEB), Ok(()));
        assert!(check(&shop, &[], "spiffe://cluster.local/ns/shop-2/sa/web").is_err());
        assert_eq!(check(&["spiffe://cluster.local/*"], &[], WEB), Ok(()));
        for bad in [
            "*",
            "spiffe://*",
            "spiffe://cluster.local*",
            "spiffe://a/ns/sh*",
            "spiffe://a/*/b",
            "spiffe://a//*",
        ] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_found_on_the_node_is_granted_and_nothing_else() {
        let domain = "cluster.local".parse().unwrap();
        let found = Evidence::Placed(WEB.parse().unwrap());
        let ask = |wanted: &str, revoked: &BTreeSet<SpiffeId>| {
            attest(&"node-a".into(), &found, wanted.parse().unwrap(), &domain, revoked)
                .map(|grant| grant.identity)
        };
        let none = BTreeSet::new();
        assert_eq!(ask(WEB, &none), Ok(WEB.parse().unwrap()));
        assert!(matches!(ask(&format!("{WEB}b"), &none), Err(NotGranted::NotAllowed { .. })));
        assert!(matches!(ask(WEB, &BTreeSet::from([WEB.parse().unwrap()])), Err(NotGranted::Revoked { .. })));
    }

    #[test]
    fn another_trust_domain_is_refused_even_if_allowed() {
        let foreign = "spiffe://other.example/ns/shop/sa/web";
        assert_eq!(
            check(&[foreign], &[], foreign).unwrap_err(),
            format!("{foreign} is not in trust domain cluster.local, the only one that this CA issues for")
        );
    }

    #[test]
    fn a_revoked_identity_is_refused() {
        assert_eq!(check(&[WEB], &[WEB], WEB).unwrap_err(), format!("{WEB} is revoked"));
        // Who may not have it is not told that it is revoked.
        assert!(check(&[], &[WEB], WEB).unwrap_err().contains("does not allow"));
    }
}
