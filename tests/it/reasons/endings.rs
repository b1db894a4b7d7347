//! How connections end that were carried.

use std::net::{Shutdown, SocketAddr};

use adit_tests::apps::reset;
use nix::sys::signal::Signal;

use super::rogue::silent_server;
use super::*;

pub(super) static ENDS: Scenario = Scenario {
    shows: &[Reason::IdleTimeout, Reason::ResetByClient, Reason::ResetByServer],
    agents: || [json!({ "dataplane": { "half-closed-timeout": "1s" } }), Value::Null],
    ca: usual_ca,
    play: ends,
};

fn ends(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let mark = Mark::now(mesh)?;
    reset(held(&stage.web, stage.api.at(HTTP))?)?;
    stage.lines(mesh, &mark, Reason::ResetByClient, Reason::ResetByClient)?;

    let _resets = Server::start(&stage.api.host.netns, 7071, Behaviour::Reset)?;
    let mark = Mark::now(mesh)?;
    refused(&stage.web, stage.api.at(7071))?;
    stage.lines(mesh, &mark, Reason::ResetByServer, Reason::ResetByServer)?;

    let _silent = silent_server(&stage.api.host.netns, 7070)?;
    let mark = Mark::now(mesh)?;
    let open = connect(&stage.web.host.netns, stage.api.at(7070))?;
    open.shutdown(Shutdown::Write)?;
    stage.line(mesh, &mark, Side::Out, Reason::IdleTimeout, Some(&stage.api.identity()))?;
    Ok(())
}

pub(super) static DEPARTURES: Scenario = Scenario {
    shows: &[Reason::PodGone, Reason::Drained, Reason::TunnelLost, Reason::Aborted],
    agents: || [json!({ "pods": { "drain-deadline": "1s" }, "stop-within": "100ms" }), Value::Null],
    ca: usual_ca,
    play: departures,
};

fn departures(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let cart = mesh.add_pod(PodSpec::new("n1", "shop", "cart"))?;
    let db = mesh.add_pod(PodSpec::new("n2", "shop", "db"))?;
    let _echo = Server::start(&db.host.netns, HTTP, Behaviour::Echo)?;
    for pod in [&cart, &db] {
        mesh.wait_captured(pod)?;
    }
    mesh.settle()?;
    let mut lost = held(&cart, db.at(HTTP))?;
    let mut drained = held(&stage.web, db.at(HTTP))?;
    let mut gone = held(&stage.web, stage.api.at(HTTP))?;

    let mark = Mark::now(mesh)?;
    mesh.remove_pod(&stage.api)?;
    stage.line(mesh, &mark, Side::In, Reason::PodGone, Some(&stage.web.identity()))?;
    ensure!(!echoes(&mut gone) && echoes(&mut drained), "only what went to that pod");

    let mark = Mark::now(mesh)?;
    mesh.change_pod(&stage.web, |spec| {
        drop(spec.labels.insert("adit.dev/mesh".to_owned(), "disabled".to_owned()))
    })?;
    stage.line(mesh, &mark, Side::Out, Reason::Drained, Some(&db.identity()))?;
    ensure!(!echoes(&mut drained) && echoes(&mut lost), "only what came from that pod");

    let mark = Mark::now(mesh)?;
    mesh.take_agent("n2")?.kill()?;
    let near = mesh.agent("n1")?;
    let told = near.wait_for_flow(mark.0[0], "the tunnel's end", |flow| flow.state == "failed")?;
    stage.check(Side::Out, Reason::TunnelLost, Some(&db.identity()), &told)?;
    ensure!(told.reason.as_deref() == Some("tunnel_lost") && !echoes(&mut lost), "{told:?}");

    let outside = mesh.topology.host("ca")?.clone();
    let _echo = Server::start(&outside.netns, HTTP, Behaviour::Echo)?;
    let _open = held(&cart, SocketAddr::new(outside.v4.into(), HTTP))?;
    let agent = mesh.take_agent("n1")?;
    let first = agent.process().next_line();
    agent.process().signal(Signal::SIGTERM)?;
    let told = agent.wait_for_flow(first, "that the agent stopped", |flow| flow.state == "failed")?;
    ensure!(told.reason.as_deref() == Some("aborted"), "{told:?}");
    stage.check(Side::Out, Reason::Aborted, None, &told)
}
