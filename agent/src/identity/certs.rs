//! The current TLS configurations, by identity: what the data plane holds of all this.
//!
//! One writer (the driver), many readers on other threads. A reader loads a pointer and looks up a map; it holds no
//! lock, and a change never waits for it. Knows neither the CA nor when certificates are renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use adit_core::time::Validity;
use adit_proto::{Reason, SpiffeId};
use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use super::cert::Certificate;
use super::missing::NoCertificate;
use super::tls::{Peer, Tls};
use super::verify::Trust;

/// Client configurations kept per own identity. One is about 600 bytes; 1024 are 600 KiB, more peers than one
/// workload has. When full it begins anew: the next connection to each peer makes its configuration again (2 µs).
const CLIENT_CONFIGS_MAX: usize = 1024;

/// The current configurations. Cheap to clone; each clone remembers which trust it has seen.
#[derive(Clone, Debug)]
pub struct CertSource {
    shared: Arc<Shared>,
    trust_seen: watch::Receiver<u64>,
}

/// What is publicly known of a served certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServedCertificate {
    /// Lower-case hex without leading zeros.
    pub serial: Arc<str>,
    /// Its dates.
    pub validity: Validity,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Current>,
    /// Counts every change: waiters look again.
    published: watch::Sender<u64>,
    /// Counts changes of the bundle and the kill list.
    trusted: watch::Sender<u64>,
    /// The last generation given out.
    generation: AtomicU64,
    tls: Tls,
}

#[derive(Clone, Debug)]
struct Current {
    served: HashMap<SpiffeId, Arc<Served>>,
    trust: Arc<Trust>,
}

/// One identity's certificate under one bundle, with the configurations made of them.
#[derive(Debug)]
struct Served {
    generation: u64,
    certificate: ServedCertificate,
    chain: Arc<CertifiedKey>,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    clients: ArcSwap<HashMap<SpiffeId, Arc<ClientConfig>>>,
}

impl CertSource {
    /// The configuration with which `id` dials a peer that must prove to be `expected_peer`.
    ///
    /// Cached per (identity, expected peer, generation).
    pub fn client(
        &self,
        id: &SpiffeId,
        expected_peer: &SpiffeId,
    ) -> Result<Arc<ClientConfig>, NoCertificate> {
        let current = self.shared.current.load();
        let served = current.served.get(id).ok_or_else(|| NoCertificate { id: id.clone() })?;
        if let Some(config) = served.clients.load().get(expected_peer) {
            return Ok(config.clone());
        }
        Ok(served.add_client(&self.shared.tls, expected_peer))
    }

    /// The configuration with which `id` accepts tunnels.
    pub fn server(&self, id: &SpiffeId) -> Result<Arc<ServerConfig>, NoCertificate> {
        let current = self.shared.current.load();
        let served = current.served.get(id).ok_or_else(|| NoCertificate { id: id.clone() })?;
        Ok(served.server.clone())
    }

    /// A number that changes whenever the certificate, the bundle or the kill list does; 0 without a certificate.
    pub fn generation(&self, id: &SpiffeId) -> u64 {
        self.shared.current.load().served.get(id).map_or(0, |served| served.generation)
    }

    /// Why a peer that was verified at its handshake is not trusted any more, if so: its identity, its serial or that of a
    /// certificate above it is on the kill list, or its whole trust domain is revoked or gone (`identity_revoked`); or the
    /// root to which its certificate leads is gone (`peer_untrusted`).
    ///
    /// A root is not missed once the certificate has expired: a connection outlives its certificate, and so the orderly
    /// end of a root.
    pub fn distrusts(&self, peer: &Peer) -> Option<Reason> {
        let trust = &self.shared.current.load().trust;
        if trust.is_revoked(&peer.id, std::iter::once(&peer.serial).chain(&*peer.above)) {
            return Some(Reason::IdentityRevoked);
        }
        let leads = trust.still_leads_to_a_root(&peer.id, &peer.serial);
        (!leads).then_some(Reason::PeerUntrusted)
    }

    /// What peers are verified with now. Another one whenever handshakes go another way.
    pub(super) fn trust(&self) -> Arc<Trust> {
        self.shared.current.load().trust.clone()
    }

    /// What is served for an identity.
    pub fn certificate(&self, id: &SpiffeId) -> Option<ServedCertificate> {
        self.shared.current.load().served.get(id).map(|served| served.certificate.clone())
    }

