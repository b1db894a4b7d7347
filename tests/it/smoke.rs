//! The main job, once and whole: two pods on two nodes, enrolled from their start.

use std::io::Write;

use adit_tests::apps::{Behaviour, Server, connect, read_exactly};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh};
use adit_tests::sniffer::Sniffer;
use anyhow::Result;

const MARKER: &[u8; 32] = b"thirty-two bytes in clear: 74c91";

/// Sends the marker there and back by both families; returns how many packets with it each link saw.
fn clear_packets(mesh: &Mesh, client: &Pod, server: &Pod) -> Result<Vec<usize>> {
    let sniffers = [
        Sniffer::start(mesh.topology.wire())?,
        Sniffer::start(&mesh.topology.node("n1")?.netns)?,
        Sniffer::start(&mesh.topology.node("n2")?.netns)?,
    ];
    for to in [server.at(8080), server.at_v6(8080)] {
        let mut stream = connect(&client.host.netns, to)?;
        stream.write_all(MARKER)?;
        assert_eq!(read_exactly(&mut stream, MARKER.len())?, MARKER);
    }
    sniffers.into_iter().map(|sniffer| sniffer.stop()?.count_of(MARKER)).collect()
}

#[test]
fn enrolled_pods_talk_under_their_identities_and_no_clear_byte_is_on_any_link() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let mut pair = |namespace| -> Result<(Pod, Pod, Server)> {
            let client = mesh.add_pod(PodSpec::new("n1", namespace, "client"))?;
            let server = mesh.add_pod(PodSpec::new("n2", namespace, "server"))?;
            let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
            Ok((client, server, serving))
        };
        let (plain_client, plain_server, _plain) = pair("plain")?;
        let (client, server, serving) = pair("shop")?;
        mesh.wait_captured(&client)?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;

        let clear = clear_packets(mesh, &plain_client, &plain_server)?;
        assert!(
            clear.iter().all(|packets| *packets > 0),
            "without the mesh the marker can be read: {clear:?}"
        );
        let first = mesh.agent("n2")?.process().next_line();
        assert_eq!(clear_packets(mesh, &client, &server)?, [0, 0, 0]);

        for to in [server.at(8080), server.at_v6(8080)] {
            let flow = mesh.agent("n2")?.wait_for_flow(first, "the server's report", |flow| {
                flow.destination.addr == to.to_string() && flow.state == "closed"
            })?;
            assert_eq!(flow.source.identity.as_deref(), Some(client.identity().as_str()));
            let tls = flow.tls.expect("a tunnel has a handshake");
            assert_eq!((&*tls.version, &*tls.group), ("TLSv1.3", "X25519MLKEM768"));
        }
        let seen: Vec<_> = serving.accepted().iter().map(|accepted| accepted.peer.ip()).collect();
        assert_eq!(seen, client.host.ips(), "the app sees its real client");
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
