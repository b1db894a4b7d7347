//! The loop that takes what the API server says, publishes what follows, and writes what this agent says.

mod announce;

use std::collections::BTreeMap;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::{ObjectName, PodUid};
use adit_core::time::Mono;
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Kind};
use adit_objects::skip::CAPTURE_ANNOTATION;
use adit_objects::{Key, Object};
use adit_proto::cni::Removal;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::super::model::{Command, Done, Own, Shown};
use super::bundle::Bundle;
use super::captures::{Captures, Seen, Write};
use super::client::{Api, ApiError};
use super::follow::{News, What};
use super::kept::{Kept, Line};
use super::lease::Says;
use super::removal::{Of, Removals};
use super::watched::{Watched, kept};
use super::watches::Watches;
use super::wrongs::Wrongs;
use crate::clock::Clock;
use crate::view::Publisher;

/// How long changes are gathered: long enough for the objects of one `kubectl apply`, shorter than anybody notices.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// How often it is shown how old what is known of each kind is.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// What the driver is given when it is made.
pub(super) struct Links {
    pub(super) own: Own,
    pub(super) api: Api,
    pub(super) clock: Clock,
    pub(super) publisher: Publisher,
    pub(super) shown: watch::Sender<Shown>,
    pub(super) removal: watch::Sender<Removal>,
    pub(super) lease: watch::Sender<Says>,
    /// Makes everything be listed anew.
    pub(super) list_anew: watch::Sender<()>,
    pub(super) kept: Option<Kept>,
    pub(super) seed: Seed,
}

/// DRIVER of the source of truth in a cluster.
pub(super) struct Driver {
    links: Links,
    builder: WorldBuilder,
    wrongs: Wrongs,
    bundle: Bundle,
    watches: Watches,
    removals: Removals,
    captures: Captures,
    /// Who waits for a pod's announcement, and for which.
    waiting: BTreeMap<PodUid, Vec<(bool, Done)>>,
    asked: JoinSet<Answer>,
    /// The newest version of a pod that its watch has told.
    pods_version: u64,
    has_changed: bool,
    is_published: bool,
}

/// What came of a request that the loop did not wait for.
enum Answer {
    Written(Write, Result<Bytes, ApiError>),
    Fetched(ObjectName, Result<Bytes, ApiError>, oneshot::Sender<()>),
}

/// Whether an object says something now, for a copy to go on from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Taken {
    Whole,
    /// What it said before counts.
    NotAtAll,
}

impl Driver {
    pub(super) fn new(links: Links) -> Self {
        let now = links.clock.now().mono;
        Self {
            builder: WorldBuilder::new(links.own.settings.clone()),
            wrongs: Wrongs::default(),
            bundle: Bundle::default(),
            watches: Watches::new(now),
            removals: Removals::default(),
            captures: Captures::new(now),
            waiting: BTreeMap::new(),
            asked: JoinSet::new(),
            pods_version: 0,
            has_changed: false,
            is_published: false,
            links,
        }
    }

    /// Takes what an earlier life kept, and publishes it if it is whole: then this one serves before it has reached the
    /// API server.
    pub(super) fn recall(&mut self) {
        let Some(copy) = self.links.kept.take() else { return };
        self.bundle.recall(true);
        for of in kept() {
            let is_there = copy.recall(of, |line| match line {
                Line::There(value) => drop(self.there(of, &value, &|uid| copy.is_announced(uid))),
                Line::Gone(value) => self.gone(of, &value),
            });
            if is_there {
                self.watches.recalled(of);
            }
        }
        self.bundle.recall(false);
        self.links.kept = Some(copy);
        self.flush();
    }

    /// Every branch is cancel-safe: news and commands stay in their queues, and answers with their tasks, until taken.
    pub(super) async fn run(mut self, mut news: mpsc::Receiver<News>, mut inbox: mpsc::Receiver<Command>) {
        let mut flush_at: Option<Mono> = None;
        let mut show_at = self.now();
        loop {
            tokio::select! {
                Some(news) = news.recv() => self.take(news),
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(answer) = self.asked.join_next(), if !self.asked.is_empty() => {
                    if let Ok(answer) = answer {
                        self.answered(answer);
                    }
                }
                () = self.links.clock.sleep_until(self.captures.deadline()) => {}
                () = self.links.clock.sleep_until(flush_at) => {
                    flush_at = None;
                    self.flush();
                }
                () = self.links.clock.sleep_until(Some(show_at)) => {
                    show_at = self.now() + SHOW_EVERY;
                    self.watches.measure(self.now());
                    self.show();
                }
            }
            self.write_annotations();
            let is_due = self.has_changed || self.watches.take_changed();
            if is_due && flush_at.is_none() {
                flush_at = Some(self.now() + FLUSH_AFTER);
            }
        }
    }

    fn now(&self) -> Mono {
        self.links.clock.now().mono
    }

