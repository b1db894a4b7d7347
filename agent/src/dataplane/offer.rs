//! What a tunnel offers its peer to send, and what must follow where it offers less than before.
//!
//! HTTP/2 makes a stream's window smaller by what the new one is less (RFC 9113, 6.9.2), below zero if need be. h2 tells a
//! peer of room in a stream's window once that is half of it, and looks at it only where bytes are released. With a
//! window that became smaller meanwhile, what was free and not told may be more than is left: the peer may send nothing,
//! so nothing is released, and the stream would stand still for as long as windows are small. So when the peer has
//! taken a smaller window, each stream looks once more.

use std::task::Context;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};

use super::account::{Account, Windows};

/// A side of an HTTP/2 connection that offers windows.
pub(super) trait Offering {
    /// Of all streams together.
    fn offer_connection(&mut self, size: u32);
    /// Of each stream; whether it was taken: none is while an earlier one is not acknowledged.
    fn offer_stream(&mut self, size: u32) -> bool;
}

impl<T: AsyncRead + AsyncWrite + Unpin, B: Buf> Offering for h2::client::Connection<T, B> {
    fn offer_connection(&mut self, size: u32) {
        self.set_target_window_size(size);
    }

    fn offer_stream(&mut self, size: u32) -> bool {
        self.set_initial_window_size(size).is_ok()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, B: Buf> Offering for h2::server::Connection<T, B> {
    fn offer_connection(&mut self, size: u32) {
        self.set_target_window_size(size);
    }

    fn offer_stream(&mut self, size: u32) -> bool {
        self.set_initial_window_size(size).is_ok()
    }
}

/// The windows that a tunnel offers.
#[derive(Debug)]
pub(super) struct Offer {
    windows: Windows,
    /// The streams' became smaller, and the peer has not acknowledged it yet.
    narrowing: bool,
}

impl Offer {
    /// What a tunnel begins with.
    pub(super) const fn new() -> Self {
        Self { windows: Windows::USUAL, narrowing: false }
    }

    /// Offers what the account says now. To be called before the connection is polled.
    pub(super) fn follow(&mut self, account: &Account, connection: &mut impl Offering, cx: &Context<'_>) {
        let wanted = account.windows(cx);
        if wanted.connection != self.windows.connection {
            connection.offer_connection(wanted.connection);
            self.windows.connection = wanted.connection;
        }
        // Not taken: the next turn tries again.
        if wanted.stream != self.windows.stream && connection.offer_stream(wanted.stream) {
            self.narrowing = wanted.stream < self.windows.stream;
            self.windows.stream = wanted.stream;
        }
    }

    /// Has the streams look at their windows once the peer has taken smaller ones. To be called after the connection was
    /// polled, which is when it hears of it: h2 does not say so, but takes the same offer again only then.
    pub(super) fn settle(&mut self, account: &Account, connection: &mut impl Offering, cx: &Context<'_>) {
        if self.narrowing && connection.offer_stream(self.windows.stream) {
            self.narrowing = false;
            account.streams().wake();
            // The repeated offer waits to be sent.
            cx.waker().wake_by_ref();
        }
    }
}
