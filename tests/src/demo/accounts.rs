//! What became of every connection of a load, by the client's agent's own reports: which failed before its CONNECT was
//! answered, and which was carried at the instant of a kill.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use adit_proto::admin::Flow;
use anyhow::{Context, Result};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::enrol::PAYMENTS;
use crate::mesh::Agent;

/// A span of time in which something was killed; a signal to a process group is no instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    pub(super) begun: SystemTime,
    pub(super) done: SystemTime,
}

/// The frontend's connections to payments.
#[derive(Debug)]
pub(super) struct Accounts(Vec<Flow<'static>>);

impl Accounts {
    /// All that ended since the log's line `first`; waits until everything of before now has been written.
    pub(super) fn take(agent: &Agent, first: u64) -> Result<Self> {
        let now = SystemTime::now();
        // Reports are written in the order of their ends, and curl calls all the time: a connection that began after
        // now and has been written was written after all that ended before.
        agent.wait_for_flow(first, "a report of later", |flow| {
            is_ours(flow) && began(flow).is_ok_and(|began| began > now)
        })?;
        let lines = agent.process().lines_from(first);
        let flows = lines.iter().filter_map(|line| serde_json::from_str::<Flow<'static>>(line).ok());
        Ok(Self(flows.filter(|flow| is_ours(flow) && flow.state != "open").collect()))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn attempts(&self) -> u64 {
        self.0.iter().map(|flow| u64::from(flow.attempts)).sum()
    }

    /// Failed attempts of connections that were retried, by why.
    pub(super) fn failures_retried(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for why in self.0.iter().filter_map(|flow| flow.last_failure.as_deref()) {
            *counts.entry(why.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Those that were never carried: each is a connection that the mesh lost.
    pub(super) fn lost(&self) -> Vec<String> {
        self.0.iter().filter(|flow| !is_carried(flow)).map(describe).collect()
    }

    /// How many of them were carried when this was done to that endpoint (`ip:port`).
    pub(super) fn carried_at(&self, kill: &Kill, endpoint: &str) -> Result<usize> {
        let mut count = 0;
        for flow in self.0.iter().filter(|flow| flow.target.as_deref() == Some(endpoint)) {
            count += usize::from(spans(flow, kill)?);
        }
        Ok(count)
    }

    /// Carried ones that were cut though no kill explains it.
    pub(super) fn unexplained(&self, kills: &[(Kill, &str)]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for flow in self.0.iter().filter(|flow| is_carried(flow) && flow.state == "failed") {
            let mut explained = false;
            for (kill, endpoint) in kills {
                explained |= flow.target.as_deref() == Some(*endpoint) && spans(flow, kill)?;
            }
            if !explained {
                found.push(describe(flow));
            }
        }
        Ok(found)
    }

    /// Of those with a tunnel: how many dialled it, and the certificates that the other side showed.
    pub(super) fn handshakes(&self) -> (usize, Vec<String>) {
        let dialled = self.0.iter().filter(|flow| flow.stages_us.contains_key("tls")).count();
        let mut serials: Vec<String> =
            self.0.iter().filter_map(|flow| Some(flow.tls.as_ref()?.peer_serial.to_string())).collect();
        serials.sort_unstable();
        serials.dedup();
        (dialled, serials)
    }
}

fn is_ours(flow: &Flow<'_>) -> bool {
    flow.direction == "outbound"
        && flow.service.as_deref() == Some(PAYMENTS)
        && flow.source.pod.as_deref() == Some("frontend")
}

/// Whether its CONNECT was answered with 200: only then the stage has a duration.
fn is_carried(flow: &Flow<'_>) -> bool {
    flow.stages_us.contains_key("connect")
}

fn began(flow: &Flow<'_>) -> Result<SystemTime> {
    OffsetDateTime::parse(&flow.time, &Rfc3339).map(SystemTime::from).context("a report's time")
}

fn spans(flow: &Flow<'_>, kill: &Kill) -> Result<bool> {
    let began = began(flow)?;
    let ended = began + Duration::from_micros(flow.duration_us);
    Ok(is_carried(flow) && began <= kill.done && ended >= kill.begun)
}

fn describe(flow: &Flow<'_>) -> String {
    format!(
        "{} to {} after {} attempts: {} {} {}",
        flow.time,
        flow.target.as_deref().unwrap_or("-"),
        flow.attempts,
        flow.state,
        flow.reason.as_deref().unwrap_or("-"),
        flow.detail.as_deref().unwrap_or("-"),
    )
}
