//! What is revoked, an identity, a certificate or an intermediate, is cut at once and refused from then on.

use std::io::Read;
use std::net::TcpStream;

use adit_proto::admin::Flow;
use adit_tests::apps::connect;
use adit_tests::mesh::{Enrolment, Mesh, PodSpec, with_mesh};
use adit_tests::peers::{Authority, Peer, play_agent, read_bundle};
use anyhow::{Context, Result};
use serde_json::Value;

use super::{ca_status, call, pair, reason, serial, talk};
use crate::until::until;

#[test]
fn a_revoked_identity_is_cut_at_once_and_refused_from_then_on() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let bystander = mesh.add_pod(PodSpec::new("n1", "shop", "bystander"))?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        let mut other = connect(&bystander.host.netns, server.at(8080))?;
        talk(&mut live)?;
        talk(&mut other)?;
        let (first, first_server) =
            (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());

        mesh.ca()?.command("revoke", &["--identity", &client.identity()])?;
        let error = live.read(&mut [0]).expect_err("a revoked identity's connection is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let flow = mesh
            .agent("n2")?
            .wait_for_flow(first_server, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!(reason(&flow), "identity_revoked");
        assert_eq!(flow.source.identity.as_deref(), Some(client.identity().as_str()));
        let failed = |flow: &Flow<'_>| flow.direction == "outbound" && flow.state == "failed";
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert!(["identity_revoked", "tunnel_lost"].contains(&reason(&flow)), "{flow:?}");

        let (first, first_server) =
            (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());
        call(&client, server.at(8080)).expect_err("a new one is refused");
        let flow = mesh
            .agent("n2")?
            .wait_for_flow(first_server, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!(reason(&flow), "peer_revoked");
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert_eq!((reason(&flow), flow.attempts), ("identity_revoked", 1), "{flow:?}");

        talk(&mut other)?;
        call(&bystander, server.at(8080))?;
        mesh.ca()?.command("revoke", &["--undo", "--identity", &client.identity()])?;
        until("that the identity is restored", || Ok(call(&client, server.at(8080)).ok()))
    })
}

#[test]
fn a_revoked_certificate_is_cut_and_its_agent_gets_another_at_once() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        let first = mesh.agent("n1")?.process().next_line();
        talk(&mut live)?;
        let revoked = serial(mesh, "n2", &server.identity())?.context("the server's serial")?;
        mesh.ca()?.command("revoke", &["--serial", &revoked])?;
        is_cut(mesh, &mut live, first, &revoked)?;

        until("that the server's next certificate is taken", || Ok(call(&client, server.at(8080)).ok()))?;
        let next = serial(mesh, "n2", &server.identity())?.context("the server's next serial")?;
        assert_ne!(next, revoked, "it was replaced");
        Ok(())
    })
}

#[test]
fn who_keeps_showing_a_revoked_certificate_is_cut_and_refused_until_it_shows_another() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &Value::Null)?;
        mesh.topology.add_node("played")?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("played", "shop", "server"))?;
        play_agent(mesh, "played", &[&server])?;
        mesh.wait_captured(&client)?;
        mesh.settle()?;
        let roots = mesh.folder().join("roots.pem");
        read_bundle(mesh, &roots)?;
        let token = mesh.ca()?.add_node("played")?;
        let authority = Authority { address: mesh.ca()?.address(), roots, token };
        // It holds what it was given, and hears of nothing.
        let serve = |mesh: &Mesh, name: &str| -> Result<Peer> {
            let held =
                authority.issue(&server.host.netns, &server.identity(), 600, &mesh.folder().join(name))?;
            Peer::hbone(&server.host.netns, &held, &authority.roots, "echo")
        };
        let serving = serve(mesh, "revoked")?;
        let first = mesh.agent("n1")?.process().next_line();
        call(&client, server.at(8080))?;
        let flow =
            mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| flow.tls.is_some())?;
        let revoked = flow.tls.context("a handshake")?.peer_serial.into_owned();
        let first = mesh.agent("n1")?.process().next_line();
        let mut live = connect(&client.host.netns, server.at(8080))?;
        talk(&mut live)?;
        mesh.ca()?.command("revoke", &["--serial", &revoked])?;
        is_cut(mesh, &mut live, first, &revoked)?;

        let first = mesh.agent("n1")?.process().next_line();
        call(&client, server.at(8080)).expect_err("the revoked certificate is refused");
        let failed = |flow: &Flow<'_>| flow.direction == "outbound" && flow.state == "failed";
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert_eq!((reason(&flow), flow.attempts), ("peer_revoked", 1));
        drop(serving);
        let _serving = serve(mesh, "next")?;
        until("that the next certificate is taken", || Ok(call(&client, server.at(8080)).ok()))
    })
}

/// The client's connection is reset, and its agent, from this line of its log on, says that this certificate is why.
fn is_cut(mesh: &Mesh, live: &mut TcpStream, first: u64, revoked: &str) -> Result<()> {
    let error = live.read(&mut [0]).expect_err("a revoked server's connection is reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let failed = |flow: &Flow<'_>| flow.direction == "outbound" && flow.state == "failed";
    let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
    assert_eq!(reason(&flow), "identity_revoked");
    assert_eq!(flow.tls.context("a handshake")?.peer_serial, revoked);
    Ok(())
}

#[test]
fn a_revoked_intermediate_is_cut_from_under_live_connections_and_the_mesh_goes_on_with_the_next() -> Result<()>
{
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        talk(&mut live)?;
        let issuing = |mesh: &Mesh| -> Result<String> {
            let status = ca_status(mesh)?;
            Ok(status["issuing"]["serial"].as_str().context("the intermediate's serial")?.to_owned())
        };
        let leaked = issuing(mesh)?;
        let first = mesh.agent("n2")?.process().next_line();

        mesh.ca()?.command("revoke", &["--serial", &leaked])?;
        let error = live.read(&mut [0]).expect_err("what rests on it is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let failed = |flow: &Flow<'_>| flow.state == "failed";
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the server's report", failed)?;
        assert!(["identity_revoked", "tunnel_lost"].contains(&reason(&flow)), "{flow:?}");

        until("that both have certificates of the next", || Ok(call(&client, server.at(8080)).ok()))?;
        assert_ne!(issuing(mesh)?, leaked);
        Ok(())
    })
}
