//! What a CA has around it, by where it is at home: found at start, and handed to the parts that need it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use adit_proto::TrustDomain;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::StartError;
use crate::caller::Callers;
use crate::cluster::callers::Agents;
use crate::cluster::client::ApiServer;
use crate::cluster::pods::KnownPods;
use crate::cluster::shared::Shared;
use crate::cluster::{self, statuses};
use crate::config::Place;
use crate::disk::Disk;
use crate::fresh::Fresh;
use crate::home::{Directory, Home};
use crate::publish::Mesh;
use crate::service::Askers;
use crate::store::Store;

/// How long a replica may sign after it last saw what is stored. Ticks come every 5 s at most, and one that fails takes
/// 8 s: one of them may fail.
pub(crate) const LOST_FOR_MAX: Duration = Duration::from_secs(15);

/// A directory, or a cluster.
#[derive(Debug)]
pub(crate) enum Around {
    /// A directory with its token file.
    Directory {
        /// Who may ask.
        callers: Callers,
        /// The store.
        store: PathBuf,
        /// The mesh.
        publish: Option<PathBuf>,
    },
    /// A cluster.
    Cluster {
        /// How it is asked.
        api: ApiServer,
        /// The names in it.
        settings: Box<cluster::Settings>,
        /// Its pods.
        pods: KnownPods,
        /// Who may ask.
        agents: Arc<Agents>,
        /// Whether what is stored is known.
        fresh: Fresh,
    },
}

impl Around {
    /// Finds it.
    pub(crate) async fn find(place: &Place) -> Result<Self, StartError> {
        let settings = match place {
            Place::Directory { store, tokens, publish } => {
                let (store, publish) = (store.clone(), publish.clone());
                return Ok(Self::Directory { callers: Callers::open(tokens)?, store, publish });
            }
            Place::Kubernetes(settings) => settings.clone(),
        };
        let api = ApiServer::find(settings.kubeconfig.as_deref()).await?;
        let pods = KnownPods::default();
        let agents = Arc::new(Agents::new(api.clone(), settings.clone(), pods.clone()));
        Ok(Self::Cluster {
            api,
            settings: Box::new(settings),
            pods,
            agents,
            fresh: Fresh::within(LOST_FOR_MAX),
        })
    }

    /// Lets run `beside` what keeps it up to date, and what tells users of their policies. The latter ends when `stopped`
    /// changes, and lets go of it then.
    pub(crate) fn follow(&self, beside: &mut JoinSet<()>, stopped: watch::Receiver<()>) {
        if let Self::Cluster { api, settings, pods, .. } = self {
            beside.spawn(pods.clone().follow(api.clone()));
            beside.spawn(statuses::write(api.clone(), cluster::Settings::clone(settings), stopped));
        }
    }

    /// Opens where state, requests and bundle are kept.
    pub(crate) fn home(&self, domain: &TrustDomain) -> Result<Home, StartError> {
        Ok(match self {
            Self::Directory { callers, store, publish } => {
                let mesh = publish.clone().map(|dir| Mesh::new(dir, Disk::real()));
                let store = Store::open(store, Disk::real())?;
                Home::Directory(Directory { store, mesh, callers: callers.clone() })
            }
            Self::Cluster { api, settings, pods, .. } => {
                Home::Cluster(Box::new(Shared::new(api.clone(), settings, domain.clone(), pods.clone())))
            }
        })
    }

    /// Who may ask for certificates.
    pub(crate) fn askers(&self) -> Askers {
        match self {
            Self::Directory { callers, .. } => Askers::TokenFile(callers.clone()),
            Self::Cluster { agents, .. } => Askers::Cluster(Arc::clone(agents)),
        }
    }

    /// Whether what is stored is known.
    pub(crate) fn fresh(&self) -> Fresh {
        match self {
            Self::Directory { .. } => Fresh::always(),
            Self::Cluster { fresh, .. } => fresh.clone(),
        }
    }

    /// What is known of the cluster, if it is one.
    pub(crate) fn agents(&self) -> Option<Arc<Agents>> {
        match self {
            Self::Directory { .. } => None,
            Self::Cluster { agents, .. } => Some(Arc::clone(agents)),
        }
    }
}
