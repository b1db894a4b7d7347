//! The connect phase against real faults: each line of the retry table, its budget on the wire, ejection, deadlines.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Server, connect, read_exactly};
use adit_tests::mesh::{Agent, Enrolment, Mesh, Pod, PodSpec, ServiceSpec, with_mesh, with_mesh_alone};
use adit_tests::peers::{Authority, Peer, play_agent, read_bundle};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::until::until;

mod bounds;
mod played;

fn vip() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 1], 80))
}

/// One connection that is used; an error unless it is carried.
fn call(client: &Pod, to: SocketAddr) -> Result<()> {
    exchange(connect(&client.host.netns, to)?)
}

fn exchange(mut stream: TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    assert_eq!(read_exactly(&mut stream, 5)?, b"hello");
    Ok(())
}

/// The same, with the client's agent's report of it.
fn reported(mesh: &Mesh, client: &Pod, to: SocketAddr) -> Result<(Result<()>, Flow<'static>)> {
    let first = mesh.agent("n1")?.process().next_line();
    // The reset may come before connect() has returned, and then nobody knows the port.
    let (own, called) = match connect(&client.host.netns, to) {
        Ok(stream) => (stream.local_addr()?.to_string(), exchange(stream)),
        Err(error) => (String::new(), Err(error.into())),
    };
    let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
        flow.direction == "outbound" && flow.state != "open" && (own.is_empty() || flow.source.addr == own)
    })?;
    Ok((called, flow))
}

/// Calls until one met the fault: it was carried all the same, at the second attempt, and the first failed so.
fn carried_after(mesh: &Mesh, client: &Pod, failure: &str) -> Result<Flow<'static>> {
    until("a connection that meets the fault", || {
        let (called, flow) = reported(mesh, client, vip())?;
        called.with_context(|| format!("{flow:?}"))?;
        if flow.attempts == 1 {
            return Ok(None);
        }
        assert_eq!((flow.attempts, flow.last_failure.as_deref()), (2, Some(failure)), "{flow:?}");
        Ok(Some(flow))
    })
}

/// Not carried, with this reason and so many attempts.
fn fails(mesh: &Mesh, client: &Pod, to: SocketAddr, reason: &str, attempts: u16) -> Result<Flow<'static>> {
    let (called, flow) = reported(mesh, client, to)?;
    let error = called.expect_err("it cannot be carried");
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    assert_eq!((flow.reason.as_deref(), flow.attempts), (Some(reason), attempts), "{flow:?}");
    Ok(flow)
}

/// A client on n1 and echo servers behind one service, one on each other node.
fn shop(mesh: &mut Mesh, nodes: &[&str]) -> Result<(Pod, Vec<(Pod, Server)>)> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start()?;
    mesh.service(ServiceSpec::new("shop", "web", 1, 80, 8080))?;
    let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    mesh.wait_captured(&client)?;
    let mut servers = Vec::new();
    for node in nodes {
        let spec = PodSpec::new(node, "shop", &format!("web-{node}")).label("app", "web").account("web");
        let pod = mesh.add_pod(spec)?;
        let serving = Server::start(&pod.host.netns, 8080, Behaviour::Echo)?;
        mesh.wait_captured(&pod)?;
        servers.push((pod, serving));
    }
    mesh.settle()?;
    Ok((client, servers))
}

/// A client on n1 and pods of one service on a node whose agent is played: nothing listens on 15008 there.
fn played(mesh: &mut Mesh, pods: usize) -> Result<(Pod, Vec<Pod>)> {
    let (client, _) = shop(mesh, &[])?;
    mesh.topology.add_node("played")?;
    let mut endpoints = Vec::new();
    for number in 0..pods {
        let spec = PodSpec::new("played", "shop", &format!("web-{number}"));
        endpoints.push(mesh.add_pod(spec.label("app", "web").account("web"))?);
    }
    play_agent(mesh, "played", &endpoints.iter().collect::<Vec<_>>())?;
    mesh.settle()?;
    Ok((client, endpoints))
}

fn traffic_policy(mesh: &mut Mesh, spec: &str) -> Result<()> {
    mesh.apply(
        "traffic",
        &format!(
            "apiVersion: policy.adit.dev/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{ name: web, namespace: shop }}\n\
             spec: {{ targetRefs: [{{ group: '', kind: Service, name: web }}], {spec} }}\n"
        ),
    )?;
    mesh.settle()
}

/// Neither earned retries nor a floor: only what is free of budget is tried again.
const NO_BUDGET: &str = "retryConstraint: { budget: { percent: 0 }, minRetryRate: { count: 0 } }";

/// As many retries as a test may want: by default a lone connection has no second one within 100 ms.
const AMPLE_BUDGET: &str = "retryConstraint: { budget: { percent: 100 }, minRetryRate: { count: 100000 } }";

