//! Edges: what each workload sent each other one in the last ten minutes, in slots of ten seconds, bounded.
//!
//! Fed with closed (and interim) reports on the telemetry thread; read by the admin API. Needs no Prometheus. Who is open
//! now is not counted here, where a report may be late or lost, but asked of [`Active`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use adit_core::report::{End, Stage};
use adit_core::time::Mono;
use adit_proto::Reason;
use adit_proto::admin::{Edge, Party};

use super::active::Active;
use super::edge::{EdgeKey, Side};
use super::histogram::Counts;
use super::said::Said;

#[cfg(test)]
mod tests;

/// The length of a slot.
const SLOT: Duration = Duration::from_secs(10);
/// How many slots are kept: ten minutes.
const SLOTS_MAX: usize = 60;

/// All edges of the last ten minutes, and those that are active.
#[derive(Debug)]
pub struct Edges {
    kept_max: usize,
    active: Active,
    edges: HashMap<EdgeKey, Window>,
    /// Connections that have ended, of edges beyond `kept_max`.
    other: u64,
    /// The slot in which idle edges were last forgotten to make room. Within a slot hardly any becomes idle.
    forgotten_in: Option<u64>,
}

#[derive(Debug, Default)]
struct Window {
    slots: VecDeque<(u64, Slot)>,
    tls: Option<String>,
    tls_handshake: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    opened: u64,
    failed: BTreeMap<Reason, u64>,
    retries: u64,
    bytes_to_server: u64,
    bytes_to_client: u64,
    connect: Counts,
}

impl Edges {
    /// No edges yet; at most `kept_max` are kept apart. `active`: who is open now.
    pub fn new(kept_max: usize, active: Active) -> Self {
        Self { kept_max, active, edges: HashMap::new(), other: 0, forgotten_in: None }
    }

    /// Counts one report.
    pub fn add(&mut self, said: &Said) {
        let key = EdgeKey::of(&said.report);
        if !self.edges.contains_key(&key) && self.edges.len() >= self.kept_max {
            let slot = Some(slot_of(said.at));
            if self.forgotten_in != slot {
                self.forgotten_in = slot;
                self.forget_idle(said.at, &self.active.read());
            }
        }
        if !self.edges.contains_key(&key) && self.edges.len() >= self.kept_max {
            // While it is open, it is among the active ones.
            self.other += u64::from(said.end != End::Open);
            return;
        }
        self.edges.entry(key).or_default().add(said);
    }

    /// An edge with open connections is not idle, however seldom these are reported.
    fn forget_idle(&mut self, now: Mono, active: &HashMap<EdgeKey, u64>) {
        let oldest = oldest_of(now, SLOTS_MAX as u64);
        self.edges.retain(|key, window| {
            window.slots.back().is_some_and(|(at, _)| *at >= oldest) || active.contains_key(key)
        });
    }

    /// The edges of the last `window` (at most ten minutes) and those that are active now, sorted; and how many
    /// connections are in none of them.
    pub fn read(&mut self, now: Mono, window: Duration) -> (Vec<Edge>, u64) {
        let active = self.active.read();
        self.forget_idle(now, &active);
        let slots = (window.as_secs().div_ceil(SLOT.as_secs())).clamp(1, SLOTS_MAX as u64);
        let since = oldest_of(now, slots);
        let none = Window::default();
        // Open, and not reported yet. As many as would be kept apart once they are, and always the same ones.
        let mut fresh: Vec<_> = active.iter().filter(|(key, _)| !self.edges.contains_key(key)).collect();
        fresh.sort_unstable_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
        let beyond = fresh.split_off(fresh.len().min(self.kept_max.saturating_sub(self.edges.len())));
        let mut edges: Vec<_> = self
            .edges
            .iter()
            .chain(fresh.into_iter().map(|(key, _)| (key, &none)))
            .filter_map(|(key, window)| window.read(key, since, active.get(key).copied().unwrap_or(0)))
            .collect();
        edges.sort_by(|a, b| {
            (&a.source, &a.destination, &a.service, &a.direction, &a.transport).cmp(&(
                &b.source,
                &b.destination,
                &b.service,
                &b.direction,
                &b.transport,
            ))
        });
        (edges, self.other + beyond.iter().map(|(_, open)| *open).sum::<u64>())
    }
}

fn slot_of(now: Mono) -> u64 {
    now.0.as_secs() / SLOT.as_secs()
}

/// The oldest of the last so many slots. The agent's own first slot is number 0, and one of them.
fn oldest_of(now: Mono, slots: u64) -> u64 {
    (slot_of(now) + 1).saturating_sub(slots)
}

impl Window {
    fn add(&mut self, said: &Said) {
        let report = &said.report;
        let at = slot_of(said.at);
        if self.slots.back().is_none_or(|(last, _)| *last < at) {
            self.slots.push_back((at, Slot::default()));
            while self.slots.len() > SLOTS_MAX {
                self.slots.pop_front();
            }
        }
        let Some((_, slot)) = self.slots.back_mut() else {
            return;
        };
        slot.bytes_to_server += said.new_bytes_to_server;
        slot.bytes_to_client += said.new_bytes_to_client;
        if let Some(security) = &report.security {
            self.tls = Some(format!("{} {}", security.version, security.group));
        }
        if said.first {
            self.tls_handshake = report.stages.get(Stage::Tls).or(self.tls_handshake);
            slot.retries += u64::from(report.attempts.saturating_sub(1));
            if said.carried {
                slot.opened += 1;
                slot.connect.add(said.connect_phase);
            }
        }
        if let Some(reason) = said.end.reason() {
            *slot.failed.entry(reason).or_default() += 1;
        }
    }

    fn read(&self, key: &EdgeKey, since: u64, active: u64) -> Option<Edge> {
        let mut sum = Slot::default();
        for (_, slot) in self.slots.iter().filter(|(at, _)| *at >= since) {
            sum.opened += slot.opened;
            sum.retries += slot.retries;
            sum.bytes_to_server += slot.bytes_to_server;
            sum.bytes_to_client += slot.bytes_to_client;
            sum.connect.merge(&slot.connect);
            for (reason, count) in &slot.failed {
                *sum.failed.entry(*reason).or_default() += count;
            }
        }
        if active == 0
            && sum.opened == 0
            && sum.failed.is_empty()
            && sum.bytes_to_server + sum.bytes_to_client == 0
        {
            return None;
        }
        Some(Edge {
            direction: key.direction.label().into(),
            transport: key.transport.label().into(),
            source: party(&key.source),
            destination: party(&key.destination),
            service: key.service.as_ref().map(|(name, port)| format!("{name}:{port}")),
            opened: sum.opened,
            active,
            failed: sum.failed.iter().map(|(reason, count)| (reason.label().to_owned(), *count)).collect(),
            retries: sum.retries,
            bytes_to_server: sum.bytes_to_server,
            bytes_to_client: sum.bytes_to_client,
            connect_p50_us: sum.connect.percentile_us(50),
            connect_p99_us: sum.connect.percentile_us(99),
            tls: self.tls.clone(),
            tls_handshake_us: self
                .tls_handshake
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        })
    }
}

fn party(side: &Side) -> Party<'static> {
    let mut party = Party {
        identity: side.identity.as_ref().map(|id| id.as_str().to_owned().into()),
        ..Party::default()
    };
    match &side.workload {
        Some((namespace, kind, name)) => {
            party.namespace = Some(namespace.to_string().into());
            party.workload = Some(format!("{kind}/{name}").into());
        }
        None => party.addr = "outside".into(),
    }
    party
}
