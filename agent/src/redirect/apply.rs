//! Puts a plan in place in one namespace, takes it out again, and looks how it stands.

use adit_core::redirect::{self as plan, Drift, Edit, Family, Part, Sysctl, Wanted};
use adit_proto::hbone::PORTS_RESERVED;

use super::backend::{Backend, Standing};
use super::error::RedirectError;
use super::{command, routes, sysctls};
use crate::netns::Netns;
use crate::sockets::LISTENER_UID;
use crate::sockets::diag::{Diag, SocketState};

/// A part of capture that this kernel or container does not have: reported, never a failure.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Condition {
    /// No xt_socket: a connect to a closed port succeeds before it is reset, and TCP probes always pass.
    NoSocketMatch,
    /// The kernel has no IPv6.
    NoIpv6,
    /// IPv6 is switched off in the pod (disable_ipv6): its route is set when it is switched on.
    NoIpv6Route,
    /// The sysctl cannot be written, or does not exist.
    SysctlRefused(Sysctl),
}

/// What [`apply`], or [`apply_rules`], found and did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Applied {
    /// Which iptables holds the rules.
    pub backend: Backend,
    /// The sysctls that this call changed, or after [`apply_rules`] those to change, with their values before: for
    /// [`restore_sysctls`]. Those of an earlier call are its caller's to keep.
    pub sysctls_before: Vec<(Sysctl, String)>,
    /// What capture has to do without.
    pub conditions: Vec<Condition>,
}

/// Puts the rules, routes and sysctls in place; does nothing where they are. The listeners must exist.
///
/// A failure of the first application takes out what was written. One of a repair (rules of ours stood before)
/// leaves what stands, since capture without one rule is closer to what is wanted than none. Dropped before it
/// ends, it may leave part of the rules: apply again, or [`remove`].
pub async fn apply(netns: &Netns, wanted: &Wanted) -> Result<Applied, RedirectError> {
    let applied = apply_rules(netns, wanted).await?;
    Ok(apply_sysctls(netns, applied).await)
}

/// The first half of [`apply`]: all but the sysctls. What is in `sysctls_before` then still stands: write it down before
/// [`apply_sysctls`], or an end in between loses it.
pub async fn apply_rules(netns: &Netns, wanted: &Wanted) -> Result<Applied, RedirectError> {
    let standing = Standing::read(netns).await?;
    let was_ours = standing.holds_ours();
    match write(netns, wanted, standing).await {
        Ok(applied) => Ok(applied),
        Err(error) if was_ours => Err(error),
        Err(error) => {
            for part in [Part::FilterAndNat, Part::Rest] {
                if let Err(undo) = remove(netns, part).await {
                    tracing::warn!(netns = %netns.path().display(), error = %undo, "cannot undo a failed enrolment");
                }
            }
            Err(error)
        }
    }
}

/// The second half of [`apply`]. What cannot be written is a condition, never a failure.
pub async fn apply_sysctls(netns: &Netns, mut applied: Applied) -> Applied {
    let refused = match sysctls::write(netns, sysctls::wanted()).await {
        Ok(written) => {
            applied.sysctls_before = written.before;
            written.refused
        }
        Err(error) => {
            tracing::warn!(netns = %netns.path().display(), %error, "cannot write sysctls");
            Sysctl::ALL.to_vec()
        }
    };
    applied.conditions.extend(refused.into_iter().map(Condition::SysctlRefused));
    applied
}

/// Takes out one part of our rules, from every back end that holds some; with [`Part::Rest`] the routes too.
///
/// Succeeds where nothing is. Live connections go on after [`Part::FilterAndNat`]; inbound plaintext ones end with
/// [`Part::Rest`].
pub async fn remove(netns: &Netns, part: Part) -> Result<(), RedirectError> {
    for standing in Standing::read_all(netns).await? {
        for (family, save) in &standing.saves {
            restore(netns, standing.backend, &plan::removal(save, part, *family)).await?;
        }
    }
    match part {
        Part::FilterAndNat => Ok(()),
        Part::Rest => routes::remove(netns),
    }
}

/// Writes back the sysctls that [`apply`] changed: the last step of un-enrolment. Those that cannot be written are
/// returned.
pub async fn restore_sysctls(
    netns: &Netns,
    before: &[(Sysctl, String)],
) -> Result<Vec<Sysctl>, RedirectError> {
    let values = before.to_vec();
    Ok(sysctls::write(netns, values).await?.refused)
}

