//! The admin API (port 15000, loopback only, and `admin.sock`, root only) and the metrics page (port 15020).
//!
//! Read-only views of what the other parts hold. Answers on the control thread: a slow reader or a large answer holds up
//! no connection. The JSON types are [`adit_proto::admin`]'s.

use std::fs;
use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_proto::admin::{Edges, Status};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::pods::Standing;
use crate::sockets::bounded::BoundedListener;
use crate::telemetry::Flowing;
use crate::telemetry::render::Page;

/// The longest window that edges are kept for.
const WINDOW_S_MAX: u64 = 600;
/// Flows in one answer, at most: what is kept by default.
const FLOWS_MAX: usize = 10_000;

/// Where the admin API and the metrics are.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The admin API's address; must be loopback. Default `127.0.0.1:15000`.
    pub address: SocketAddr,
    /// The admin API's unix socket. Default `/run/adit/admin.sock`.
    pub socket: PathBuf,
    /// The metrics page's address. Default `[::]:15020`.
    pub metrics_address: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:15000".parse().expect("127.0.0.1:15000 is an address"),
            socket: "/run/adit/admin.sock".into(),
            metrics_address: "[::]:15020".parse().expect("[::]:15020 is an address"),
        }
    }
}

/// Why the admin API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin API would be reachable from elsewhere.
    #[error("admin.address {0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What is shown: telemetry, and the state of all other parts, read anew for each question.
pub struct Sources {
    /// Flows, edges and metrics.
    pub flowing: Flowing,
    /// The state of everything else.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Says when the node is this agent's again: then the unix socket is put in place again, too.
    pub standing: watch::Receiver<Standing>,
}

/// The listeners, opened.
#[derive(Debug)]
pub struct Admin {
    tcp: TcpListener,
    unix: UnixListener,
    socket: PathBuf,
    metrics: TcpListener,
}

impl Admin {
    /// Opens all listeners.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        if !config.address.ip().is_loopback() {
            return Err(StartError::NotLoopback(config.address));
        }
        let tcp = async |address| {
            TcpListener::bind(address).await.map_err(|source| StartError::Tcp { address, source })
        };
        Ok(Self {
            tcp: tcp(config.address).await?,
            metrics: tcp(config.metrics_address).await?,
            unix: listen_unix(&config.socket)
                .map_err(|source| StartError::Unix { path: config.socket.clone(), source })?,
            socket: config.socket.clone(),
        })
    }

    /// Answers until a listener fails.
    pub async fn serve(self, sources: Sources) {
        let standing = sources.standing.clone();
        let sources = Arc::new(sources);
        let metrics = Router::new().route("/metrics", get(page)).with_state(Arc::clone(&sources));
        let admin = Router::new()
            .route("/status", get(status))
            .route("/flows", get(flows))
            .route("/edges", get(edges))
            .with_state(sources)
            .merge(metrics.clone());
        let ended = tokio::try_join!(
            async { axum::serve(BoundedListener::new(self.tcp), admin.clone()).await },
            serve_unix(self.unix, &self.socket, &admin, standing),
            async { axum::serve(BoundedListener::new(self.metrics), metrics).await },
        );
        if let Err(error) = ended {
            tracing::error!(%error, "the admin API and the metrics are no longer served");
        }
    }
}

/// Serves the unix socket, and puts it in place anew whenever another agent has had its place and is gone.
async fn serve_unix(
    mut listener: UnixListener,
    path: &Path,
    admin: &Router,
    mut standing: watch::Receiver<Standing>,
) -> io::Result<()> {
    let mut had = standing.borrow_and_update().again;
    loop {
        tokio::select! {
            served = axum::serve(listener, admin.clone()).into_future() => return served,
            Ok(()) = async { standing.wait_for(|now| now.again != had).await.map(drop) } => {}
        }
        had = standing.borrow_and_update().again;
        listener = listen_unix(path)?;
    }
}

/// Made beside its place and renamed there: a second agent takes the path over without a moment in which it is absent.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

async fn status(State(sources): State<Arc<Sources>>) -> Response {
    json(serde_json::to_string(&(sources.status)()))
}

/// The filters of `GET /flows`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FlowsQuery {
    limit: usize,
    namespace: Option<String>,
    pod: Option<String>,
    failed: bool,
    reason: Option<String>,
    trace: Option<String>,
}

impl Default for FlowsQuery {
    fn default() -> Self {
        Self { limit: 100, namespace: None, pod: None, failed: false, reason: None, trace: None }
    }
}

async fn flows(State(sources): State<Arc<Sources>>, Query(query): Query<FlowsQuery>) -> Response {
    let wanted = |flow: &adit_proto::admin::Flow<'_>| {
        let parties = [&flow.source, &flow.destination];
        (!query.failed || flow.reason.is_some())
            && query.reason.as_ref().is_none_or(|reason| flow.reason.as_deref() == Some(reason))
            && query.trace.as_ref().is_none_or(|trace| flow.trace.starts_with(trace.as_str()))
            && query
                .namespace
                .as_ref()
                .is_none_or(|name| parties.iter().any(|p| p.namespace.as_deref() == Some(name)))
            && query.pod.as_ref().is_none_or(|name| parties.iter().any(|p| p.pod.as_deref() == Some(name)))
    };
    json(sources.flowing.flows(query.limit.min(FLOWS_MAX), wanted, |flows| serde_json::to_string(flows)))
}

/// The filter of `GET /edges`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EdgesQuery {
    window_s: u64,
}

impl Default for EdgesQuery {
    fn default() -> Self {
        Self { window_s: WINDOW_S_MAX }
    }
}

async fn edges(State(sources): State<Arc<Sources>>, Query(query): Query<EdgesQuery>) -> Response {
    let edges: Edges = sources.flowing.edges(Duration::from_secs(query.window_s.clamp(1, WINDOW_S_MAX)));
    json(serde_json::to_string(&edges))
}

async fn page(State(sources): State<Arc<Sources>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let page = Page::of_accept(accept);
    let text = page.print(&sources.flowing.registry().read());
    ([(header::CONTENT_TYPE, page.content_type())], text).into_response()
}

fn json(printed: serde_json::Result<String>) -> Response {
    match printed {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
