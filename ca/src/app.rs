//! Joins the parts: binds all that can fail, then runs.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::caller::{Callers, TokensError};
use crate::config::{Config, SERVER_NAME};
use crate::counts::{Counted, Counts};
use crate::disk::{Access, Disk};
use crate::keeper::{self, KeepError, Keeper, Settings};
use crate::page::{self, Page};
use crate::publish::Mesh;
use crate::server;
use crate::service::Service;
use crate::stamp::Stamp;
use crate::store::{Store, StoreError};

/// Streams that one connection may have open: an agent asks for a few certificates at a time.
const STREAMS_MAX: u32 = 16;
/// Headers of a request, in bytes: room for the longest token and what gRPC adds.
const HEADERS_LEN_MAX: u32 = 16 * 1024;
/// How long one request may take, from its headers to its reply, body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is silent for so long is asked whether it is there, and dropped if it does not answer as long again.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long requests that are under way may take to finish at the end.
const DRAIN: Duration = Duration::from_secs(3);

/// A CA that listens, and has not begun to serve.
#[derive(Debug)]
pub struct App {
    listener: TcpListener,
    address: SocketAddr,
    keeper: Keeper,
    service: Service,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    counts: Arc<Counts>,
    poll: Duration,
    ready_file: Option<PathBuf>,
    metrics: Option<(TcpListener, Page)>,
}

/// Why a CA cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token file is wrong.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// There is nothing to sign with.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a CA stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ready file cannot be written.
    #[error("cannot write {path}", path = path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The gRPC server failed.
    #[error("cannot serve")]
    Serve(#[from] tonic::transport::Error),
    /// The keeper's thread is gone: without it no state would be kept any more.
    #[error("the keeper stopped")]
    Keeper(#[source] JoinError),
}

impl App {
    /// Opens the store, reads the token file, makes or loads the root, publishes the bundle and listens.
    ///
    /// The work is short and is done on the calling thread, disk included.
    pub async fn bind(config: Config, version: &'static str) -> Result<Self, StartError> {
        let now = Stamp::of(SystemTime::now());
        let store = Store::open(&config.store, Disk::real())?;
        let callers = Callers::open(&config.tokens)?;
        let state = keeper::open_state(&store, &config.trust_domain, config.leaf_life, now)?;
        let (listener, address) = listen(config.listen).await?;
        let metrics = match config.metrics_address {
            Some(address) => Some(listen(address).await?.0),
            None => None,
        };
        let mut names = config.server_names;
        names.dns.insert(0, SERVER_NAME.to_owned());
        let settings = Settings { leaf_life: config.leaf_life, patience: config.acknowledge_within, names };
        let counts = Arc::new(Counts::default());
        let mesh = config.publish.map(|dir| Mesh::new(dir, Disk::real()));
        let (keeper, shown) =
            Keeper::new(settings, store, state, mesh, callers.clone(), Arc::clone(&counts), now)?;
        let page = Page { version, counts: Arc::clone(&counts), signing: shown.signing.clone() };
        Ok(Self {
            listener,
            address,
            keeper,
            service: Service::new(callers, shown.signing, Arc::clone(&counts)),
            tls: shown.tls,
            counts,
            poll: config.poll,
            ready_file: config.ready_file,
            metrics: metrics.map(|listener| (listener, page)),
        })
    }

    /// Where it listens: the real port, if 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done so far, and will have.
    pub fn counts(&self) -> impl Fn() -> Counted + Send + 'static + use<> {
        let counts = Arc::clone(&self.counts);
        move || counts.now()
    }

    /// Serves until `shutdown` resolves; then finishes what is under way, for 3 s at most.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, receiver) = server::ready();
        // Its tasks are aborted when this function returns.
        let mut tasks = JoinSet::new();
        tasks.spawn(server::accept(self.listener, self.tls, self.counts, sender));
        if let Some((listener, page)) = self.metrics {
            tasks.spawn(page::serve(listener, page));
        }
        let serving = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_LEN_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            // Without tonic's grace: with one, it tells nobody to go, and cuts what is under way when the grace is over.
            .max_connection_age(server::CONNECTION_AGE_MAX)
            .timeout(REQUEST_TIMEOUT)
            .add_service(self.service.into_server())
            .serve_with_incoming_shutdown(ReceiverStream::new(receiver), async {
                // Either way it is over: told to stop, or nobody is left who could tell.
                let _ = stopped.await;
            });
        let (stop_keeping, keeper_stopped) = oneshot::channel::<()>();
        let keeping = keep(self.keeper, self.poll, keeper_stopped);
        tokio::pin!(serving, keeping, shutdown);
        if let Some(path) = &self.ready_file {
            announce(path, self.address)?;
        }
        tracing::info!(address = %self.address, "ready");
        tokio::select! {
            served = &mut serving => return Ok(served?),
            kept = &mut keeping => return kept.map_err(RunError::Keeper),
            () = &mut shutdown => {}
        }
        tracing::info!("stopping");
        drop((stop, stop_keeping));
        // The tick that is under way ends first, and with it the hold on the store.
        keeping.await.map_err(RunError::Keeper)?;
        match tokio::time::timeout(DRAIN, serving).await {
            Ok(served) => Ok(served?),
            // Idle connections that their agents keep open.
            Err(_) => Ok(()),
        }
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Ticks until `stopped`, off the runtime's thread: ticks write to disk. Fails only if a tick panicked.
async fn keep(
    mut keeper: Keeper,
    poll: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), JoinError> {
    let mut ticks = tokio::time::interval(poll);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut stopped => return Ok(()),
        }
        let ticked = tokio::task::spawn_blocking(move || {
            keeper.tick(Stamp::of(SystemTime::now()));
            keeper
        });
        keeper = ticked.await?;
    }
}

/// Says where the CA serves, in a file for those who wait for it.
fn announce(path: &Path, address: SocketAddr) -> Result<(), RunError> {
    let failed = |source| RunError::ReadyFile { path: path.to_owned(), source };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    let mut line = Vec::new();
    writeln!(line, "{address}").map_err(failed)?;
    Disk::real().replace(dir, name, &line, Access::Everybody).map_err(failed)
}
