//! Carries the bytes of one connection between an app's socket and an HTTP/2 stream, both ways, in one task.
//!
//! From the app: whatever the socket holds is read, and exactly that goes into the tunnel;
//! nothing is read while the tunnel has no room, and nothing is reserved while there is nothing to read. To the app:
//! flow control is released only as bytes were written on. FIN and END_STREAM are the same, and so are RST and
//! RST_STREAM. Knows no policy, and of the report only its [`Flow`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::account::Account;
use super::buffers::BATCH_LEN;
use super::flow::Flow;
use super::share::{Chunk, Enlisted};
use super::streams::Place;
use super::unread::{Ended, Unread};

#[cfg(test)]
mod tests;

/// Bytes carried in one poll and direction before the other tasks of the worker get their turn: about 0.5 ms.
pub(super) const QUOTA: usize = 1024 * 1024;
/// Frames below this are merged while the app does not read: each would cost more than its bytes.
const SMALL_FRAME: usize = 4 * 1024;

/// Why a connection ended other than by both sides closing it.
#[derive(Debug)]
pub(super) enum Broken {
    /// The near side reset the connection, or could not be written to.
    NearReset,
    /// The far side reset the connection (a socket), or the stream with this code.
    FarReset(h2::Reason),
    /// The tunnel broke under the stream.
    TunnelLost(h2::Error),
    /// Half closed, and without a byte for the idle time-out.
    Idle,
    /// More has come for a reader that stalls than is held for the pod's.
    Overdrawn,
}

/// One connection between an app's socket and a stream of a tunnel. Dropped before its end it resets both.
pub(super) struct Duplex {
    app: TcpStream,
    send: SendStream<Chunk>,
    recv: RecvStream,
    account: Rc<Account>,
    flow: Flow,
    /// What is being written to the app.
    pending: Bytes,
    /// How much of it is counted as held: none while the app takes what it gets. It falls as bytes are written, not by
    /// the frame: what is let go of wakes those who wait for room, in vain if the rest were taken again at once.
    stuck_len: usize,
    /// What has arrived while the app did not read.
    backlog: Option<Box<Backlog>>,
    unread: Option<Box<Unread>>,
    /// The app has something to say, and it cannot be taken.
    stalled: bool,
    idle_timeout: Duration,
    enlisted: Enlisted,
    /// Among the tunnel's streams, once it has waited for bytes.
    place: Option<Place>,
    from_app: Direction,
    to_app: Direction,
    reset_code: h2::Reason,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    Open,
    /// The source has ended; what it sent is still being written (to the app only).
    Ending,
    Closed,
}

