//! What the files of a mesh's directory say: which object is in which file, and what was last told of it.
//!
//! Pure: is told what was read, says what changed. [`super::directory`] reads. A file that cannot be read, or is no
//! YAML, leaves its objects as they are; so does an object that is rejected, for itself alone. Of two files with one
//! object the one whose path sorts first counts, so that every agent chooses the same.
//!
//! Keeps a fingerprint of each object, not the object: the World has that. Where the version of another file comes to
//! count, that file is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adit_core::net::ObjectName;
use adit_core::world::{Change, Kind};
use adit_objects::accepted::{self, Judged};
use adit_objects::yaml::{self, Document, Position};
use adit_objects::{Key, Object, Problem, Rejected};
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

/// What follows from what was read.
#[derive(Debug, Default)]
pub(super) struct Update {
    /// What the World should be told.
    pub(super) changes: Vec<Change>,
    /// Files whose version of an object counts now, and must be read again for it.
    pub(super) again: BTreeSet<Arc<Path>>,
}

/// Every file, and what each says.
#[derive(Debug)]
pub(super) struct Files {
    system_namespace: Arc<str>,
    files: BTreeMap<Arc<Path>, File>,
    places: BTreeMap<Key, Place>,
}

/// Where an object is, and what the World was told of it.
#[derive(Debug, Default)]
struct Place {
    told: Option<Fingerprint>,
    /// Mostly one. Sorted, no doubles, exactly sized: there is one of these for every object of the mesh.
    files: Vec<Arc<Path>>,
}

#[derive(Debug, Default)]
struct File {
    /// By key, exactly sized.
    objects: Box<[(Key, Entry)]>,
    /// What is wrong with it now, beside its objects' fields.
    troubles: Vec<Trouble>,
}

/// The last good version of an object in one file.
#[derive(Clone, Debug)]
struct Entry {
    at: Position,
    /// None: it is none of the mesh's business.
    fingerprint: Option<Fingerprint>,
    /// What only few objects have.
    rare: Option<Arc<Rare>>,
}

#[derive(Debug)]
struct Rare {
    problems: Vec<(Position, Problem)>,
    /// A policy that may conflict with others.
    policy: Option<Change>,
}

/// Two changes with one fingerprint are the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Fingerprint(NonZeroU64);

