//! The harness itself: what the other tests stand on is shown to work, and to notice when it does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use adit_tests::apps::{
    Behaviour, End, Load, LoadReport, Pattern, Server, Shape, connect, read_all, read_exactly,
};
use adit_tests::process::program;
use adit_tests::sniffer::Sniffer;
use adit_tests::topology::Topology;
use anyhow::{Context, Result};

/// Two nodes; pods a and b on the first, c on the second; o outside.
fn small() -> Result<Topology> {
    let mut topology = Topology::new()?;
    topology.add_node("n1")?;
    topology.add_outside("o")?;
    topology.add_node("n2")?;
    topology.add_pod("n1", "a")?;
    topology.add_pod("n1", "b")?;
    topology.add_pod("n2", "c")?;
    Ok(topology)
}

#[test]
fn everybody_reaches_everybody_by_both_families_with_his_own_address() -> Result<()> {
    let topology = small()?;
    let hosts = ["a", "b", "c", "o"].map(|name| topology.host(name));
    for server in &hosts {
        let server = server.as_ref().expect("it was just added");
        let serving = Server::start(&server.netns, 8080, Behaviour::WhoAmI)?;
        for client in &hosts {
            let client = client.as_ref().expect("it was just added");
            for ip in server.ips() {
                let mut stream = connect(&client.netns, SocketAddr::new(ip, serving.port()))
                    .with_context(|| format!("{} to {} by {ip}", client.name, server.name))?;
                let seen: SocketAddr = String::from_utf8(read_all(&mut stream)?)?.trim().parse()?;
                assert_eq!(seen.ip(), client.ip_like(ip), "{} to {} by {ip}", client.name, server.name);
            }
        }
    }
    Ok(())
}

#[test]
fn a_node_reaches_its_pods_and_pods_their_node() -> Result<()> {
    let topology = small()?;
    let node = topology.node("n1")?;
    let _on_node = Server::start(&node.netns, 8080, Behaviour::Echo)?;
    let pod = topology.host("a")?;
    let _on_pod = Server::start(&pod.netns, 8080, Behaviour::Echo)?;
    connect(&node.netns, SocketAddr::new(pod.v4.into(), 8080))?;
    connect(&node.netns, SocketAddr::new(pod.v6.into(), 8080))?;
    connect(&pod.netns, "10.71.1.1:8080".parse()?)?;
    connect(&pod.netns, "[fd71:1::1]:8080".parse()?)?;
    Ok(())
}

#[test]
fn a_marker_in_clear_is_seen_on_the_wire_and_on_both_nodes() -> Result<()> {
    let topology = small()?;
    let (client, server) = (topology.host("a")?, topology.host("c")?);
    let _serving = Server::start(&server.netns, 8080, Behaviour::Echo)?;
    let sniffers = [
        Sniffer::start(topology.wire())?,
        Sniffer::start(&topology.node("n1")?.netns)?,
        Sniffer::start(&topology.node("n2")?.netns)?,
    ];
    let marker = b"a marker of thirty-two bytes, so";
    for ip in server.ips() {
        let mut stream = connect(&client.netns, SocketAddr::new(ip, 8080))?;
        stream.write_all(marker)?;
        assert_eq!(read_exactly(&mut stream, marker.len())?, marker);
    }
    for sniffer in sniffers {
        let captured = sniffer.stop()?;
        // There and back, by each family; a namespace with several interfaces sees it on each.
        assert!(captured.count_of(marker)? >= 4);
        assert_eq!(captured.count_of(b"a marker that nobody has sent...")?, 0);
    }
    Ok(())
}

#[test]
fn a_silent_link_proves_nothing() -> Result<()> {
    let topology = small()?;
    let pod = topology.host("b")?;
    pod.netns.ip("link set eth0 down")?;
    let captured = Sniffer::start(&pod.netns)?.stop()?;
    assert!(captured.count_of(b"anything").is_err());
    Ok(())
}

#[test]
fn a_stream_is_checked_both_ways() -> Result<()> {
    let topology = small()?;
    let (client, server) = (topology.host("a")?, topology.host("c")?);
    let pattern = Pattern { seed: 3 };
    let len = 8 << 20;
    let _sink = Server::start(&server.netns, 1000, Behaviour::Sink(pattern))?;
    let _source = Server::start(&server.netns, 1001, Behaviour::Source(pattern, len))?;
    let mut up = connect(&client.netns, SocketAddr::new(server.v4.into(), 1000))?;
    pattern.write(&mut up, len)?;
    up.shutdown(Shutdown::Write)?;
    assert_eq!(read_all(&mut up)?, format!("{len}\n").into_bytes());
    let mut down = connect(&client.netns, SocketAddr::new(server.v6.into(), 1001))?;
    assert_eq!(pattern.check(&mut down)?.bytes, len);
    Ok(())
}

