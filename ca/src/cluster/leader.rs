//! Who of the replicas writes statuses: the one that holds the Lease `adit-ca-status`.
//!
//! Two who think so for a moment do no harm, as both would write the same; the Lease only saves work. So a Lease is
//! taken over when nobody was seen to renew it for its duration, by this process's own clock.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::client::{ApiError, ApiServer, Form};

const NAME: &str = "adit-ca-status";
/// For how long a Lease holds after it was renewed.
const HOLDS_FOR: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
pub(super) const RENEWED: Duration = Duration::from_secs(5);

/// This replica's view of the Lease.
#[derive(Debug)]
pub(super) struct Leader {
    api: ApiServer,
    namespace: String,
    own: String,
    /// The version that was seen last, and since when it has not changed.
    seen: Option<(String, Instant)>,
    /// The Lease as it was written last, and until when it is held.
    held: Option<(Lease, Instant)>,
}

impl Leader {
    pub(super) fn new(api: ApiServer, namespace: String, own: String) -> Self {
        Self { api, namespace, own, seen: None, held: None }
    }

    /// Whether this replica writes now.
    pub(super) fn holds(&self) -> bool {
        self.held.as_ref().is_some_and(|(_, until)| Instant::now() < *until)
    }

    /// Takes or renews the Lease, if it may. That another was faster is no error.
    pub(super) async fn renew(&mut self) -> Result<(), ApiError> {
        let (path, one) = self.paths();
        let began = Instant::now();
        let found: Option<Lease> = match self.api.get("read the Lease of who writes statuses", &one).await {
            Ok(lease) => Some(lease),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if found.as_ref().is_some_and(|lease| !self.may_take(lease, began)) {
            self.held = None;
            return Ok(());
        }
        let lease = self.wanted(found.as_ref());
        let what = "write the Lease of who writes statuses";
        let body = (Form::Json, &lease);
        let written: Result<Lease, _> = match found {
            Some(_) => self.api.send(what, Method::PUT, &one, body).await,
            None => self.api.send(what, Method::POST, &path, body).await,
        };
        match written {
            Ok(lease) => {
                self.seen = Some((version(&lease), began));
                self.held = Some((lease, began + HOLDS_FOR));
                Ok(())
            }
            Err(error) if error.is_conflict() => {
                self.held = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease back, if it is held: another replica takes it when it looks next, and need not wait until it is over.
    pub(super) async fn release(&mut self) -> Result<(), ApiError> {
        let Some((mut lease, _)) = self.held.take() else { return Ok(()) };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.acquire_time = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let what = "give back the Lease of who writes statuses";
        match self.api.send::<Lease>(what, Method::PUT, &self.paths().1, (Form::Json, &lease)).await {
            Ok(_) => Ok(()),
            // Somebody else's by now.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where Leases are, and this one.
    fn paths(&self) -> (String, String) {
        let all = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        let one = format!("{all}/{NAME}");
        (all, one)
    }

    /// Whether a Lease is ours, nobody's, or was not renewed for as long as it holds.
    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.own {
            return true;
        }
        let version = version(lease);
        match &self.seen {
            Some((seen, since)) if *seen == version => now.duration_since(*since) > HOLDS_FOR,
            Some(_) | None => {
                self.seen = Some((version, now));
                false
            }
        }
    }

    fn wanted(&self, found: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_ours = spec.holder_identity.as_deref() == Some(&self.own);
        let metadata = found.map(|lease| lease.metadata.clone()).unwrap_or_else(|| ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        });
        let transitions = spec.lease_transitions.unwrap_or(0);
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.own.clone()),
                lease_duration_seconds: i32::try_from(HOLDS_FOR.as_secs()).ok(),
                acquire_time: if is_ours { spec.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(if is_ours { transitions } else { transitions.saturating_add(1) }),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn version(lease: &Lease) -> String {
    lease.metadata.resource_version.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests;