    /// Returns once there is a certificate for `id`; the caller bounds the wait. Cancel-safe.
    pub async fn wait_for(&self, id: &SpiffeId) {
        let mut published = self.shared.published.subscribe();
        // The sender lives in `self.shared`, so waiting can only end with a change.
        let _ = published.wait_for(|_| self.shared.current.load().served.contains_key(id)).await;
    }

    /// Returns once there is no certificate for `id`. Cancel-safe.
    pub async fn wait_for_loss(&self, id: &SpiffeId) {
        let mut published = self.shared.published.subscribe();
        let _ = published.wait_for(|_| !self.shared.current.load().served.contains_key(id)).await;
    }

    /// Returns once the bundle or the kill list has changed since this clone last returned from here, or was made.
    /// Cancel-safe.
    pub async fn trust_changed(&mut self) {
        // Never an error: the sender lives in `self.shared`.
        let _ = self.trust_seen.changed().await;
    }
}

impl Served {
    fn add_client(&self, tls: &Tls, expected: &SpiffeId) -> Arc<ClientConfig> {
        let made = Arc::new(tls.client(self.chain.clone(), self.trust.clone(), expected.clone()));
        self.clients.rcu(|known| {
            let mut known =
                if known.len() < CLIENT_CONFIGS_MAX { HashMap::clone(known) } else { HashMap::new() };
            known.insert(expected.clone(), made.clone());
            known
        });
        made
    }
}

/// The writing side. Not cloneable: the driver is the only writer.
#[derive(Debug)]
pub(crate) struct Publish {
    shared: Arc<Shared>,
}

/// No certificates, and this trust.
pub(crate) fn channel(tls: Tls, trust: Arc<Trust>) -> (Publish, CertSource) {
    let trusted = watch::Sender::new(0);
    let trust_seen = trusted.subscribe();
    let shared = Arc::new(Shared {
        current: ArcSwap::from_pointee(Current { served: HashMap::new(), trust }),
        published: watch::Sender::new(0),
        trusted,
        generation: AtomicU64::new(0),
        tls,
    });
    (Publish { shared: shared.clone() }, CertSource { shared, trust_seen })
}

impl Publish {
    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.shared.current.load().trust.clone()
    }

    pub(crate) fn serves(&self, id: &SpiffeId) -> bool {
        self.shared.current.load().served.contains_key(id)
    }

    pub(crate) fn certificate(&self, id: &SpiffeId) -> Option<ServedCertificate> {
        self.shared.current.load().served.get(id).map(|served| served.certificate.clone())
    }

    /// Serves this certificate from now on.
    pub(crate) fn publish(&self, certificate: &Certificate) {
        self.change(|current| {
            let facts = ServedCertificate {
                serial: certificate.serial.clone(),
                validity: certificate.issue.validity,
            };
            let served = self.served(facts, certificate.chain.clone(), current.trust.clone());
            current.served.insert(certificate.id.clone(), Arc::new(served));
        });
    }

    /// Serves no certificate for this identity from now on.
    pub(crate) fn withdraw(&self, id: &SpiffeId) {
        self.change(|current| {
            current.served.remove(id);
        });
    }

    /// Verifies peers with this from now on. Returns the identities whose own certificate it refuses.
    pub(crate) fn trust_in(&self, trust: &Arc<Trust>, now: SystemTime) -> Vec<SpiffeId> {
        let mut refused = Vec::new();
        self.change(|current| {
            current.trust = trust.clone();
            for (id, served) in &mut current.served {
                if super::cert::check_chain(&served.chain.cert, id, trust, now).is_err() {
                    refused.push(id.clone());
                }
                let renewed = self.served(served.certificate.clone(), served.chain.clone(), trust.clone());
                *served = Arc::new(renewed);
            }
        });
        refused.sort_unstable();
        self.shared.trusted.send_modify(|count| *count += 1);
        refused
    }

    fn served(&self, certificate: ServedCertificate, chain: Arc<CertifiedKey>, trust: Arc<Trust>) -> Served {
        Served {
            generation: self.shared.generation.fetch_add(1, Ordering::Relaxed) + 1,
            certificate,
            server: Arc::new(self.shared.tls.server(chain.clone(), trust.clone())),
            chain,
            trust,
            clients: ArcSwap::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Current)) {
        let mut next = Current::clone(&self.shared.current.load());
        change(&mut next);
        self.shared.current.store(Arc::new(next));
        self.shared.published.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests;
