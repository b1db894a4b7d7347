//! Identities over real handshakes: who is refused and what both sides say of it, rotation under load, revocation.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Server, connect, read_exactly};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh};
use anyhow::{Context, Result};
use serde_json::Value;

mod handshakes;
mod lives;
mod revocation;

fn reason<'f>(flow: &'f Flow<'_>) -> &'f str {
    flow.reason.as_deref().unwrap_or_default()
}

/// Sends a few bytes there and back.
fn talk(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    assert_eq!(read_exactly(stream, 5)?, b"hello");
    Ok(())
}

fn call(client: &Pod, to: SocketAddr) -> Result<()> {
    talk(&mut connect(&client.host.netns, to)?)
}

/// A client on n1 and an echo server on n2, captured, by a CA with these settings.
fn pair(mesh: &mut Mesh, ca: &Value) -> Result<(Pod, Pod, Server)> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start_ca(ca)?;
    for node in ["n1", "n2"] {
        mesh.start_agent(node, &Value::Null)?;
    }
    let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
    let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    mesh.wait_captured(&client)?;
    mesh.wait_captured(&server)?;
    mesh.settle()?;
    Ok((client, server, serving))
}

fn serial(mesh: &Mesh, node: &str, identity: &str) -> Result<Option<String>> {
    let status = mesh.agent(node)?.status()?;
    Ok(status.certificates.into_iter().find(|held| held.identity == identity).and_then(|held| held.serial))
}

fn ca_status(mesh: &Mesh) -> Result<Value> {
    let said = mesh.ca()?.command("status", &["--json"])?;
    serde_json::from_str(&said).with_context(|| format!("the CA says {said}"))
}

#[test]
fn no_core_file_of_an_agent_is_written_as_keys_would_be_in_it() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start()?;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", mesh.agent("n1")?.process().id()))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<_> = core.context("the limit")?.split_whitespace().skip(4).collect();
        assert_eq!(core, ["0", "0", "bytes"], "{limits}");
        Ok(())
    })
}
