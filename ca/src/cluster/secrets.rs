//! The CA's state in a Secret, and a root given in another.
//!
//! The state is one value of one object, replaced as a whole and only if it is still the one that was read: so all
//! replicas go on from the same state, and the first of them that begins has begun for all.

use std::collections::BTreeMap;

use adit_proto::TrustDomain;
use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::client::{ApiServer, Form};
use super::{ClusterError, Settings};
use crate::root::{Authority, Certificate, Key};
use crate::state::{ReadError, State};

/// Where in the Secret the state is.
const STATE: &str = "state.json";
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

/// The Secrets of one CA.
#[derive(Debug)]
pub(super) struct Secrets {
    api: ApiServer,
    namespace: String,
    state: String,
    given: String,
}

/// The version of a Secret by which its next change is compared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Version(String);

impl Secrets {
    pub(super) fn new(api: ApiServer, settings: &Settings) -> Self {
        let Settings { namespace, secret, given_secret, .. } = settings.clone();
        Self { api, namespace, state: secret, given: given_secret }
    }

    /// The Secret with the state, as messages name it.
    pub(super) fn object(&self) -> String {
        self.named(&self.state)
    }

    fn named(&self, name: &str) -> String {
        format!("Secret {}/{name}", self.namespace)
    }

    fn path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/secrets/{name}", self.namespace)
    }

    async fn read(&self, name: &str) -> Result<Option<Secret>, ClusterError> {
        let what = format!("read {}", self.named(name));
        match self.api.get(&what, &self.path(name)).await {
            Ok(secret) => Ok(Some(secret)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The stored state with its version; `None` if there is no Secret. `known` is the version that need not be read
    /// again: then `Ok(Some(None))`.
    pub(super) async fn load(
        &self,
        domain: &TrustDomain,
        known: Option<&Version>,
    ) -> Result<Option<Option<(State, Version)>>, ClusterError> {
        let Some(secret) = self.read(&self.state).await? else {
            return Ok(None);
        };
        let version = version(&secret);
        if known == Some(&version) {
            return Ok(Some(None));
        }
        let object = self.object();
        let text = secret.data.as_ref().and_then(|data| data.get(STATE));
        let text = text.ok_or_else(|| ClusterError::NoState { object: object.clone(), key: STATE })?;
        let state = State::read(&text.0).map_err(|error| match error {
            ReadError::Json(source) => ClusterError::Json { object: object.clone(), source },
            ReadError::State(source) => ClusterError::State { object: object.clone(), source },
        })?;
        state.check(domain).map_err(|source| ClusterError::State { object, source })?;
        Ok(Some(Some((state, version))))
    }

    /// Stores `state` in the place of the one with version `before`; of none, if there is no Secret yet.
    pub(super) async fn save(
        &self,
        state: &State,
        before: Option<&Version>,
    ) -> Result<Version, ClusterError> {
        let object = self.object();
        let text = serde_json::to_vec(state)
            .map_err(|source| ClusterError::Json { object: object.clone(), source })?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.state.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version: before.map(|version| version.0.clone()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(STATE.to_owned(), ByteString(text))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let what = format!("write {object}");
        let body = (Form::Json, &secret);
        let stored: Result<Secret, _> = match before {
            Some(_) => self.api.send(&what, Method::PUT, &self.path(&self.state), body).await,
            None => {
                let path = format!("/api/v1/namespaces/{}/secrets", self.namespace);
                self.api.send(&what, Method::POST, &path, body).await
            }
        };
        match stored {
            Ok(secret) => Ok(version(&secret)),
            // 404: it was there when it was read.
            Err(error) if error.is_conflict() || (before.is_some() && error.is_not_found()) => {
                Err(ClusterError::Conflict { object })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What was given in a Secret; `None` if there is none, or nothing in it. Not yet checked: see
    /// [`Authority::check`].
    pub(super) async fn given(&self) -> Result<Option<Authority>, ClusterError> {
        let data = self.read(&self.given).await?.and_then(|secret| secret.data).unwrap_or_default();
        let of = |key: &str| data.get(key).map(|value| value.0.as_slice()).filter(|value| !value.is_empty());
        let object = || self.named(&self.given);
        let (chain, key, roots) = match (of(CHAIN), of(KEY), of(ROOTS)) {
            (None, None, None) => return Ok(None),
            (Some(chain), Some(key), Some(roots)) => (chain, key, roots),
            (None, _, _) => return Err(ClusterError::GivenInPart { object: object(), key: CHAIN }),
            (_, None, _) => return Err(ClusterError::GivenInPart { object: object(), key: KEY }),
            (_, _, None) => return Err(ClusterError::GivenInPart { object: object(), key: ROOTS }),
        };
        let wrong = |key| move |source| ClusterError::Given { object: object(), key, source };
        let chain = Certificate::all_in(chain).map_err(wrong(CHAIN))?;
        let key = Key::from_pem(key).map_err(wrong(KEY))?;
        let roots = Certificate::all_in(roots).map_err(wrong(ROOTS))?;
        Ok(Some(Authority::given(chain, key, roots)))
    }
}

fn version(secret: &Secret) -> Version {
    Version(secret.metadata.resource_version.clone().unwrap_or_default())
}
