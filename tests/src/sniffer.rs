//! What passes on the interfaces of a namespace, as bytes: the witness of "no clear byte" tests.
//!
//! A packet socket on all interfaces at once. It keeps what it sees, up to a bound, and says when it missed something:
//! silence proves nothing unless the sniffer also saw traffic and lost none.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, getsockopt, recvfrom, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::{getsockopt_impl, sockopt_impl};

use crate::netns::Netns;

sockopt_impl!(
    /// Packets seen and dropped since last asked (packet(7), PACKET_STATISTICS).
    PacketStatistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

/// How many bytes a sniffer keeps unless told otherwise; the tests that search send less than a tenth of it.
pub const KEPT_MAX: usize = 64 << 20;
/// The largest packet that GRO makes, and a link header.
const PACKET_MAX: usize = (64 << 10) + 64;
/// The socket's queue: 64 MiB hold a burst of 1,000 of the largest packets while the reader is not scheduled.
const QUEUE_LEN: usize = 64 << 20;
/// How often the reader looks whether it shall end; the socket has nothing that would wake it.
const LOOK: Duration = Duration::from_millis(20);

/// Captures while it lives.
#[derive(Debug)]
pub struct Sniffer {
    name: String,
    captured: Arc<Mutex<Captured>>,
    end: Arc<AtomicBool>,
    reader: JoinHandle<Result<u32>>,
}

/// What a sniffer saw.
#[derive(Debug, Default)]
pub struct Captured {
    packets: Vec<Packet>,
    kept: usize,
    /// Packets that nobody wanted.
    others: usize,
    /// Packets that found the memory bound reached.
    skipped: usize,
    /// Packets that the kernel dropped because the reader was too slow.
    dropped: u32,
}

/// One packet, with its link header.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The interface's index.
    pub interface: usize,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Sniffer {
    /// Begins to capture on every interface of `netns`, those that come later included.
    pub fn start(netns: &Netns) -> Result<Self> {
        Self::start_where(netns, |_| true)
    }

    /// The same, of which only those packets are kept for which `wanted` says yes; the others are counted.
    pub fn start_where(netns: &Netns, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Self> {
        let socket =
            netns.run(packet_socket)?.with_context(|| format!("cannot sniff in {}", netns.name()))?;
        let captured = Arc::new(Mutex::new(Captured::default()));
        let end = Arc::new(AtomicBool::new(false));
        let (into, until) = (Arc::clone(&captured), Arc::clone(&end));
        let reader = thread::spawn(move || read(&socket, &into, &until, &wanted));
        Ok(Self { name: netns.name().to_owned(), captured, end, reader })
    }

    /// How many packets it has seen so far.
    pub fn packets(&self) -> usize {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.packets.len() + captured.others + captured.skipped
    }

    /// Ends the capture and returns it. What was sent before this call is in it.
    pub fn stop(self) -> Result<Captured> {
        self.end.store(true, Ordering::Release);
        let dropped = self.reader.join().map_err(|_| anyhow!("the sniffer in {} panicked", self.name))??;
        let mut captured = std::mem::take(&mut *self.captured.lock().unwrap_or_else(PoisonError::into_inner));
        captured.dropped = dropped;
        Ok(captured)
    }
}

impl Captured {
    /// How many packets hold `marker`.
    ///
    /// An error if nothing was captured or something was missed: then "none" would prove nothing.
    pub fn count_of(&self, marker: &[u8]) -> Result<usize> {
        Ok(self.whole()?.iter().filter(|packet| holds(&packet.bytes, marker)).count())
    }

    /// The packets that were wanted, oldest first. An error if nothing was captured or something was missed.
    pub fn whole(&self) -> Result<&[Packet]> {
        if self.packets.len() + self.others == 0 {
            bail!("no packet was captured: a search of it proves nothing");
        }
        if self.skipped > 0 || self.dropped > 0 {
            bail!(
                "{} packets were skipped and {} dropped: a search proves nothing",
                self.skipped,
                self.dropped
            );
        }
        Ok(&self.packets)
    }

    fn keep(&mut self, bytes: &[u8], interface: usize) {
        if self.kept + bytes.len() > KEPT_MAX {
            self.skipped += 1;
            return;
        }
        self.kept += bytes.len();
        self.packets.push(Packet { interface, bytes: bytes.to_vec() });
    }

    /// The packets, oldest first.
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }
}

/// Whether a packet holds `marker`.
pub fn holds(bytes: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else { return true };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(marker) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// A packet socket that is bound to no interface sees all of its namespace's.
fn packet_socket() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // In a user namespace the forced size is refused, and the default must do: a drop would be noticed.
    let _ = setsockopt(&socket, RcvBufForce, &QUEUE_LEN);
    let look = TimeVal::milliseconds(i64::try_from(LOOK.as_millis()).unwrap_or(1));
    setsockopt(&socket, ReceiveTimeout, &look)?;
    Ok(socket)
}

/// Reads until told to end *and* nothing is left; returns how many packets the kernel dropped.
fn read(
    socket: &OwnedFd,
    into: &Mutex<Captured>,
    until: &AtomicBool,
    wanted: &impl Fn(&[u8]) -> bool,
) -> Result<u32> {
    let mut buffer = vec![0; PACKET_MAX];
    loop {
        // Asked before the read: what was sent before the end is in the queue by now, and is read before it is empty.
        let ending = until.load(Ordering::Acquire);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((len, from)) => {
                let (bytes, interface) = (&buffer[..len], from.map_or(0, |from| from.ifindex()));
                let mut captured = into.lock().unwrap_or_else(PoisonError::into_inner);
                if wanted(bytes) { captured.keep(bytes, interface) } else { captured.others += 1 }
            }
            Err(Errno::EAGAIN) if ending => break,
            // ENETDOWN: one interface went down; the others go on.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => {}
            Err(error) => return Err(error).context("cannot read packets"),
        }
    }
    let statistics = getsockopt(socket, PacketStatistics).context("packet statistics")?;
    Ok(statistics.tp_drops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_anywhere_and_an_empty_capture_proves_nothing() {
        assert!(holds(b"xxabab-abcx", b"abc"));
        assert!(!holds(b"xxababx", b"abc"));
        assert!(Captured::default().count_of(b"abc").is_err());
        let packet = Packet { interface: 1, bytes: b"a marker".to_vec() };
        let seen = Captured { packets: vec![packet], ..Captured::default() };
        assert_eq!(seen.count_of(b"marker").unwrap(), 1);
        assert!(Captured { dropped: 1, ..seen }.count_of(b"marker").is_err());
        let none_wanted = Captured { others: 1, ..Captured::default() };
        assert!(none_wanted.whole().unwrap().is_empty());
    }
}
