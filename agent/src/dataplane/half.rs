//! What is done for a connection while only one of its directions is open.
//!
//! Almost every connection is half closed for an instant, some for hours. So nothing is set up but one timer; only
//! after [`WATCH_AFTER`] does it also look for a reset by the side that has already said its last word, which no read
//! or write would notice. Without a byte for the idle time-out the connection is over.

use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Half-closed connections that end sooner cost no second registration with epoll.
const WATCH_AFTER: Duration = Duration::from_millis(500);

/// How a half-closed wait ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// The side that had closed its direction reset the connection.
    Reset,
    /// No byte for the idle time-out.
    Idle,
}

/// The timer of a half-closed connection, and later its watch.
pub(super) struct HalfClosed {
    timer: Pin<Box<Sleep>>,
    last_byte: Instant,
    idle_timeout: Duration,
    watch: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl HalfClosed {
    /// Begins now.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + WATCH_AFTER.min(idle_timeout)));
        Self { timer, last_byte: now, idle_timeout, watch: None }
    }

    /// Bytes went through the direction that is still open.
    pub(super) fn moved(&mut self) {
        self.last_byte = Instant::now();
    }

    /// `silent`: the socket of the side that has closed its direction, where it is a socket.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, silent: Option<&TcpStream>) -> Poll<Ended> {
        loop {
            if let Some(watch) = &mut self.watch
                && watch.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ended::Reset);
            }
            ready!(self.timer.as_mut().poll(cx));
            let idle_at = self.last_byte + self.idle_timeout;
            if idle_at <= Instant::now() {
                return Poll::Ready(Ended::Idle);
            }
            self.timer.as_mut().reset(idle_at);
            if self.watch.is_none() {
                self.watch = silent.and_then(watch);
            }
        }
    }
}

/// Resolves when the socket has an error. A second descriptor, as the first is polled for reading and writing.
fn watch(socket: &TcpStream) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
    let twin = socket.as_fd().try_clone_to_owned().ok()?;
    let twin = TcpStream::from_std(twin.into()).ok()?;
    Some(Box::pin(async move {
        // An error of the wait itself is no news of the connection: the idle time-out remains.
        if twin.ready(Interest::ERROR).await.is_err() {
            std::future::pending::<()>().await;
        }
    }))
}