/// Everything in which the namespace differs from what is wanted, but the functional probe: rules, jumps, routes,
/// sysctls, listeners, rules of the other back end.
pub async fn verify(netns: &Netns, wanted: &Wanted) -> Result<Vec<Drift>, RedirectError> {
    let standing = Standing::read(netns).await?;
    let mut drift = compare(&standing, wanted);
    if standing.other_backend_has_nat_rules(netns).await? {
        drift.push(Drift::OtherBackend);
    }
    drift.extend(routes::missing(netns, &standing.families())?);
    drift.extend(sysctls::changed(netns)?.into_iter().map(Drift::Sysctl));
    drift.extend(listeners_missing(netns, &standing.families())?);
    Ok(drift)
}

async fn write(netns: &Netns, wanted: &Wanted, standing: Standing) -> Result<Applied, RedirectError> {
    let backend = standing.backend;
    let families = standing.families();
    let mut conditions = Vec::new();
    if !families.contains(&Family::V6) {
        conditions.push(Condition::NoIpv6);
    }
    // Before the marks that need it: a marked packet without the route would leave by eth0.
    // Only if one is missing: each write is announced, and would have the keeper look again.
    if !routes::missing(netns, &families)?.is_empty()
        && routes::ensure(netns, &families)? == routes::Ensured::ButV6
    {
        conditions.push(Condition::NoIpv6Route);
    }
    let drift = compare(&standing, wanted);
    if !drift.is_empty() {
        if let Err(error) = write_rules(netns, wanted, &standing).await {
            // The one match that kernels lack. What was written before it stands, and is planned around.
            let again = Standing::read_backend(netns, backend, &families).await?;
            let any = wanted.without_socket_match();
            if write_rules(netns, &any, &again).await.is_err() {
                return Err(error);
            }
        }
        let after = Standing::read_backend(netns, backend, &families).await?;
        let left = compare(&after, wanted);
        if !left.is_empty() {
            return Err(RedirectError::NotAsWritten(left));
        }
        if !exact(&after, wanted) {
            conditions.push(Condition::NoSocketMatch);
        }
    } else if !exact(&standing, wanted) {
        conditions.push(Condition::NoSocketMatch);
    }
    // Last: the conntrack settings exist once a rule has loaded conntrack.
    let sysctls_before = sysctls::standing(netns)?;
    Ok(Applied { backend, sysctls_before, conditions })
}

/// Both families at once: they have locks, tables and programs of their own.
async fn write_rules(netns: &Netns, wanted: &Wanted, standing: &Standing) -> Result<(), RedirectError> {
    let runs = standing.saves.iter().map(|(family, save)| {
        let edits = plan::plan(save, wanted, *family);
        async move { restore(netns, standing.backend, &edits).await }
    });
    futures_util::future::join_all(runs).await.into_iter().collect()
}

/// One program for all edits of one family: each table is committed by itself, in their order.
async fn restore(netns: &Netns, backend: Backend, edits: &[Edit]) -> Result<(), RedirectError> {
    let Some(family) = edits.first().map(|edit| edit.family) else {
        return Ok(());
    };
    debug_assert!(edits.iter().all(|edit| edit.family == family), "a program serves one family");
    let text: String = edits.iter().map(|edit| edit.text.as_str()).collect();
    command::run(netns, backend.restore_program(family), backend.restore_args(), &text).await.map(drop)
}

/// Either form of the inbound rule is as wanted: which of the two this kernel takes was found out when it was written.
fn compare(standing: &Standing, wanted: &Wanted) -> Vec<Drift> {
    if exact(standing, wanted) {
        return Vec::new();
    }
    let any = standing.compare(&wanted.without_socket_match());
    if any.is_empty() { any } else { standing.compare(wanted) }
}

fn exact(standing: &Standing, wanted: &Wanted) -> bool {
    standing.compare(wanted).is_empty()
}

/// Our ports on which nothing of ours listens.
pub(super) fn listeners_missing(netns: &Netns, families: &[Family]) -> Result<Vec<Drift>, RedirectError> {
    let mut diag = Diag::open(netns).map_err(RedirectError::Netlink)?;
    let mut missing = Vec::new();
    for family in families {
        let listening = diag.list(*family, SocketState::Listening).map_err(RedirectError::Netlink)?;
        for port in PORTS_RESERVED {
            let at_port = || listening.iter().filter(|socket| socket.local.port() == port);
            // Where the uid cannot be ours (a user namespace of one id), any listener counts.
            let ours = at_port().any(|socket| socket.uid == LISTENER_UID);
            let foreign_only = !ours && listening.iter().any(|socket| socket.uid == LISTENER_UID);
            if at_port().next().is_none() || foreign_only {
                missing.push(Drift::Listener { family: *family, port });
            }
        }
    }
    Ok(missing)
}
