//! The connections of a pod that its capture does not carry, as they were open before it: found, and closed on request.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use adit_core::redirect::Family;
use adit_core::workload::Skip;
use adit_proto::hbone::{PORT_OUTBOUND, PORTS_RESERVED};

use super::error::NodeError;
use crate::netns::Netns;
use crate::sockets::diag::{Diag, Socket, SocketState};

/// Who opened a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// Somebody else: the pod listens on the local port.
    Inbound,
    /// The pod.
    Outbound,
}

/// An open connection of the pod that goes past the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Older {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Who opened it.
    pub direction: Direction,
    socket: Socket,
}

/// The open connections of a pod that its capture does not carry, inbound ones first. `mark` is that of the agent's dials there; what
/// `skip` names is left out.
///
/// Blocks for about 1 µs a socket. Needs CAP_NET_ADMIN over the namespace: the kernel hides marks without.
pub fn older(netns: &Netns, mark: u32, skip: &Skip) -> Result<Vec<Older>, NodeError> {
    let mut diag = Diag::open(netns).map_err(NodeError::Sockets)?;
    let mut list = |state| -> Result<Vec<Socket>, NodeError> {
        let mut sockets = diag.list(Family::V4, state).map_err(NodeError::Sockets)?;
        sockets.extend(diag.list(Family::V6, state).map_err(NodeError::Sockets)?);
        Ok(sockets)
    };
    let listening = list(SocketState::Listening)?.iter().map(|socket| socket.local.port()).collect();
    Ok(past_the_agent(list(SocketState::Established)?, &listening, mark, skip))
}

/// Closes connections that [`older`] found, as a reset from the other end would; how many were still open.
pub fn close(netns: &Netns, connections: &[Older]) -> Result<usize, NodeError> {
    let mut diag = Diag::open(netns).map_err(NodeError::Sockets)?;
    let mut closed = 0;
    for connection in connections {
        closed += usize::from(diag.destroy(&connection.socket).map_err(NodeError::Sockets)?);
    }
    Ok(closed)
}

/// A captured connection has two sockets in the pod, the app's and the agent's, which name each other: outbound, the
/// agent's on 15001 has the app's address as its remote; inbound, the agent's marked one is the app's turned round.
fn past_the_agent(sockets: Vec<Socket>, listening: &HashSet<u16>, mark: u32, skip: &Skip) -> Vec<Older> {
    let is_agents =
        |socket: &Socket| socket.mark == Some(mark) || PORTS_RESERVED.contains(&socket.local.port());
    let on_15001 = |socket: &&Socket| socket.local.port() == PORT_OUTBOUND;
    let carried_out: HashSet<SocketAddr> =
        sockets.iter().filter(on_15001).map(|socket| socket.remote).collect();
    let agents: HashSet<(SocketAddr, SocketAddr)> = sockets
        .iter()
        .filter(|socket| is_agents(socket))
        .map(|socket| (socket.local, socket.remote))
        .collect();
    let direction = |socket: &Socket| match listening.contains(&socket.local.port()) {
        true => Direction::Inbound,
        false => Direction::Outbound,
    };
    let mut older: Vec<Older> = sockets
        .into_iter()
        .filter(|socket| !is_agents(socket))
        .filter(|socket| !within_the_pod(socket))
        .filter(|socket| {
            !carried_out.contains(&socket.local) && !agents.contains(&(socket.remote, socket.local))
        })
        .map(|socket| Older {
            local: socket.local,
            remote: socket.remote,
            direction: direction(&socket),
            socket,
        })
        .filter(|older| !skipped(older, skip))
        .collect();
    older.sort_by_key(|older| (older.direction, older.local, older.remote));
    older
}

/// What is never captured: a pod's connection to itself, and link-local ones.
fn within_the_pod(socket: &Socket) -> bool {
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    socket.local.ip() == socket.remote.ip()
        || socket.remote.ip().is_loopback()
        || link_local(socket.remote.ip())
}

fn skipped(older: &Older, skip: &Skip) -> bool {
    match older.direction {
        Direction::Inbound => skip.inbound_ports.iter().any(|ports| ports.contains(&older.local.port())),
        Direction::Outbound => {
            skip.outbound_ports.iter().any(|ports| ports.contains(&older.remote.port()))
                || skip.outbound_cidrs.iter().any(|net| net.contains(&older.remote.ip()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u32 = 77;

    fn socket(local: &str, remote: &str, mark: u32) -> Socket {
        Socket::for_test(local.parse().unwrap(), remote.parse().unwrap(), mark)
    }

    fn check(sockets: &[(&str, &str, u32)], skip: &Skip, expected: &[(&str, Direction)]) {
        let sockets = sockets.iter().map(|(local, remote, mark)| socket(local, remote, *mark)).collect();
        let found = past_the_agent(sockets, &HashSet::from([8080, 15001, 15006, 15008]), MARK, skip);
        let found: Vec<(String, Direction)> =
            found.iter().map(|older| (older.local.to_string(), older.direction)).collect();
        let expected: Vec<(String, Direction)> =
            expected.iter().map(|(local, direction)| ((*local).to_owned(), *direction)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_captured_connection_shows_two_sockets_and_is_not_older() {
        check(
            &[
                // outbound: the app, the agent's accepted end, its tunnel
                ("10.0.0.1:40000", "10.96.0.1:80", 0),
                ("127.0.0.1:15001", "10.0.0.1:40000", 0),
                ("10.0.0.1:41000", "10.0.1.1:15008", MARK),
                // inbound plaintext: the agent's accepted end, its dial with the client's address, the app
                ("10.0.0.1:15006", "10.0.2.2:5000", 0),
                ("10.0.2.2:33000", "10.0.0.1:8080", MARK),
                ("10.0.0.1:8080", "10.0.2.2:33000", 0),
            ],
            &Skip::default(),
            &[],
        );
    }

    #[test]
    fn one_without_the_agents_other_half_is_older_whoever_opened_it() {
        check(
            &[("10.0.0.1:40000", "10.96.0.1:80", 0), ("[fd00::1]:8080", "[fd00::9]:5000", 0)],
            &Skip::default(),
            &[("[fd00::1]:8080", Direction::Inbound), ("10.0.0.1:40000", Direction::Outbound)],
        );
    }

    #[test]
    fn what_is_skipped_or_stays_in_the_pod_is_not_older() {
        let skip = Skip {
            outbound_ports: vec![5432..=5432],
            outbound_cidrs: vec!["10.7.0.0/16".parse().unwrap()],
            inbound_ports: vec![8080..=8080],
            ..Skip::default()
        };
        check(
            &[
                ("10.0.0.1:40000", "10.0.9.9:5432", 0),
                ("10.0.0.1:40001", "10.7.9.9:80", 0),
                ("10.0.0.1:8080", "10.0.2.2:33000", 0),
                ("127.0.0.1:40002", "127.0.0.1:8080", 0),
                ("10.0.0.1:40003", "10.0.0.1:8080", 0),
                ("[fe80::1]:40004", "[fe80::2]:80", 0),
            ],
            &skip,
            &[],
        );
    }
}
