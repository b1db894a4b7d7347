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

/// The agents that a mesh directory names, sorted by node.
pub(crate) fn agents(mesh: &Path) -> Result<Vec<Agent>> {
    let dir = mesh.join("status");
    let entries = fs::read_dir(&dir).with_context(|| {
        format!("no agents found: cannot read {} (is this a mesh directory?)", dir.display())
    })?;
    let mut agents = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let status: NodeStatus =
            serde_saphyr::from_str(&text).with_context(|| format!("{} is no status file", path.display()))?;
        if !status.admin_socket.is_empty() {
            agents.push(Agent { node: status.node, socket: status.admin_socket.into() });
        }
    }
    ensure!(!agents.is_empty(), "no agents found: {} names none", dir.display());
    agents.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(agents)
}

/// Asks every agent of the mesh the same; says on standard error which did not answer.
///
/// Fails if none did. The second value says whether all did.
pub(crate) async fn ask_all<T: DeserializeOwned>(mesh: &Path, path: &str) -> Result<(Vec<T>, bool)> {
    let agents = agents(mesh)?;
    let (mut answers, mut all) = (Vec::new(), true);
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
