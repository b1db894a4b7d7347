//! Certificates for tests of the data plane, made on the spot: real handshakes, and a hand on what is trusted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adit_core::trust::TrustBundle;
use adit_proto::SpiffeId;

use super::CertSource;
use super::certs::{Publish, channel};
use super::testing::{Authority, Spec, bundle, unchecked, wall};
use super::tls::Tls;
use super::verify::Trust;
use crate::clock::Clock;

/// A CA whose word is published at once.
pub(crate) struct Fixed {
    publish: Publish,
    root: Authority,
    trusted: TrustBundle,
    tls: Tls,
}

/// The clock under which the certificates are valid; it moves with tokio's.
pub(crate) fn clock() -> Clock {
    Clock::paused(wall())
}

/// A CA that is trusted, and where its certificates are found.
pub(crate) fn certs(clock: Clock) -> (Fixed, CertSource) {
    let tls = Tls::new(clock);
    let root = Authority::root("fixed");
    let trusted = bundle(1, &[&root]);
    let trust = Trust::new(Arc::new(trusted.clone()), tls.algorithms()).unwrap();
    let (publish, certs) = channel(tls.clone(), Arc::new(trust));
    (Fixed { publish, root, trusted, tls }, certs)
}

impl Fixed {
    /// Serves a certificate for `id` from now on: its first, or a new one.
    pub(crate) fn issue(&self, id: &SpiffeId) {
        let mut spec = Spec::of(id);
        // No root gives out a serial that another has.
        spec.serial.extend(self.trusted.generation.to_be_bytes());
        self.publish.publish(&unchecked(id, &spec, &self.root, &self.tls));
    }

    /// Serves a certificate of a CA that nobody trusts.
    pub(crate) fn issue_untrusted(&self, id: &SpiffeId) {
        let stranger = Authority::root("stranger");
        self.publish.publish(&unchecked(id, &Spec::of(id), &stranger, &self.tls));
    }

    /// Puts `id` on the kill list.
    pub(crate) fn revoke(&mut self, id: &SpiffeId) {
        self.trusted.revoked_identities.insert(id.clone());
        self.publish_trust(wall());
    }

    /// Signs with a new root from now on, which is trusted beside the one before.
    pub(crate) fn rotate(&mut self) {
        self.root = Authority::root("next");
        let next = bundle(1, &[&self.root]).roots;
        for (domain, roots) in next {
            self.trusted.roots.entry(domain).or_default().extend(roots);
        }
        self.publish_trust(wall());
    }

    /// Trusts only the root that signs, `later` than the certificates' beginning.
    pub(crate) fn drop_old_roots(&mut self, later: Duration) {
        self.trusted.roots = bundle(1, &[&self.root]).roots;
        self.publish_trust(wall() + later);
    }

    fn publish_trust(&mut self, now: SystemTime) {
        self.trusted.generation += 1;
        let trust = Trust::new(Arc::new(self.trusted.clone()), self.tls.algorithms()).unwrap();
        let trust = trust.after(&self.publish.trust(), now);
        self.publish.trust_in(&Arc::new(trust), now);
    }
}
