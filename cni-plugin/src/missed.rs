//! Leaves word of the pods that start while the agent is away, where the agent looks when it is back.
//!
//! A file of the sandbox's name beside the agent's socket, on tmpfs: like the sandbox it does not outlive the boot.
//! Nothing here may hold a pod up; what cannot be written is logged.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use adit_proto::cni::{self, Add, ContainerId, MISSED_DIR, Request};

/// Writes down an ADD that was answered without the agent. Whole or not at all.
pub(crate) fn leave(socket: &Path, add: &Add) -> io::Result<()> {
    let frame = cni::encode(&Request::Add(add.clone())).map_err(io::Error::other)?;
    let file = file(socket, &add.container_id);
    let dir = file.parent().unwrap_or_else(|| Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // The name of a sandbox begins with a letter or digit, so this is none.
    let temp = dir.join(format!(".{}", add.container_id.as_str()));
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    open.write_all(&frame)?;
    fs::rename(&temp, &file)
}

/// The sandbox goes: there is nothing left to look at.
pub(crate) fn withdraw(socket: &Path, sandbox: &ContainerId) -> io::Result<()> {
    match fs::remove_file(file(socket, sandbox)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn file(socket: &Path, sandbox: &ContainerId) -> PathBuf {
    socket.with_file_name(MISSED_DIR).join(sandbox.as_str())
}
