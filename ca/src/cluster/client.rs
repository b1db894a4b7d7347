//! The API server, as the CA asks it: every question with a bound of time, every answer read as text here.
//!
//! kube's own reader logs the whole text of an answer that it cannot read, and such a text may be a Secret's: so none
//! of the calls that read by type is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::answer::{self, ANSWER_LEN_MAX, Lines, Unread};

/// How long the API server may take to answer, and with each piece of a list. It takes milliseconds; a request of an
/// agent may take 10 s in all.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a connection to it may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How many pages of lists are read at once. With 24 MiB each while it is gathered, and a line of as much in each of the
/// four watches, 144 MiB of the 256 MiB that the CA may have.
pub(crate) const LISTS_AT_ONCE_MAX: usize = 2;
/// How much of the API server's words against a question is passed on, in characters.
const MESSAGE_LEN_MAX: usize = 512;

/// A way to the API server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ApiServer {
    client: kube::Client,
    lists: Arc<Semaphore>,
}

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
    /// Its answer is longer than is read.
    #[error("{what}: the API server's answer is longer than {ANSWER_LEN_MAX} bytes")]
    TooLong {
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
    fn of(what: &str, error: kube::Error) -> Self {
        Self::Unreachable { what: what.to_owned(), source: Box::new(error) }
    }

    fn unread(what: &str, unread: Unread<kube::Error>) -> Self {
        match unread {
            Unread::TooLong => Self::TooLong { what: what.to_owned() },
            Unread::Silent => Self::Timeout { what: what.to_owned() },
            Unread::Broken(error) => Self::of(what, error),
        }
    }

    pub(crate) fn refused(what: String, status: &Status) -> Self {
        let message = status.message.chars().take(MESSAGE_LEN_MAX).collect();
        Self::Refused { what, code: status.code, message }
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

    /// Whether another question may be answered: it is this one that is refused, and neither is the asker, nor is the
    /// API server away or overloaded.
    pub(crate) fn is_of_one(&self) -> bool {
        match self {
            Self::Refused { code, .. } => (400..500).contains(code) && ![401, 403, 429].contains(code),
            Self::TooLong { .. } | Self::Shape { .. } => true,
            Self::Timeout { .. } | Self::Unreachable { .. } => false,
        }
    }

    /// Asked for less, it may be read.
    pub(crate) fn is_too_long(&self) -> bool {
        matches!(self, Self::TooLong { .. })
    }

    /// Asked again, it would be answered so again: what was asked for is too long ago (410), or cannot be read.
    pub(crate) fn is_lasting(&self) -> bool {
        self.has_code(410) || self.is_too_long() || matches!(self, Self::Shape { .. })
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
        Ok(Self::of(client))
    }

    pub(crate) fn of(client: kube::Client) -> Self {
        Self { client, lists: Arc::new(Semaphore::new(LISTS_AT_ONCE_MAX)) }
    }

    /// Asks without sending anything.
    pub(crate) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, ApiError> {
        self.ask(what, Request::get(path).header(ACCEPT, JSON), Vec::new()).await
    }

    /// Asks for a page of a list, of whole objects or of their names and annotations only. Waits until no more than
    /// [`LISTS_AT_ONCE_MAX`] are read; it may then take as long as more of it comes.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        depth: Depth,
    ) -> Result<T, ApiError> {
        let _room = self.lists.acquire().await;
        let accepted = match depth {
            Depth::Whole => JSON,
            Depth::Metadata => METADATA,
        };
        let text = self.pieces(what, Request::get(path).header(ACCEPT, accepted), Vec::new()).await?;
        read(what, &text)
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
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.pieces(what, request, body)).await;
        read(what, &answered.map_err(|_| ApiError::Timeout { what: what.to_owned() })??)
    }

    /// The whole answer; its head, and then each piece, within [`ANSWER_TIMEOUT`].
    async fn pieces(
        &self,
        what: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<BytesMut, ApiError> {
        let response = self.head(what, request, body).await?;
        let read = answer::collect(response.into_body().into_data_stream(), ANSWER_TIMEOUT).await;
        read.map_err(|unread| ApiError::unread(what, unread))
    }

    /// Waits for the head of the answer, and takes one that refuses as an error.
    async fn head(
        &self,
        what: &str,
        request: http::request::Builder,
        body: Vec<u8>,
    ) -> Result<Response<Body>, ApiError> {
        let request = request.body(Body::from(body));
        let request = request.map_err(|error| ApiError::of(what, kube::Error::HttpError(error)))?;
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.client.send(request)).await;
        let response = answered
            .map_err(|_| ApiError::Timeout { what: what.to_owned() })?
            .map_err(|error| ApiError::of(what, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let said = answer::collect(response.into_body().into_data_stream(), ANSWER_TIMEOUT).await;
        let said = said.unwrap_or_default();
        // What is no Status is a proxy's, or an API server's that is about to go.
        let status = serde_json::from_slice(&said).ok();
        let message = || String::from_utf8_lossy(&said).into_owned();
        let status = status.unwrap_or_else(|| Status { message: message(), ..Status::default() });
        Err(ApiError::refused(what.to_owned(), &Status { code, ..status }))
    }

    /// Opens a watch. Its lines are read one by one, each bounded in time by who reads.
    pub(crate) async fn watch(&self, what: &str, path: &str) -> Result<Lines<kube::Error>, ApiError> {
        // kube's reader of compressed answers ends with the first event of a watch.
        let identity = HeaderValue::from_static("identity");
        let request = Request::get(path).header(ACCEPT, JSON).header(ACCEPT_ENCODING, identity);
        let response = self.head(what, request, Vec::new()).await?;
        Ok(Lines::of(response.into_body().into_data_stream()))
    }

    /// What a line of an open watch says.
    pub(crate) fn line<T: DeserializeOwned>(
        what: &str,
        line: Result<bytes::Bytes, Unread<kube::Error>>,
    ) -> Result<T, ApiError> {
        read(what, &line.map_err(|unread| ApiError::unread(what, unread))?)
    }
}

/// How much of the objects in a list is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Depth {
    /// All of them.
    Whole,
    /// Their names and annotations.
    Metadata,
}

fn read<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(text).map_err(|source| ApiError::Shape { what: what.to_owned(), source })
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
