//! What another agent of the same node says in place of this one, and whether Adit leaves the node.

use adit_proto::cni::Removal;
use tracing::warn;

use super::{Directory, Driver, StatusFile};

impl Driver {
    /// Leaves the status file and the copies to another agent of the node, whose word then counts for its pods as any
    /// other's does; or takes them over again, with what that one said last.
    pub(super) fn stand_aside(&mut self, aside: bool) {
        if aside == self.aside {
            return;
        }
        let node = self.own.settings.node.clone();
        if aside {
            self.statuses.set_own(None);
            self.directory.mark_all();
            self.aside = true;
            return self.flush();
        }
        match StatusFile::open(&Directory::status_dir(&self.root), &node.0) {
            Ok((file, said)) => {
                self.status_file = file;
                self.status.captured = said.captured;
            }
            // Written anew from what is known, as soon as it can be.
            Err(error) => warn!(%error, "cannot read what another agent of this node said"),
        }
        self.statuses.set_own(Some(node));
        self.aside = false;
        self.show_captured();
        self.flush();
    }

    /// Whether the user has said that Adit leaves.
    pub(super) fn look_for_removal(&self) {
        let found = if self.directory.says_uninstall() { Removal::Leaves } else { Removal::Stays };
        self.removal.send_if_modified(|said| std::mem::replace(said, found) != found);
    }
}
