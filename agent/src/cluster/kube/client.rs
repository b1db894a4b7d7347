//! Speaks with the API server, and bounds what that may take: time, and bytes.
//!
//! Retries nothing: who asks knows what waits for the answer. The client reads the projected token anew once a minute,
//! and the CA's certificate likewise; the token is sent over TLS only.

use std::path::Path;
use std::time::Duration;

use adit_objects::watch::{self, LINE_LEN_MAX};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{Config as Access, Kubeconfig};
use serde_json::Value;

use super::config::Config;

/// How long a request may wait for the head of its answer, and then for each further piece of it. The API server gives
/// up on a request after 60 s; a page of 500 pods takes it 50 ms.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long connecting may take: a packet that is lost twice is sent again after 3 s.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest answer, in bytes: of a page of 500 pods at 30 KiB, four times. A longer page is asked for in parts.
const ANSWER_LEN_MAX: usize = 64 * 1024 * 1024;
/// The most that is kept of an answer which says what is wrong.
const MESSAGE_LEN: usize = 512;

/// The API server, as the agent may use it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api(kube::Client);

/// Why the API server did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// It answered so.
    #[error("the API server answers {code}: {message}")]
    Status {
        /// HTTP's number.
        code: u16,
        /// Its own words.
        message: String,
    },
    /// It was not reached, or the connection ended.
    #[error("the API server is not reached: {0}")]
    Unreachable(String),
    /// It does not answer in time.
    #[error("the API server says nothing for {0:?}")]
    Silent(Duration),
    /// The answer is longer than is read.
    #[error("the API server's answer is longer than {0} bytes")]
    TooLong(usize),
    /// The answer is not what was asked for.
    #[error("the API server's answer cannot be read: {0}")]
    Garbled(String),
}

