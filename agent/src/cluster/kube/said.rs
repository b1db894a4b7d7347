//! Writes Events: each thing once, and again how often; and never more than an API server should be asked for by one
//! node, whatever loops.

use std::collections::VecDeque;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::ObjectName;
use adit_core::time::Mono;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::debug;

use super::super::events::PodEvent;
use super::client::{Api, ApiError};
use super::times::seconds;
use crate::clock::Clock;

/// Who writes them, as the fence wants it.
const COMPONENT: &str = "adit.dev/agent";
/// Different things that are remembered: some for every pod of a full node. The one longest silent is forgotten first, and
/// said anew if it comes again.
const REMEMBERED_MAX: usize = 1024;
/// How long the same thing is only counted before its Event is brought up to date.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Writes that may come at once: a node's pods all at the same time; and then one in so long.
const BURST_MAX: u32 = 300;
const ONE_IN: Duration = Duration::from_secs(1);
/// The longest note, in bytes, as the API server takes it.
const NOTE_LEN_MAX: usize = 1024;

/// What is to be done with one more Event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Write {
    /// Make an Event of this number, which names it.
    Create(u64),
    /// Bring the one of that number up to date: so often by now.
    Count(u64, u64),
    /// Nothing: it was written a moment ago, or too many are.
    Nothing,
}

/// Decides what is written. Pure.
#[derive(Debug)]
pub(super) struct Said {
    known: VecDeque<Known>,
    next: u64,
    tokens: u32,
    refilled: Mono,
}

#[derive(Debug)]
struct Known {
    event: PodEvent,
    number: u64,
    count: u64,
    /// When it was last written; none: it never was.
    written: Option<Mono>,
}

impl Said {
    /// Nothing was said. `first` is the number of the first Event: another one than an agent before began with.
    pub(super) fn new(first: u64) -> Self {
        Self { known: VecDeque::new(), next: first, tokens: BURST_MAX, refilled: Mono::ZERO }
    }

    /// Takes that something happened.
    pub(super) fn take(&mut self, event: &PodEvent, now: Mono) -> Write {
        self.refill(now);
        let at = self.known.iter().position(|known| known.event == *event);
        let mut known = match at.and_then(|at| self.known.remove(at)) {
            Some(known) => known,
            None => {
                self.next = self.next.wrapping_add(1);
                Known { event: event.clone(), number: self.next, count: 0, written: None }
            }
        };
        known.count += 1;
        let is_due = known.written.is_none_or(|at| now >= at + AGAIN_AFTER);
        let write = match known.written {
            _ if !is_due || self.tokens == 0 => Write::Nothing,
            None => Write::Create(known.number),
            Some(_) => Write::Count(known.number, known.count),
        };
        if write != Write::Nothing {
            self.tokens -= 1;
            known.written = Some(now);
        }
        self.known.push_back(known);
        if self.known.len() > REMEMBERED_MAX {
            self.known.pop_front();
        }
        write
    }

    /// Takes that what was to be written was not: it is written the next time.
    pub(super) fn failed(&mut self, event: &PodEvent) {
        if let Some(known) = self.known.iter_mut().find(|known| known.event == *event) {
            known.written = None;
        }
    }

    fn refill(&mut self, now: Mono) {
        while self.tokens < BURST_MAX && now >= self.refilled + ONE_IN {
            self.tokens += 1;
            self.refilled = self.refilled + ONE_IN;
        }
        if self.tokens == BURST_MAX {
            self.refilled = now;
        }
    }
}

