//! What the files of a mesh's directory say: which object is in which file, and its last good version.
//!
//! Pure: is told what was read, says what changed. [`super::directory`] reads. A file that cannot be read, or is no
//! YAML, leaves its objects as they are; so does an object that is rejected, for itself alone. Of two files with one
//! object the one whose path sorts first counts, so that every agent chooses the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adit_core::net::ObjectName;
use adit_core::policy::PeerAuthentication;
use adit_core::traffic::TrafficPolicy;
use adit_core::world::{Change, Kind};
use adit_objects::yaml::{self, Document, Position};
use adit_objects::{FieldPath, Key, Object, Problem, Rejected};
use adit_proto::status::PolicyStatus;

use super::trouble::{Trouble, Wrong};

#[cfg(test)]
mod tests;

/// What was found when a file was read.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    /// It says this.
    Text(String),
    /// It is there, but cannot be read.
    Unreadable(String),
    /// It is not there.
    Gone,
}

/// Every file, and what each says.
#[derive(Debug)]
pub(super) struct Files {
    system_namespace: Arc<str>,
    files: BTreeMap<PathBuf, File>,
    /// In which files an object is.
    places: BTreeMap<Key, BTreeSet<PathBuf>>,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<Key, Arc<Entry>>,
    /// What is wrong with it now, beside its objects' fields.
    troubles: Vec<Trouble>,
}

/// The last good version of an object.
#[derive(Debug)]
struct Entry {
    at: Position,
    change: Option<Change>,
    problems: Vec<(Position, Problem)>,
}

impl Files {
    pub(super) fn new(system_namespace: Arc<str>) -> Self {
        Self { system_namespace, files: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// Takes what was read of some files, all as of one moment: an object that went from one of them to another did
    /// not go. Returns what the World should be told.
    pub(super) fn update(&mut self, readings: impl IntoIterator<Item = (PathBuf, Reading)>) -> Vec<Change> {
        let mut before: BTreeMap<Key, Option<Arc<Entry>>> = BTreeMap::new();
        for (path, reading) in readings {
            match reading {
                Reading::Gone => self.replace(&path, None, &mut before),
                Reading::Unreadable(message) => self.spoil(&path, None, Wrong::Unreadable(message)),
                Reading::Text(text) => match yaml::read(&text) {
                    Err(error) => {
                        let at = (error.at != Position::default()).then_some(error.at);
                        self.spoil(&path, at, Wrong::Yaml(error.message));
                    }
                    Ok(documents) => {
                        let file = self.read(&path, &documents);
                        self.replace(&path, Some(file), &mut before);
                    }
                },
            }
        }
        let changed =
            before.into_iter().filter_map(|(key, before)| self.change_since(&key, before.as_deref()));
        changed.collect()
    }

    /// Every file that is known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Whether all that a file says was taken: it is YAML, and no object of it was rejected.
    pub(super) fn is_good(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| file.troubles.is_empty())
    }

    /// Everything that is wrong, by file.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let mut all = Vec::new();
        for (path, file) in &self.files {
            all.extend(file.troubles.iter().cloned());
            for (key, entry) in &file.objects {
                all.extend(entry.problems.iter().map(|(at, problem)| Trouble {
                    file: path.clone(),
                    at: Some(*at),
                    what: Wrong::Field(key.object(), problem.clone()),
                }));
                if let Some(first) = self.first_place(key).filter(|first| first.as_path() != path) {
                    all.push(Trouble {
                        file: path.clone(),
                        at: Some(entry.at),
                        what: Wrong::Twice(key.object(), first.clone()),
                    });
                }
            }
        }
        all
    }

    /// What is to be said of each policy: `Accepted`, and why not.
    pub(super) fn policies(&self) -> Vec<PolicyStatus> {
        let mut problems: BTreeMap<&Key, Vec<String>> = BTreeMap::new();
        let mut peers: Vec<Arc<PeerAuthentication>> = Vec::new();
        let mut traffic: Vec<&TrafficPolicy> = Vec::new();
        for key in self.places.keys().filter(|key| is_policy(key.kind)) {
            let Some(entry) = self.winner(key) else { continue };
            problems.insert(key, entry.problems.iter().map(|(_, problem)| problem.to_string()).collect());
            match &entry.change {
                Some(Change::PeerAuthentication(policy)) => peers.push(Arc::new(policy.clone())),
                Some(Change::TrafficPolicy(policy)) => traffic.push(policy),
                // The others have no conflicts.
                Some(_) | None => {}
            }
        }
        let losing = adit_core::authz::losing(peers.iter());
        let losing = losing.into_iter().map(|losing| (Kind::PeerAuthentication, losing.loser, losing.winner));
        for (kind, loser, winner) in losing.chain(losing_traffic(&traffic)) {
            if let Some(problems) = problems.get_mut(&Key { kind, name: loser }) {
                let field = FieldPath::of(["spec"]);
                let wrong = adit_objects::Wrong::Conflict(winner.to_string());
                problems.push(Problem { field, wrong }.to_string());
            }
        }
        problems.into_iter().map(|(key, problems)| status(key, problems)).collect()
    }

