//! What became of every connection of a load, by the client's agent's own reports: which failed before its CONNECT was
//! answered, and which was carried at the instant of a kill.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use adit_proto::Reason;
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

/// The frontend's connections to payments, as the client's agent saw them, and the inbound ones of the other.
#[derive(Debug)]
pub(super) struct Accounts {
    sent: Vec<Flow<'static>>,
    got: Vec<Flow<'static>>,
}

/// Where the logs of both agents stood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    client: u64,
    server: u64,
}

impl Since {
    /// From here on.
    pub(super) fn now(client: &Agent, server: &Agent) -> Self {
        Self { client: client.process().next_line(), server: server.process().next_line() }
    }
}

impl Accounts {
    /// All that ended since; waits until the client's agent has written everything of before now.
    pub(super) fn take(client: &Agent, server: &Agent, since: Since) -> Result<Self> {
        let now = SystemTime::now();
        // Reports are written in the order of their ends, and curl calls all the time: a connection that began after
        // now and has been written was written after all that ended before.
        client.wait_for_flow(since.client, "a report of later", |flow| {
            is_ours(flow) && began(flow).is_ok_and(|began| began > now)
        })?;
        let ended = |agent: &Agent, first: u64| {
            let lines = agent.process().lines_from(first);
            let flows = lines.iter().filter_map(|line| serde_json::from_str::<Flow<'static>>(line).ok());
            flows.filter(|flow| flow.state != "open").collect::<Vec<_>>()
        };
        let mut sent = ended(client, since.client);
        sent.retain(is_ours);
        let mut got = ended(server, since.server);
        got.retain(|flow| flow.direction == "inbound");
        Ok(Self { sent, got })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn attempts(&self) -> u64 {
        self.sent.iter().map(|flow| u64::from(flow.attempts)).sum()
    }

    /// Failed attempts of connections that were retried, by why.
    pub(super) fn failures_retried(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for why in self.sent.iter().filter_map(|flow| flow.last_failure.as_deref()) {
            *counts.entry(why.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Those that were never carried: each is a connection that the mesh lost.
    pub(super) fn lost(&self) -> Vec<String> {
        self.sent.iter().filter(|flow| !is_carried(flow)).map(describe).collect()
    }

    /// How many were carried by that endpoint (`ip:port`) when this was done to it.
    ///
    /// Also by the word of the endpoint's own agent: where the network was cut, the client's may wait for bytes for
    /// another 20 s (TCP_USER_TIMEOUT) before it reports. What the client was carried by elsewhere does not count.
    pub(super) fn carried_at(&self, kill: &Kill, endpoint: &str) -> Result<usize> {
        let mut traces = BTreeSet::new();
        let refused = |flow: &Flow<'_>| flow.reason.as_deref() == Some(Reason::AppRefused.label());
        for flow in self.got.iter().filter(|flow| flow.destination.addr == endpoint && !refused(flow)) {
            if overlaps(flow, kill)? {
                traces.insert(&flow.trace);
            }
        }
        for flow in self.sent.iter().filter(|flow| is_carried(flow)) {
            if flow.target.as_deref() != Some(endpoint) {
                traces.remove(&flow.trace);
            } else if overlaps(flow, kill)? {
                traces.insert(&flow.trace);
            }
        }
        Ok(traces.len())
    }

    /// Carried ones that were cut though no kill explains it.
    pub(super) fn unexplained(&self, kills: &[(Kill, &str)]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for flow in self.sent.iter().filter(|flow| is_carried(flow) && flow.state == "failed") {
            let mut explained = false;
            for (kill, endpoint) in kills {
                explained |= flow.target.as_deref() == Some(*endpoint) && overlaps(flow, kill)?;
            }
            if !explained {
                found.push(describe(flow));
            }
        }
        Ok(found)
    }

    /// How many of them dialled a tunnel.
    pub(super) fn handshakes(&self) -> usize {
        self.sent.iter().filter(|flow| flow.stages_us.contains_key("tls")).count()
    }

    /// How many certificates the server's agent saw at the client's end.
    pub(super) fn client_certificates(&self) -> usize {
        let traces: BTreeSet<&str> = self.sent.iter().map(|flow| &*flow.trace).collect();
        let ours = self.got.iter().filter(|flow| traces.contains(&*flow.trace));
        ours.filter_map(|flow| Some(&flow.tls.as_ref()?.peer_serial)).collect::<BTreeSet<_>>().len()
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

fn overlaps(flow: &Flow<'_>, kill: &Kill) -> Result<bool> {
    let began = began(flow)?;
    let ended = began + Duration::from_micros(flow.duration_us);
    Ok(began <= kill.done && ended >= kill.begun)
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
