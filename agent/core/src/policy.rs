//! Policies: validated models of AuthorizationPolicy and PeerAuthentication, read from objects by `adit-objects`.
//!
//! A policy that was only partly understood is still a policy: what was not understood is left out of its conditions
//! and the rule is marked ([`Rule::understood`]). [`crate::authz`] makes the mark allow less and deny more.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::ObjectName;
use crate::workload::Labels;

/// Which workloads a policy is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Every workload: a policy in the system namespace without a selector.
    Mesh,
    /// Every workload of the namespace: a policy without a selector.
    Namespace(Arc<str>),
    /// The workloads with these labels. A selector that was not understood has none, and so selects all of them.
    Selected {
        /// Of this namespace; none, for a policy in the system namespace: of all.
        namespace: Option<Arc<str>>,
        /// Every one of these labels.
        labels: Labels,
    },
}

impl Scope {
    /// Whether a workload with these labels in this namespace is among them.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        match self {
            Self::Mesh => true,
            Self::Namespace(own) => &**own == namespace,
            Self::Selected { namespace: own, labels: wanted } => {
                own.as_deref().is_none_or(|own| own == namespace) && labels.contain(wanted)
            }
        }
    }

    /// How near to the workload the policy stands.
    pub fn level(&self) -> Level {
        match self {
            Self::Mesh => Level::Mesh,
            Self::Namespace(_) => Level::Namespace,
            Self::Selected { .. } => Level::Workload,
        }
    }
}

/// How near to the workload a policy stands; the nearest PeerAuthentication decides.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// By selector.
    Workload,
    /// By namespace.
    Namespace,
    /// Mesh-wide.
    Mesh,
}

/// What a policy does with what its rules match.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Action {
    /// Lets it in; where a workload has any such policy, nothing else comes in.
    #[default]
    Allow,
    /// Refuses it, whatever else allows it.
    Deny,
    /// Counts it.
    Audit,
    /// `spec.action` says something else. Nothing is allowed that any reading would refuse: what its rules match is
    /// denied, and it counts as an ALLOW policy that allows nothing.
    NotUnderstood,
}

/// What one AuthorizationPolicy object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorizationPolicy {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// Seconds since the epoch of `metadata.creationTimestamp`.
    pub created: i64,
    /// Whose connections it judges.
    pub scope: Scope,
    /// What it does.
    pub action: Action,
    /// `spec.dryRun`: judged and counted, never enforced.
    pub dry_run: bool,
    /// Any of them matches. None: an ALLOW policy that allows nothing, a DENY policy that denies nothing.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicy {
    /// Whether it judges connections to a workload with these labels in this namespace.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        self.scope.selects(namespace, labels)
    }
}

/// One of `spec.rules`: all of its three parts must hold; an empty part holds always.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// One of these sources.
    pub from: Vec<Source>,
    /// One of these destinations.
    pub to: Vec<Operation>,
    /// All of these conditions.
    pub when: Vec<Condition>,
    /// Whether all of it was understood. If not, the three parts hold what was.
    pub understood: Understood,
}

/// Whether all of a rule was understood.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Understood {
    /// All of it.
    #[default]
    Fully,
    /// Something was left out: an ALLOW or AUDIT rule matches nothing; in a DENY rule what was left out counts as true.
    InPart,
}

/// A positive list and its negation: the value is among `any`, unless that is empty, and not among `none`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Among<T> {
    /// `x`: at least one must match; empty: not asked.
    pub any: Vec<T>,
    /// `notX`: none may match.
    pub none: Vec<T>,
}

// Derived, it would ask for `T: Default`.
impl<T> Default for Among<T> {
    fn default() -> Self {
        Self { any: Vec::new(), none: Vec::new() }
    }
}

impl<T> Among<T> {
    /// Whether `matches` holds for one of `any` (or there are none) and for none of `none`.
    ///
    /// A value that does not exist matches nothing: then `any` fails, where asked, and `none` holds.
    pub fn holds(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&matches)) && !self.none.iter().any(matches)
    }

    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// `from[].source`: all that it asks must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Source {
    /// `principals`, `notPrincipals`: identities without their scheme.
    pub principals: Among<Pattern>,
    /// `namespaces`, `notNamespaces`: the identity's namespace.
    pub namespaces: Among<Pattern>,
    /// `serviceAccounts`, `notServiceAccounts`; the trust domain is not compared.
    pub service_accounts: Among<ServiceAccount>,
    /// `ipBlocks`, `notIpBlocks`: the true source address.
    pub ip_blocks: Among<IpNet>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Operation {
    /// `ports`, `notPorts`: the pod's own port.
    pub ports: Among<u16>,
}

/// One of `when[]`, by its `key`; `values` and `notValues`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// `source.principal`.
    SourcePrincipal(Among<Pattern>),
    /// `source.namespace`.
    SourceNamespace(Among<Pattern>),
    /// `source.ip`.
    SourceIp(Among<IpNet>),
    /// `destination.ip`.
    DestinationIp(Among<IpNet>),
    /// `destination.port`.
    DestinationPort(Among<u16>),
}

/// How a string is compared. A star elsewhere than at one end does not parse.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Pattern {
    /// `*`: any that exists, so any authenticated peer.
    Any,
    /// The whole string.
    Exact(Arc<str>),
    /// `prefix*`.
    Prefix(Arc<str>),
    /// `*suffix`.
    Suffix(Arc<str>),
}

impl Pattern {
    /// Reads a pattern; `None` if it is empty or has a star elsewhere than at one end.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (None, None) => Self::Exact(text.into()),
            (None, Some(prefix)) => Self::Prefix(prefix.into()),
            (Some(suffix), _) => Self::Suffix(suffix.into()),
        };
        let (Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &pattern else {
            return None;
        };
        (!rest.is_empty() && !rest.contains('*')).then_some(pattern)
    }

    /// Whether the string matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(whole) => &**whole == text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
        }
    }
}

/// A service account of a namespace.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// Whether plaintext may enter.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum PeerMode {
    /// It may.
    #[default]
    Permissive,
    /// Only peers with a verified identity may.
    Strict,
}

/// What one PeerAuthentication object says. What was not understood was read as STRICT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAuthentication {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// Seconds since the epoch of `metadata.creationTimestamp`: of two at one level the older wins, then the name.
    pub created: i64,
    /// Whose plaintext it judges.
    pub scope: Scope,
    /// `spec.mtls.mode`; none (or `UNSET`): as the next level says.
    pub mode: Option<PeerMode>,
    /// `spec.portLevelMtls`, by the pod's own port.
    pub port_modes: BTreeMap<u16, PeerMode>,
}

impl PeerAuthentication {
    /// Whether it judges plaintext to a workload with these labels in this namespace.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        self.scope.selects(namespace, labels)
    }

    /// How near to the workload it stands.
    pub fn level(&self) -> Level {
        self.scope.level()
    }

    /// The order of precedence within a level: the older first, then by name.
    pub(crate) fn seniority(&self) -> (i64, &ObjectName) {
        (self.created, &self.name)
    }
}