#[test]
fn servers_speak_first_half_close_and_reset_as_told() -> Result<()> {
    let topology = small()?;
    let (client, server) = (topology.host("a")?, topology.host("b")?);
    let start = |port, behaviour| Server::start(&server.netns, port, behaviour);
    let dial = |port| connect(&client.netns, SocketAddr::new(server.v4.into(), port));

    let _first = start(1000, Behaviour::ServerFirst { greeting: b"hello".to_vec() })?;
    assert_eq!(read_exactly(&mut dial(1000)?, 5)?, b"hello");

    let half = start(1001, Behaviour::HalfClose { says: b"my part".to_vec() })?;
    let mut stream = dial(1001)?;
    assert_eq!(read_all(&mut stream)?, b"my part");
    stream.write_all(b"and mine, later")?;
    drop(stream);
    let seen = half.wait_until("its end", |accepted| accepted.iter().all(|one| one.end.is_some()))?;
    assert_eq!((seen[0].received.as_slice(), seen[0].end), (&b"and mine, later"[..], Some(End::Closed)));

    let _reset = start(1002, Behaviour::Reset)?;
    let mut stream = dial(1002)?;
    stream.write_all(b"x")?;
    let error = stream.read(&mut [0]).expect_err("the server resets");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let error = dial(1003).expect_err("nothing listens there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    Ok(())
}

#[test]
fn a_load_counts_answers_and_failures() -> Result<()> {
    let topology = Topology::exclusive()?;
    let mut topology = topology;
    topology.add_node("n1")?;
    topology.add_pod("n1", "a")?;
    topology.add_pod("n1", "b")?;
    let (client, server) = (topology.host("a")?, topology.host("b")?);
    let serving = Server::start(&server.netns, 8080, Behaviour::Http { body: b"hello".to_vec() })?;
    let to = SocketAddr::new(server.v4.into(), 8080).to_string();
    for shape in ["keep-alive", "per-request"] {
        let before = serving.accepted().len();
        let run = client.netns.command(program("app")?).args(["load", &to, shape, "4", "2", "200"]);
        let report: LoadReport = serde_json::from_str(&run.ok()?)?;
        assert_eq!(report.failures(), 0, "{report:?}");
        assert!((50..=400).contains(&report.ok), "200 a second for two seconds: {report:?}");
        let connections = (serving.accepted().len() - before) as u64;
        assert_eq!(connections, if shape == "keep-alive" { 4 } else { report.ok });
    }
    drop(serving);
    let load = Load {
        to: SocketAddr::new(server.v4.into(), 8080),
        shape: Shape::PerRequest,
        clients: 1,
        rate: Some(100),
        duration: Duration::from_millis(100),
        give_up: Duration::from_secs(10),
    };
    let report = client.netns.run(|| adit_tests::apps::run_load(&load))??;
    assert_eq!(report.ok, 0);
    assert_eq!(report.failed.keys().collect::<Vec<_>>(), ["connect: connection refused"]);
    Ok(())
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children() -> Result<()> {
    let topology = small()?;
    let run = topology.host("a")?.netns.command("sh").args(["-c", "echo begun; sleep 3600 & sleep 3600"]);
    // Time enough to begin, also on a busy machine.
    let error = run.bound(Duration::from_secs(3)).output().expect_err("it is too slow");
    let said = format!("{error:#}");
    assert!(said.contains("took longer") && said.contains("begun"), "{said}");
    Ok(())
}

#[test]
fn a_removed_pods_address_does_not_answer() -> Result<()> {
    let mut topology = small()?;
    let pod = topology.host("c")?.clone();
    let _serving = Server::start(&pod.netns, 8080, Behaviour::Echo)?;
    topology.remove_pod("c")?;
    let client = topology.host("a")?;
    let ping = client.netns.command("ip").args(["route", "get", &pod.v4.to_string()]).ok()?;
    assert!(ping.contains("via 10.71.1.1"), "{ping}");
    let error = connect(&client.netns, SocketAddr::new(pod.v4.into(), 8080)).expect_err("it is gone");
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
    Ok(())
}
