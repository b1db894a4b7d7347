//! One netlink socket, made inside a network namespace: questions with their answers, and announcements.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use tokio::io::unix::AsyncFd;

use crate::netns::Netns;

/// What is read at once of a list: the kernel fills at most 32 KiB (netlink_dump), and never cuts a message in two.
const LIST_DATAGRAM_LEN_MAX: usize = 64 * 1024;
/// What is read at once of any other answer: one message, of a few hundred bytes, or an error with its question.
const DATAGRAM_LEN_MAX: usize = 8 * 1024;
/// How long the kernel may take for one datagram: it answers in microseconds, from within the send.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// A header that says less than its own length ends the datagram.
const HEADER_LEN: usize = 16;

/// Whether a question asks for one thing or for all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ask {
    /// Do it, or answer with it.
    One {
        /// Flags beyond REQUEST and ACK: CREATE, EXCL, REPLACE.
        flags: u16,
    },
    /// Answer with all that matches.
    All,
}

/// A socket for questions. Blocking, but never for longer than [`ANSWER_WAIT_MAX`] a datagram.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket of this protocol inside `netns`.
    pub(crate) fn open(netns: &Netns, protocol: SockProtocol) -> io::Result<Self> {
        let fd = netns.run(|| made(protocol, 0, SockFlag::SOCK_CLOEXEC)).map_err(io::Error::other)??;
        let wait = TimeVal::new(ANSWER_WAIT_MAX.as_secs().try_into().unwrap_or(1), 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one message and gives each message of the answer to `answer`. A refusal is the error that the kernel
    /// names: `raw_os_error` is its errno.
    pub(crate) fn ask<M, A>(&mut self, message: M, ask: Ask, mut answer: impl FnMut(A)) -> io::Result<()>
    where
        M: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST
            | match ask {
                Ask::One { flags } => NLM_F_ACK | flags,
                Ask::All => NLM_F_DUMP,
            };
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        sendmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), None)?;
        // Not kept: there are as many of us as pods.
        let mut buffer = match ask {
            Ask::One { .. } => vec![0; DATAGRAM_LEN_MAX],
            Ask::All => vec![0; LIST_DATAGRAM_LEN_MAX],
        };
        loop {
            let len = receive(self.fd.as_fd(), &mut buffer)?;
            for message in messages(buffer.get(..len).unwrap_or_default()) {
                let message = NetlinkMessage::<A>::deserialize(message).map_err(io::Error::other)?;
                // An answer to a question that was given up on.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                // Nothing else carries or ends an answer.
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    answer(inner);
                } else if let NetlinkPayload::Done(done) = message.payload {
                    return refusal(done.code);
                } else if let NetlinkPayload::Error(error) = message.payload {
                    return refusal(error.raw_code());
                }
            }
        }
    }
}

/// A socket that only listens to announcements.
#[derive(Debug)]
pub(crate) struct Announcements(AsyncFd<OwnedFd>);

impl Announcements {
    /// Joins multicast groups (bit n-1 for group n) inside `netns`. To be called inside a tokio runtime.
    pub(crate) fn open(netns: &Netns, protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = netns.run(|| made(protocol, groups, flags)).map_err(io::Error::other)??;
        #[expect(deprecated, reason = "its successor is unsafe to call; an OwnedFd keeps what it asks for")]
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// Returns when something has been announced since the last call, and throws it away. Cancel-safe.
    pub(crate) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut any = false;
            // Bounded: who writes faster than this is read on at the next call.
            for _ in 0..DRAIN_READS_MAX {
                match receive(self.0.get_ref().as_fd(), &mut [0; DATAGRAM_LEN_MAX]) {
                    Ok(_) => any = true,
                    // That some were lost is news too.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}

/// Datagrams thrown away at once. A socket's receive buffer (208 KiB) holds fewer.
const DRAIN_READS_MAX: usize = 4096;

fn made(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// One datagram; its length in `buffer`. Announcements longer than that are cut, which does not matter to them.
fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg::<NetlinkAddr>(fd.as_raw_fd(), &mut slices, None, MsgFlags::empty())?;
    Ok(received.bytes)
}

/// The messages of a datagram, each aligned to four bytes; ends at one that is longer than what is left.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?);
        let len = usize::try_from(len).ok().filter(|len| *len >= HEADER_LEN)?;
        let message = datagram.get(..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn refusal(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_abs())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_cut_at_its_messages_and_never_beyond() {
        let mut datagram = vec![0; 17 + 3 + 16];
        datagram[..4].copy_from_slice(&17_u32.to_ne_bytes());
        datagram[20..24].copy_from_slice(&16_u32.to_ne_bytes());
        assert_eq!(messages(&datagram).map(<[u8]>::len).collect::<Vec<_>>(), [17, 16]);
        for (said, held) in [(0_u32, 16_usize), (15, 16), (17, 16), (u32::MAX, 16), (16, 3)] {
            let mut datagram = vec![0; held];
            let len = said.to_ne_bytes();
            datagram[..held.min(4)].copy_from_slice(&len[..held.min(4)]);
            assert_eq!(messages(&datagram).count(), 0, "{said} {held}");
        }
    }
}
