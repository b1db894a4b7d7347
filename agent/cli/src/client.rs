//! Finds the agents of a mesh and asks their admin API. An agent that does not answer is named, and the others are
//! still asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_proto::status::NodeStatus;
use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// How long an agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer that is read: ten thousand flows of about 1.5 KiB are 15 MiB.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// One agent of the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// Its node.
    pub(crate) node: String,
    socket: PathBuf,
}

/// What a mesh directory says of its agents.
#[derive(Debug, Default)]
struct Found {
    /// Sorted by node.
    agents: Vec<Agent>,
    /// Status files that name no agent, with the reason: another's mistake must not hide the others.
    unreadable: Vec<String>,
}

/// The agents that a mesh directory names.
fn agents(mesh: &Path) -> Result<Found> {
    let dir = mesh.join("status");
    let entries = fs::read_dir(&dir).with_context(|| {
        format!("no agents found: cannot read {} (is this a mesh directory?)", dir.display())
    })?;
    let mut found = Found::default();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        match agent(&path) {
            Ok(Some(agent)) => found.agents.push(agent),
            Ok(None) => {}
            Err(error) => found.unreadable.push(format!("{error:#}")),
        }
    }
    found.agents.sort_by(|a, b| a.node.cmp(&b.node));
    found.unreadable.sort();
    Ok(found)
}

/// The agent that a status file names; `None` if it offers no admin API.
fn agent(path: &Path) -> Result<Option<Agent>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let status: NodeStatus = serde_saphyr::from_str(&text).map_err(|error| {
        anyhow::anyhow!("{} is no status file: {}", path.display(), error.without_snippet())
    })?;
    let offers = !status.admin_socket.is_empty();
    Ok(offers.then(|| Agent { node: status.node, socket: status.admin_socket.into() }))
}

/// Asks every agent of the mesh the same; says on standard error which did not answer.
///
/// Fails if none did. The second value says whether all did, and all could be found.
pub(crate) async fn ask_all<T: DeserializeOwned>(mesh: &Path, path: &str) -> Result<(Vec<T>, bool)> {
    let Found { agents, unreadable } = agents(mesh)?;
    for complaint in &unreadable {
        eprintln!("adit: {complaint}");
    }
    ensure!(!agents.is_empty(), "no agents found: {} names none", mesh.join("status").display());
    let (mut answers, mut all) = (Vec::new(), unreadable.is_empty());
    for agent in &agents {
        match ask(agent, path).await {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                all = false;
                eprintln!("adit: the agent of node {} did not answer: {error:#}", agent.node);
            }
        }
    }
    ensure!(!answers.is_empty(), "no agent answered");
    Ok((answers, all))
}

async fn ask<T: DeserializeOwned>(agent: &Agent, path: &str) -> Result<T> {
    let body = match tokio::time::timeout(ANSWER_WITHIN, fetch(&agent.socket, path)).await {
        Ok(body) => body?,
        Err(_) => bail!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    };
    serde_json::from_slice(&body).with_context(|| format!("its answer to {path} is not understood"))
}

async fn fetch(socket: &Path, path: &str) -> Result<Bytes> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?
        .to_bytes();
    connection.abort();
    ensure!(status == StatusCode::OK, "it answered {status}: {}", String::from_utf8_lossy(&body).trim());
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_status_file_is_named_and_hides_no_agent() {
        let mesh = tempfile::tempdir().unwrap();
        let status = mesh.path().join("status");
        fs::create_dir(&status).unwrap();
        for (name, text) in [
            ("b.yaml", "node: b\nadmin-socket: /run/b.sock\n"),
            ("a.yaml", "node: a\nadmin-socket: /run/a.sock\n"),
            ("broken.yaml", "node: [\n"),
            ("silent.yaml", "node: silent\n"),
            ("note.txt", "no status at all"),
        ] {
            fs::write(status.join(name), text).unwrap();
        }
        let Found { agents, unreadable } = agents(mesh.path()).unwrap();
        let nodes: Vec<_> = agents.iter().map(|agent| agent.node.as_str()).collect();
        assert_eq!(nodes, ["a", "b"]);
        assert!(matches!(&*unreadable, [one] if one.contains("broken.yaml")), "{unreadable:?}");
    }
}