impl Duplex {
    /// Begins to carry. `idle_timeout`: how long a half-closed connection may be silent.
    pub(super) fn new(
        app: TcpStream,
        (send, recv): (SendStream<Chunk>, RecvStream),
        account: Rc<Account>,
        flow: Flow,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            app,
            send,
            recv,
            account,
            flow,
            pending: Bytes::new(),
            stuck_len: 0,
            backlog: None,
            unread: None,
            stalled: false,
            idle_timeout,
            enlisted: Enlisted::default(),
            place: None,
            from_app: Direction::Open,
            to_app: Direction::Open,
            reset_code: h2::Reason::CANCEL,
        }
    }

    /// The code with which the stream is reset, should this be dropped before its end. Default `CANCEL`.
    pub(super) fn reset_with(&mut self, code: h2::Reason) {
        self.reset_code = code;
    }

    /// Reads the app and sends into the tunnel until one of them has no more.
    fn poll_from_app(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.to_app != Direction::Open
            && let Poll::Ready(reset) = self.send.poll_reset(cx)
        {
            // While the other direction is open, reading it tells the same.
            return Poll::Ready(Err(reset.map_or_else(Broken::of, Broken::FarReset)));
        }
        let mut quota = QUOTA;
        while quota > 0 {
            self.stalled = false;
            if self.app.poll_read_ready(cx).map_err(|_| Broken::NearReset)?.is_pending() {
                return self.unreserve();
            }
            self.stalled = true;
            if self.account.share().poll_room(cx, &mut self.enlisted).is_pending() {
                return self.unreserve();
            }
            // What is asked for here stays asked for while this waits: the app has something to say.
            let room = ready!(self.poll_capacity(cx))?;
            self.stalled = false;
            let Poll::Ready(read) = self.poll_read(cx, room) else { return self.unreserve() };
            let Some(chunk) = read.map_err(|_| Broken::NearReset)? else {
                self.send.send_data(self.account.share().no_bytes(), true).map_err(Broken::of)?;
                return Poll::Ready(Ok(()));
            };
            let count = chunk.remaining();
            self.flow.near_sent(count);
            self.send.send_data(chunk, false).map_err(Broken::of)?;
            quota = quota.saturating_sub(count);
        }
        cx.waker().wake_by_ref();
        self.unreserve()
    }

    /// Gives capacity back that was asked for and not used: the tunnel's other streams would miss it.
    fn unreserve<T>(&mut self) -> Poll<T> {
        self.send.reserve_capacity(0);
        Poll::Pending
    }

    /// How much the tunnel takes now; at least one byte.
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        loop {
            if self.send.capacity() == 0 {
                self.send.reserve_capacity(BATCH_LEN);
            }
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(Broken::of(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }

    /// Why a stream takes no more that this side has not closed.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> Broken {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(code)) => Broken::FarReset(code),
            Poll::Ready(Err(error)) => Broken::of(error),
            Poll::Pending => Broken::FarReset(h2::Reason::CANCEL),
        }
    }

    /// Reads at most `room` bytes of the app; `None` is its end.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<std::io::Result<Option<Chunk>>> {
        let app = &mut self.app;
        self.account.share().chunk(room, |into| {
            let mut buf = ReadBuf::new(into);
            ready!(Pin::new(app).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// Reads the tunnel and writes to the app until one of them has no more.
    fn poll_to_app(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut quota = QUOTA;
        loop {
            while self.next_pending() {
                let written = match Pin::new(&mut self.app).poll_write(cx, &self.pending) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Broken::NearReset)),
                    Poll::Ready(Ok(written)) => written,
                    Poll::Pending => {
                        self.stick()?;
                        self.soak(cx)?;
                        return Poll::Pending;
                    }
                };
                self.unstick(written);
                self.pending.advance(written);
                self.flow.near_got(written);
                // An error means that the stream is gone: the next read of it says why.
                let _ = self.recv.flow_control().release_capacity(written);
                quota = quota.saturating_sub(written);
                if quota == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if self.to_app == Direction::Ending {
                // Where the app has ended too, the close that follows says the same.
                if self.from_app == Direction::Open {
                    // The app may have gone already; then reading from it says so.
                    let _ = ready!(Pin::new(&mut self.app).poll_shutdown(cx));
                }
                return Poll::Ready(Ok(()));
            }
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(frame)) => self.pending = frame.map_err(Broken::of)?,
                Poll::Ready(None) => self.to_app = Direction::Ending,
                Poll::Pending => {
                    self.look_at_window(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Tells the peer of room in the stream's window, if windows became smaller since this was asked last.
    fn look_at_window(&mut self, cx: &Context<'_>) {
        let streams = self.account.streams();
        let place = self.place.get_or_insert_with(|| streams.enter(cx));
        if streams.must_look(place) {
            // h2 looks at the window with each release, also of nothing. An error means that the stream is gone.
            let _ = self.recv.flow_control().release_capacity(0);
        }
    }

    /// Whether there is something to write to the app.
    fn next_pending(&mut self) -> bool {
        if self.pending.is_empty()
            && let Some(backlog) = &mut self.backlog
        {
            match backlog.pop() {
                Some(bytes) => {
                    self.stuck_len = bytes.len();
                    self.pending = bytes;
                }
                None => self.backlog = None,
            }
        }
        !self.pending.is_empty()
    }

    /// Counts the frame that the app does not take: with a frame of 1 MiB, the most that a stalled stream holds.
    fn stick(&mut self) -> Result<(), Broken> {
        if self.stuck_len > 0 {
            return Ok(());
        }
        self.stuck_len = self.pending.len();
        self.hold(self.stuck_len)
    }

    /// Counts what has come for an app that does not read; fails where that is too much. Of all streams of the pod it is
    /// one that still gets bytes which then goes: what the others hold already costs nothing more.
    fn hold(&mut self, len: usize) -> Result<(), Broken> {
        self.account.hold(len);
        if !self.account.share().is_overdrawn() {
            return Ok(());
        }
        self.reset_code = h2::Reason::ENHANCE_YOUR_CALM;
        Err(Broken::Overdrawn)
    }

    /// Counts so much less of that frame.
    fn unstick(&mut self, len: usize) {
        let len = len.min(self.stuck_len);
        if len > 0 {
            self.stuck_len -= len;
            self.account.release(len);
        }
    }

    /// Takes over what the tunnel holds for an app that does not read.
    ///
    /// Bounded by the stream's window, as nothing is released, and by what the pod may hold: a peer need not heed that
    /// windows became smaller. Left in h2, many small frames would count against the whole tunnel's frame budget and
    /// end it.
    fn soak(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while self.to_app == Direction::Open {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(frame)) => {
                    let frame = frame.map_err(Broken::of)?;
                    let len = frame.len();
                    self.backlog.get_or_insert_default().push(frame);
                    self.hold(len)?;
                }
                Poll::Ready(None) => self.to_app = Direction::Ending,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Looks after an app that is not read: it has ended, or cannot be taken from.
    fn poll_unread(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Result<(), Broken>> {
        let half_closed = self.from_app == Direction::Closed || self.to_app == Direction::Closed;
        if !half_closed && !self.stalled {
            return Poll::Pending;
        }
        let idle_timeout = half_closed.then_some(self.idle_timeout);
        let unread = self.unread.get_or_insert_with(|| Box::new(Unread::new(idle_timeout)));
        if moved {
            unread.moved();
        }
        let side = (self.stalled || self.from_app == Direction::Closed).then_some(&self.app);
        match ready!(unread.poll(cx, side, idle_timeout)) {
            Ended::Reset => Poll::Ready(Err(Broken::NearReset)),
            Ended::Idle => Poll::Ready(Err(Broken::Idle)),
        }
    }

    fn is_over(&self) -> bool {
        self.from_app == Direction::Closed && self.to_app == Direction::Closed
    }
}

impl Future for Duplex {
    type Output = Result<(), Broken>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let before = this.flow.total();
        if this.from_app == Direction::Open && this.poll_from_app(cx)?.is_ready() {
            this.from_app = Direction::Closed;
        }
        let heard_resets = this.to_app == Direction::Open;
        if this.to_app != Direction::Closed && this.poll_to_app(cx)?.is_ready() {
            this.to_app = Direction::Closed;
        }
        if heard_resets && this.to_app != Direction::Open && this.from_app == Direction::Open {
            // From now on nothing but this hears of a reset.
            if this.poll_from_app(cx)?.is_ready() {
                this.from_app = Direction::Closed;
            }
        }
        if this.is_over() {
            return Poll::Ready(Ok(()));
        }
        let moved = this.flow.total() > before;
        this.poll_unread(cx, moved)
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            self.account.streams().leave(place);
        }
        self.unstick(self.stuck_len);
        if let Some(backlog) = &self.backlog {
            self.account.release(backlog.len());
        }
        if !self.is_over() {
            // Not an end but a cut: neither side may take it for one.
            let _ = self.app.set_zero_linger();
            self.send.send_reset(self.reset_code);
        }
    }
}

impl Broken {
    fn of(error: h2::Error) -> Self {
        match error.reason() {
            Some(code) if error.is_reset() => Self::FarReset(code),
            Some(_) | None => Self::TunnelLost(error),
        }
    }
}

/// Frames in order of arrival, small ones merged.
#[derive(Debug, Default)]
struct Backlog {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Backlog {
    fn push(&mut self, frame: Bytes) {
        if frame.len() < SMALL_FRAME {
            self.tail.extend_from_slice(&frame);
        } else {
            if !self.tail.is_empty() {
                self.queue.push_back(self.tail.split().freeze());
            }
            self.queue.push_back(frame);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        self.queue.pop_front().or_else(|| (!self.tail.is_empty()).then(|| self.tail.split().freeze()))
    }

    fn len(&self) -> usize {
        self.queue.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }
}
