//! Packets that a sniffer saw, as far as the demo shows them: TCP over IPv4, its addresses and its bytes.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;
use crate::sniffer::{Captured, Packet};

/// The TCP payload of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'p> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: &'p [u8],
}

/// Ethernet's header, as packet sockets deliver it on veth, bridge and loopback alike.
const LINK_LEN: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_TCP: u8 = 6;

impl<'p> Segment<'p> {
    /// `None` for whatever is not TCP over IPv4.
    pub(super) fn read(packet: &'p Packet) -> Option<Self> {
        let bytes = &packet.bytes;
        if bytes.get(12..LINK_LEN)? != ETHERTYPE_IPV4 {
            return None;
        }
        let ip = bytes.get(LINK_LEN..)?;
        if *ip.get(9)? != PROTOCOL_TCP {
            return None;
        }
        // Shorter ones are padded on a link.
        let ip = ip.get(..usize::from(number(ip, 2)?))?;
        let tcp = ip.get(usize::from(ip.first()? & 0x0f) * 4..)?;
        let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
        Some(Self {
            from: SocketAddr::new(address(ip, 12)?, number(tcp, 0)?),
            to: SocketAddr::new(address(ip, 16)?, number(tcp, 2)?),
            payload,
        })
    }

    /// Both addresses and the length.
    pub(super) fn title(&self) -> String {
        format!("{} > {}, {} B", self.from, self.to, self.payload.len())
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(ip: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

/// The index of a namespace's interface, as [`Packet::interface`] has it.
pub(super) fn interface(netns: &Netns, name: &str) -> Result<usize> {
    let index = netns.run(|| if_nametoindex(name))?;
    Ok(index.with_context(|| format!("no {name} in {}", netns.name()))? as usize)
}

/// The first segment on an interface (`None`: on any) for which `wanted` says yes.
pub(super) fn first<'p>(
    captured: &'p Captured,
    interface: Option<usize>,
    wanted: impl Fn(&Segment<'p>) -> bool,
) -> Option<Segment<'p>> {
    let packets = captured.packets().iter();
    packets
        .filter(|packet| interface.is_none_or(|index| packet.interface == index))
        .filter_map(Segment::read)
        .find(wanted)
}

/// How many packets passed an interface.
pub(super) fn count(captured: &Captured, interface: usize) -> usize {
    captured.packets().iter().filter(|packet| packet.interface == interface).count()
}

/// The first `rows` rows of 16 bytes, in hex and as text.
pub(super) fn dump(bytes: &[u8], rows: usize) -> String {
    let mut text = String::new();
    for (row, chunk) in bytes.chunks(16).take(rows).enumerate() {
        let hex: String = chunk.iter().map(|byte| format!("{byte:02x} ")).collect();
        let shown: String = chunk
            .iter()
            .map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' })
            .collect();
        let _ = writeln!(text, "{:04x}  {hex:<48} {shown}", row * 16);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_and_its_padding_is_not() {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        let mut ip = vec![0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip.extend([0x30, 0x39, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        ip.extend(b"GET");
        bytes.extend(&ip);
        bytes.extend([0; 3]);
        let packet = Packet { interface: 1, bytes };
        let segment = Segment::read(&packet).unwrap();
        assert_eq!(segment.title(), "10.0.0.1:12345 > 10.0.0.2:80, 3 B");
        assert_eq!(dump(segment.payload, 4), format!("0000  {:<48} GET\n", "47 45 54"));
        assert!(Segment::read(&Packet { interface: 1, bytes: vec![0; 20] }).is_none());
    }
}
