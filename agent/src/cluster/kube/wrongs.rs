//! What is wrong with which object, as the log and the admin API show it. Pure.
//!
//! An object's words are logged when they are news, and shown until it is mended or gone.

use std::collections::{BTreeMap, BTreeSet};

use adit_core::world::Kind;
use adit_objects::{Key, Problem, Rejected};
use tracing::{info, warn};

/// The most that is said of one object: a policy of 1 MiB may have 100,000 fields that nobody knows.
const SAID_MAX: usize = 16;

/// Everything that is wrong with objects now.
#[derive(Debug, Default)]
pub(super) struct Wrongs {
    objects: BTreeMap<Key, Vec<String>>,
    /// Lists that have begun: what is wrong with objects that have not been on them yet.
    listing: BTreeMap<Kind, BTreeSet<Key>>,
}

impl Wrongs {
    /// From here to [`Wrongs::list_ends`], every object of a kind is looked at.
    pub(super) fn list_begins(&mut self, kind: Kind) {
        let known = self.objects.keys().filter(|key| key.kind == kind).cloned().collect();
        self.listing.insert(kind, known);
    }

    /// Forgets objects that were not on the list.
    pub(super) fn list_ends(&mut self, kind: Kind) {
        for key in self.listing.remove(&kind).unwrap_or_default() {
            self.objects.remove(&key);
        }
    }

    /// Takes what was not understood of an object that counts all the same. Nothing: all was.
    pub(super) fn fields(&mut self, key: &Key, problems: &[Problem]) {
        let said = problems.iter().take(SAID_MAX).map(|problem| format!("{}: {problem}", key.object()));
        let mut said: Vec<_> = said.collect();
        if let Some(more) = problems.len().checked_sub(SAID_MAX).filter(|more| *more > 0) {
            said.push(format!("{}: and {more} more", key.object()));
        }
        self.set(key, said, "field");
    }

    /// Takes that an object cannot be read; what was known of it counts.
    pub(super) fn rejected(&mut self, key: &Key, rejected: &Rejected) {
        self.set(key, vec![rejected.to_string()], "rejected");
    }

    /// Takes that an object is no more.
    pub(super) fn gone(&mut self, key: &Key) {
        self.objects.remove(key);
    }

    /// Everything that is wrong, by object.
    pub(super) fn said(&self) -> impl Iterator<Item = &String> {
        self.objects.values().flatten()
    }

    fn set(&mut self, key: &Key, said: Vec<String>, label: &'static str) {
        if let Some(unlisted) = self.listing.get_mut(&key.kind) {
            unlisted.remove(key);
        }
        let before = self.objects.get(key);
        for news in said.iter().filter(|line| before.is_none_or(|before| !before.contains(line))) {
            warn!("{news}");
            metrics::counter!("adit_object_errors_total", "error" => label).increment(1);
        }
        if said.is_empty() {
            if self.objects.remove(key).is_some() {
                info!("{}: mended", key.object());
            }
        } else {
            self.objects.insert(key.clone(), said);
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_core::net::ObjectName;
    use adit_objects::{FieldPath, Wrong};

    use super::*;

    fn key(name: &str) -> Key {
        Key { kind: Kind::Pod, name: ObjectName::new("shop", name) }
    }

    fn problems(many: usize) -> Vec<Problem> {
        let problem = |at| Problem { field: FieldPath::of(["spec"]).index(at), wrong: Wrong::Missing };
        (0..many).map(problem).collect()
    }

    #[test]
    fn what_is_wrong_is_shown_until_it_is_mended_or_gone() {
        let mut wrongs = Wrongs::default();
        wrongs.fields(&key("a"), &problems(1));
        wrongs.fields(&key("b"), &problems(2));
        assert_eq!(wrongs.said().next().map(String::as_str), Some("Pod shop/a: spec[0]: is missing"));
        assert_eq!(wrongs.said().count(), 3);
        wrongs.fields(&key("b"), &[]);
        wrongs.gone(&key("a"));
        assert_eq!(wrongs.said().count(), 0);
    }

    #[test]
    fn of_an_object_with_a_thousand_mistakes_a_few_are_said() {
        let mut wrongs = Wrongs::default();
        wrongs.fields(&key("a"), &problems(1000));
        let said: Vec<_> = wrongs.said().collect();
        assert_eq!(said.len(), SAID_MAX + 1);
        assert_eq!(said[SAID_MAX], "Pod shop/a: and 984 more");
    }

    #[test]
    fn what_is_not_on_a_list_any_more_is_forgotten() {
        let mut wrongs = Wrongs::default();
        for name in ["a", "b"] {
            wrongs.fields(&key(name), &problems(1));
        }
        wrongs.list_begins(Kind::Pod);
        wrongs.fields(&key("b"), &problems(1));
        assert_eq!(wrongs.said().count(), 2, "until the list's end");
        wrongs.list_ends(Kind::Pod);
        assert_eq!(wrongs.said().collect::<Vec<_>>(), ["Pod shop/b: spec[0]: is missing"]);
    }
}
