//! Watches a side of a connection that is not being read: it has said its last word, or nobody can take what it says.
//!
//! No read notices then that it resets the connection, and no write may follow. Almost every connection is in this
//! state for an instant, some for hours: so nothing is set up but one timer, and only after [`WATCH_AFTER`] without a
//! byte the socket's errors are waited for. Half closed and silent for the idle time-out, the connection is over.

use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What ends sooner costs no second registration with epoll.
const WATCH_AFTER: Duration = Duration::from_millis(500);
/// How often a watch looks at its clock where no idle time-out applies.
const NO_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How a watch ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// The unread side reset the connection.
    Reset,
    /// No byte for the idle time-out.
    Idle,
}

/// The timer of a connection with an unread side, and later its watch.
pub(super) struct Unread {
    timer: Pin<Box<Sleep>>,
    last_byte: Instant,
    idle_timeout: Option<Duration>,
    watch: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Unread {
    /// Begins now. `idle_timeout`: see [`Unread::poll`].
    pub(super) fn new(idle_timeout: Option<Duration>) -> Self {
        let last_byte = Instant::now();
        let timer = Box::pin(sleep_until(last_byte + first(idle_timeout)));
        Self { timer, last_byte, idle_timeout, watch: None }
    }

    /// Bytes went either way: the connection lives, and what it does shows resets too.
    pub(super) fn moved(&mut self) {
        self.last_byte = Instant::now();
        self.watch = None;
    }

    /// `side`: the socket that is not being read, where it is a socket. `idle_timeout`: none where the connection is not
    /// half closed, but only stalled.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        side: Option<&TcpStream>,
        idle_timeout: Option<Duration>,
    ) -> Poll<Ended> {
        if self.idle_timeout != idle_timeout {
            // Half closed only now: the timer may be set for much later.
            self.idle_timeout = idle_timeout;
            self.timer.as_mut().reset(self.last_byte + first(idle_timeout));
        }
        loop {
            if let Some(watch) = &mut self.watch
                && watch.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ended::Reset);
            }
            ready!(self.timer.as_mut().poll(cx));
            let silence = self.last_byte.elapsed();
            if idle_timeout.is_some_and(|timeout| silence >= timeout) {
                return Poll::Ready(Ended::Idle);
            }
            if silence >= WATCH_AFTER && self.watch.is_none() {
                self.watch = side.and_then(watch);
            }
            let idle = idle_timeout.unwrap_or(NO_IDLE_TIMEOUT).max(silence + WATCH_AFTER);
            let next = if silence < WATCH_AFTER { WATCH_AFTER.min(idle) } else { idle };
            self.timer.as_mut().reset(self.last_byte + next);
        }
    }
}

/// How long after the last byte the first look is due.
fn first(idle_timeout: Option<Duration>) -> Duration {
    WATCH_AFTER.min(idle_timeout.unwrap_or(NO_IDLE_TIMEOUT))
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