    /// Reads the documents of a file; what cannot be read keeps the version that the file had of it.
    fn read(&self, path: &Path, documents: &[Document]) -> File {
        let known = self.files.get(path);
        let mut file = File::default();
        for document in documents {
            match self.entry(document) {
                Ok(None) => {}
                Ok(Some((key, entry))) => match file.objects.get(&key) {
                    None => {
                        file.objects.insert(key, Arc::new(entry));
                    }
                    Some(_) => file.troubles.push(Trouble {
                        file: path.to_path_buf(),
                        at: Some(entry.at),
                        what: Wrong::Twice(key.object(), path.to_path_buf()),
                    }),
                },
                Err(rejected) => {
                    let last = known
                        .and_then(|known| known.objects.iter().find(|(key, _)| key.is(&rejected.object)));
                    if let Some((key, entry)) = last {
                        file.objects.entry(key.clone()).or_insert_with(|| Arc::clone(entry));
                    }
                    file.troubles.push(Trouble {
                        file: path.to_path_buf(),
                        at: Some(document.locate(&rejected.field)),
                        what: Wrong::Rejected(rejected),
                    });
                }
            }
        }
        file
    }

    fn entry(&self, document: &Document) -> Result<Option<(Key, Entry)>, Rejected> {
        let Some((key, object)) = Object::read(&document.value)? else {
            return Ok(None);
        };
        let translated = object.translate(&self.system_namespace)?;
        let placed =
            translated.problems.into_iter().map(|problem| (document.locate(&problem.field), problem));
        let entry = Entry { at: document.at, change: translated.change, problems: placed.collect() };
        Ok(Some((key, entry)))
    }

    /// Notes that a file cannot be used now; its objects stay.
    fn spoil(&mut self, path: &Path, at: Option<Position>, what: Wrong) {
        let file = self.files.entry(path.to_path_buf()).or_default();
        file.troubles = vec![Trouble { file: path.to_path_buf(), at, what }];
    }

    /// Puts a file in the place of the one that was known, and notes what its objects were before.
    fn replace(&mut self, path: &Path, new: Option<File>, before: &mut BTreeMap<Key, Option<Arc<Entry>>>) {
        let old = self.files.remove(path).unwrap_or_default();
        // The winners of before, while the places are still those of before; the old file's entries are at hand.
        let keys: BTreeSet<Key> =
            old.objects.keys().chain(new.iter().flat_map(|file| file.objects.keys())).cloned().collect();
        for key in &keys {
            before.entry(key.clone()).or_insert_with(|| {
                let first = self.places.get(key)?.first()?;
                let file = if first == path { &old } else { self.files.get(first)? };
                file.objects.get(key).cloned()
            });
        }
        for key in keys {
            let is_in = new.as_ref().is_some_and(|file| file.objects.contains_key(&key));
            let places = self.places.entry(key.clone()).or_default();
            if is_in {
                places.insert(path.to_path_buf());
            } else {
                places.remove(path);
            }
            if places.is_empty() {
                self.places.remove(&key);
            }
        }
        if let Some(new) = new {
            self.files.insert(path.to_path_buf(), new);
        }
    }

    fn change_since(&self, key: &Key, before: Option<&Entry>) -> Option<Change> {
        let after = self.winner(key).and_then(|entry| entry.change.as_ref());
        let before = before.and_then(|entry| entry.change.as_ref());
        match (before, after) {
            (Some(before), Some(after)) if before == after => None,
            (Some(_) | None, Some(after)) => Some(after.clone()),
            (Some(_), None) => Some(key.gone()),
            (None, None) => None,
        }
    }

    fn first_place(&self, key: &Key) -> Option<&PathBuf> {
        self.places.get(key)?.first()
    }

    /// The version of an object that counts.
    fn winner(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.files.get(self.first_place(key)?)?.objects.get(key)
    }
}

fn is_policy(kind: Kind) -> bool {
    match kind {
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::TrafficPolicy => true,
        Kind::Pod | Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Node => false,
    }
}

fn status(key: &Key, problems: Vec<String>) -> PolicyStatus {
    PolicyStatus {
        kind: adit_objects::word(key.kind).to_owned(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        accepted: problems.is_empty(),
        problems,
    }
}

/// TrafficPolicies that do not count for one of their Services, as an older one is for it too.
fn losing_traffic(policies: &[&TrafficPolicy]) -> Vec<(Kind, ObjectName, ObjectName)> {
    let mut by_seniority = policies.to_vec();
    by_seniority.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut winners: BTreeMap<&ObjectName, &ObjectName> = BTreeMap::new();
    let mut losing = BTreeMap::new();
    for policy in by_seniority {
        for service in &policy.services {
            let winner = *winners.entry(service).or_insert(&policy.name);
            if *winner != policy.name {
                losing.entry(&policy.name).or_insert(winner);
            }
        }
    }
    losing.into_iter().map(|(loser, winner)| (Kind::TrafficPolicy, loser.clone(), winner.clone())).collect()
}