    /// Takes what is said of one thing that is followed.
    fn take(&mut self, News { of, what }: News) {
        let now = self.now();
        match what {
            What::ListBegins => {
                if let Watched::Kind(kind) = of {
                    self.builder.list_begins(kind);
                    self.wrongs.list_begins(kind);
                }
                if let Some(of) = removal(of) {
                    self.removals.list_begins(of);
                }
                self.keep(of, |copy| copy.list_begins(of));
            }
            What::There(values) => {
                for value in &values {
                    self.there_now(of, value);
                }
                self.watches.heard(of, now);
                if !self.is_published {
                    // For nobody: a first snapshot of 20,000 pods at once would take 10 MiB to make, which the allocator
                    // then keeps.
                    drop(self.builder.freeze());
                }
            }
            What::Gone(value) => {
                self.gone(of, &value);
                let (namespace, name) = names(&value);
                self.keep(of, |copy| copy.gone(of, namespace, name));
                self.watches.heard(of, now);
            }
            What::ListEnds => {
                if let Watched::Kind(kind) = of {
                    self.builder.list_ends(kind);
                    self.wrongs.list_ends(kind);
                    self.has_changed = true;
                }
                if let Some(of) = removal(of) {
                    self.removals.list_ends(of);
                }
                if of == Watched::Kind(Kind::Pod) {
                    self.forget_strangers();
                }
                self.keep(of, |copy| copy.list_ends(of));
                self.watches.synced(of, now);
            }
            What::Heard => self.watches.heard(of, now),
            What::Lost(error) => self.watches.lost(of, &error),
        }
        let removal = self.removals.decide();
        self.links.removal.send_if_modified(|known| std::mem::replace(known, removal) != removal);
    }

    /// Takes an object that is there, and keeps it.
    fn there_now(&mut self, of: Watched, value: &Value) {
        // What an agent of this node announced is in the copy, also where another agent does it at this moment.
        let copy = self.links.kept.take();
        let is_ours = |uid: &PodUid| copy.as_ref().is_some_and(|copy| copy.is_announced(uid));
        let taken = self.there(of, value, &is_ours);
        self.links.kept = copy;
        let (namespace, name) = names(value);
        self.keep(of, |copy| match taken {
            Taken::Whole => copy.there(of, value),
            Taken::NotAtAll => copy.as_it_was(of, namespace, name),
        });
        if of == Watched::Kind(Kind::Pod) {
            self.pods_version = self.pods_version.max(version(value));
        }
    }

    fn there(&mut self, of: Watched, value: &Value, is_ours: &dyn Fn(&PodUid) -> bool) -> Taken {
        match of {
            Watched::Kind(kind) => return self.object(kind, value, is_ours),
            Watched::Bundle => match self.bundle.update(value, &self.links.own.settings.trust_domain) {
                Some(change) => self.apply(change),
                None => return Taken::NotAtAll,
            },
            Watched::DaemonSet => self.removals.there(Of::DaemonSet, is_terminating(value)),
            Watched::OwnNamespace => self.removals.there(Of::Namespace, is_terminating(value)),
        }
        Taken::Whole
    }

    fn gone(&mut self, of: Watched, value: &Value) {
        match of {
            Watched::Kind(kind) => {
                let key = key(kind, value);
                self.wrongs.gone(&key);
                self.apply(key.gone());
            }
            // Nobody is untrusted because what says so is gone.
            Watched::Bundle => self.bundle.gone(),
            Watched::DaemonSet => self.removals.not_there(Of::DaemonSet),
            Watched::OwnNamespace => self.removals.not_there(Of::Namespace),
        }
    }

    /// Takes an object of the World. One that cannot be read stays as it was.
    fn object(&mut self, kind: Kind, value: &Value, is_ours: &dyn Fn(&PodUid) -> bool) -> Taken {
        let key = key(kind, value);
        let translated = Object::read(value).and_then(|read| match read {
            Some((_, object)) => object.translate(&self.links.own.settings.system_namespace).map(Some),
            None => Ok(None),
        });
        match translated {
            Err(rejected) => {
                self.wrongs.rejected(&key, &rejected);
                self.builder.list_has(kind, &key.name);
                return Taken::NotAtAll;
            }
            Ok(None) => self.wrongs.fields(&key, &[]),
            Ok(Some(translated)) => {
                self.wrongs.fields(&key, &translated.problems);
                let mut change = translated.change.unwrap_or_else(|| key.gone());
                let own = &self.links.own.settings.node;
                if let Change::Pod(pod) = &mut change
                    && pod.node.as_ref() == Some(own)
                {
                    // What counts of the own pods is what an agent of this node wrote, and comes by itself.
                    pod.captured = false;
                    let seen = seen(value);
                    self.captures.saw(&pod.uid, &pod.name, version(value), seen, is_ours(&pod.uid));
                }
                if let Change::Node(node) = &change
                    && node.name == *own
                {
                    let uid = value["metadata"]["uid"].as_str().map(str::to_owned);
                    self.links
                        .lease
                        .send_if_modified(|says| std::mem::replace(&mut says.node_uid, uid.clone()) != uid);
                }
                self.apply(change);
            }
        }
        Taken::Whole
    }

