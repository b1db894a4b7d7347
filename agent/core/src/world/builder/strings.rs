//! Shares equal strings and identities among objects: most of what 20,000 pods say is the same few words.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use adit_proto::spiffe::SpiffeIdError;
use adit_proto::{SpiffeId, TrustDomain};

use crate::net::ObjectName;
use crate::service::EndpointSlice;
use crate::workload::{Labels, Pod, Skip};

/// Strings and sets of labels are swept for unused ones when there are twice as many as were in use, but not below this:
/// 1,024 strings of 64 bytes are 64 KiB.
const SWEEP_MIN: usize = 1024;

/// The strings in use, each once.
#[derive(Debug)]
pub(super) struct Strings {
    /// Never walked through in an order that anyone could see. Hashed with the process's own key: the words are the
    /// cluster's users'.
    known: HashSet<Arc<str>>,
    /// Sets of labels, each once: the pods of one owner mostly have the same.
    labels: HashSet<Arc<Labels>>,
    sweep_at: usize,
    identities: BTreeMap<(Arc<str>, Arc<str>), SpiffeId>,
    pub(super) no_skip: Arc<Skip>,
}

impl Default for Strings {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            labels: HashSet::new(),
            sweep_at: SWEEP_MIN,
            identities: BTreeMap::new(),
            no_skip: Arc::default(),
        }
    }
}

impl Strings {
    /// Replaces the strings of a pod by those that others use too, and gives back what its lists have to spare.
    pub(super) fn share_pod(&mut self, pod: &mut Pod) {
        self.sweep();
        self.share_name(&mut pod.name);
        if let Some(node) = &mut pod.node {
            self.share(&mut node.0);
        }
        self.share(&mut pod.service_account);
        self.share_labels(&mut pod.labels);
        for port in &mut pod.ports {
            self.share(&mut port.name);
        }
        self.share(&mut pod.owner.kind);
        self.share(&mut pod.owner.name);
        pod.ips.shrink_to_fit();
        pod.ports.shrink_to_fit();
        pod.probe_ports.shrink_to_fit();
    }

    /// The same for an endpoint slice: its endpoints name pods and nodes.
    pub(super) fn share_slice(&mut self, slice: &mut EndpointSlice) {
        self.sweep();
        self.share_name(&mut slice.name);
        self.share_name(&mut slice.service);
        slice.endpoints.shrink_to_fit();
        for endpoint in &mut slice.endpoints {
            endpoint.addresses.shrink_to_fit();
            if let Some(node) = &mut endpoint.node {
                self.share(&mut node.0);
            }
            if let Some(zone) = &mut endpoint.zone {
                self.share(zone);
            }
            if let Some(pod) = &mut endpoint.pod {
                self.share_name(pod);
            }
        }
    }

    /// The identity of a service account, one for all its pods.
    pub(super) fn identity(&mut self, domain: &TrustDomain, pod: &Pod) -> Result<SpiffeId, SpiffeIdError> {
        let account = (Arc::clone(&pod.name.namespace), Arc::clone(&pod.service_account));
        if let Some(known) = self.identities.get(&account) {
            return Ok(known.clone());
        }
        let identity = SpiffeId::of_service_account(domain, &account.0, &account.1)?;
        self.identities.insert(account, identity.clone());
        Ok(identity)
    }

    /// How many strings are held.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    fn share_name(&mut self, name: &mut ObjectName) {
        self.share(&mut name.namespace);
        self.share(&mut name.name);
    }

    fn share_labels(&mut self, labels: &mut Arc<Labels>) {
        if let Some(known) = self.labels.get(labels) {
            *labels = Arc::clone(known);
            return;
        }
        let shared = labels.0.iter().map(|(key, value)| {
            let (mut key, mut value) = (Arc::clone(key), Arc::clone(value));
            self.share(&mut key);
            self.share(&mut value);
            (key, value)
        });
        *labels = Arc::new(Labels(shared.collect()));
        self.labels.insert(Arc::clone(labels));
    }

    fn share(&mut self, string: &mut Arc<str>) {
        match self.known.get(string) {
            Some(known) => *string = Arc::clone(known),
            None => {
                self.known.insert(Arc::clone(string));
            }
        }
    }

    /// Forgets what nobody else holds any more.
    fn sweep(&mut self) {
        if self.known.len() + self.labels.len() < self.sweep_at {
            return;
        }
        // Before the strings, which it holds.
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.labels.shrink_to_fit();
        // An identity holds its names: where it is the last to do so, the account has no pod.
        self.identities.retain(|(_, account), _| Arc::strong_count(account) > 2);
        self.known.retain(|string| Arc::strong_count(string) > 1);
        self.known.shrink_to_fit();
        self.sweep_at = ((self.known.len() + self.labels.len()) * 2).max(SWEEP_MIN);
    }
}
