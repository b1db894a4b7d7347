//! Which sandboxes the runtime has taken down of late: they are not looked for.

use std::collections::VecDeque;

use adit_core::net::SandboxId;

/// Sandboxes whose DEL came and that are remembered: their namespaces go only after our answer. The kubelet takes down some
/// tens at a time.
const DELETED_MAX: usize = 1024;

/// Sandboxes whose DEL came last, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Deleted(VecDeque<SandboxId>);

impl Deleted {
    pub(super) fn note(&mut self, sandbox: SandboxId) {
        if self.0.len() >= DELETED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sandbox);
    }

    /// The runtime made it (again).
    pub(super) fn forget(&mut self, sandbox: &SandboxId) {
        self.0.retain(|known| known != sandbox);
    }

    pub(super) fn contains(&self, sandbox: &SandboxId) -> bool {
        self.0.contains(sandbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_until_they_are_made_again() {
        let id = |number: usize| SandboxId(number.to_string().into());
        let mut deleted = Deleted::default();
        (0..=DELETED_MAX).for_each(|number| deleted.note(id(number)));
        assert!(!deleted.contains(&id(0)) && deleted.contains(&id(1)) && deleted.contains(&id(DELETED_MAX)));
        deleted.forget(&id(1));
        assert!(!deleted.contains(&id(1)) && deleted.contains(&id(2)));
    }
}
