//! The trust bundle's ConfigMap. Pure: is told what was read, says what changed.

use adit_core::world::Change;
use adit_objects::trust::{self, ConfigMap};
use adit_proto::TrustDomain;
use serde::Deserialize as _;
use serde_json::Value;
use tracing::warn;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    /// The `spiffe_sequence` of the one that handshakes use.
    acknowledged: u64,
    /// Of the last one that the API server told in this life. One that is only remembered binds nobody: with a restart
    /// an older one is taken.
    told: u64,
    /// Older ones than this are not taken.
    in_force: u64,
    is_recalling: bool,
    said: Vec<String>,
}

impl Bundle {
    /// Is told which bundle is in force.
    pub(super) fn acknowledge(&mut self, generation: u64) {
        self.acknowledged = generation;
        self.settle();
    }

    /// Whether what is read from here on is what an earlier life kept.
    pub(super) fn recall(&mut self, is_recalling: bool) {
        self.is_recalling = is_recalling;
    }

    fn settle(&mut self) {
        if self.acknowledged <= self.told {
            self.in_force = self.acknowledged;
        }
    }

    /// Takes the ConfigMap. One that cannot be read leaves what is trusted as it is; an older one than that in force is
    /// not taken: a backup, or a roll-back that brings a revoked peer back.
    pub(super) fn update(&mut self, value: &Value, own: &TrustDomain) -> Option<Change> {
        let config_map = ConfigMap::deserialize(value).map_err(|error| error.to_string());
        let read = config_map.and_then(|map| trust::translate(&map, own).map_err(|error| error.to_string()));
        match read {
            Ok(read) if read.bundle.generation < self.in_force => {
                let (found, newest) = (read.bundle.generation, self.in_force);
                let what = format!("spiffe_sequence {found} is older than {newest}, which stays in force");
                self.say(vec![what], "trust_stale");
                None
            }
            Ok(read) => {
                if !self.is_recalling {
                    self.told = read.bundle.generation;
                    self.settle();
                }
                self.say(read.problems.iter().map(ToString::to_string).collect(), "trust");
                Some(Change::TrustBundle(read.bundle))
            }
            Err(what) => {
                self.say(vec![what], "trust");
                None
            }
        }
    }

    /// It is not there. What it said last stays in force.
    pub(super) fn gone(&mut self) {
        self.said.clear();
    }

    /// Everything that is wrong with it.
    pub(super) fn said(&self) -> impl Iterator<Item = &String> {
        self.said.iter()
    }

    fn say(&mut self, said: Vec<String>, label: &'static str) {
        let said: Vec<_> = said.iter().map(|what| format!("ConfigMap {}: {what}", trust::NAME)).collect();
        for news in said.iter().filter(|line| !self.said.contains(line)) {
            warn!("{news}");
            metrics::counter!("adit_object_errors_total", "error" => label).increment(1);
        }
        self.said = said;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(sequence: u64) -> Value {
        let bundle = json!({"trust_domains": {"cluster.local": {"keys": [], "spiffe_sequence": sequence}}});
        json!({"metadata": {"name": "adit-trust-bundle"}, "data": {"bundle.json": bundle.to_string()}})
    }

    fn update(bundle: &mut Bundle, value: &Value) -> Option<u64> {
        let change = bundle.update(value, &"cluster.local".parse().unwrap())?;
        let Change::TrustBundle(bundle) = change else { panic!("{change:?}") };
        Some(bundle.generation)
    }

    #[test]
    fn an_older_or_a_broken_bundle_is_said_and_not_taken() {
        let mut bundle = Bundle::default();
        assert_eq!(update(&mut bundle, &map(7)), Some(7));
        bundle.acknowledge(7);
        assert_eq!(update(&mut bundle, &map(6)), None);
        assert!(bundle.said().any(|said| said.contains("6 is older than 7")));
        assert_eq!(update(&mut bundle, &json!({"data": {}})), None);
        let said: Vec<_> = bundle.said().collect();
        assert_eq!(said, ["ConfigMap adit-trust-bundle: bundle.json is missing"]);
        assert_eq!(update(&mut bundle, &map(8)), Some(8));
        assert_eq!(bundle.said().count(), 0);
    }

    #[test]
    fn after_a_restart_an_older_bundle_is_taken_unless_the_api_server_has_told_the_newer_one_too() {
        for told_again in [false, true] {
            let mut bundle = Bundle::default();
            bundle.recall(true);
            assert_eq!(update(&mut bundle, &map(7)), Some(7));
            bundle.recall(false);
            bundle.acknowledge(7);
            if told_again {
                assert_eq!(update(&mut bundle, &map(7)), Some(7));
            }
            assert_eq!(update(&mut bundle, &map(6)), (!told_again).then_some(6));
        }
    }
}
