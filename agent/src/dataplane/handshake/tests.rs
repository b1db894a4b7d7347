use proptest::prelude::*;
use proptest::sample::Index;

use super::super::testing::id;
use super::*;
use crate::identity::fixed;

fn sides() -> (UnbufferedClientConnection, UnbufferedServerConnection) {
    let (authority, certs) = fixed::certs(fixed::clock());
    authority.issue(&id("web"));
    authority.issue(&id("api"));
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let client =
        UnbufferedClientConnection::new(certs.client(&id("web"), &id("api")).unwrap(), name).unwrap();
    (client, UnbufferedServerConnection::new(certs.server(&id("api")).unwrap()).unwrap())
}

/// Goes on until something must be read, or it has failed; what is said meanwhile.
fn answer(side: &mut impl Side, incoming: &mut Vec<u8>) -> (Vec<u8>, io::Result<()>) {
    let mut outgoing = Vec::new();
    loop {
        match advance(side, incoming, &mut outgoing, &mut Vec::new()) {
            Ok(Step::Again | Step::Send) => {}
            Ok(Step::Read | Step::Closed) => return (outgoing, Ok(())),
            Err(error) => return (outgoing, Err(error)),
        }
    }
}

/// Hands `bytes` over in parts, as TCP may.
fn feed(side: &mut impl Side, bytes: &[u8], cuts: &[Index]) -> (Vec<u8>, io::Result<()>) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let (mut incoming, mut said, mut at) = (Vec::new(), Vec::new(), 0);
    for end in ends {
        incoming.extend_from_slice(&bytes[at..end]);
        at = end;
        let (more, result) = answer(side, &mut incoming);
        said.extend(more);
        if result.is_err() {
            return (said, result);
        }
    }
    (said, Ok(()))
}

/// One way in which bytes go wrong.
#[derive(Clone, Debug)]
enum Fault {
    Changed(Index, u8),
    Missing(Index, usize),
    Added(Index, Vec<u8>),
}

impl Fault {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Changed(at, with) => {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            Self::Missing(at, len) => {
                let at = at.index(bytes.len());
                drop(bytes.drain(at..bytes.len().min(at + len)));
            }
            Self::Added(at, new) => {
                let at = at.index(bytes.len());
                drop(bytes.splice(at..at, new.iter().copied()));
            }
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (any::<Index>(), 1..=u8::MAX).prop_map(|(at, with)| Fault::Changed(at, with)),
        (any::<Index>(), 1..200_usize).prop_map(|(at, len)| Fault::Missing(at, len)),
        (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..50))
            .prop_map(|(at, new)| Fault::Added(at, new)),
    ]
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    proptest::collection::vec(any::<Index>(), 0..4)
}

proptest! {
    #[test]
    fn however_a_client_is_garbled_the_server_neither_panics_nor_finishes(
        fault in fault(), second in any::<bool>(), cuts in cuts(),
    ) {
        let (mut client, mut server) = sides();
        let (mut hello, _) = answer(&mut client, &mut Vec::new());
        if second {
            let (mut flight, _) = feed(&mut server, &hello, &[]);
            let (mut finished, result) = answer(&mut client, &mut flight);
            prop_assert!(result.is_ok());
            fault.apply(&mut finished);
            drop(feed(&mut server, &finished, &cuts));
        } else {
            fault.apply(&mut hello);
            drop(feed(&mut server, &hello, &cuts));
            prop_assert!(server.facts().is_handshaking());
        }
    }

    #[test]
    fn however_a_server_is_garbled_the_client_does_not_panic(fault in fault(), cuts in cuts()) {
        let (mut client, mut server) = sides();
        let (hello, _) = answer(&mut client, &mut Vec::new());
        let (mut flight, _) = feed(&mut server, &hello, &[]);
        fault.apply(&mut flight);
        drop(feed(&mut client, &flight, &cuts));
    }

    #[test]
    fn however_it_is_cut_a_handshake_finishes(first in cuts(), second in cuts(), third in cuts()) {
        let (mut client, mut server) = sides();
        let (hello, _) = answer(&mut client, &mut Vec::new());
        let (flight, _) = feed(&mut server, &hello, &first);
        let (finished, _) = feed(&mut client, &flight, &second);
        let (_, result) = feed(&mut server, &finished, &third);
        prop_assert!(result.is_ok() && !client.facts().is_handshaking() && !server.facts().is_handshaking());
    }
}
