//! The ConfigMap `adit-trust-bundle`: what agents trust, what users ask of the CA, and how it stands.
//!
//! | annotation | who writes it | what |
//! |---|---|---|
//! | `adit.dev/rotate-root` | a user | any value: replace the root |
//! | `adit.dev/revoke` | a user | serials and SPIFFE IDs, with commas between: put them on the kill list |
//! | `adit.dev/restore` | a user | the same: take them off |
//! | `adit.dev/rotation` | the CA | where a change of root stands, and for whom it waits |
//! | `adit.dev/last-request` | the CA | what became of the last request |
//!
//! The CA takes an annotation off once the state that has done it is stored. All is written by compare-and-swap.

use std::collections::BTreeMap;

use adit_proto::TrustDomain;
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::client::{ApiServer, Form};
use super::{ClusterError, Settings};
use crate::bundle::{Bundle, NAME};
use crate::lifecycle::Request;
use crate::stamp::Stamp;
use crate::state::Subject;

pub(crate) const ROTATE: &str = "adit.dev/rotate-root";
pub(crate) const REVOKE: &str = "adit.dev/revoke";
pub(crate) const RESTORE: &str = "adit.dev/restore";
pub(crate) const ROTATION: &str = "adit.dev/rotation";
pub(crate) const LAST_REQUEST: &str = "adit.dev/last-request";

/// The longest text of ours in an annotation, in bytes: with 200 nodes named it is 8 KiB, of the 256 KiB that all
/// annotations of an object may have.
const TEXT_LEN_MAX: usize = 8 * 1024;
/// How many requests are taken up in one go.
const TAKEN_AT_ONCE_MAX: usize = 64;

/// The ConfigMap, as it was read last.
#[derive(Debug)]
pub(super) struct Published {
    api: ApiServer,
    namespace: String,
    seen: Option<ConfigMap>,
    /// The version that was seen to say what this bundle does.
    good: Option<(String, Bundle)>,
}

/// A request that stands in an annotation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    /// The annotation.
    pub(crate) annotation: &'static str,
    /// The part of its value.
    pub(crate) value: String,
    /// What is asked for, or why it cannot be read.
    pub(crate) request: Result<Request, String>,
}

impl Published {
    pub(super) fn new(api: ApiServer, settings: &Settings) -> Self {
        Self { api, namespace: settings.namespace.clone(), seen: None, good: None }
    }

    /// The ConfigMap, as messages name it.
    pub(super) fn object(&self) -> String {
        format!("ConfigMap {}/{NAME}", self.namespace)
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps/{NAME}", self.namespace)
    }

