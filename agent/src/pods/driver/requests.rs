//! What the plugin asks, as events; and what it is answered.

use std::collections::BTreeSet;
use std::path::PathBuf;

use adit_core::net::{ObjectName, SandboxId};
use adit_core::pods::{Arrival, Event, Refusal, Token, Want, Wish};
use adit_core::redirect::Mark;
use adit_proto::cni::{Add, Check, ContainerId, Del, Gc, IfName, PodRef, Reply, Request, Serving};
use tokio::sync::oneshot;

use super::{Driver, Ended, Waiting};
use crate::pods::sandbox::{Sandbox, sandbox_id};
use crate::pods::server::Asked;
use crate::pods::{answer, enrolment};

impl Driver {
    pub(super) fn asked(&mut self, asked: Asked) {
        let Asked { request, reply, gone: _ } = asked;
        match request {
            Request::Add(add) => self.add(add, reply),
            Request::Del(del) => self.del(&del, reply),
            Request::Check(check) => self.check(&check, reply),
            Request::Gc(gc) => self.gc(&gc, reply),
            Request::Removal => send(reply, Reply::Removal { adit: *self.removal.borrow() }),
            // Taken out before: it ends the loop.
            Request::Handover => drop(reply),
            Request::Serving(serving) => self.hear(&serving, reply),
            Request::Status => send(reply, Reply::Status { release: env!("CARGO_PKG_VERSION").to_owned() }),
        }
    }

    fn add(&mut self, mut add: Add, reply: oneshot::Sender<Reply>) {
        let annotations = add.annotations.take();
        let pod = add.pod.clone();
        let mark = Mark::from_draw(self.seed.draw());
        let sandbox = match Sandbox::arrived(add, mark) {
            Ok(sandbox) => self.numbered(sandbox),
            Err(error) => {
                count("add", "failed");
                send(reply, answer::no_netns(&error));
                return;
            }
        };
        let world = self.view.world();
        let known = enrolment::known(&world, &pod, annotations.as_ref(), &self.namespaces.kept);
        let (key, arrival) = (sandbox.key(), Arrival(sandbox.entry.arrival));
        let before = self.sandboxes.get(&key);
        if before.is_some_and(|before| before.entry.inode != sandbox.entry.inode) {
            // Its DEL was lost, and the id used again.
            self.feed(Event::SandboxGone(key.clone()));
        }
        self.deleted.forget(&key.sandbox);
        // What was kept under its id is of a sandbox before it, and must not be taken for this one later.
        self.drop_not_taken_in(|id, _| *id == key.sandbox);
        self.arriving.insert(key.clone(), sandbox);
        if world.workload(&key.uid).is_none() {
            // Its watch may be behind: to ask costs less than a sandbox that was waited for in vain.
            let announcer = self.performer.announcer.clone();
            let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
            self.tasks.spawn(async move {
                announcer.refresh(&name).await;
                Ended::Told
            });
        }
        if let Wish::In(_) = known.wish {
            // The plugin, should it lose patience, looks there again.
            self.hold_back(&pod.namespace);
        }
        let token = self.wait(Some("add"), pod, reply);
        let (wish, announced) = (known.wish, known.announced);
        self.feed(Event::CniAdd { key: key.clone(), arrival, token, wish, announced });
        if known.terminating {
            self.feed(Event::Terminating { uid: key.uid.clone() });
        }
        if !self.machine.knows(&key) {
            self.arriving.remove(&key);
        }
    }

    /// Takes in the pods that started while there was no agent to be asked.
    pub(super) fn take_missed(&mut self) {
        let mut taken = false;
        for note in self.missed.notes() {
            let Some(mut add) = note.add.clone() else {
                note.drop_it();
                continue;
            };
            add.annotations = None;
            let netns = PathBuf::from(&add.netns);
            let mark = Mark::from_draw(self.seed.draw());
            match Sandbox::arrived(add, mark) {
                Ok(mut sandbox) => {
                    sandbox.late = true;
                    let sandbox = self.numbered(sandbox);
                    let key = sandbox.key();
                    tracing::info!(pod = %key.uid, sandbox = %key.sandbox, "a pod started while the agent was away");
                    taken |= self.take_in(sandbox);
                }
                // Looked at again: its namespace is there, and may be opened another time.
                Err(error) if netns.exists() => {
                    tracing::warn!(%error, "cannot take in a pod that started while the agent was away");
                    continue;
                }
                Err(_) => {}
            }
            note.drop_it();
        }
        if taken {
            self.world_changed();
        }
    }

    /// The next one of this boot.
    pub(super) fn numbered(&mut self, mut sandbox: Sandbox) -> Sandbox {
        self.arrivals += 1;
        sandbox.entry.arrival = self.arrivals;
        sandbox
    }

    /// As if it had been in the journal, where it is from now on.
    pub(super) fn take_in(&mut self, sandbox: Sandbox) -> bool {
        let (key, arrival) = (sandbox.key(), Arrival(sandbox.entry.arrival));
        if self.machine.knows(&key) {
            return false;
        }
        let captured = sandbox.entry.captured.as_ref().map(Want::from);
        let announced = self.view.world().workload(&key.uid).is_some_and(|workload| workload.captured);
        self.sandboxes.insert(key.clone(), sandbox);
        self.write(&key);
        self.changed = true;
        self.feed(Event::Adopted { key, arrival, captured, announced });
        true
    }

