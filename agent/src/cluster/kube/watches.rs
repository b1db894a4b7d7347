//! What is known of each thing that is followed: whether all of it was read, and how long ago it was last heard of. Pure.

use std::collections::{BTreeMap, BTreeSet};

use adit_core::time::Mono;
use tracing::{info, warn};

use super::client::ApiError;
use super::watched::{Watched, kept};

/// Everything that is followed.
#[derive(Debug)]
pub(super) struct Watches {
    /// Of which all was read, now or in an earlier life.
    synced: BTreeSet<Watched>,
    /// When each was last heard of; before that, when the agent started.
    heard: BTreeMap<Watched, Mono>,
    started: Mono,
    /// What cannot be followed at the moment, and why.
    lost: BTreeMap<Watched, String>,
    has_changed: bool,
}

impl Watches {
    /// Nothing is known yet.
    pub(super) fn new(started: Mono) -> Self {
        Self {
            synced: BTreeSet::new(),
            heard: BTreeMap::new(),
            started,
            lost: BTreeMap::new(),
            has_changed: false,
        }
    }

    /// An earlier life had read all of it.
    pub(super) fn recalled(&mut self, of: Watched) {
        self.has_changed |= self.synced.insert(of);
    }

    /// All of it was read.
    pub(super) fn synced(&mut self, of: Watched, now: Mono) {
        self.has_changed |= self.synced.insert(of);
        self.heard(of, now);
    }

    /// It is known as of now.
    pub(super) fn heard(&mut self, of: Watched, now: Mono) {
        self.heard.insert(of, now);
        if self.lost.remove(&of).is_some() {
            info!(kind = of.word(), "followed again");
            self.has_changed = true;
        }
    }

    /// It is not followed at the moment. What is known of it stays.
    pub(super) fn lost(&mut self, of: Watched, error: &ApiError) {
        metrics::counter!("adit_watch_failures_total", "kind" => of.word()).increment(1);
        let why = error.to_string();
        if self.lost.get(&of) == Some(&why) {
            return;
        }
        // Each other reason once: an outage begins with one and goes on with another.
        warn!(kind = of.word(), "not followed, what is known stays in force: {why}");
        self.lost.insert(of, why);
        self.has_changed = true;
    }

    /// Of what not all was read yet.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        kept().filter(|of| !self.synced.contains(of)).map(Watched::word).collect()
    }

    /// What cannot be followed at the moment.
    pub(super) fn unfollowed(&self) -> Vec<&'static str> {
        self.lost.keys().map(|of| of.word()).collect()
    }

    /// The same with the reason, in words.
    pub(super) fn lost_now(&self) -> impl Iterator<Item = String> {
        self.lost.iter().map(|(of, why)| format!("{}: not followed, what is known stays: {why}", of.word()))
    }

    /// Whether anything that is shown has changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Shows how old what is known of each is.
    pub(super) fn measure(&self, now: Mono) {
        for of in kept().chain([Watched::DaemonSet, Watched::OwnNamespace]) {
            let heard = self.heard.get(&of).copied().unwrap_or(self.started);
            let age = now.since(heard).as_secs_f64();
            metrics::gauge!("adit_watch_staleness_seconds", "kind" => of.word()).set(age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_until_all_of_it_was_read() {
        let mut watches = Watches::new(Mono::ZERO);
        assert_eq!(watches.missing().len(), kept().count());
        for of in kept().skip(1) {
            watches.recalled(of);
        }
        assert_eq!(watches.missing(), ["Pod"]);
        watches.heard(Watched::Kind(adit_core::world::Kind::Pod), Mono::ZERO);
        assert_eq!(watches.missing(), ["Pod"], "a watch alone is not all");
        watches.synced(Watched::Kind(adit_core::world::Kind::Pod), Mono::ZERO);
        assert_eq!(watches.missing(), [""; 0]);
    }

    #[test]
    fn what_is_lost_is_said_until_it_is_heard_of_again() {
        let mut watches = Watches::new(Mono::ZERO);
        watches.lost(Watched::Bundle, &ApiError::Status { code: 403, message: "no".into() });
        assert!(watches.take_changed());
        watches.lost(Watched::Bundle, &ApiError::Status { code: 403, message: "no".into() });
        assert!(!watches.take_changed(), "the same again");
        let said: Vec<_> = watches.lost_now().collect();
        assert_eq!(said, ["TrustBundle: not followed, what is known stays: the API server answers 403: no"]);
        watches.heard(Watched::Bundle, Mono::ZERO);
        assert_eq!(watches.lost_now().count(), 0);
    }
}
