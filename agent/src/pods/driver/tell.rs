//! What became of a pod's capture, said on the pod: its Events. What is news is [`adit_core::notices`]'s to decide.

use adit_core::net::{ObjectName, PodUid};
use adit_core::notices::{Notice, Standing};
use adit_core::pods::Seen;
use adit_core::world::World;

use super::Driver;
use crate::cluster::{Gravity, PodEvent};
use crate::pods::sandbox::Sandbox;
use crate::pods::show::open_though_strict;

impl Driver {
    /// Says what is news of each pod.
    pub(super) fn tell(&mut self, world: &World) {
        let now = self.performer.clock.now().mono;
        for seen in self.machine.seen() {
            let Some(sandbox) = self.sandboxes.get(seen.key) else { continue };
            let news = self.notices.of(now, seen.key, &standing(&seen, sandbox, world));
            let pod = &sandbox.entry.pod;
            let name = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
            news.into_iter().for_each(|notice| self.events.say(event(&name, &seen.key.uid, notice)));
        }
        for seen in self.searches.seen() {
            if let Some(notice) = self.notices.of_sought(&seen) {
                self.events.say(event(&seen.sought.name, &seen.sought.uid, notice));
            }
        }
        let (machine, searches) = (&self.machine, &self.searches);
        self.notices.keep(|key| machine.knows(key), |uid| searches.knows(uid));
    }
}

fn standing(seen: &Seen<'_>, sandbox: &Sandbox, world: &World) -> Standing {
    let captured = sandbox.entry.captured.as_ref();
    Standing {
        state: seen.state,
        enrolled: seen.enrolled,
        identity: captured.map(|captured| captured.identity.to_string()),
        lacking: seen.lacking.as_ref().map(ToString::to_string),
        trouble: sandbox.trouble.clone().or_else(|| sandbox.found.clone()),
        older: sandbox.older,
        open: open_though_strict(sandbox, world),
        invalid_skip: world.workload(&seen.key.uid).and_then(|workload| workload.skip.invalid.clone()),
        late: sandbox.late,
    }
}

fn event(pod: &ObjectName, uid: &PodUid, notice: Notice) -> PodEvent {
    PodEvent {
        pod: pod.clone(),
        uid: uid.clone(),
        gravity: if notice.word.is_warning() { Gravity::Warning } else { Gravity::Normal },
        reason: notice.word.as_str(),
        note: notice.note.into(),
    }
}
