//! TCP_INFO of a connection: what the kernel measured.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use tokio::net::TcpStream;

/// What is reported of a connection's kernel state.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Least round-trip time in the last 5 minutes (net.ipv4.tcp_min_rtt_wlen); zero before the first sample.
    pub min_rtt: Duration,
    /// Segments sent again, over the connection's life.
    pub retransmits: u32,
}

/// Reads it; one system call, under a microsecond.
pub fn tcp_info(stream: &TcpStream) -> io::Result<TcpInfo> {
    let raw = getsockopt(stream, KernelTcpInfo)?;
    Ok(TcpInfo {
        rtt: Duration::from_micros(raw.rtt.into()),
        // The kernel's "no sample yet" is all ones.
        min_rtt: if raw.min_rtt == u32::MAX {
            Duration::ZERO
        } else {
            Duration::from_micros(raw.min_rtt.into())
        },
        retransmits: raw.total_retrans,
    })
}

/// The front of `struct tcp_info` (linux/tcp.h) as of Linux 4.6. Not libc's: that is as long as the newest kernel's,
/// and an older one fills less of it.
#[expect(unreachable_pub, reason = "nix makes the option that returns it a public type")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawTcpInfo {
    state_and_flags: [u8; 8],
    rto_to_rcv_ssthresh: [u32; 15],
    rtt: u32,
    rttvar_to_rcv_space: [u32; 7],
    total_retrans: u32,
    rates_and_bytes: [u64; 4],
    segs_out_and_in: [u32; 2],
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in_and_out: [u32; 2],
}

sockopt_impl!(
    #[doc = "TCP_INFO, cut to what every supported kernel fills."]
    KernelTcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    RawTcpInfo
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_lies_where_the_kernel_puts_it() {
        use std::mem::{offset_of, size_of};
        assert_eq!(offset_of!(RawTcpInfo, rtt), offset_of!(libc::tcp_info, tcpi_rtt));
        assert_eq!(offset_of!(RawTcpInfo, total_retrans), offset_of!(libc::tcp_info, tcpi_total_retrans));
        assert_eq!(offset_of!(RawTcpInfo, rates_and_bytes), offset_of!(libc::tcp_info, tcpi_pacing_rate));
        assert_eq!(offset_of!(RawTcpInfo, min_rtt), offset_of!(libc::tcp_info, tcpi_min_rtt));
        assert_eq!(size_of::<RawTcpInfo>(), offset_of!(libc::tcp_info, tcpi_delivery_rate));
    }
}
