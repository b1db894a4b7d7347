//! The main job, once and whole: the same pods in clear and then enrolled, on two nodes and on one.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use adit_proto::hbone;
use adit_tests::apps::{Behaviour, Server, connect, read_exactly};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh};
use adit_tests::sniffer::Sniffer;
use anyhow::{Context, Result};

/// What is searched for on the wire: fresh for each exchange, so that nothing else can be found for it.
fn marker() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("chance")?;
    Ok(bytes)
}

/// Sends a marker there and back; returns how many packets to the server's tunnel port each of these nodes, or the wire
/// between them (`None`), saw, and how many with the marker.
fn exchange(mesh: &Mesh, client: &Pod, to: SocketAddr, links: &[Option<&str>]) -> Result<Vec<[usize; 2]>> {
    let marker = marker()?;
    let sniff = |link: &Option<&str>| match link {
        Some(node) => Sniffer::start(&mesh.topology.node(node)?.netns),
        None => Sniffer::start(mesh.topology.wire()),
    };
    let sniffers = links.iter().map(sniff).collect::<Result<Vec<_>>>()?;
    let mut stream = connect(&client.host.netns, to)?;
    stream.write_all(&marker)?;
    assert_eq!(read_exactly(&mut stream, marker.len())?, marker);
    drop(stream);
    let count = |sniffer: Sniffer| -> Result<[usize; 2]> {
        let captured = sniffer.stop()?;
        let marked = captured.count_of(&marker)?;
        Ok([captured.packets().iter().filter(|packet| is_tunnelled(&packet.bytes, to.ip())).count(), marked])
    };
    sniffers.into_iter().map(count).collect()
}

/// Whether a packet goes to the tunnel port of `ip`: an IP header without options ends with the destination's address,
/// and TCP's begins with the ports.
fn is_tunnelled(packet: &[u8], ip: IpAddr) -> bool {
    let address = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let port = hbone::PORT_INBOUND_HBONE.to_be_bytes();
    let ends = packet.windows(address.len() + 4).filter(|window| window.starts_with(&address));
    ends.into_iter().any(|window| window.ends_with(&port))
}

#[test]
fn the_same_pods_are_read_in_clear_and_then_enrolled_without_a_clear_byte_on_any_link() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        mesh.namespace("shop", Enrolment::Unsaid)?;
        mesh.start()?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let near = mesh.add_pod(PodSpec::new("n1", "shop", "near"))?;
        let far = mesh.add_pod(PodSpec::new("n2", "shop", "far"))?;
        let start = |pod: &Pod| Server::start(&pod.host.netns, 8080, Behaviour::Echo);
        let serving = [start(&near)?, start(&far)?];
        mesh.settle()?;

        // Two pods of one node are on no wire.
        let ways: [(&Pod, &[Option<&str>]); 2] =
            [(&near, &[Some("n1")]), (&far, &[Some("n1"), None, Some("n2")])];
        let all = |mesh: &Mesh| -> Result<Vec<(SocketAddr, [usize; 2])>> {
            let mut seen = Vec::new();
            for (server, links) in ways {
                for to in [server.at(8080), server.at_v6(8080)] {
                    seen.extend(exchange(mesh, &client, to, links)?.into_iter().map(|counts| (to, counts)));
                }
            }
            Ok(seen)
        };
        let clear = all(mesh)?;
        assert!(
            clear.iter().all(|(_, [tunnelled, marked])| *tunnelled == 0 && *marked > 0),
            "in clear: {clear:?}"
        );

        mesh.namespace("shop", Enrolment::Enabled)?;
        for pod in [&client, &near, &far] {
            mesh.wait_captured(pod)?;
        }
        mesh.settle()?;
        let first = [mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line()];
        let enrolled = all(mesh)?;
        assert!(enrolled.iter().all(|(_, [tunnelled, _])| *tunnelled > 0), "it went this way: {enrolled:?}");
        assert!(enrolled.iter().all(|(_, [_, marked])| *marked == 0), "it was read: {enrolled:?}");

        for (server, node, first) in [(&near, "n1", first[0]), (&far, "n2", first[1])] {
            for to in [server.at(8080), server.at_v6(8080)] {
                let flow = mesh.agent(node)?.wait_for_flow(first, "the server's report", |flow| {
                    flow.direction == "inbound"
                        && flow.destination.addr == to.to_string()
                        && flow.state == "closed"
                })?;
                assert_eq!(flow.source.identity.as_deref(), Some(client.identity().as_str()));
                let tls = flow.tls.expect("a tunnel has a handshake");
                assert_eq!((&*tls.version, &*tls.group), ("TLSv1.3", "X25519MLKEM768"));
            }
        }
        for server in serving {
            let seen: Vec<_> = server.accepted().iter().map(|accepted| accepted.peer.ip()).collect();
            assert_eq!(seen, client.host.ips().repeat(2), "the app sees its real client, before and after");
        }
        Ok(())
    })
}

#[test]
fn an_agent_takes_all_descriptors_that_it_may_have() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start()?;
        let file = format!("/proc/{}/limits", mesh.agent("n1")?.process().id());
        let limits = std::fs::read_to_string(file)?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let mut bounds = line.unwrap_or_default().split_whitespace();
        let (soft, hard) = (bounds.next(), bounds.next());
        assert!(soft.is_some() && soft == hard && soft != Some("1024"), "{limits}");
        Ok(())
    })
}
