//! The generation number of a namespace's nf_tables: it moves with every transaction, of anybody.

use std::io;

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use nix::sys::socket::SockProtocol;

use crate::netns::Netns;
use crate::sockets::netlink::{Ask, Netlink};

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// NFTA_GEN_ID: a big-endian u32.
const ATTRIBUTE_ID: u16 = 1;
/// struct nfgenmsg: family, version, resource id.
const HEADER_LEN: usize = 4;

/// A kept socket for the question; 6 µs each.
#[derive(Debug)]
pub(super) struct Generation {
    netlink: Netlink,
}

impl Generation {
    pub(super) fn open(netns: &Netns) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open(netns, SockProtocol::NetlinkNetFilter)? })
    }

    /// The number now; `None` where the kernel has no nf_tables.
    pub(super) fn now(&mut self) -> Option<u32> {
        let mut id = None;
        let asked = self.netlink.ask(Question, Ask::One { flags: 0 }, |answer: Answer| id = id.or(answer.0));
        asked.ok().and(id)
    }
}

struct Question;

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        GET_GENERATION
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

struct Answer(Option<u32>);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(generation_id(payload.get(HEADER_LEN..).unwrap_or_default())))
    }
}

/// Looks through attributes (length, type, value; aligned to four bytes) for the id.
fn generation_id(mut attributes: &[u8]) -> Option<u32> {
    loop {
        let (len, rest) = attributes.split_first_chunk::<2>()?;
        let (kind, value) = rest.split_first_chunk::<2>()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        if u16::from_ne_bytes(*kind) == ATTRIBUTE_ID {
            return Some(u32::from_be_bytes(*value.first_chunk()?));
        }
        attributes = attributes.get(len.next_multiple_of(4).max(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_among_other_attributes_and_nothing_in_rubbish() {
        let mut bytes = vec![6, 0, 3, 0, 1, 2, 0, 0, 8, 0, 1, 0, 0, 0, 1, 2];
        assert_eq!(generation_id(&bytes), Some(0x0102));
        for len in 0..bytes.len() {
            assert_eq!(generation_id(&bytes[..len]), None, "{len}");
        }
        bytes[0] = 0;
        bytes[2] = 9;
        assert_eq!(generation_id(&bytes), None, "an attribute of length 0 ends nothing in a loop");
    }
}
