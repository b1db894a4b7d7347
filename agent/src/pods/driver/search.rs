//! Running pods that are to be captured and whose sandboxes nobody named: looked for, and taken in where they are found.

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_core::discover::{NotFound, Sought};
use adit_core::net::{PodKey, PodUid, SandboxId};
use adit_core::pods::Wish;
use adit_core::redirect::Mark;
use adit_core::workload::{Enrolment, Workload};
use adit_core::world::World;

use super::{Driver, Ended};
use crate::pods::discover::Found;
use crate::pods::enrolment;
use crate::pods::journal::{Captured, Entry};
use crate::pods::sandbox::{Sandbox, Stale};

impl Driver {
    /// Says who is looked for by what is known now, and looks for those who are due.
    pub(super) fn seek(&mut self) {
        let world = self.view.world();
        let node = world.settings().node.clone();
        let these = world.pods_on(&node).filter(|workload| self.is_sought(workload)).map(sought).collect();
        self.changed |= self.searches.seek(self.performer.clock.now().mono, these);
        self.look();
    }

    /// One that is to be captured; or that says it is, and must not say so any more. In either case its sandbox must be
    /// there, and not be one that is known.
    fn is_sought(&self, workload: &Workload) -> bool {
        let pod = &workload.pod;
        let may_be = match workload.enrolment {
            Enrolment::ByPod | Enrolment::ByNamespace => true,
            Enrolment::NotAsked | Enrolment::OptedOut | Enrolment::ExcludedNamespace => workload.captured,
            Enrolment::HostNetwork | Enrolment::StaticPod => false,
        };
        may_be && !pod.terminating && !pod.ips.is_empty() && !self.has_sandbox_of(workload)
    }

    /// Whether its sandbox is known: one with its address, where both have one. An earlier sandbox may be there beside it.
    fn has_sandbox_of(&self, workload: &Workload) -> bool {
        let ips = &workload.pod.ips;
        let mut of_pod =
            of_pod(&self.sandboxes, &workload.pod.uid).chain(of_pod(&self.arriving, &workload.pod.uid));
        of_pod.any(|sandbox| {
            let known = &sandbox.entry.ips;
            known.is_empty() || known.iter().any(|ip| ips.contains(ip))
        })
    }

    /// Looks for those who are due, unless a look is under way: then after it.
    pub(super) fn look(&mut self) {
        if self.looking.is_some() {
            return;
        }
        let due = self.searches.due(self.performer.clock.now().mono);
        if due.is_empty() {
            return;
        }
        self.changed = true;
        let (looker, these) = (self.looker.clone(), due.clone());
        let task = self.tasks.spawn_blocking(move || Ended::Looked(looker.look(these)));
        self.looking = Some((task.id(), due));
    }

    /// What a look has shown.
    pub(super) fn looked(&mut self, found: Vec<(Sought, Result<Found, NotFound>)>) {
        self.looking = None;
        let world = self.view.world();
        let mut taken = false;
        for (sought, found) in found {
            let taken_in = match found {
                Ok(found) => self.take_found(&world, &sought, found),
                Err(why) => Err(why),
            };
            match taken_in {
                Ok(()) => taken = true,
                Err(why) => {
                    tracing::debug!(pod = %sought.name, uid = %sought.uid, %why, "cannot find the sandbox of a running pod");
                    self.searches.missed(self.performer.clock.now().mono, &sought, why);
                }
            }
        }
        self.changed = true;
        if taken {
            // Says whether each is wanted, and looks for those who came meanwhile.
            self.world_changed();
        } else {
            self.seek();
        }
    }

    /// The look itself failed.
    pub(super) fn lost_look(&mut self, these: &[Sought]) {
        let now = self.performer.clock.now().mono;
        these.iter().for_each(|sought| self.searches.missed(now, sought, NotFound::NotLooked));
    }

    /// Pods whose status has addresses of which none is known of their sandboxes: these may be gone.
    pub(super) fn moved(&self, world: &World) -> Vec<PodUid> {
        let uids = self.sandboxes.keys().map(|key| &key.uid);
        let known = uids.filter_map(|uid| world.workload(uid));
        let moved = known.filter(|workload| !workload.pod.ips.is_empty() && !self.has_sandbox_of(workload));
        moved.map(|workload| workload.pod.uid.clone()).collect()
    }

