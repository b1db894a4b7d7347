//! All that replicas share, for the keeper: state, requests, bundle, and what agents have acknowledged.
//!
//! The keeper's ticks are synchronous and run off the runtime's thread; here its questions are asked on the runtime and
//! waited for. So none of this may be called on the runtime's own thread.

use std::future::Future;

use adit_proto::TrustDomain;
use tokio::runtime::Handle;

use super::client::ApiServer;
use super::leases::Leases;
use super::pods::KnownPods;
use super::published::{Asked, Published};
use super::secrets::{Secrets, Version};
use super::{ClusterError, Settings};
use crate::bundle::Bundle;
use crate::lifecycle::Agents;
use crate::root::Authority;
use crate::stamp::Stamp;
use crate::state::State;

/// The CA's objects in a cluster.
#[derive(Debug)]
pub(crate) struct Shared {
    runtime: Handle,
    domain: TrustDomain,
    leases: Leases,
    secrets: Secrets,
    published: Published,
    /// The version of the state that is in force here.
    version: Option<Version>,
}

/// What the stored state is, seen from the one in force.
#[derive(Debug)]
pub(crate) enum Stored {
    /// The same.
    Same,
    /// Another replica has stored this one, which is now compared with.
    Other(Box<State>),
    /// There is none any more.
    Gone,
}

impl Shared {
    /// On the runtime that asks.
    pub(crate) fn new(api: ApiServer, settings: &Settings, domain: TrustDomain, pods: KnownPods) -> Self {
        Self {
            runtime: Handle::current(),
            secrets: Secrets::new(api.clone(), settings),
            published: Published::new(api.clone(), settings),
            leases: Leases::new(api, settings, pods),
            domain,
            version: None,
        }
    }

    fn wait<T>(runtime: &Handle, future: impl Future<Output = T>) -> T {
        runtime.block_on(future)
    }

    /// Reads what others may have changed: first the state, then what users ask for. In this order: a request that is
    /// done already is then never taken for one that the state does not know.
    pub(crate) fn look(&mut self) -> Result<Stored, ClusterError> {
        let runtime = self.runtime.clone();
        let loaded = Self::wait(&runtime, self.secrets.load(&self.domain, self.version.as_ref()))?;
        Self::wait(&runtime, self.published.look())?;
        Ok(match loaded {
            None => {
                self.version = None;
                Stored::Gone
            }
            Some(None) => Stored::Same,
            Some(Some((state, version))) => {
                self.version = Some(version);
                Stored::Other(Box::new(state))
            }
        })
    }

    /// The stored state; `None` if no CA has begun here. Fails if one has, and its state is lost.
    pub(crate) fn load(&mut self) -> Result<Option<State>, ClusterError> {
        self.version = None;
        // Twice: another replica may have begun between the look at the Secret and that at the ConfigMap.
        for _ in 0..2 {
            match self.look()? {
                Stored::Other(state) => return Ok(Some(*state)),
                Stored::Same | Stored::Gone if self.published.is_begun() => {}
                Stored::Same | Stored::Gone => return Ok(None),
            }
        }
        Err(ClusterError::Lost { secret: self.secrets.object(), bundle: self.published.object() })
    }

    /// Stores `state` in the place of the one that was read or stored last.
    pub(crate) fn save(&mut self, state: &State) -> Result<(), ClusterError> {
        let saved = Self::wait(&self.runtime, self.secrets.save(state, self.version.as_ref()))?;
        self.version = Some(saved);
        Ok(())
    }

    /// The state that [`Shared::look`] found cannot be used: it is not what is compared with, and will be found again.
    pub(crate) fn refuse(&mut self) {
        self.version = None;
    }

    /// What was given in a Secret.
    pub(crate) fn given(&self) -> Result<Option<Authority>, ClusterError> {
        Self::wait(&self.runtime, self.secrets.given())
    }

    /// What users asked for when [`Shared::look`] looked.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.published.asked()
    }

    /// Takes a request off, and says what became of it.
    pub(crate) fn close(&mut self, asked: &Asked, outcome: &str) -> Result<(), ClusterError> {
        let runtime = self.runtime.clone();
        Self::wait(&runtime, self.published.close(asked, outcome))
    }

    /// Makes the ConfigMap hold `bundle`; says whether it had to be written.
    pub(crate) fn publish(&mut self, bundle: &Bundle, now: Stamp) -> Result<bool, ClusterError> {
        let runtime = self.runtime.clone();
        Self::wait(&runtime, self.published.publish(bundle, &self.domain, now))
    }

    /// Shows where a change of root stands.
    pub(crate) fn show(&mut self, rotation: &str) -> Result<(), ClusterError> {
        let runtime = self.runtime.clone();
        Self::wait(&runtime, self.published.show(rotation))
    }

    /// Which bundle the agents have acknowledged.
    pub(crate) fn agents(&mut self, now: Stamp) -> Agents {
        Self::wait(&self.runtime, self.leases.agents(now))
    }
}

#[cfg(test)]
mod tests;
