//! The API server, as the CA asks it: every question with a bound of time, every answer read as text here.
//!
//! kube's own reader logs the whole text of an answer that it cannot read, and such a text may be a Secret's: so none
//! of the calls that read by type is used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use kube::core::{Status, WatchEvent};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long the API server may take to answer. It takes milliseconds; a request of an agent may take 10 s in all.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a connection to it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A way to the API server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ApiServer(kube::Client);

/// Why the API server cannot be reached at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// Not in a pod, and no kubeconfig.
    #[error("not in a pod with a ServiceAccount's token, and store.kubernetes.kubeconfig is not set")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// No client of it.
    #[error("cannot set up the client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// Why the API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It did not answer in time.
    #[error("{what}: the API server did not answer within {ANSWER_TIMEOUT:?}")]
    Timeout {
        /// What was asked.
        what: String,
    },
    /// It answered that it will not.
    #[error("{what}: the API server answered {code}: {message}")]
    Refused {
        /// What was asked.
        what: String,
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
    /// It was not reached, or broke off.
    #[error("{what}: cannot ask the API server")]
    Unreachable {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Its answer is not of the wanted form.
    #[error("{what}: the API server's answer cannot be read")]
    Shape {
        /// What was asked.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

impl ApiError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "kube's enum; all but an answer mean that there was none"
    )]
    fn of(what: &str, error: kube::Error) -> Self {
        let what = what.to_owned();
        match error {
            kube::Error::Api(status) => Self::refused(what, &status),
            other => Self::Unreachable { what, source: Box::new(other) },
        }
    }

    pub(crate) fn refused(what: String, status: &Status) -> Self {
        Self::Refused { what, code: status.code, message: status.message.clone() }
    }

    fn has_code(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    /// 404: there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        self.has_code(404)
    }

    /// 409: it was changed meanwhile, or is there already.
    pub(crate) fn is_conflict(&self) -> bool {
        self.has_code(409)
    }

    /// 410: what was asked for is too long ago.
    pub(crate) fn is_gone(&self) -> bool {
        self.has_code(410)
    }
}

/// What is sent with a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// An object.
    Json,
    /// A change by RFC 7386.
    MergePatch,
}

impl ApiServer {
    /// The API server of this kubeconfig, or of the cluster in which this process is a pod. Does not connect yet.
    pub(crate) async fn find(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let mut config = match kubeconfig {
            None => kube::Config::incluster().map_err(|error| ConnectError::InCluster(Box::new(error)))?,
            Some(path) => from_file(path).await.map_err(|source| ConnectError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Who asks knows when to ask again.
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))?;
        Ok(Self(client))
    }

    /// One that answers by a script.
    #[cfg(test)]
    pub(crate) fn of(client: kube::Client) -> Self {
        Self(client)
    }

    /// Asks without sending anything.
    pub(crate) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, ApiError> {
        self.ask(what, Request::get(path).header(ACCEPT, JSON), Vec::new()).await
    }

    /// Asks for names and annotations only.
    pub(crate) async fn list_metadata<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
    ) -> Result<T, ApiError> {
        self.ask(what, Request::get(path).header(ACCEPT, METADATA), Vec::new()).await
    }

    /// Sends an object, or a change to one.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        (form, body): (Form, &impl Serialize),
    ) -> Result<T, ApiError> {
        let kind = match form {
            Form::Json => JSON,
            Form::MergePatch => HeaderValue::from_static("application/merge-patch+json"),
        };
        let body =
            serde_json::to_vec(body).map_err(|source| ApiError::Shape { what: what.to_owned(), source })?;
        let request = Request::builder().method(method).uri(path).header(ACCEPT, JSON);
        self.ask(what, request.header(CONTENT_TYPE, kind), body).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<T, ApiError> {
        let request =
            request.body(body).map_err(|error| ApiError::of(what, kube::Error::HttpError(error)))?;
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.0.request_text(request)).await;
        let text = answered
            .map_err(|_| ApiError::Timeout { what: what.to_owned() })?
            .map_err(|error| ApiError::of(what, error))?;
        serde_json::from_str(&text).map_err(|source| ApiError::Shape { what: what.to_owned(), source })
    }

    /// Opens a watch. Its events are read one by one, each bounded by who reads.
    pub(crate) async fn watch<T: Clone + DeserializeOwned>(
        &self,
        what: &str,
        request: Request<Vec<u8>>,
    ) -> Result<impl Stream<Item = Result<WatchEvent<T>, kube::Error>> + use<T>, ApiError> {
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, self.0.request_events(request)).await;
        opened
            .map_err(|_| ApiError::Timeout { what: what.to_owned() })?
            .map_err(|error| ApiError::of(what, error))
    }

    /// How an error of an open watch is told.
    pub(crate) fn watch_error(what: &str, error: kube::Error) -> ApiError {
        ApiError::of(what, error)
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");

async fn from_file(path: &Path) -> Result<kube::Config, kube::config::KubeconfigError> {
    let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await
}