    /// A sandbox of an earlier life of the agent. Where the process by which its namespace was known has ended, another of
    /// the pod's does.
    pub(super) fn recalled(&self, entry: Entry) -> Result<Sandbox, Stale> {
        if !self.looker.is_of_process(&entry.netns) {
            return Sandbox::recalled(entry);
        }
        let before = entry.clone();
        let stale = match Sandbox::recalled(entry) {
            Err(stale @ (Stale::Gone(_) | Stale::Other)) => stale,
            recalled @ (Ok(_) | Err(Stale::Mark | Stale::Unopened(..))) => return recalled,
        };
        let uid = PodUid(before.pod.uid.as_str().into());
        match self.looker.other_process(&uid, before.inode) {
            Some(netns) => Sandbox::recalled(Entry { netns, ..before }),
            None => Err(stale),
        }
    }

    /// The same for one that is held: returns whether its namespace is there.
    pub(super) fn find_again(&mut self, key: &PodKey) -> bool {
        let Some(sandbox) =
            self.sandboxes.get_mut(key).filter(|sandbox| self.looker.is_of_process(&sandbox.entry.netns))
        else {
            return false;
        };
        let Some(path) = self.looker.other_process(&key.uid, sandbox.entry.inode) else { return false };
        sandbox.entry.netns = path;
        self.write(key);
        true
    }

    /// Whether a pod's namespace is one that is known by other addresses; then it is known by these too from now on.
    fn learn_addresses(&mut self, sought: &Sought, inode: u64) -> bool {
        let key =
            of_pod(&self.sandboxes, &sought.uid).find(|known| known.entry.inode == inode).map(Sandbox::key);
        let Some(known) = key.as_ref().and_then(|key| self.sandboxes.get_mut(key)) else { return false };
        tracing::warn!(pod = %sought.name, before = ?known.entry.ips, now = ?sought.ips, "a known sandbox has other addresses than at its ADD");
        known.entry.ips.extend(&sought.ips);
        if let Some(key) = key {
            self.write(&key);
        }
        true
    }

    fn take_found(&mut self, world: &World, sought: &Sought, found: Found) -> Result<(), NotFound> {
        // World may have changed since, or an ADD come.
        let same = |workload: &&Arc<Workload>| self.is_sought(workload) && workload.pod.ips == sought.ips;
        let workload = world.workload(&sought.uid).filter(same);
        let Some(workload) = workload else { return Ok(()) };
        let id = &found.proof.sandbox;
        if self.deleted.contains(id) {
            return Err(NotFound::Deleted);
        }
        if self.unread.contains_key(id)
            || self.unopened.iter().any(|entry| entry.container_id.as_str() == &*id.0)
        {
            return Err(NotFound::Unread);
        }
        if self.learn_addresses(sought, found.netns.inode()) {
            return Ok(());
        }
        let Found { proof, netns, path } = found;
        let (by, mark) = (proof.by, Mark::from_draw(self.seed.draw()));
        let sandbox = Sandbox::found(&proof.sandbox, netns, path, sought, mark);
        let mut sandbox = sandbox.ok_or(NotFound::NoSandboxId)?;
        // What says that it is captured and is not to be: whatever stands in it goes, as after a restart.
        if let Wish::Out = enrolment::wish(workload) {
            let want = enrolment::want(workload);
            sandbox.entry.captured = Some(Captured::from(&want));
        }
        let sandbox = self.numbered(sandbox);
        tracing::info!(pod = %sought.name, uid = %sought.uid, sandbox = %sandbox.key().sandbox, ?by, "found the sandbox of a running pod");
        if self.take_in(sandbox) { Ok(()) } else { Err(NotFound::Deleted) }
    }
}

fn of_pod<'a>(
    sandboxes: &'a BTreeMap<PodKey, Sandbox>,
    uid: &'a PodUid,
) -> impl Iterator<Item = &'a Sandbox> {
    let first = PodKey { uid: uid.clone(), sandbox: SandboxId("".into()) };
    sandboxes.range(first..).take_while(move |(key, _)| key.uid == *uid).map(|(_, sandbox)| sandbox)
}

fn sought(workload: &Arc<Workload>) -> Sought {
    let pod = &workload.pod;
    Sought { uid: pod.uid.clone(), name: pod.name.clone(), ips: pod.ips.clone() }
}
