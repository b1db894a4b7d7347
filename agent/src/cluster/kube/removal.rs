//! Whether Adit leaves this cluster: what the own DaemonSet and the own namespace come to.
//!
//! Only what was seen counts. A DaemonSet that was there and is deleted, or is being deleted, takes Adit with it; so
//! does the namespace. What could not be asked (401, 403, a time-out) changes nothing, as these come up in every restart
//! of an API server; and a DaemonSet that was never seen says nothing, as it may have another name.

use adit_proto::cni::Removal;

/// One of the two objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Of {
    /// The DaemonSet whose pod the agent runs in.
    DaemonSet,
    /// Adit's own namespace.
    Namespace,
}

/// What is known of one of them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Seen {
    /// It was never there.
    #[default]
    Never,
    /// It is there.
    Alive,
    /// It is there, with a deletion timestamp.
    Terminating,
    /// It was there, and is no more.
    Gone,
}

/// What is known of both.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Removals {
    daemon_set: Known,
    namespace: Known,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    seen: Seen,
    /// Whether it was on the list that has begun.
    is_listed: bool,
}

impl Removals {
    /// From here to [`Removals::list_ends`], what is there is said to be.
    pub(super) fn list_begins(&mut self, of: Of) {
        self.of(of).is_listed = false;
    }

    /// What was not said to be there is not.
    pub(super) fn list_ends(&mut self, of: Of) {
        if !self.of(of).is_listed {
            self.not_there(of);
        }
    }

    /// Takes that an object is there.
    pub(super) fn there(&mut self, of: Of, is_terminating: bool) {
        let seen = if is_terminating { Seen::Terminating } else { Seen::Alive };
        *self.of(of) = Known { seen, is_listed: true };
    }

    /// Takes that an object is not there.
    pub(super) fn not_there(&mut self, of: Of) {
        let seen = &mut self.of(of).seen;
        if *seen != Seen::Never {
            *seen = Seen::Gone;
        }
    }

    /// What follows.
    pub(super) fn decide(self) -> Removal {
        let leaves = |seen| matches!(seen, Seen::Terminating | Seen::Gone);
        match (self.daemon_set.seen, self.namespace.seen) {
            (daemon_set, namespace) if leaves(daemon_set) || leaves(namespace) => Removal::Leaves,
            (Seen::Alive, Seen::Alive) => Removal::Stays,
            _ => Removal::Undecided,
        }
    }

    fn of(&mut self, of: Of) -> &mut Known {
        match of {
            Of::DaemonSet => &mut self.daemon_set,
            Of::Namespace => &mut self.namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_decided_before_both_were_seen() {
        let mut removals = Removals::default();
        assert_eq!(removals.decide(), Removal::Undecided);
        removals.not_there(Of::DaemonSet);
        removals.there(Of::Namespace, false);
        assert_eq!(removals.decide(), Removal::Undecided, "one that was never there may have another name");
        removals.there(Of::DaemonSet, false);
        assert_eq!(removals.decide(), Removal::Stays);
    }

    #[test]
    fn either_takes_adit_with_it_when_it_goes_and_a_new_one_brings_it_back() {
        for of in [Of::DaemonSet, Of::Namespace] {
            let mut removals = Removals::default();
            removals.there(Of::DaemonSet, false);
            removals.there(Of::Namespace, false);
            removals.there(of, true);
            assert_eq!(removals.decide(), Removal::Leaves, "terminating");
            removals.not_there(of);
            assert_eq!(removals.decide(), Removal::Leaves, "gone");
            removals.there(of, false);
            assert_eq!(removals.decide(), Removal::Stays, "there again");
            removals.list_begins(of);
            assert_eq!(removals.decide(), Removal::Stays, "while it is listed");
            removals.list_ends(of);
            assert_eq!(removals.decide(), Removal::Leaves, "not on the list");
        }
    }
}
