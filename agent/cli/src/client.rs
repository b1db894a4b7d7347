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
use tokio::task::JoinHandle;

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

/// Asks every agent of the mesh the same, all at once; says on standard error which did not answer.
///
/// The answers are in the order of the nodes. Fails if there is none. The second value says whether all did, and all
/// could be found.
pub(crate) async fn ask_all<T: DeserializeOwned>(mesh: &Path, path: &str) -> Result<(Vec<T>, bool)> {
    let Found { agents, unreadable } = agents(mesh)?;
    for complaint in &unreadable {
        eprintln!("adit: {complaint}");
    }
    ensure!(!agents.is_empty(), "no agents found: {} names none", mesh.join("status").display());
    let (mut answers, mut all) = (Vec::new(), unreadable.is_empty());
    let asked: Vec<(String, JoinHandle<Result<Bytes>>)> = agents
        .into_iter()
        .map(|agent| (agent.node, tokio::spawn(ask(agent.socket, path.to_owned()))))
        .collect();
    for (node, asked) in asked {
        let answer = asked.await.map_err(Into::into).flatten();
        let understood = answer.and_then(|answer| {
            serde_json::from_slice(&answer).with_context(|| format!("its answer to {path} is not understood"))
        });
        match understood {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                all = false;
                eprintln!("adit: the agent of node {node} did not answer: {error:#}");
            }
        }
    }
    ensure!(!answers.is_empty(), "no agent answered");
    Ok((answers, all))
}

async fn ask(socket: PathBuf, path: String) -> Result<Bytes> {
    match tokio::time::timeout(ANSWER_WITHIN, fetch(&socket, &path)).await {
        Ok(body) => body,
        Err(_) => bail!("no answer within {} s", ANSWER_WITHIN.as_secs()),
    }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn agents_that_are_silent_are_waited_for_at_once_and_hide_no_answer() {
        let mesh = tempfile::tempdir().unwrap();
        let status = mesh.path().join("status");
        fs::create_dir(&status).unwrap();
        let listen = |node: &str| {
            let socket = mesh.path().join(node);
            let text = format!("node: {node}\nadmin-socket: {}\n", socket.display());
            fs::write(status.join(format!("{node}.yaml")), text).unwrap();
            UnixListener::bind(socket).unwrap()
        };
        // Their backlogs take the connection, and nobody reads.
        let _silent = ["a", "b", "d"].map(listen);
        let answering = listen("c");
        tokio::spawn(async move {
            let (mut stream, _) = answering.accept().await.unwrap();
            let mut asked = [0; 512];
            assert!(stream.read(&mut asked).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42").await.unwrap();
        });
        let begun = Instant::now();
        let (answers, all) = ask_all::<u64>(mesh.path(), "/x").await.unwrap();
        assert_eq!((answers, all), (vec![42], false));
        assert!(begun.elapsed() < ANSWER_WITHIN * 2, "{:?}", begun.elapsed());
    }

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