/// Rules of a node: packets forwarded to this pod's 15008.
fn forward(mesh: &Mesh, pod: &Pod, verb: &str, to: &str) -> Result<()> {
    let node = &mesh.topology.node(&pod.spec.node)?.netns;
    let rule = format!("{verb} FORWARD -d {} -p tcp --dport 15008 -j {to}", pod.host.v4);
    node.command("iptables").args(["-w", "5"]).args(rule.split(' ')).ok().map(drop)
}

#[test]
fn a_killed_agent_is_refused_and_another_replica_carries_until_it_is_back() -> Result<()> {
    with_mesh(&["n1", "n2", "n3"], |mesh| {
        let (client, servers) = shop(mesh, &["n2", "n3"])?;
        mesh.take_agent("n2")?.kill()?;
        carried_after(mesh, &client, "refused")?;
        let (called, flow) = reported(mesh, &client, servers[0].0.at(8080))?;
        called.expect_err("by its address there is nothing else to try");
        assert!(flow.attempts > 1 && flow.last_failure.as_deref() == Some("refused"), "{flow:?}");
        let seen = servers[0].1.accepted().len();
        mesh.start_agent("n2", &Value::Null)?;
        until("that the replica serves again", || {
            let _ = call(&client, vip());
            Ok((servers[0].1.accepted().len() > seen).then_some(()))
        })
    })
}

#[test]
fn a_replica_that_the_network_cannot_reach_costs_one_attempt() -> Result<()> {
    with_mesh(&["n1", "n2", "n3"], |mesh| {
        let (client, servers) = shop(mesh, &["n2", "n3"])?;
        forward(mesh, &servers[0].0, "-I", "REJECT --reject-with icmp-host-unreachable")?;
        carried_after(mesh, &client, "unreachable")?;
        Ok(())
    })
}

#[test]
fn the_only_endpoint_s_app_that_is_down_is_not_tried_twice() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, mut servers) = shop(mesh, &["n2"])?;
        traffic_policy(mesh, AMPLE_BUDGET)?;
        let (down, serving) = servers.remove(0);
        drop(serving);
        until("that the app is down", || Ok(call(&client, down.at(8080)).err()))?;
        fails(mesh, &client, vip(), "peer_app_unreachable", 1)?;
        Ok(())
    })
}

#[test]
fn a_replica_that_swallows_packets_costs_one_attempt_of_a_second() -> Result<()> {
    with_mesh(&["n1", "n2", "n3"], |mesh| {
        let (client, servers) = shop(mesh, &["n2", "n3"])?;
        forward(mesh, &servers[0].0, "-I", "DROP")?;
        let flow = carried_after(mesh, &client, "connect_timeout")?;
        let total = Duration::from_micros(flow.stages_us.values().sum());
        let took = Duration::from_micros(flow.duration_us);
        assert!(took >= Duration::from_secs(1), "{total:?} of {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        Ok(())
    })
}

#[test]
fn an_app_that_is_down_is_tried_elsewhere_by_service_and_never_by_address() -> Result<()> {
    with_mesh(&["n1", "n2", "n3"], |mesh| {
        let (client, mut servers) = shop(mesh, &["n2", "n3"])?;
        traffic_policy(mesh, AMPLE_BUDGET)?;
        let (down, serving) = servers.remove(0);
        drop(serving);
        until("that the app is down", || Ok(call(&client, down.at(8080)).err()))?;
        carried_after(mesh, &client, "peer_app_unreachable")?;
        fails(mesh, &client, down.at(8080), "peer_app_unreachable", 1)?;
        drop(servers);
        let (called, flow) = until("that no app is left", || {
            let (called, flow) = reported(mesh, &client, vip())?;
            Ok(called.is_err().then_some((called, flow)))
        })?;
        assert!(called.is_err());
        assert_eq!((flow.reason.as_deref(), flow.attempts), (Some("peer_app_unreachable"), 2), "{flow:?}");
        Ok(())
    })
}

#[test]
fn an_address_that_is_another_pods_by_now_is_looked_up_once_more() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, servers) = shop(mesh, &["n2"])?;
        let (real, _serving) = &servers[0];
        // Another pod of the same account, whose address in truth leads into this one.
        let ghost = mesh.add_pod(PodSpec::new("n2", "shop", "ghost").account("web"))?;
        mesh.wait_captured(&ghost)?;
        ghost.host.netns.ip("link set eth0 arp off")?;
        real.host.netns.ip(&format!("addr add {}/32 dev eth0", ghost.host.v4))?;
        mesh.settle()?;
        let first = mesh.agent("n2")?.process().next_line();
        fails(mesh, &client, ghost.at(8080), "peer_not_this_pod", 2)?;
        let flow =
            mesh.agent("n2")?.wait_for_flow(first, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!(flow.reason.as_deref(), Some("not_this_pod"));
        Ok(())
    })
}