    fn apply(&mut self, change: Change) {
        self.builder.apply(change);
        self.has_changed = true;
    }

    fn keep(&mut self, of: Watched, work: impl FnOnce(&mut Kept)) {
        if let Some(copy) = self.links.kept.as_mut().filter(|_| of.is_kept()) {
            work(copy);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Captured { uid, captured, done } => self.want(uid, captured, done),
            // What is said of a pod goes with its object, and that is heard of.
            Command::SandboxGone(_) => {}
            Command::Acknowledge(generation) => {
                self.bundle.acknowledge(generation);
                self.links.lease.send_if_modified(|says| {
                    std::mem::replace(&mut says.generation, generation) != generation
                });
            }
            Command::StandAside { aside, done } => {
                if let Some(copy) = &mut self.links.kept {
                    if aside {
                        copy.stand_aside();
                    } else if copy.claim_again() {
                        self.links.list_anew.send_replace(());
                    }
                }
                self.captures.stand_aside(aside);
                self.links.lease.send_if_modified(|says| std::mem::replace(&mut says.aside, aside) != aside);
                // Who asked may be gone.
                let _ = done.send(());
            }
            Command::Refresh { pod, done } => {
                let api = self.links.api.clone();
                self.asked.spawn(async move {
                    let answer = api.get(&path(&pod)).await;
                    Answer::Fetched(pod, answer, done)
                });
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Written(write, answer) => self.written(&write, answer),
            Answer::Fetched(pod, answer, done) => {
                match answer {
                    Ok(object) => self.fetched(&object),
                    Err(error) => tracing::debug!(%pod, %error, "a pod that was asked for is not known"),
                }
                let _ = done.send(());
            }
        }
    }

    /// Takes a pod that was read by itself. If its watch has told something newer, it has told of this, too.
    fn fetched(&mut self, object: &[u8]) {
        let Ok(text) = std::str::from_utf8(object) else { return };
        let of = Watched::Kind(Kind::Pod);
        let value = of.read(text);
        if version(&value) > self.pods_version {
            let known = self.pods_version;
            self.there_now(of, &value);
            self.pods_version = known;
        }
        self.flush();
    }

    /// Publishes what follows from what was said, once everything is known.
    fn flush(&mut self) {
        self.has_changed = false;
        self.forget_gone();
        let node = self.links.own.settings.node.clone();
        self.builder.apply(Change::Captured { node, pods: self.captures.captured() });
        if self.watches.missing().is_empty() {
            self.is_published = true;
            let world = self.builder.freeze();
            self.captures.judge(|uid| world.workload(uid).is_some_and(|pod| pod.enrolment.is_enrolled()));
            self.links.publisher.publish(world);
        }
        if let Some(copy) = &mut self.links.kept {
            copy.flush();
        }
        self.show();
    }

    fn show(&self) {
        let wrong = self.wrongs.said().chain(self.bundle.said()).cloned();
        let problems: Vec<_> = wrong.chain(self.watches.lost_now()).collect();
        metrics::gauge!("adit_object_errors").set(self.wrongs.said().count() as f64);
        let (missing, unfollowed) = (self.watches.missing(), self.watches.unfollowed());
        let shown = Shown { missing, problems, unfollowed };
        self.links.shown.send_if_modified(|known| {
            let differs = *known != shown;
            *known = shown;
            differs
        });
    }
}

/// Which of the two it is by which it is decided whether Adit leaves.
fn removal(of: Watched) -> Option<Of> {
    match of {
        Watched::DaemonSet => Some(Of::DaemonSet),
        Watched::OwnNamespace => Some(Of::Namespace),
        Watched::Kind(_) | Watched::Bundle => None,
    }
}

/// Which object of a kind it is. The API server gives out none without a name.
fn key(kind: Kind, value: &Value) -> Key {
    let (namespace, name) = names(value);
    Key { kind, name: ObjectName::new(namespace, name) }
}

fn names(value: &Value) -> (&str, &str) {
    let metadata = &value["metadata"];
    let text = |key| metadata[key].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

/// The version of an object, as a number; 0 where it is none: then nothing is taken for newer.
fn version(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn is_terminating(value: &Value) -> bool {
    !value["metadata"]["deletionTimestamp"].is_null()
}

fn seen(pod: &Value) -> Seen {
    match pod["metadata"]["annotations"][CAPTURE_ANNOTATION].as_str() {
        None => Seen::Absent,
        Some("enabled") => Seen::Enabled,
        Some(_) => Seen::Other,
    }
}

fn path(pod: &ObjectName) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}
