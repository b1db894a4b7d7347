//! How connections begin and end: who speaks first, who closes first, who resets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, End, Pattern, connect, read_all, read_exactly, reset};
use adit_tests::mesh::Mesh;
use adit_tests::topology::Host;
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Lane, PORT, with_lanes};

/// More than any one buffer on the way holds at once, less than all of them together.
const LEN: u64 = 300_003;

#[test]
fn a_client_may_close_its_direction_first_and_still_gets_its_answer() -> Result<()> {
    with_lanes(|_, places| {
        let pattern = Pattern { seed: 1 };
        let servers = places.serve(&Behaviour::Sink(pattern))?;
        for lane in places.lanes() {
            let mut stream = connect(&lane.client.netns, lane.to)?;
            pattern.write(&mut stream, LEN)?;
            stream.shutdown(Shutdown::Write)?;
            let answer = read_all(&mut stream).with_context(|| format!("{lane:?}"))?;
            assert_eq!(String::from_utf8_lossy(&answer), format!("{LEN}\n"), "{lane:?}");
            servers.at(&lane).wait_until("the end of all", |accepted| {
                accepted.iter().all(|connection| connection.end == Some(End::Closed))
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_server_may_close_its_direction_first_and_still_gets_all_that_the_client_says() -> Result<()> {
    with_lanes(|_, places| {
        let servers = places.serve(&Behaviour::HalfClose { says: b"all that I say".to_vec() })?;
        let mut answer = Vec::new();
        Pattern { seed: 2 }.write(&mut answer, LEN)?;
        for lane in places.lanes() {
            let mut stream = connect(&lane.client.netns, lane.to)?;
            // The server's end is here before the client has said a word.
            assert_eq!(read_all(&mut stream)?, b"all that I say", "{lane:?}");
            stream.write_all(&answer).with_context(|| format!("{lane:?}"))?;
            drop(stream);
            let accepted = servers.at(&lane).wait_until("the client's end", |accepted| {
                accepted.iter().all(|connection| connection.end.is_some())
            })?;
            let last = accepted.last().context("a connection")?;
            assert_eq!(last.end, Some(End::Closed), "{lane:?}");
            assert!(last.received == answer, "{lane:?}: {} bytes, or wrong ones", last.received.len());
        }
        Ok(())
    })
}

#[test]
fn a_server_that_speaks_first_is_heard_before_the_client_says_anything() -> Result<()> {
    with_lanes(|_, places| {
        let _servers = places.serve(&Behaviour::ServerFirst { greeting: b"220 ready\r\n".to_vec() })?;
        for lane in places.lanes() {
            let mut stream = connect(&lane.client.netns, lane.to)?;
            assert_eq!(read_exactly(&mut stream, 11)?, b"220 ready\r\n", "{lane:?}");
            stream.write_all(b"HELO")?;
            assert_eq!(read_exactly(&mut stream, 4)?, b"HELO", "{lane:?}");
        }
        Ok(())
    })
}

/// Waits until every agent on the lane has reported the connection to have ended for this reason.
fn wait_for_reason(mesh: &Mesh, lane: &Lane<'_>, first: &[(&str, u64)], reason: &str) -> Result<()> {
    for (node, first) in first {
        let what = format!("{reason} over {lane:?}");
        let flow = mesh.agent(node)?.wait_for_flow(*first, &what, |flow| {
            flow.destination.addr == lane.to.to_string() && flow.state != "open"
        })?;
        assert_eq!(flow.reason.as_deref(), Some(reason), "{lane:?}: {flow:?}");
        assert_eq!(flow.transport, lane.transport(), "{lane:?}");
    }
    Ok(())
}

fn next_lines<'n>(mesh: &Mesh, lane: &Lane<'n>) -> Result<Vec<(&'n str, u64)>> {
    lane.agents().iter().map(|node| Ok((*node, mesh.agent(node)?.process().next_line()))).collect()
}

#[test]
fn a_reset_by_the_client_is_a_reset_at_the_server() -> Result<()> {
    with_lanes(|mesh, places| {
        let servers = places.serve(&Behaviour::Echo)?;
        for lane in places.lanes() {
            let first = next_lines(mesh, &lane)?;
            let mut stream = connect(&lane.client.netns, lane.to)?;
            stream.write_all(b"ping")?;
            assert_eq!(read_exactly(&mut stream, 4)?, b"ping");
            reset(stream)?;
            let accepted = servers.at(&lane).wait_until("the reset", |accepted| {
                accepted.iter().all(|connection| connection.end.is_some())
            })?;
            let last = accepted.last().context("a connection")?;
            assert_eq!(last.end, Some(End::Reset), "{lane:?}");
            wait_for_reason(mesh, &lane, &first, "reset_by_client")?;
        }
        Ok(())
    })
}

#[test]
fn a_reset_by_the_server_is_a_reset_at_the_client() -> Result<()> {
    with_lanes(|mesh, places| {
        let _servers = places.serve(&Behaviour::Reset)?;
        for lane in places.lanes() {
            let first = next_lines(mesh, &lane)?;
            let mut stream = connect(&lane.client.netns, lane.to)?;
            stream.write_all(b"x")?;
            let read = stream.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(read, Err(ErrorKind::ConnectionReset), "{lane:?}");
            wait_for_reason(mesh, &lane, &first, "reset_by_server")?;
        }
        Ok(())
    })
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_stops_the_sender() -> Result<()> {
    with_lanes(|_, places| {
        // More than a test could wait for: only a reset ends it.
        let servers = places.serve(&Behaviour::Source(Pattern { seed: 3 }, u64::MAX))?;
        for lane in places.lanes() {
            let mut stream = connect(&lane.client.netns, lane.to)?;
            stream.shutdown(Shutdown::Write)?;
            read_exactly(&mut stream, 1 << 20)?;
            reset(stream)?;
            let accepted = servers.at(&lane).wait_until("the reset", |accepted| {
                accepted.iter().all(|connection| connection.end.is_some())
            })?;
            assert_eq!(accepted.last().context("a connection")?.end, Some(End::Reset), "{lane:?}");
        }
        Ok(())
    })
}

/// Connects a pair of sockets over the lane; the first is the client's.
fn pair(lane: &Lane<'_>) -> Result<(TcpStream, TcpStream)> {
    let listener = listen(lane.server)?;
    let mut client = connect(&lane.client.netns, lane.to)?;
    client.write_all(b"?")?;
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let come = poll(&mut waiting, PollTimeout::try_from(WAIT_MAX)?)?;
    ensure!(come == 1, "{lane:?}: nothing came to the server within {WAIT_MAX:?}");
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(WAIT_MAX))?;
    read_exactly(&mut server, 1)?;
    Ok((client, server))
}

fn listen(host: &Host) -> Result<TcpListener> {
    let any: SocketAddr = format!("[::]:{PORT}").parse()?;
    let listener = host.netns.run(|| TcpListener::bind(any))?;
    listener.with_context(|| format!("cannot listen in {}", host.name))
}

/// Waits until the socket has an error, without reading or writing.
fn wait_for_error(stream: &TcpStream) -> Result<()> {
    // Errors and hang-ups are always told, whatever is asked for.
    let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    if poll(&mut waiting, PollTimeout::try_from(WAIT_MAX)?)? == 0 {
        bail!("nothing came within {WAIT_MAX:?}");
    }
    let said = waiting[0].revents().unwrap_or(PollFlags::empty());
    if said.contains(PollFlags::POLLERR) { Ok(()) } else { bail!("ended, but with no reset: {said:?}") }
}

#[test]
fn a_half_closed_silent_connection_that_is_reset_is_reset_at_the_other_end() -> Result<()> {
    with_lanes(|_, places| {
        for lane in places.lanes() {
            for client_resets in [true, false] {
                let (client, server) = pair(&lane)?;
                let (mut one, mut other) = if client_resets { (client, server) } else { (server, client) };
                one.shutdown(Shutdown::Write)?;
                other.set_read_timeout(Some(WAIT_MAX))?;
                assert_eq!(read_all(&mut other)?, b"", "{lane:?}");
                // What still goes the other way shows that the connection is alive.
                other.write_all(b"still here")?;
                one.set_read_timeout(Some(WAIT_MAX))?;
                assert_eq!(read_exactly(&mut one, 10)?, b"still here", "{lane:?}");
                reset(one)?;
                wait_for_error(&other)
                    .with_context(|| format!("{lane:?}, client resets: {client_resets}"))?;
            }
        }
        Ok(())
    })
}
