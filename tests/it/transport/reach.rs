//! Who is reached, as whom, and what a client sees that reaches nobody.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Server, connect, expect_reset, read_all};
use adit_tests::mesh::ServiceSpec;
use adit_tests::netns::Netns;
use anyhow::{Context, Result, bail};

use super::{PORT, Way, with_lanes, with_lanes_alone};
use crate::until::until;

/// What a server that tells its client's address says to this client.
fn who_am_i(client: &Netns, to: SocketAddr) -> Result<SocketAddr> {
    let said = read_all(&mut connect(client, to)?).with_context(|| format!("{to} says nothing"))?;
    let said = String::from_utf8(said)?;
    said.trim().parse().with_context(|| format!("{to} says {said:?}"))
}

#[test]
fn every_server_sees_its_clients_own_address() -> Result<()> {
    with_lanes(|mesh, places| {
        let servers = places.serve(&Behaviour::WhoAmI)?;
        for lane in places.lanes() {
            let first = mesh.agent(lane.agents()[0])?.process().next_line();
            let seen = who_am_i(&lane.client.netns, lane.to)?;
            assert_eq!(seen.ip(), lane.client.ip_like(lane.to.ip()), "{lane:?}");
            let accepted = servers.at(&lane).accepted();
            let reached = accepted.last().context("a connection")?.local;
            assert_eq!(reached, lane.to, "the address that the client dialled is the one that it reached");
            // A report of an earlier lane's, to the same server, may still come: that has another source.
            let is_its = |flow: &Flow<'_>| {
                let source = flow.source.addr.parse::<SocketAddr>();
                flow.destination.addr == lane.to.to_string()
                    && flow.state == "closed"
                    && source.is_ok_and(|source| source.ip() == lane.client.ip_like(lane.to.ip()))
            };
            let agent = mesh.agent(lane.agents()[0])?;
            let flow = agent.wait_for_flow(first, "the report of its own address", is_its)?;
            assert_eq!(flow.transport, lane.transport(), "{lane:?}: {flow:?}");
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_its_own_address_and_itself_behind_its_own_service() -> Result<()> {
    with_lanes(|mesh, places| {
        mesh.service(ServiceSpec::new("shop", "server", 1, 80, PORT))?;
        mesh.settle()?;
        let server = &places.server.host;
        let _serving = Server::start(&server.netns, PORT, Behaviour::WhoAmI)?;
        for ip in server.ips() {
            let seen = who_am_i(&server.netns, SocketAddr::new(ip, PORT))?;
            assert_eq!(seen.ip(), ip, "by its own address");
        }
        let loopback = SocketAddr::from(([127, 0, 0, 1], PORT));
        assert_eq!(who_am_i(&server.netns, loopback)?.ip(), loopback.ip(), "loopback is not captured");
        for vip in ["10.96.0.1:80", "[fd96::1]:80"] {
            let vip: SocketAddr = vip.parse()?;
            let first = mesh.agent("n2")?.process().next_line();
            let seen = who_am_i(&server.netns, vip)?;
            assert_eq!(seen.ip(), server.ip_like(vip.ip()), "by its own service");
            for direction in ["outbound", "inbound"] {
                let flow = mesh.agent("n2")?.wait_for_flow(first, "the report", |flow| {
                    flow.direction == direction && flow.state == "closed"
                })?;
                assert_eq!(flow.transport, "mtls", "{flow:?}");
                let identity = places.server.identity();
                assert_eq!(flow.source.identity.as_deref(), Some(identity.as_str()), "{flow:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_closed_port_of_a_captured_pod_refuses_clients_in_clear_as_it_would_without_the_mesh() -> Result<()> {
    with_lanes(|_, places| {
        for lane in places.lanes_to(9).into_iter().filter(|lane| lane.way == Way::PlaintextIn) {
            for client in [lane.client, &places.outside] {
                let refused = connect(&client.netns, lane.to).map_err(|error| error.kind());
                assert_eq!(
                    refused.err(),
                    Some(ErrorKind::ConnectionRefused),
                    "{} to {}",
                    client.name,
                    lane.to
                );
            }
        }
        Ok(())
    })
}

/// How long after connect() the connection was reset; an end without a reset is an error.
fn time_to_reset(client: &Netns, to: SocketAddr) -> Result<Duration> {
    // The clock begins before the dial, so this is more than the time from the failure.
    let begun = Instant::now();
    let read = connect(client, to).and_then(|mut stream| stream.read(&mut [0]));
    let took = begun.elapsed();
    match read {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(took),
        other => bail!("{to}: not reset but {other:?}"),
    }
}

/// The bound.
const RESET_WITHIN: Duration = Duration::from_millis(10);
/// Enough for a median that one pause of the machine does not move.
const TRIES: usize = 21;

#[test]
fn who_reaches_nobody_is_reset_within_10_ms() -> Result<()> {
    with_lanes_alone(|mesh, places| {
        // A service without any endpoint.
        mesh.service(ServiceSpec::new("shop", "nobody", 2, 80, PORT))?;
        mesh.settle()?;
        let vips = ["10.96.0.2:80", "[fd96::2]:80"].map(|vip| vip.parse::<SocketAddr>());
        let client = &places.client.host.netns;
        let mut cases = Vec::new();
        for vip in vips {
            cases.push((vip?, "no_endpoint"));
        }
        for lane in places.lanes_to(9) {
            match lane.way {
                Way::Passthrough | Way::PlaintextOut => cases.push((lane.to, "refused")),
                Way::Tunnel => cases.push((lane.to, "peer_app_unreachable")),
                Way::PlaintextIn => {}
            }
        }
        for (to, reason) in cases {
            let first = mesh.agent("n1")?.process().next_line();
            // Again where the machine did something else meanwhile: an agent that is slower is so each time.
            until(&format!("a reset by {to}, {reason}, within {RESET_WITHIN:?}"), || {
                let mut took = (0..TRIES).map(|_| time_to_reset(client, to)).collect::<Result<Vec<_>>>()?;
                took.sort_unstable();
                Ok((took[TRIES / 2] < RESET_WITHIN).then_some(()))
            })?;
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the report", |flow| {
                flow.destination.addr == to.to_string() && flow.direction == "outbound"
            })?;
            assert_eq!((&*flow.state, flow.reason.as_deref()), ("failed", Some(reason)), "{flow:?}");
            assert!(flow.hint.is_some(), "a refusal says what to do: {flow:?}");
        }
        Ok(())
    })
}

/// The link-local address of a pod's `eth0`.
fn link_local(pod: &Netns) -> Result<SocketAddrV6> {
    let table = pod.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"))??;
    let of_eth0 = |line: &&str| line.starts_with("fe80") && line.ends_with(" eth0");
    let line = table.lines().find(of_eth0).context("eth0 has a link-local address")?;
    let mut words = line.split_whitespace();
    let (ip, index) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let ip = Ipv6Addr::from(u128::from_str_radix(ip, 16)?);
    Ok(SocketAddrV6::new(ip, 0, 0, u32::from_str_radix(index, 16)?))
}

#[test]
fn the_agents_own_ports_refuse_the_pod_that_they_serve_at_once_and_say_so_once() -> Result<()> {
    with_lanes(|mesh, places| {
        let host = &places.server.host;
        // Addresses that nobody told the agent.
        host.netns.ip("addr add 10.72.0.1/32 dev lo\naddr add fd72::1/128 dev lo")?;
        // An agent that dialled itself would be out of ports soon, and not at the machine's limits.
        host.netns.sysctl("net/ipv4/ip_local_port_range", "61000 61100")?;
        let mut own: Vec<SocketAddr> = vec![link_local(&host.netns)?.into()];
        own.extend(host.ips().map(|ip| SocketAddr::new(ip, 0)));
        for ip in ["127.0.0.1", "127.0.0.2", "::1", "10.72.0.1", "fd72::1"] {
            own.push(SocketAddr::new(ip.parse()?, 0));
        }
        let agent = mesh.agent("n2")?;
        let first = agent.process().next_line();
        let mut expected = Vec::new();
        for mut to in own {
            for (port, direction, reason) in [
                (15001, "outbound", "loop"),
                (
                    15006,
                    "inbound",
                    if to.ip().to_string().starts_with("fe80") { "link_local" } else { "loop" },
                ),
            ] {
                to.set_port(port);
                expect_reset(&host.netns, to)?;
                expected.push((to, direction, reason));
            }
            // The agent itself dials this one, where a pod is its own peer. What is no agent gets no further.
            to.set_port(15008);
            let mut stream = connect(&host.netns, to)?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
            // An alert, at most; never an answer.
            let _cut = stream.read_to_end(&mut Vec::new());
            expected.push((to, "inbound", "peer_protocol"));
        }
        for (to, direction, reason) in expected {
            let of_it = |flow: &Flow<'_>| {
                let said = flow.destination.addr.parse::<SocketAddr>();
                said.is_ok_and(|said| (said.ip(), said.port()) == (to.ip(), to.port()))
            };
            let flow = agent.wait_for_flow(first, "the report", of_it)?;
            assert_eq!((&*flow.direction, flow.reason.as_deref()), (direction, Some(reason)), "{flow:?}");
            assert!(flow.duration_us < 2_000_000, "at once: {flow:?}");
            let lines = agent.process().lines_from(first);
            let flows = lines.iter().filter_map(|line| serde_json::from_str::<Flow<'_>>(line).ok());
            assert_eq!(flows.filter(of_it).count(), 1, "reports of {to}");
        }
        // From outside the pod, only tunnels get in.
        for ip in host.ips() {
            for port in [15001, 15006] {
                let to = SocketAddr::new(ip, port);
                let refused = connect(&places.stranger.host.netns, to).map_err(|error| error.kind());
                assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{to}");
            }
        }
        Ok(())
    })
}

#[test]
fn an_address_where_nobody_is_is_reached_as_it_was_before() -> Result<()> {
    with_lanes(|mesh, places| {
        // The network says that there is no such host; without the mesh connect() would have said it.
        let node = mesh.topology.node("n1")?;
        node.netns.ip("route add unreachable 198.51.100.0/24\nroute add unreachable 2001:db8:77::/64")?;
        for ip in ["198.51.100.7", "2001:db8:77::7"] {
            let to = SocketAddr::new(ip.parse::<IpAddr>()?, 80);
            let first = mesh.agent("n1")?.process().next_line();
            time_to_reset(&places.client.host.netns, to)?;
            let flow = mesh
                .agent("n1")?
                .wait_for_flow(first, "the report", |flow| flow.destination.addr == to.to_string())?;
            assert_eq!((flow.reason.as_deref(), &*flow.transport), (Some("unreachable"), "passthrough"));
        }
        Ok(())
    })
}