impl Fingerprint {
    fn of(change: &Change) -> Self {
        let mut writer = Hashed(DefaultHasher::new());
        write!(writer, "{change:?}").expect("hashing cannot fail");
        Self(NonZeroU64::new(writer.0.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

/// Hashes what is written to it.
struct Hashed(DefaultHasher);

impl std::fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// What was read of the objects of some files, until it is known which of it counts.
type Fresh = BTreeMap<(Key, Arc<Path>), Change>;

impl Files {
    pub(super) fn new(system_namespace: Arc<str>) -> Self {
        Self { system_namespace, files: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// Takes what was read of some files, all as of one moment: an object that went from one of them to another did
    /// not go.
    pub(super) fn update(&mut self, readings: impl IntoIterator<Item = (PathBuf, Reading)>) -> Update {
        let mut touched = BTreeSet::new();
        let mut fresh = Fresh::new();
        for (path, reading) in readings {
            let path: Arc<Path> = path.into();
            match reading {
                Reading::Gone => self.replace(&path, None, &mut touched),
                Reading::Unreadable(message) => self.spoil(&path, None, Wrong::Unreadable(message)),
                Reading::Text(text) => match self.read(&path, &text, &mut fresh) {
                    Ok(file) => self.replace(&path, Some(file), &mut touched),
                    Err(error) => {
                        fresh.retain(|(_, of), _| *of != path);
                        let at = (error.at != Position::default()).then_some(error.at);
                        self.spoil(&path, at, Wrong::Yaml(error.message));
                    }
                },
            }
        }
        let mut update = Update::default();
        for key in touched {
            self.tell(key, &mut fresh, &mut update);
        }
        update
    }

    /// Every file that is known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(|path| &**path)
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
                all.extend(entry.problems().iter().map(|(at, problem)| Trouble {
                    file: path.to_path_buf(),
                    at: Some(*at),
                    what: Wrong::Field(key.object(), problem.clone()),
                }));
                if let Some(first) = self.first_place(key).filter(|first| *first != path) {
                    all.push(Trouble {
                        file: path.to_path_buf(),
                        at: Some(entry.at),
                        what: Wrong::Twice(key.object(), first.to_path_buf()),
                    });
                }
            }
        }
        all
    }

    /// What is to be said of each policy: `Accepted`, and why not.
    pub(super) fn policies(&self) -> Vec<PolicyStatus> {
        let keys = self.places.keys().filter(|key| is_policy(key.kind));
        accepted::statuses(keys.filter_map(|key| {
            let entry = self.winner(key)?;
            let problems = entry.problems().iter().map(|(_, problem)| problem.to_string()).collect();
            let change = entry.rare.as_ref().and_then(|rare| rare.policy.as_ref());
            Some(Judged { key, problems, change })
        }))
    }

    /// Reads the objects of a file; what cannot be read keeps the version that the file had of it.
    fn read(&self, path: &Arc<Path>, text: &str, fresh: &mut Fresh) -> Result<File, yaml::YamlError> {
        let known = self.files.get(path);
        let mut objects: BTreeMap<Key, Entry> = BTreeMap::new();
        let mut troubles = Vec::new();
        let trouble = |at, what| Trouble { file: path.to_path_buf(), at: Some(at), what };
        yaml::read_each(text, |document| match self.entry(&document) {
            Ok(None) => {}
            Ok(Some((key, entry, _))) if objects.contains_key(&key) => {
                troubles.push(trouble(entry.at, Wrong::Twice(key.object(), path.to_path_buf())));
            }
            Ok(Some((key, entry, change))) => {
                if let Some(change) = change {
                    fresh.insert((key.clone(), Arc::clone(path)), change);
                }
                objects.insert(key, entry);
            }
            Err(rejected) => {
                let last =
                    known.and_then(|known| known.objects.iter().find(|(key, _)| key.is(&rejected.object)));
                if let Some((key, entry)) = last {
                    objects.entry(key.clone()).or_insert_with(|| entry.clone());
                }
                troubles.push(trouble(document.locate(&rejected.field), Wrong::Rejected(rejected)));
            }
        })?;
        Ok(File { objects: objects.into_iter().collect(), troubles })
    }

    fn entry(&self, document: &Document) -> Result<Option<(Key, Entry, Option<Change>)>, Rejected> {
        let Some((mut key, object)) = Object::read(&document.value)? else {
            return Ok(None);
        };
        self.share_namespace(&mut key);
        let translated = object.translate(&self.system_namespace)?;
        let placed =
            translated.problems.into_iter().map(|problem| (document.locate(&problem.field), problem));
        let problems: Vec<_> = placed.collect();
        let mut change = translated.change;
        if let Some(Change::Pod(pod)) = &mut change {
            // Most objects are pods: their names are held once, here and in the World.
            pod.name = key.name.clone();
        }
        let policy = change.clone().filter(|_| is_policy(key.kind));
        let rare = (policy.is_some() || !problems.is_empty()).then(|| Arc::new(Rare { problems, policy }));
        let entry = Entry { at: document.at, fingerprint: change.as_ref().map(Fingerprint::of), rare };
        Ok(Some((key, entry, change)))
    }

    /// Replaces a key's namespace by that of an object of the same kind there, if one is known.
    fn share_namespace(&self, key: &mut Key) {
        let first = Key { kind: key.kind, name: ObjectName::new(Arc::clone(&key.name.namespace), "") };
        let same = self.places.range(first..).next().map(|(known, _)| &known.name.namespace);
        if let Some(same) = same.filter(|same| **same == key.name.namespace) {
            key.name.namespace = Arc::clone(same);
        }
    }

    /// Notes that a file cannot be used now; its objects stay.
    fn spoil(&mut self, path: &Arc<Path>, at: Option<Position>, what: Wrong) {
        let file = self.files.entry(Arc::clone(path)).or_default();
        file.troubles = vec![Trouble { file: path.to_path_buf(), at, what }];
    }

    /// Puts a file in the place of the one that was known.
    fn replace(&mut self, path: &Arc<Path>, new: Option<File>, touched: &mut BTreeSet<Key>) {
        let old = self.files.remove(path).unwrap_or_default();
        for (key, _) in old.objects {
            if let Some(place) = self.places.get_mut(&key) {
                place.files.retain(|file| file != path);
            }
            touched.insert(key);
        }
        let Some(new) = new else { return };
        for (key, _) in &new.objects {
            self.places.entry(key.clone()).or_default().add(path);
            touched.insert(key.clone());
        }
        self.files.insert(Arc::clone(path), new);
    }

    /// Tells of an object what counts now, if that is not what was told.
    fn tell(&mut self, key: Key, fresh: &mut Fresh, update: &mut Update) {
        let Some(place) = self.places.get_mut(&key) else { return };
        let first = place.files.first();
        let entry = first.and_then(|first| self.files.get(first)?.get(&key));
        match (place.told, first, entry.and_then(|entry| entry.fingerprint)) {
            (told, _, now) if told == now => {}
            (_, Some(first), Some(now)) => match fresh.remove(&(key.clone(), Arc::clone(first))) {
                Some(change) => {
                    place.told = Some(now);
                    update.changes.push(change);
                }
                None => {
                    update.again.insert(Arc::clone(first));
                }
            },
            (_, Some(_) | None, _) => {
                place.told = None;
                update.changes.push(key.gone());
            }
        }
        if place.files.is_empty() && place.told.is_none() {
            self.places.remove(&key);
        }
    }

    fn first_place(&self, key: &Key) -> Option<&Arc<Path>> {
        self.places.get(key)?.files.first()
    }

    /// The version of an object that counts.
    fn winner(&self, key: &Key) -> Option<&Entry> {
        self.files.get(self.first_place(key)?)?.get(key)
    }
}

impl File {
    fn get(&self, key: &Key) -> Option<&Entry> {
        let at = self.objects.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
        Some(&self.objects[at].1)
    }
}

impl Place {
    fn add(&mut self, file: &Arc<Path>) {
        if let Err(at) = self.files.binary_search(file) {
            self.files.reserve_exact(1);
            self.files.insert(at, Arc::clone(file));
        }
    }
}

impl Entry {
    fn problems(&self) -> &[(Position, Problem)] {
        self.rare.as_ref().map_or(&[], |rare| &rare.problems)
    }
}

fn is_policy(kind: Kind) -> bool {
    match kind {
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::TrafficPolicy => true,
        Kind::Pod | Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Node => false,
    }
}
