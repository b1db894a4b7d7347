//! How connections to a service are tried: deadline, retries, budget and ejection (a TrafficPolicy, or the defaults).

use std::time::Duration;

use crate::net::ObjectName;

/// Everything that a TrafficPolicy may change, with DESIGN's defaults.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrafficSettings {
    /// The whole connect phase may take this long. Default 3 s.
    pub connect_deadline: Duration,
    /// One attempt may take this long while another endpoint exists. Default 1 s.
    pub attempt_timeout: Duration,
    /// Retries after the first attempt. Default 2.
    pub retries_max: u32,
    /// Full jitter's base. Default 25 ms.
    pub backoff_base: Duration,
    /// Full jitter's cap. Default 250 ms.
    pub backoff_cap: Duration,
    /// Retries that first attempts earn, in percent of them. Default 10.
    pub budget_percent: u32,
    /// How long an earned retry lasts. Default 10 s.
    pub budget_interval: Duration,
    /// The floor: one retry each so often, never saved up. Default 100 ms; none: no floor.
    pub budget_floor_interval: Option<Duration>,
    /// Connect failures in a row that eject an endpoint. Default 5; 0: never.
    pub ejection_failures: u32,
    /// First ejection's length, doubled by each further one. Default 1 s.
    pub ejection_base: Duration,
    /// The longest ejection. Default 60 s.
    pub ejection_cap: Duration,
    /// The share of a service's endpoints that may be ejected at once, in percent. Default 50.
    pub ejection_percent_max: u32,
}

impl Default for TrafficSettings {
    fn default() -> Self {
        Self {
            connect_deadline: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(1),
            retries_max: 2,
            backoff_base: Duration::from_millis(25),
            backoff_cap: Duration::from_millis(250),
            budget_percent: 10,
            budget_interval: Duration::from_secs(10),
            budget_floor_interval: Some(Duration::from_millis(100)),
            ejection_failures: 5,
            ejection_base: Duration::from_secs(1),
            ejection_cap: Duration::from_secs(60),
            ejection_percent_max: 50,
        }
    }
}

/// What one TrafficPolicy object says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrafficPolicy {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// Seconds since the epoch of `metadata.creationTimestamp`: of two for one service the older wins, then the name.
    pub created: i64,
    /// The Services of its own namespace that `targetRefs` names.
    pub services: Vec<ObjectName>,
    /// What it says.
    pub settings: TrafficSettings,
}
