//! Joins the parts: binds all that can fail, then runs.

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::around::Around;
use crate::caller::TokensError;
use crate::cluster::{ConnectError, backoff};
use crate::config::{Config, SERVER_NAME};
use crate::counts::{Counted, Counts};
use crate::disk::{Access, Disk};
use crate::keeper::{self, KeepError, Keeper, Settings, Shown};
use crate::page::{self, Page};
use crate::server;
use crate::service::Service;
use crate::stamp::Stamp;
use crate::store::StoreError;

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
    /// What runs beside it from the first; aborted when it is dropped.
    beside: JoinSet<()>,
    /// Tells those of them that have something to give back; closed when they have.
    stop_beside: watch::Sender<()>,
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
    /// The API server cannot be spoken to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The keeper's thread is gone.
    #[error("the keeper did not begin")]
    Keeper(#[source] JoinError),
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
    /// Opens the store, learns of the callers, makes or loads the root, publishes the bundle and listens.
    ///
    /// In a cluster it waits for an API server that is away; until then its pages say that it is not ready.
    pub async fn bind(config: Config, version: &'static str) -> Result<Self, StartError> {
        let (listener, address) = listen(config.listen).await?;
        let counts = Arc::new(Counts::default());
        let mut beside = JoinSet::new();
        let around = Around::find(&config.place).await?;
        let (stop_beside, stopped) = watch::channel(());
        around.follow(&mut beside, stopped);
        let signing = Arc::new(OnceLock::new());
        if let Some(address) = config.metrics_address {
            let page = Page {
                version,
                counts: Arc::clone(&counts),
                signing: Arc::clone(&signing),
                fresh: around.fresh(),
                agents: around.agents(),
            };
            beside.spawn(page::serve(listen(address).await?.0, page));
        }
        let (keeper, shown) = begin(&config, &around, &counts).await?;
        // Nobody else sets it.
        let _ = signing.set(shown.signing.clone());
        Ok(Self {
            listener,
            address,
            keeper,
            service: Service::new(around.askers(), shown.signing, around.fresh(), Arc::clone(&counts)),
            tls: shown.tls,
            counts,
            poll: config.poll,
            ready_file: config.ready_file,
            beside,
            stop_beside,
        })
    }

    /// Makes the store that `config` names, with root and intermediate, if it has none; returns the root's serial.
    pub async fn init(config: Config) -> Result<String, StartError> {
        let around = Around::find(&config.place).await?;
        let mut home = around.home(&config.trust_domain)?;
        let begun = tokio::task::spawn_blocking(move || {
            let now = Stamp::of(SystemTime::now());
            keeper::open_state(&mut home, &config.trust_domain, (config.leaf_life, &around.fresh()), now)
        });
        let state = begun.await.map_err(StartError::Keeper)??;
        Ok(state.root_serial().map_err(|error| KeepError::Root(error.into()))?)
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
        let mut tasks = self.beside;
        tasks.spawn(server::accept(self.listener, self.tls, self.counts, sender));
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
        self.stop_beside.send_replace(());
        // The tick that is under way ends first, and with it the hold on the store.
        keeping.await.map_err(RunError::Keeper)?;
        let given_back = tokio::time::timeout(DRAIN, self.stop_beside.closed());
        // Idle connections that their agents keep open are none to wait for, and neither is an API server that is away.
        let (served, _) = tokio::join!(tokio::time::timeout(DRAIN, serving), given_back);
        Ok(served.unwrap_or(Ok(()))?)
    }
}

/// Makes or loads the state, and all that follows from it, off the runtime's thread: it writes to disk, or waits for the
/// API server. One that is away is waited for.
async fn begin(
    config: &Config,
    around: &Around,
    counts: &Arc<Counts>,
) -> Result<(Keeper, Shown), StartError> {
    let mut names = config.server_names.clone();
    names.dns.insert(0, SERVER_NAME.to_owned());
    let fresh = around.fresh();
    let settings = Settings {
        leaf_life: config.leaf_life,
        patience: config.acknowledge_within,
        names,
        fresh: fresh.clone(),
    };
    let mut failures: u32 = 0;
    loop {
        let mut home = around.home(&config.trust_domain)?;
        let (settings, domain) = (settings.clone(), config.trust_domain.clone());
        let (fresh, counts) = (fresh.clone(), Arc::clone(counts));
        let begun = tokio::task::spawn_blocking(move || {
            let now = Stamp::of(SystemTime::now());
            let state = keeper::open_state(&mut home, &domain, (settings.leaf_life, &fresh), now)?;
            Keeper::new(settings, home, state, counts, now)
        });
        let error = match begun.await.map_err(StartError::Keeper)? {
            Ok(begun) => return Ok(begun),
            Err(error) if error.may_pass() => error,
            Err(error) => return Err(error.into()),
        };
        failures = failures.saturating_add(1);
        if failures == 1 {
            tracing::warn!(error = crate::report(&error), "cannot begin yet; it is tried again");
        }
        tokio::time::sleep(backoff::wait(failures, backoff::draw())).await;
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
