//! What the connections of one worker have in common. Shared by nothing outside its thread.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

use adit_core::draw::Seed;
use adit_core::traffic::TrafficSettings;

use super::buffers::Buffers;
use super::endpoints::Endpoints;
use super::gate::{Gate, HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX};
use super::model::{Config, Handles};
use super::pipes::Pipes;
use super::share::Share;
use crate::node::Lookup;
use crate::telemetry::Shard;

/// The least that a worker may buffer, whatever the configuration says: one stalled stream's window, four times.
const BUFFER_SHARE_MIN: usize = 16 * 1024 * 1024;

/// What the connections of one worker have in common.
pub(super) struct Worker {
    pub(super) handles: Handles,
    pub(super) config: Config,
    pub(super) shard: Shard,
    pub(super) buffers: Rc<Buffers>,
    /// What the kubelet's probes of all pods have of the buffers.
    pub(super) probes: Rc<Share>,
    pub(super) pipes: Rc<Pipes>,
    pub(super) endpoints: Endpoints,
    pub(super) handshakes: Gate,
    pub(super) seed: RefCell<Seed>,
    /// For connections to pods dialled by their own address.
    pub(super) traffic_default: Arc<TrafficSettings>,
    /// Finds whose socket a probe comes from; none where the kernel does not say.
    pub(super) lookup: RefCell<Option<Lookup>>,
}

impl Worker {
    /// The common part of a worker; must be made on its thread.
    pub(super) fn new(config: Config, handles: Handles, workers: NonZeroU32, seed: Seed) -> Rc<Self> {
        let lookup = handles.node.as_ref().and_then(|node| {
            let opened = node.lookup();
            opened.inspect_err(|error| tracing::error!("kubelet probes cannot be told: {error}")).ok()
        });
        let budget = (config.buffer_budget / workers.get() as usize).max(BUFFER_SHARE_MIN);
        let buffers = Rc::new(Buffers::new(budget));
        Rc::new(Self {
            shard: handles.reporter.shard(handles.clock),
            probes: Share::new(Rc::clone(&buffers)),
            buffers,
            pipes: Rc::default(),
            endpoints: Endpoints::new(workers),
            handshakes: Gate::new(HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX),
            seed: RefCell::new(seed),
            traffic_default: Arc::default(),
            lookup: RefCell::new(lookup),
            handles,
            config,
        })
    }
}
