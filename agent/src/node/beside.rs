//! Listeners that another agent left beside ours: a frozen one's would take their share of the new connections, and
//! nobody would serve them.

use std::collections::HashSet;
use std::fs;
use std::io;

use adit_core::redirect::Family;
use adit_proto::hbone::PORTS_RESERVED;

use super::error::NodeError;
use crate::netns::Netns;
use crate::sockets::LISTENER_UID;
use crate::sockets::diag::{Diag, Socket, SocketState};

/// The sockets that this process has open, by their numbers. 1 µs each.
pub fn own_sockets() -> io::Result<HashSet<u64>> {
    let mut own = HashSet::new();
    for file in fs::read_dir("/proc/self/fd")? {
        // One that is closed meanwhile is none.
        let Ok(target) = fs::read_link(file?.path()) else { continue };
        let number = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
        own.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(own)
}

/// Closes the listeners of an agent's at our ports that are none of `own`, where one of `own` listens too; how many. What
/// waits in them comes to ours (`tcp_migrate_req`). An agent that lives opens them again.
pub fn close_beside(netns: &Netns, own: &HashSet<u64>) -> Result<usize, NodeError> {
    let mut diag = Diag::open(netns).map_err(NodeError::Sockets)?;
    let mut closed = 0;
    for family in Family::BOTH {
        let listening = diag.list(family, SocketState::Listening).map_err(NodeError::Sockets)?;
        for socket in beside(&listening, own) {
            closed += usize::from(diag.destroy_shared(socket).map_err(NodeError::Sockets)?);
        }
    }
    Ok(closed)
}

fn beside<'s>(listening: &'s [Socket], own: &HashSet<u64>) -> Vec<&'s Socket> {
    let is_own = |socket: &&Socket| own.contains(&socket.inode);
    let held: HashSet<u16> = listening.iter().filter(is_own).map(|socket| socket.local.port()).collect();
    let is_beside = |socket: &&Socket| {
        let port = socket.local.port();
        socket.uid == LISTENER_UID
            && PORTS_RESERVED.contains(&port)
            && held.contains(&port)
            && !is_own(socket)
    };
    listening.iter().filter(is_beside).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn only_an_agent_s_listener_beside_one_of_ours_is_in_the_way() {
        let socket = |port: u16, uid, inode| {
            let any = |port: u16| ([0, 0, 0, 0], port).into();
            let mut socket = Socket::for_test(any(port), any(0), 0);
            (socket.uid, socket.inode) = (uid, inode);
            socket
        };
        let listening = [
            socket(15001, LISTENER_UID, 1),
            socket(15001, LISTENER_UID, 7),
            // Of the app, and where nobody of ours would take over.
            socket(8080, 0, 8),
            socket(15006, LISTENER_UID, 9),
            socket(15001, 0, 10),
        ];
        let found: Vec<u64> =
            beside(&listening, &HashSet::from([1])).iter().map(|socket| socket.inode).collect();
        assert_eq!(found, [7]);
    }

    #[test]
    fn an_open_socket_is_known_by_its_number_until_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
        let inode = fs::metadata(file).unwrap().ino();
        assert!(own_sockets().unwrap().contains(&inode));
        drop(listener);
        assert!(!own_sockets().unwrap().contains(&inode));
    }
}
