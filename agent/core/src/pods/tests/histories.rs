//! Random histories of events, failures and restarts: the machine against the node, under its laws.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::node::{Node, Stands};
use super::*;
use crate::draw::Seed;
use crate::workload::Skip;

/// One run of the machine against the node.
struct History {
    pods: Pods,
    node: Node,
    now: Now,
    keys: Vec<PodKey>,
}

impl History {
    fn new() -> Self {
        Self {
            pods: Pods::new(Limits::default()),
            node: Node::default(),
            now: Now::at_start(UNIX_EPOCH),
            keys: ["a1", "a2", "b3", "c4"].map(|name| key(&name[..1], name)).to_vec(),
        }
    }

    fn give(&mut self, event: Event) {
        let removed = match &event {
            Event::SandboxGone(key) => Some(key.clone()),
            Event::CniDel { sandbox, .. } => self.keys.iter().find(|key| key.sandbox == *sandbox).cloned(),
            Event::CniAdd { .. }
            | Event::CniCheck { .. }
            | Event::Adopted { .. }
            | Event::Wanted { .. }
            | Event::Unwanted { .. }
            | Event::Terminating { .. }
            | Event::IdentityReady(_)
            | Event::IdentityLost(_)
            | Event::Done { .. }
            | Event::Drifted { .. }
            | Event::Leaving { .. } => None,
        };
        let known = removed.filter(|key| self.pods.knows(key));
        self.node.removed.extend(known);
        let effects = self.pods.handle(self.now, event);
        self.obey(effects);
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.node.obey(&self.pods, effect);
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        let effects = self.pods.tick(self.now);
        self.obey(effects);
    }

    fn restart(&mut self, draw: &mut Seed) {
        self.pods = Pods::new(Limits::default());
        for event in self.node.restart(draw) {
            self.give(event);
        }
    }

    fn end(&mut self, key: &PodKey, chance: u64) {
        if let Some(event) = self.node.end(key, chance) {
            self.give(event);
        }
    }

    fn step(&mut self, draw: &mut Seed) {
        let chance = draw.draw();
        let key = self.keys[usize::try_from(draw.below(4)).unwrap()].clone();
        let uid = key.uid.clone();
        let want = {
            let account = ["x", "y"][usize::try_from(draw.below(2)).unwrap()];
            let port = 9000 + u16::try_from(draw.below(2)).unwrap();
            let skip = Skip { inbound_ports: vec![port..=port], ..Skip::default() };
            Want { identity: id(account), skip: Arc::new(skip) }
        };
        match draw.below(18) {
            0 | 1 => {
                self.node.forget_unopened(&key.sandbox);
                self.node.arrivals += 1;
                let arrival = Arrival(self.node.arrivals);
                self.node.arriving.insert(key.clone(), arrival);
                let token = self.node.ask(Some(key.clone()));
                let announced = self.node.announced.contains(&key.uid);
                let wish = match chance % 3 {
                    0 => Wish::Unknown,
                    1 => Wish::Out,
                    _ => Wish::In(want),
                };
                self.give(Event::CniAdd { key, arrival, token, wish, announced });
            }
            2 => {
                self.node.forget_unopened(&key.sandbox);
                let token = Some(self.node.ask(None));
                self.give(Event::CniDel { sandbox: key.sandbox, token });
            }
            3 => {
                let token = self.node.ask(None);
                self.give(Event::CniCheck { sandbox: key.sandbox, token });
            }
            4 | 5 => self.give(Event::Wanted { uid, want }),
            6 => self.give(Event::Unwanted { uid }),
            7 if chance.is_multiple_of(8) => self.give(Event::Terminating { uid }),
            7 if chance.is_multiple_of(2) => self.give(Event::SandboxGone(key)),
            8 if chance.is_multiple_of(4) => self.give(Event::IdentityLost(want.identity)),
            8 => self.give(Event::IdentityReady(want.identity)),
            9 => {
                let drift = if chance.is_multiple_of(2) { Drift::Repaired } else { Drift::Unrepairable };
                self.give(Event::Drifted { key, drift });
            }
            10 => {
                if let Some((key, ticket)) = self.node.late.pop() {
                    self.give(Event::Done { key, ticket, outcome: Ok(()) });
                }
            }
            11 => self.pass(Duration::from_millis(draw.below(40_000))),
            12 if chance.is_multiple_of(4) => self.restart(draw),
            12 => {
                if let Some(key) = self.node.unopened.pop() {
                    self.node.supersede();
                    let event = self.node.adopted(key, draw);
                    self.give(event);
                }
            }
            _ => self.end(&key, chance),
        }
    }

    /// Removes every sandbox and lets all end.
    fn finish(mut self) {
        for key in self.keys.clone() {
            self.node.forget_unopened(&key.sandbox);
            let token = Some(self.node.ask(None));
            self.give(Event::CniDel { sandbox: key.sandbox, token });
        }
        for _ in 0..8 {
            for key in self.keys.clone() {
                self.end(&key, 1);
            }
        }
        self.pass(Limits::default().keep);
        let Self { pods, node, .. } = self;
        assert_eq!(pods.seen().count(), 0);
        assert_eq!(pods.deadline(), None);
        let asked = BTreeSet::from_iter(node.asked.into_keys());
        assert_eq!(asked, node.answered, "everyone who asked is answered");
        assert!(node.needed.is_empty() && node.journal.is_empty() && node.underway.is_empty());
        assert!(node.stands.values().all(|stands| !stands.listening));
    }
}

/// Runs a history of `steps` events drawn from `seed`. Returns the states that were seen.
fn history(seed: u64, steps: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut draw = Seed(seed);
    let mut history = History::new();
    for _ in 0..steps {
        history.step(&mut draw);
        seen.extend(history.pods.seen().map(|seen| format!("{:?}", seen.state)));
    }
    history.finish();
    seen
}

/// The same, and then Adit leaves the node: nothing of ours is left in any pod that is there, and nothing comes back.
fn left(seed: u64, steps: usize) {
    let mut draw = Seed(seed);
    let mut history = History::new();
    for _ in 0..steps {
        history.step(&mut draw);
    }
    history.give(Event::Leaving { drain: Duration::from_secs(30) });
    for _ in 0..30 {
        for key in history.keys.clone() {
            history.give(Event::Wanted { uid: key.uid.clone(), want: want("x") });
            history.end(&key, 1);
        }
        history.pass(Duration::from_secs(10));
    }
    assert!(history.pods.is_released(), "{:?}", history.pods);
    let taken_up = |key: &PodKey| history.pods.knows(key);
    for (key, stands) in history.node.stands.iter().filter(|(key, _)| taken_up(key)) {
        assert_eq!(*stands, Stands::default(), "{key:?}");
    }
    assert!(history.node.needed.is_empty());
}

#[test]
fn whatever_was_before_nothing_is_left_where_adit_leaves() {
    (0..400).for_each(|seed| left(seed, 120));
}

#[test]
fn every_seeded_history_keeps_the_laws() {
    let seen: BTreeSet<String> = (0..400).flat_map(|seed| history(seed, 300)).collect();
    let states = ["Added", "Adopted", "Draining", "Gone", "Listening", "Live", "Redirected"];
    assert_eq!(Vec::from_iter(seen), states, "the histories go everywhere");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_history_keeps_the_laws(seed: u64, steps in 0_usize..200) {
        history(seed, steps);
    }
}
