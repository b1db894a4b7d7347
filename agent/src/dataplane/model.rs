//! What the data plane is told: its configuration, its handles, and the pods to serve.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use adit_core::net::PodKey;
use adit_proto::SpiffeId;
use serde::Deserialize;

use super::legs::LegOptions;
use crate::clock::Clock;
use crate::identity::CertSource;
use crate::netns::Netns;
use crate::node::Node;
use crate::sockets::{Keepalive, ListenError};
use crate::telemetry::Reporter;
use crate::view::View;

/// How connections are carried.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Worker threads, 1 to 64. Default none: 1 up to 4 cores, then a quarter of the cores, as far as the CPU limit allows.
    pub workers: Option<NonZeroU32>,
    /// Connections of one pod, both directions together; more are reset (`accept_limit`). Default 65,536: at 4 KiB each
    /// 256 MiB.
    pub connections_per_pod: usize,
    /// Bytes that may wait for slow readers, in all. One pod has at most half of it, and what the others leave; beyond it
    /// its new connections are refused (`memory_limit`) and its apps are read only as fast as tunnels take it. What peers
    /// still send, by windows that they have, is held up to as much again, at least `32MiB` a worker; streams that bring
    /// more are cut (`memory_limit`). Default `256MiB`, at least `16MiB` a worker.
    #[serde(deserialize_with = "crate::units::size")]
    pub buffer_budget: usize,
    /// How long a tunnel without connections is kept. Default `5m`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub tunnel_idle_timeout: Duration,
    /// How long a half-closed connection may be silent. Default `1h`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub half_closed_timeout: Duration,
    /// Congestion control of the tunnel legs, the first that the kernel has. Default `[cubic, reno]`; some want `bbr`
    /// on a WAN; empty: the kernel's default.
    pub tunnel_congestion: Vec<String>,
    /// Silence before the first keepalive probe, on every leg but that to the pod's own app. Whole seconds,
    /// `1s` to `32767s`. Default `60s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub keepalive_idle: Duration,
    /// Between keepalive probes; three unanswered ones end the connection. Whole seconds, `1s` to `32767s`.
    /// Default `10s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub keepalive_interval: Duration,
    /// How long bytes on a tunnel may stay unacknowledged (TCP_USER_TIMEOUT). Default `20s`.
    #[serde(deserialize_with = "crate::units::duration")]
    pub tunnel_user_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            connections_per_pod: 65_536,
            buffer_budget: 256 * 1024 * 1024,
            tunnel_idle_timeout: Duration::from_secs(300),
            half_closed_timeout: Duration::from_secs(3600),
            tunnel_congestion: vec!["cubic".into(), "reno".into()],
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            tunnel_user_timeout: Duration::from_secs(20),
        }
    }
}

impl Config {
    /// The worker threads to start. `available_parallelism` knows the CPU limit.
    pub(super) fn workers(&self) -> NonZeroU32 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let quarter = u32::try_from(cores / 4).unwrap_or(u32::MAX);
        self.workers.or_else(|| NonZeroU32::new(quarter)).unwrap_or(NonZeroU32::MIN)
    }

    pub(super) fn legs(&self) -> LegOptions {
        LegOptions {
            keepalive: Keepalive { idle: self.keepalive_idle, interval: self.keepalive_interval, probes: 3 },
            tunnel_congestion: self.tunnel_congestion.clone(),
            tunnel_user_timeout: self.tunnel_user_timeout,
        }
    }
}

/// What the data plane is given.
#[derive(Clone)]
pub struct Handles {
    /// The current world.
    pub view: View,
    /// The current certificates.
    pub certs: CertSource,
    /// Where connections are reported.
    pub reporter: Reporter,
    /// The clock.
    pub clock: Clock,
    /// The node's own addresses and sockets, to tell kubelet probes; none: no plaintext counts as a probe.
    pub node: Option<Node>,
}

/// A pod to serve.
#[derive(Clone, Debug)]
pub struct ServedPod {
    /// Which life of which pod.
    pub key: PodKey,
    /// Its network namespace.
    pub netns: Netns,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The mark on what the agent dials for it, so that it is not captured again.
    pub mark: u32,
    /// Its identity.
    pub identity: SpiffeId,
}

/// Why a pod is not served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener could not be given to the event loop.
    #[error("cannot watch the listener on port {port}")]
    Register {
        /// Its port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is being served already.
    #[error("pod {} is served already", .0.uid)]
    AlreadyOpen(PodKey),
    /// A worker has ended.
    #[error("a data-plane worker has ended")]
    WorkerGone,
}