    fn del(&mut self, del: &Del, reply: oneshot::Sender<Reply>) {
        let sandbox = sandbox_id(&del.container_id);
        let known = self.by_id(&sandbox);
        if known.is_some_and(|known| known.entry.ifname != del.ifname) {
            // Another interface of the same sandbox goes; ours stays.
            count("del", "ok");
            send(reply, Reply::Ok);
            return;
        }
        let is_known = known.is_some();
        let pod = known.map_or_else(nobody, |known| known.entry.pod.clone());
        if !is_known {
            let is_it = |ifname: Option<&IfName>| ifname.is_none_or(|ifname| *ifname == del.ifname);
            self.drop_not_taken_in(|id, ifname| *id == sandbox && is_it(ifname));
        }
        self.deleted.note(sandbox.clone());
        let token = self.wait(Some("del"), pod, reply);
        self.feed(Event::CniDel { sandbox, token: Some(token) });
    }

    fn check(&mut self, check: &Check, reply: oneshot::Sender<Reply>) {
        let sandbox = sandbox_id(&check.container_id);
        let pod = self.by_id(&sandbox).map_or_else(nobody, |known| known.entry.pod.clone());
        let token = self.wait(Some("check"), pod, reply);
        self.feed(Event::CniCheck { sandbox, token });
    }

    fn gc(&mut self, gc: &Gc, reply: oneshot::Sender<Reply>) {
        let valid: BTreeSet<SandboxId> = gc.valid.iter().map(|item| sandbox_id(&item.container_id)).collect();
        let known = self.sandboxes.keys().map(|key| key.sandbox.clone());
        let gone: Vec<SandboxId> = known.filter(|sandbox| !valid.contains(sandbox)).collect();
        let mut ends = Vec::new();
        for sandbox in gone {
            let (ended, end) = oneshot::channel();
            ends.push(end);
            let token = self.wait(None, nobody(), ended);
            self.feed(Event::CniDel { sandbox, token: Some(token) });
        }
        self.drop_not_taken_in(|id, _| !valid.contains(id));
        self.tasks.spawn(async move {
            for end in ends {
                // Whatever came of it: what is left of one that could not be cleared away is tried again.
                let _ = end.await;
            }
            count("gc", "ok");
            send(reply, Reply::Ok);
            Ended::Collected
        });
    }

    /// Drops what is kept of sandboxes that are gone and were never taken in: no version can read, and no later look can
    /// open, what is not there any more. They are told by their id, and their interface where it is known.
    fn drop_not_taken_in(&mut self, is_gone: impl Fn(&SandboxId, Option<&IfName>) -> bool) {
        let unread = self.unread.extract_if(.., |id, ifname| is_gone(id, ifname.as_ref())).map(|(id, _)| id);
        let unopened = self
            .unopened
            .extract_if(.., |entry| is_gone(&sandbox_id(&entry.container_id), Some(&entry.ifname)));
        let unopened = unopened.map(|entry| sandbox_id(&entry.container_id));
        let gone: Vec<SandboxId> = unread.chain(unopened).collect();
        for id in &gone {
            tracing::info!(sandbox = %id, "dropping what was kept of a sandbox that is gone");
            self.forget(id);
        }
        self.changed |= !gone.is_empty();
        self.count_unread();
    }

    pub(super) fn count_unread(&self) {
        let count = u32::try_from(self.unread.len()).unwrap_or(u32::MAX);
        metrics::gauge!("adit_journal_unread_entries").set(count);
    }

    pub(super) fn reply(&mut self, token: Token, answer: Result<(), Refusal>) {
        let Some(waiting) = self.waiting.remove(&token) else {
            return;
        };
        let Waiting { verb, pod, reply } = waiting;
        if let Some(verb) = verb {
            count(verb, if answer.is_ok() { "ok" } else { "failed" });
        }
        if let Err(refusal) = &answer {
            tracing::warn!(pod = %format_args!("{}/{}", pod.namespace, pod.name), verb, %refusal, "answered with an error");
        }
        send(reply, answer::reply(&pod, answer));
    }

    fn wait(&mut self, verb: Option<&'static str>, pod: PodRef, reply: oneshot::Sender<Reply>) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.waiting.insert(token, Waiting { verb, pod, reply });
        token
    }

    /// An agent before this one says what it carries still.
    fn hear(&self, serving: &Serving, reply: oneshot::Sender<Reply>) {
        self.performer.predecessors.hear(self.performer.clock.now().mono, serving);
        // What is not taken in yet stands all the same.
        let waits = |id: &ContainerId| {
            let unopened = || self.unopened.iter().any(|entry| entry.container_id == *id);
            self.unread.contains_key(&sandbox_id(id)) || unopened()
        };
        let is_over = |id: &ContainerId| match self.by_id(&sandbox_id(id)) {
            Some(sandbox) => sandbox.entry.captured.is_none(),
            None => !waits(id),
        };
        let over = serving.open.keys().filter(|id| is_over(id)).cloned().collect();
        send(reply, Reply::Successor { ready: *self.ready.borrow(), over });
    }

    fn by_id(&self, sandbox: &SandboxId) -> Option<&Sandbox> {
        let mut all = self.sandboxes.iter();
        all.find(|(key, _)| key.sandbox == *sandbox).map(|(_, known)| known)
    }
}

/// A client that has gone meanwhile asks again, or is asked for no more.
fn send(reply: oneshot::Sender<Reply>, answer: Reply) {
    let _ = reply.send(answer);
}

fn count(verb: &'static str, answer: &'static str) {
    metrics::counter!("adit_cni_requests_total", "verb" => verb, "answer" => answer).increment(1);
}

/// Whose sandbox an unknown one is.
fn nobody() -> PodRef {
    PodRef { namespace: String::new(), name: String::new(), uid: String::new() }
}