/// Writes what is said, as long as somebody may say something. An Event that cannot be written is in the log all the
/// same.
pub(super) async fn write_events(
    api: Api,
    node: String,
    clock: Clock,
    mut seed: Seed,
    mut queue: mpsc::Receiver<PodEvent>,
) {
    let mut said = Said::new(seed.draw());
    while let Some(event) = queue.recv().await {
        let now = clock.now();
        let at = seconds(now.wall);
        let written = match said.take(&event, now.mono) {
            Write::Nothing => continue,
            Write::Create(number) => {
                let object = object(&event, &node, number, &at);
                let written = api.post(&collection(&event.pod), &object).await;
                // Nobody else has the number: it was stored, and the answer was lost.
                written.or_else(|error| if error.code() == Some(409) { Ok(Bytes::new()) } else { Err(error) })
            }
            Write::Count(number, count) => {
                let path = format!("{}/{}", collection(&event.pod), name(&event.pod, number));
                api.patch(&path, &json!({"count": count, "lastTimestamp": at})).await
            }
        };
        if let Err(error) = written {
            note(&event, &error);
            said.failed(&event);
        }
    }
}

fn note(event: &PodEvent, error: &ApiError) {
    debug!(pod = %event.pod, reason = event.reason, %error, "cannot write an Event");
    metrics::counter!("adit_events_dropped_total").increment(1);
}

fn collection(pod: &ObjectName) -> String {
    format!("/api/v1/namespaces/{}/events", pod.namespace)
}

fn name(pod: &ObjectName, number: u64) -> String {
    // A name has up to 253 characters; a pod's own is as long at most.
    let pod: String = pod.name.chars().take(230).collect();
    format!("{}.{number:016x}", pod.trim_end_matches(['.', '-']))
}

fn object(event: &PodEvent, node: &str, number: u64, at: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name(&event.pod, number), "namespace": *event.pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": *event.pod.namespace,
            "name": *event.pod.name,
            "uid": *event.uid.0,
        },
        "reason": event.reason,
        "message": cut(&event.note),
        "type": event.gravity.word(),
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
    })
}

fn cut(note: &str) -> &str {
    let end = (0..=NOTE_LEN_MAX.min(note.len())).rev().find(|at| note.is_char_boundary(*at));
    &note[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use adit_core::net::PodUid;

    use super::super::super::events::Gravity;
    use super::*;

    fn event(name: &str, note: &str) -> PodEvent {
        PodEvent {
            pod: ObjectName::new("shop", name),
            uid: PodUid(format!("uid-{name}").into()),
            gravity: Gravity::Warning,
            reason: "CaptureFailed",
            note: note.into(),
        }
    }

    fn at(seconds: u64) -> Mono {
        Mono::from_millis(seconds * 1000)
    }

    #[test]
    fn the_same_thing_is_one_event_with_a_count() {
        let mut said = Said::new(6);
        let a = event("a", "no netns");
        assert_eq!(said.take(&a, at(0)), Write::Create(7));
        assert_eq!(said.take(&event("a", "another"), at(0)), Write::Create(8));
        assert_eq!(said.take(&a, at(1)), Write::Nothing);
        assert_eq!(said.take(&a, at(59)), Write::Nothing);
        assert_eq!(said.take(&a, at(60)), Write::Count(7, 4));
        said.failed(&a);
        assert_eq!(said.take(&a, at(61)), Write::Create(7), "anew, as it may never have been there");
    }

    #[test]
    fn a_loop_does_not_flood_the_api_server() {
        let mut said = Said::new(0);
        let mut written = 0;
        for second in 0..600 {
            for many in 0..100 {
                let write = said.take(&event("a", &format!("{second}.{many}")), at(second));
                written += u64::from(write != Write::Nothing);
            }
        }
        assert!((800..=900).contains(&written), "{written} in 10 minutes");
        assert!(said.known.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn an_event_is_as_the_fence_and_the_api_server_want_it() {
        let long = "é".repeat(600);
        let value = object(&event("web.1", &long), "n1", 15, "2026-01-01T00:00:00Z");
        assert_eq!(value["metadata"]["name"], "web.1.000000000000000f");
        assert_eq!(
            (&value["reportingComponent"], &value["reportingInstance"]),
            (&COMPONENT.into(), &"n1".into())
        );
        assert_eq!(value["message"].as_str().unwrap().len(), NOTE_LEN_MAX);
        assert_eq!(cut("short"), "short");
        assert!(name(&ObjectName::new("a", "p".repeat(253)), u64::MAX).len() <= 253);
    }
}
