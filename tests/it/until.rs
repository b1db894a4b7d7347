//! Waits for what has no event to wait for.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use adit_tests::WAIT_MAX;
use adit_tests::mesh::Mesh;
use anyhow::{Context, Result, ensure};

/// How long others may run between two looks.
const BETWEEN: Duration = Duration::from_millis(10);

/// Looks again and again until something is found, [`WAIT_MAX`] at most. Errors of `look` end it.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT_MAX:?}");
        thread::park_timeout(BETWEEN);
    }
}

/// Waits until a node's agent has written down, for the plugin, that a namespace is not enrolled.
pub(crate) fn until_unenrolled(mesh: &Mesh, node: &str, namespace: &str) -> Result<()> {
    until_kept(mesh, node, namespace, "unenrolled")
}

/// Waits until a node's agent has written down, for the plugin, that a namespace is this.
pub(crate) fn until_kept(mesh: &Mesh, node: &str, namespace: &str, what: &str) -> Result<()> {
    let file = mesh.folder().join("agents").join(node).join("state/namespaces.json");
    let wanted = format!("\"{namespace}\":\"{what}\"");
    until(&format!("that a namespace is known to be {what}"), || {
        // Not there yet: written whole, by rename.
        let known = fs::read_to_string(&file).unwrap_or_default();
        Ok(known.contains(&wanted).then_some(()))
    })
    .with_context(|| format!("{namespace} in {}", file.display()))
}
