//! The wiring: binds everything that can fail, then runs it. The only file that knows every part.

mod clear;
mod ending;
mod follow;
mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adit_core::draw::Seed;
use adit_core::life::{End, Life};
use adit_core::trust::TrustBundle;
use adit_core::world::World;
use adit_proto::cni::Removal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin::{self, Admin, Sources};
use crate::clock::Clock;
use crate::cluster::{self, Cluster};
use crate::config::Config;
use crate::dataplane::{self, Dataplane, Handles};
use crate::health::{self, Readiness};
use crate::identity::{self, Identity};
use crate::netns::{Netns, NetnsError};
use crate::node::{Node, NodeError};
use crate::pods::{self, Links, Pods, Rest};
use crate::shutdown::Signals;
use crate::telemetry::{self, Flowing};
use crate::view::{self, View};
use ending::Ending;
pub use follow::{Reload, Stamp};

/// How long the last lines of the access log may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is one part's own error, which says what it means")]
pub enum StartError {
    #[error("telemetry")]
    Telemetry(#[from] telemetry::StartError),
    #[error("source of truth")]
    Cluster(#[from] cluster::StartError),
    #[error("identity")]
    Identity(#[from] identity::StartError),
    #[error("the node's network namespace")]
    Netns(#[from] NetnsError),
    #[error("the node")]
    Node(#[from] NodeError),
    #[error("data plane")]
    Dataplane(#[from] dataplane::StartError),
    #[error("pods")]
    Pods(#[from] pods::StartError),
    #[error("admin API")]
    Admin(#[from] admin::StartError),
    #[error("cannot answer health probes on {address}")]
    Health {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("signals")]
    Signals(#[source] io::Error),
    #[error("Adit leaves this node, and not every pod could be let go of in time: the log says why")]
    Stuck,
}

/// Every part, bound and started; nothing more can fail.
pub struct App {
    config: Config,
    clock: Clock,
    version: &'static str,
    view: View,
    cluster: Cluster,
    trust: watch::Sender<Arc<TrustBundle>>,
    identity: Arc<Identity>,
    node: Node,
    dataplane: Dataplane,
    pods: Pods,
    flowing: Flowing,
    admin: Admin,
    readiness: Readiness,
    ready: watch::Sender<bool>,
    /// What an installer is answered.
    removal: watch::Sender<Removal>,
    signals: Signals,
}

impl App {
    /// Opens and starts every part. On a failure all that was started ends; what was captured before stays captured.
    ///
    /// `version` is what the agent says of itself: release and commit.
    pub async fn bind(config: Config, version: &'static str) -> Result<Self, StartError> {
        let signals = Signals::new().map_err(StartError::Signals)?;
        // Before anything is read that the agent before this one writes.
        let rest = Rest::ask(&config.pods.socket).await;
        let clock = Clock::real();
        let mut seed = Seed(u64::from(std::process::id()) ^ nanos(clock.now().wall));
        let (reporter, flowing) =
            telemetry::start(config.telemetry.clone(), clock, config.node.as_str().into())?;
        let (publisher, view) = view::channel(World::empty(config.settings()));
        let cluster =
            cluster::start(config.cluster.clone(), own(&config, version), clock, publisher, seed.fork())?;
        let (trust, trust_input) = watch::channel(trusted(&view));
        let (certs, identity) = identity::start(config.identity.clone(), clock, trust_input)?;
        let node = Node::open(Netns::open(&config.node_netns)?, &config.cgroup_root)?;
        let readiness = Readiness::default();
        let handles =
            Handles { view: view.clone(), certs: certs.clone(), reporter, clock, node: Some(node.clone()) };
        let dataplane = dataplane::start(config.dataplane.clone(), handles, seed.fork())?;
        let admin = Admin::bind(&config.admin).await?;
        let address = config.health.address;
        let health = health::listen(address).map_err(|source| StartError::Health { address, source })?;
        let probes = readiness.clone();
        dataplane.run_on_worker(move || health::serve_here(health, probes)).await;
        let ((ready, is_ready), (removal, removal_answer)) =
            (watch::channel(false), watch::channel(Removal::Stays));
        let links = Links {
            dataplane: dataplane.clone(),
            needs: identity.needs(),
            certs,
            view: view.clone(),
            announcer: cluster.announcer(),
            events: cluster.events(),
            node_inode: node.netns_inode(),
            clock,
            ready: is_ready,
            removal: removal_answer,
        };
        let pods = pods::start(config.pods.clone(), links, seed.fork(), rest)?;
        let identity = Arc::new(identity);
        Ok(Self {
            config,
            clock,
            version,
            view,
            cluster,
            trust,
            identity,
            node,
            dataplane,
            pods,
            flowing,
            admin,
            readiness,
            ready,
            removal,
            signals,
        })
    }

    /// Runs until a signal ends it, and what follows from that is done; `reload` is asked at each SIGHUP and each change of its file.
    pub async fn run(self, reload: Reload) -> Result<(), StartError> {
        let pods = Arc::new(self.pods);
        let mut tasks = JoinSet::new();
        let flowing = self.flowing.clone();
        tasks.spawn(self.admin.serve(Sources {
            flowing: self.flowing,
            standing: pods.standing(),
            status: status::reader(
                &self.config,
                self.version,
                &self.view,
                &self.cluster,
                &self.identity,
                &pods,
                &self.readiness,
            ),
        }));
        tasks.spawn(follow::hand_on_trust(self.view.clone(), self.trust));
        tasks.spawn(follow::acknowledge(self.identity.acknowledged(), self.cluster.clone()));
        tasks.spawn(follow::report_readiness(
            self.view.clone(),
            self.cluster.clone(),
            Arc::clone(&pods),
            self.readiness.clone(),
            self.ready,
        ));
        tasks.spawn(follow::show(self.view, Arc::clone(&pods), self.version));
        let node = self.node;
        tasks.spawn(async move { match node.follow().await {} });
        let hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
        let kept = clear::Kept::of(&self.config);
        let mut ending = Ending {
            life: Life::new(self.config.spans()),
            uninstall: self.config.uninstall_drain,
            signals: self.signals,
            standing: pods.standing(),
            pods: Arc::clone(&pods),
            dataplane: self.dataplane.clone(),
            readiness: self.readiness,
            leaves: self.cluster.removal(),
            answer: self.removal,
            clock: self.clock,
        };
        tasks.spawn(follow::reload(hangup, self.config, reload, flowing.clone()));
        let end = ending.run().await;
        match end {
            End::Drained => {
                let cut = pods.cut().await;
                tracing::info!(connections = cut, "drained; what was still open is cut");
                pods.farewell().await;
            }
            End::Left => kept.wait_for_installer(self.clock).await,
            End::Captured | End::Stuck => {}
        }
        self.dataplane.stop().await;
        // A reader of the log that stands still must not keep the agent from ending.
        let _ = tokio::time::timeout(LAST_WORDS, flowing.written()).await;
        match end {
            End::Captured | End::Drained => Ok(()),
            End::Left => {
                // Whoever writes there ends first.
                tasks.shutdown().await;
                drop((ending, pods));
                kept.clear();
                Ok(())
            }
            End::Stuck => Err(StartError::Stuck),
        }
    }
}

fn nanos(wall: SystemTime) -> u64 {
    wall.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos()))
}

/// What the source of truth tells the others about this agent.
fn own(config: &Config, version: &str) -> cluster::Own {
    cluster::Own {
        settings: config.settings(),
        version: version.into(),
        admin_socket: config.admin.socket.clone(),
        copy_dir: Some(config.run_dir.clone()),
    }
}

/// The bundle in the current snapshot; before there is one, nobody is trusted.
fn trusted(view: &View) -> Arc<TrustBundle> {
    view.world().trust().cloned().unwrap_or_default()
}
