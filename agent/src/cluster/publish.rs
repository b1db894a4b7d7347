//! Writes `DIR/status/NODE.yaml`, this agent's word to the others, to the CA and to `adit`.
//!
//! By rename, so that a reader finds the old or the new one, whole. Nobody else writes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use adit_proto::status::NodeStatus;
use tracing::warn;

use super::statuses::read_status;

/// The own status file.
#[derive(Debug)]
pub(super) struct StatusFile {
    path: PathBuf,
    fresh: PathBuf,
    /// What was last written; none before the first.
    written: Option<NodeStatus>,
}

impl StatusFile {
    /// Takes the place of the agent that was here before: makes the directory and reads what that one last said.
    pub(super) fn open(dir: &Path, node: &str) -> io::Result<(Self, NodeStatus)> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{node}.yaml"));
        let earlier = match fs::read_to_string(&path) {
            Ok(text) => read_status(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => NodeStatus::default(),
            Err(error) => return Err(error),
        };
        // With a dot first, and its end no reader's: it is nobody's until it is in place.
        let fresh = dir.join(format!(".{node}.fresh"));
        Ok((Self { path, fresh, written: None }, earlier))
    }

    /// Writes the file, if it would say something else than it does, or if somebody took it away.
    pub(super) fn write(&mut self, status: &NodeStatus) -> io::Result<()> {
        if self.written.is_some() && !self.path.exists() {
            warn!(file = %self.path.display(), "the own status file is gone; writing it again");
            self.written = None;
        }
        if self.written.as_ref() == Some(status) {
            return Ok(());
        }
        let text = serde_saphyr::to_string(status).map_err(io::Error::other)?;
        // Its directory only: where the mesh's own is gone, another is about to take its place.
        if let Some(Err(error)) = self.path.parent().map(fs::create_dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        fs::write(&self.fresh, text)?;
        fs::rename(&self.fresh, &self.path)?;
        self.written = Some(status.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use adit_proto::status::PolicyStatus;

    use super::*;

    #[test]
    fn the_next_agent_reads_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let status_dir = dir.path().join("status");
        let (mut file, earlier) = StatusFile::open(&status_dir, "n1").unwrap();
        assert_eq!(earlier, NodeStatus::default());
        let status = NodeStatus {
            node: "n1".into(),
            version: "0.1: \"x\"".into(),
            admin_socket: "/run/adit/admin.sock".into(),
            bundle_generation: 3,
            captured: BTreeSet::from(["1e3".into(), "0x10".into(), "true".into()]),
            policies: vec![PolicyStatus {
                kind: "AuthorizationPolicy".into(),
                namespace: "shop".into(),
                name: "no".into(),
                accepted: false,
                problems: vec!["spec.rules[0].to[0]: is \"a\", not\nb: c # d".into()],
            }],
        };
        file.write(&status).unwrap();
        let (_, earlier) = StatusFile::open(&status_dir, "n1").unwrap();
        assert_eq!(earlier, status);
        assert_eq!(fs::read_dir(&status_dir).unwrap().count(), 1, "nothing is left lying about");
        fs::remove_dir_all(&status_dir).unwrap();
        file.write(&status).unwrap();
        assert_eq!(
            StatusFile::open(&status_dir, "n1").unwrap().1,
            status,
            "it is said again, as nothing has changed"
        );
    }
}
