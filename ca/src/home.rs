//! Where a CA is at home: in a directory of its own, or in a cluster, shared with its other replicas.
//!
//! The keeper asks here and does not know which it is.

use crate::bundle::Bundle;
use crate::caller::Callers;
use crate::cluster::published::{Asked, ROTATE};
use crate::cluster::shared::{Shared, Stored};
use crate::lifecycle::{Agents, Request};
use crate::publish::Mesh;
use crate::root::Authority;
use crate::stamp::Stamp;
use crate::state::State;
use crate::status::{Outcome, Progress};
use crate::store::{Left, Store, StoreError};

/// Where state, requests and bundle are kept.
#[derive(Debug)]
pub(crate) enum Home {
    /// A directory that nobody else holds.
    Directory(Directory),
    /// A cluster.
    Cluster(Box<Shared>),
}

/// The directory, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) store: Store,
    pub(crate) mesh: Option<Mesh>,
    pub(crate) callers: Callers,
}

/// A request of a user.
#[derive(Debug)]
pub(crate) struct Wish {
    /// How the log names it.
    pub(crate) name: String,
    /// What it asks for, or why it cannot be read.
    pub(crate) request: Result<Request, Unread>,
    from: From,
}

/// Why a request cannot be read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It may be read next time.
    ForNow(String),
    /// It never will.
    ForGood(String),
}

#[derive(Debug)]
enum From {
    File,
    Annotation(Asked),
}

impl Home {
    /// The stored state; `None` if there never was one.
    pub(crate) fn load(&mut self, domain: &adit_proto::TrustDomain) -> Result<Option<State>, StoreError> {
        match self {
            Self::Directory(directory) => directory.store.load(domain),
            Self::Cluster(shared) => Ok(shared.load()?),
        }
    }

    /// Sees what other replicas have stored. Nobody else stores in a directory.
    pub(crate) fn look(&mut self) -> Result<Stored, StoreError> {
        match self {
            Self::Directory(_) => Ok(Stored::Same),
            Self::Cluster(shared) => Ok(shared.look()?),
        }
    }

    /// What was found by [`Home::look`] cannot be used.
    pub(crate) fn refuse(&mut self) {
        match self {
            Self::Directory(_) => {}
            Self::Cluster(shared) => shared.refuse(),
        }
    }

    /// Stores `state`. When this returns, it is stored; when it fails, the old or the new is, or another replica's.
    pub(crate) fn save(&mut self, state: &State) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.store.save(state),
            Self::Cluster(shared) => Ok(shared.save(state)?),
        }
    }

    /// What was given by hand.
    pub(crate) fn given(&self) -> Result<Option<Authority>, StoreError> {
        match self {
            Self::Directory(directory) => directory.store.given(),
            Self::Cluster(shared) => Ok(shared.given()?),
        }
    }

    /// What users ask for, in order.
    pub(crate) fn wishes(&self) -> Result<Vec<Wish>, StoreError> {
        match self {
            Self::Directory(directory) => Ok(directory.store.requests()?.into_iter().map(of_file).collect()),
            Self::Cluster(shared) => Ok(shared.asked().into_iter().map(of_annotation).collect()),
        }
    }

    /// Whether the state has to remember which requests are done, by name. In a cluster it need not: a request there
    /// says how things shall be, and asking for it once more changes nothing.
    pub(crate) fn remembers_wishes(&self) -> bool {
        match self {
            Self::Directory(_) => true,
            Self::Cluster(_) => false,
        }
    }

    /// Takes a request away that is done or refused.
    pub(crate) fn close(&mut self, wish: &Wish, outcome: Option<&Outcome>) -> Result<(), StoreError> {
        match (self, &wish.from) {
            (Self::Cluster(shared), From::Annotation(asked)) => {
                let said = outcome.map(Outcome::to_string).unwrap_or_default();
                Ok(shared.close(asked, &said)?)
            }
            (Self::Directory(directory), From::File) => directory.store.forget_request(&wish.name),
            // Neither gives what is the other's.
            (Self::Cluster(_), From::File) | (Self::Directory(_), From::Annotation(_)) => Ok(()),
        }
    }

    /// Makes the published bundle be this one. `None`: there is nowhere to publish to.
    pub(crate) fn publish(&mut self, bundle: &Bundle, now: Stamp) -> Option<Result<bool, StoreError>> {
        match self {
            Self::Directory(directory) => {
                let mesh = directory.mesh.as_ref()?;
                Some(mesh.publish(&bundle.manifest()).map_err(|source| StoreError::Io {
                    what: "write",
                    path: mesh.bundle_path(),
                    source,
                }))
            }
            Self::Cluster(shared) => Some(shared.publish(bundle, now).map_err(StoreError::from)),
        }
    }

    /// Which bundle the agents have acknowledged.
    pub(crate) fn agents(&mut self, now: Stamp) -> Agents {
        match self {
            Self::Directory(Directory { mesh: Some(mesh), .. }) => mesh.agents(),
            Self::Directory(Directory { mesh: None, .. }) => {
                Agents::Unknown("there is no mesh directory to publish to".to_owned())
            }
            Self::Cluster(shared) => shared.agents(now),
        }
    }

    /// Shows how the CA stands.
    pub(crate) fn show(&mut self, progress: &Progress) -> Result<(), StoreError> {
        match self {
            Self::Directory(directory) => directory.store.save_progress(progress),
            Self::Cluster(shared) => Ok(shared.show(&progress.rotation.in_short())?),
        }
    }

    /// The token file, in a directory.
    pub(crate) fn callers(&self) -> Option<&Callers> {
        match self {
            Self::Directory(directory) => Some(&directory.callers),
            Self::Cluster(_) => None,
        }
    }
}

fn of_file(left: Left) -> Wish {
    let request = left.request.map_err(|error| {
        let text = crate::report(&error);
        if error.may_pass() { Unread::ForNow(text) } else { Unread::ForGood(text) }
    });
    Wish { name: left.name, request, from: From::File }
}

fn of_annotation(asked: Asked) -> Wish {
    let short = asked.annotation.rsplit('/').next().unwrap_or_default();
    let name = match asked.annotation {
        ROTATE => short.to_owned(),
        _ => format!("{short} {}", asked.value),
    };
    let request = asked.request.clone().map_err(Unread::ForGood);
    Wish { name, request, from: From::Annotation(asked) }
}