impl ApiError {
    /// HTTP's number, where it answered.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Unreachable(_) | Self::Silent(_) | Self::TooLong(_) | Self::Garbled(_) => None,
        }
    }
}

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {path}")]
    Kubeconfig {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The agent does not run in a pod, or its pod has no token.
    #[error("no kubeconfig is set, and this is no pod with a token")]
    InCluster(#[source] kube::config::InClusterError),
    /// The address is none.
    #[error("{address} is no address of an API server")]
    Address {
        /// What was given.
        address: String,
        /// Why.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// The client cannot be made of it.
    #[error("the client")]
    Client(#[source] Box<kube::Error>),
}

impl Api {
    /// The way that the configuration says. Asks the API server nothing yet.
    pub(super) fn open(config: &Config) -> Result<Self, AccessError> {
        let address = config.api_server.as_deref().map(address).transpose()?;
        let mut access = match (&config.kubeconfig, &address) {
            (Some(path), _) => from_file(path)?,
            // Without TLS there is nobody to show a token to.
            (None, Some(address)) if address.scheme_str() == Some("http") => Access::new(address.clone()),
            (None, Some(_) | None) => Access::incluster().map_err(AccessError::InCluster)?,
        };
        if let Some(address) = address {
            access.cluster_url = address;
        }
        access.connect_timeout = Some(CONNECT_WITHIN);
        access.default_retry = false;
        Ok(Self(kube::Client::try_from(access).map_err(|error| AccessError::Client(Box::new(error)))?))
    }

    /// Reads something whole.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, ApiError> {
        self.whole(request(Method::GET, path, None)?).await
    }

    /// Makes an object in the collection at `path`.
    pub(super) async fn post(&self, path: &str, object: &Value) -> Result<Bytes, ApiError> {
        self.whole(request(Method::POST, path, Some(("application/json", object)))?).await
    }

    /// Merges `patch` into the object at `path`.
    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Bytes, ApiError> {
        self.whole(request(Method::PATCH, path, Some(("application/merge-patch+json", patch)))?).await
    }

    /// Begins to read lines, for as long as the API server sends them.
    pub(super) async fn watch(&self, path: &str) -> Result<Lines, ApiError> {
        let response = self.head(request(Method::GET, path, None)?).await?;
        let body = response.into_body().into_data_stream();
        let pieces = body.map(|piece| piece.map_err(|error| ApiError::Unreachable(unreached(&error))));
        Ok(Lines::of(pieces.boxed()))
    }

    async fn whole(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        collect(self.head(request).await?, ANSWER_LEN_MAX).await
    }

    /// Waits for the head of the answer, and takes one that refuses as an error.
    async fn head(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.0.send(request)).await;
        let response = answered
            .map_err(|_| ApiError::Silent(ANSWER_WITHIN))?
            .map_err(|error| ApiError::Unreachable(unreached(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let said = collect(response, ANSWER_LEN_MAX).await.unwrap_or_default();
        Err(ApiError::Status { code, message: message(&said) })
    }
}

/// The lines of a watch.
pub(super) struct Lines {
    pieces: BoxStream<'static, Result<Bytes, ApiError>>,
    read: watch::Lines,
}

impl Lines {
    /// The lines that such pieces make.
    pub(super) fn of(pieces: BoxStream<'static, Result<Bytes, ApiError>>) -> Self {
        Self { pieces, read: watch::Lines::default() }
    }

    /// The next line; none when the API server has ended the watch, also in the midst of a line. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        loop {
            if let Some(line) = self.read.take() {
                return Some(Ok(line));
            }
            let added = match self.pieces.next().await? {
                Ok(piece) => self.read.add(&piece),
                Err(error) => return Some(Err(error)),
            };
            if added.is_err() {
                return Some(Err(ApiError::TooLong(LINE_LEN_MAX)));
            }
        }
    }
}

/// The pieces of an answer in one.
async fn collect(response: Response<Body>, len_max: usize) -> Result<Bytes, ApiError> {
    let mut pieces = response.into_body().into_data_stream();
    let mut whole = BytesMut::new();
    loop {
        let piece = tokio::time::timeout(ANSWER_WITHIN, pieces.next()).await;
        match piece.map_err(|_| ApiError::Silent(ANSWER_WITHIN))? {
            None => return Ok(whole.freeze()),
            Some(Err(error)) => return Err(ApiError::Unreachable(unreached(&error))),
            Some(Ok(piece)) if whole.len() + piece.len() > len_max => {
                return Err(ApiError::TooLong(len_max));
            }
            Some(Ok(piece)) => whole.extend_from_slice(&piece),
        }
    }
}

fn request(method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Request<Body>, ApiError> {
    let builder = Request::builder().method(method).uri(path).header(ACCEPT, "application/json");
    let request = match body {
        None => builder.body(Body::empty()),
        Some((kind, value)) => {
            builder.header(CONTENT_TYPE, kind).body(Body::from(value.to_string().into_bytes()))
        }
    };
    // A name with a character that no path can have: nothing that an API server ever gave out.
    request.map_err(|error| ApiError::Garbled(format!("{path:?} is no path: {error}")))
}

fn address(address: &str) -> Result<Uri, AccessError> {
    address.parse().map_err(|source| AccessError::Address { address: address.to_owned(), source })
}

fn from_file(path: &Path) -> Result<Access, AccessError> {
    let read = Kubeconfig::read_from(path).and_then(Access::try_from);
    read.map_err(|source| AccessError::Kubeconfig {
        path: path.display().to_string(),
        source: Box::new(source),
    })
}

/// What an answer that refuses says: the message of its Status, or its beginning.
fn message(said: &[u8]) -> String {
    let status: Option<Value> = serde_json::from_slice(said).ok();
    let message = status.as_ref().and_then(|status| status.get("message")).and_then(Value::as_str);
    match message {
        Some(message) => message.chars().take(MESSAGE_LEN).collect(),
        None => String::from_utf8_lossy(said).trim().chars().take(MESSAGE_LEN).collect(),
    }
}

/// Why no answer came, without the client's own word that it is a service.
fn unreached(error: &kube::Error) -> String {
    if let kube::Error::Service(error) = error { words(error.as_ref()) } else { words(error) }
}

/// An error with its causes, on one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !line.contains(&more) {
            line = format!("{line}: {more}");
        }
        cause = error.source();
    }
    line
}
