//! What the mesh says of itself: probes, metrics, access log, flows, edges, the tool, and its complaints.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use adit_proto::admin::{Edges, Flow, Flows};
use adit_tests::WAIT_MAX;
use adit_tests::apps::{
    Behaviour, Load, Server, Shape, connect, expect_reset, read_all, read_exactly, run_load,
};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, ServiceSpec, with_mesh};
use adit_tests::netns::Netns;
use adit_tests::process::{Output, program};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::until::until;

mod files;
mod flows;
mod metrics;

/// A client on n1, a server on n2 behind a service, which echoes.
fn pair(mesh: &mut Mesh, settings: &Value) -> Result<(Pod, Pod, Server)> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start_ca(&Value::Null)?;
    for node in ["n1", "n2"] {
        mesh.start_agent(node, settings)?;
    }
    mesh.service(ServiceSpec::new("shop", "server", 1, 80, 8080))?;
    let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
    let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    mesh.settle()?;
    Ok((client, server, serving))
}

/// GET by plain HTTP in a namespace: head and body.
fn get(netns: &Netns, to: &str, path: &str, accept: &str) -> Result<(String, String)> {
    let mut stream = connect(netns, to.parse()?)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")?;
    let answer = String::from_utf8(read_all(&mut stream)?)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer with a head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Sends `len` bytes there and back and closes.
fn exchange(client: &Pod, to: SocketAddr, len: usize) -> Result<()> {
    let mut stream = connect(&client.host.netns, to)?;
    stream.write_all(&vec![7; len])?;
    assert_eq!(read_exactly(&mut stream, len)?.len(), len);
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(read_all(&mut stream)?, b"");
    Ok(())
}

/// Runs the tool, whatever its exit.
fn adit(mesh: &Mesh, args: &[&str]) -> Result<Output> {
    let node = mesh.topology.node("n1")?;
    node.netns.command(program("adit")?).env_clear().args(args).output()
}

/// Asks until the answer is as wanted.
fn wait<T: std::fmt::Debug>(
    what: &str,
    ask: impl Fn() -> Result<T>,
    wanted: impl Fn(&T) -> bool,
) -> Result<T> {
    let mut last = None;
    let found = until(what, || {
        let answer = ask()?;
        let is_wanted = wanted(&answer);
        last = Some(format!("{answer:?}"));
        Ok(is_wanted.then_some(answer))
    });
    found.with_context(|| format!("the last answer: {last:?}"))
}

#[test]
fn probes_say_what_an_agent_that_starts_still_lacks() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let node = mesh.topology.node("n1")?.netns.clone();
        // A mesh whose objects are not there yet: the agent runs, and is not ready.
        let objects = mesh.directory().join("objects");
        let away = mesh.directory().join("objects-away");
        std::fs::rename(&objects, &away)?;
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| -> Result<(String, String)> {
                let live = wait(
                    "the probe",
                    || Ok(get(&node, "127.0.0.1:15021", "/healthz/live", "*/*").ok()),
                    Option::is_some,
                )?;
                assert!(live.is_some_and(|(head, _)| head.starts_with("HTTP/1.1 200 ")));
                // The probes are served a moment before what is followed is known.
                let unready = wait(
                    "that it says what it lacks",
                    || get(&node, "127.0.0.1:15021", "/healthz/ready", "*/*"),
                    |(_, body)| body.contains("not synced yet"),
                )?;
                std::fs::rename(&away, &objects)?;
                Ok(unready)
            });
            mesh.start_agent("n1", &Value::Null)?;
            let (head, body) = starting.join().map_err(|_| anyhow::anyhow!("the prober panicked"))??;
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            for kind in
                ["not synced yet", "Pod", "Namespace", "Service", "EndpointSlice", "AuthorizationPolicy"]
            {
                assert!(body.contains(kind), "{kind}: {body}");
            }
            anyhow::Ok(())
        })?;
        for address in ["127.0.0.1:15021", "[::1]:15021"] {
            let (head, body) = get(&node, address, "/healthz/ready", "*/*")?;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head} {body}");
        }
        let status = mesh.agent("n1")?.status()?;
        assert!(status.ready && status.unmet.is_empty() && status.problems.is_empty(), "{status:?}");
        // The admin API is for the node alone; the metrics are not.
        let outside = mesh.topology.host("ca")?.netns.clone();
        let error = connect(&outside, "192.168.171.1:15000".parse()?).expect_err("loopback only");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let (head, _) = get(&node, "127.0.0.1:15000", "/status", "*/*")?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(())
    })
}
