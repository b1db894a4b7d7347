//! Waits for what a file says, woken by inotify.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::WAIT_MAX;

/// Waits until `wanted` finds something in the text of `file`, which may not be there yet; its folder must be.
pub(super) fn wait_for_file<T>(file: &Path, what: &str, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
    let folder = file.parent().context("a file has a folder")?;
    let mut inotify = Inotify::init().context("inotify")?;
    let events = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(folder, events).with_context(|| format!("cannot watch {}", folder.display()))?;
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        // Looked at after the watch was set, so a change in between is not lost.
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(found) = wanted(&text) {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waiting = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if left.is_zero() || poll(&mut waiting, timeout).context("cannot wait")? == 0 {
            bail!("{what}: not in {} within {WAIT_MAX:?}; it says:\n{text}", file.display());
        }
        let mut buffer = [0; 4096];
        inotify.read_events(&mut buffer).context("cannot read events")?;
    }
}