    /// Reads it again.
    pub(super) async fn look(&mut self) -> Result<(), ClusterError> {
        let what = format!("read {}", self.object());
        self.seen = match self.api.get(&what, &self.path()).await {
            Ok(seen) => Some(seen),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }

    /// Whether a CA has ever published here.
    pub(super) fn is_begun(&self) -> bool {
        self.data().is_some_and(|data| data.contains_key("bundle.json"))
    }

    fn data(&self) -> Option<&BTreeMap<String, String>> {
        self.seen.as_ref()?.data.as_ref()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        let annotations = self.seen.as_ref()?.metadata.annotations.as_ref()?;
        annotations.get(key).map(String::as_str)
    }

    /// What users ask for.
    pub(super) fn asked(&self) -> Vec<Asked> {
        let keys = [ROTATE, REVOKE, RESTORE];
        let of = |annotation| self.annotation(annotation).map(|value| asked(annotation, value));
        keys.into_iter().filter_map(of).flatten().take(TAKEN_AT_ONCE_MAX).collect()
    }

    /// Takes a request off that is done or refused, and says what became of it.
    pub(super) async fn close(&mut self, asked: &Asked, outcome: &str) -> Result<(), ClusterError> {
        let rest = self.annotation(asked.annotation).and_then(|value| without(asked, value));
        let (key, outcome) = (asked.annotation.to_owned(), shortened(outcome));
        self.change(|map| {
            let annotations = map.metadata.annotations.get_or_insert_default();
            match rest {
                Some(rest) => annotations.insert(key, rest),
                None => annotations.remove(&key),
            };
            annotations.insert(LAST_REQUEST.to_owned(), outcome);
        })
        .await
    }

    /// Makes it hold `bundle`; says whether it had to be written. Never a lower generation than it holds.
    pub(super) async fn publish(
        &mut self,
        bundle: &Bundle,
        domain: &TrustDomain,
        now: Stamp,
    ) -> Result<bool, ClusterError> {
        let version = self.version().unwrap_or_default().to_owned();
        if self.good.as_ref().is_some_and(|(seen, good)| *seen == version && good == bundle) {
            return Ok(false);
        }
        if let Some(data) = self.data() {
            let found = crate::bundle::generation_in(data, domain).unwrap_or(0);
            if found > bundle.generation {
                return Err(ClusterError::Newer { object: self.object(), found, own: bundle.generation });
            }
            if bundle.is_said_by(data, now) {
                self.good = Some((version, bundle.clone()));
                return Ok(false);
            }
        }
        let data = bundle.data();
        self.change(|map| map.data.get_or_insert_default().extend(data)).await?;
        self.good = self.version().map(|version| (version.to_owned(), bundle.clone()));
        Ok(true)
    }

    /// Shows where a change of root stands.
    pub(super) async fn show(&mut self, rotation: &str) -> Result<(), ClusterError> {
        let rotation = shortened(rotation);
        if self.seen.is_none() || self.annotation(ROTATION) == Some(&rotation) {
            return Ok(());
        }
        let before = self.version().map(str::to_owned);
        self.change(|map| {
            map.metadata.annotations.get_or_insert_default().insert(ROTATION.to_owned(), rotation);
        })
        .await?;
        // What was good is so still: only this was changed.
        let now = self.version().map(str::to_owned);
        if let (Some((version, _)), Some(now)) = (&mut self.good, now)
            && Some(&*version) == before.as_ref()
        {
            *version = now;
        }
        Ok(())
    }

    fn version(&self) -> Option<&str> {
        self.seen.as_ref()?.metadata.resource_version.as_deref()
    }

    /// Writes what `change` makes of what was read last, if it is that still.
    async fn change(&mut self, change: impl FnOnce(&mut ConfigMap)) -> Result<(), ClusterError> {
        let object = self.object();
        let what = format!("write {object}");
        let was_there = self.seen.is_some();
        let (method, path, mut map) = match &self.seen {
            Some(seen) => (Method::PUT, self.path(), seen.clone()),
            None => {
                let path = format!("/api/v1/namespaces/{}/configmaps", self.namespace);
                (Method::POST, path, self.fresh())
            }
        };
        change(&mut map);
        match self.api.send(&what, method, &path, (Form::Json, &map)).await {
            Ok(stored) => {
                self.seen = Some(stored);
                Ok(())
            }
            Err(error) if error.is_conflict() || (was_there && error.is_not_found()) => {
                Err(ClusterError::Conflict { object })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn fresh(&self) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }
}

/// The requests in one annotation's value.
fn asked(annotation: &'static str, value: &str) -> Vec<Asked> {
    if annotation == ROTATE {
        return vec![Asked { annotation, value: value.to_owned(), request: Ok(Request::RotateRoot) }];
    }
    let parts: Vec<&str> = parts(value).collect();
    if parts.is_empty() {
        let request = Err("is empty: it takes serials and SPIFFE IDs, with commas between".to_owned());
        return vec![Asked { annotation, value: value.to_owned(), request }];
    }
    let of = |part: &str| {
        let request = subject(part).map(|subject| match annotation {
            REVOKE => Request::Revoke(subject),
            _ => Request::Restore(subject),
        });
        Asked { annotation, value: part.to_owned(), request }
    };
    parts.into_iter().map(of).collect()
}

fn parts(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ', '\n']).filter(|part| !part.is_empty())
}

fn subject(part: &str) -> Result<Subject, String> {
    if part.contains("://") {
        return part.parse().map(Subject::Identity).map_err(|error| format!("is no SPIFFE ID: {error}"));
    }
    part.parse().map(Subject::Serial).map_err(|error| format!("is no serial: {error}"))
}

/// What is left of an annotation's value without this request; `None` if nothing is.
fn without(asked: &Asked, value: &str) -> Option<String> {
    if asked.annotation == ROTATE {
        return None;
    }
    let rest: Vec<&str> = parts(value).filter(|part| *part != asked.value).collect();
    (!rest.is_empty()).then(|| rest.join(","))
}

fn shortened(text: &str) -> String {
    let end = (0..=TEXT_LEN_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests;
