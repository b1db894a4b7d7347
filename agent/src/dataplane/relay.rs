//! Carries the bytes of one connection between two sockets, both ways, in one task: what is not tunnelled.
//!
//! Small bytes are copied through the worker's scratch; a stream that fills it is spliced in the kernel until it pauses.
//! What a sink does not take of a copy is held; where the pod may hold no more, a source is read only as far as the sink
//! has taken what it says, so that no direction waits for the other.
//! FIN and RST of one side become FIN and RST of the other. Dropped before its end it resets both.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::copy::{Broken, QUOTA};
use super::flow::Flow;
use super::pipes::{Pipe, Pipes};
use super::share::Share;
use super::unread::{Ended, Unread};

#[cfg(test)]
mod tests;

/// What is copied at once. A read that fills it makes the next ones go through the kernel: below it, a copy is cheaper
/// than two splices. Also what one stalled direction can hold; counted in its pod's share.
const COPY_LEN: usize = 64 * 1024;

/// One connection between two sockets.
pub(super) struct Relay {
    near: TcpStream,
    far: TcpStream,
    from_near: Way,
    to_near: Way,
    share: Rc<Share>,
    pipes: Rc<Pipes>,
    flow: Flow,
    unread: Option<Box<Unread>>,
    idle_timeout: Duration,
}

/// One direction.
#[derive(Default)]
struct Way {
    closed: bool,
    /// The sink does not take what the source says.
    stalled: bool,
    /// Copied, and not yet written.
    pending: Bytes,
    pipe: Option<Pipe>,
    /// The last read was as long as it could be.
    bulk: bool,
}

/// Which side of a relay failed.
enum Failed {
    Source,
    Sink,
}

impl Relay {
    /// Begins to carry. `idle_timeout`: how long a half-closed connection may be silent.
    pub(super) fn new(
        (near, far): (TcpStream, TcpStream),
        share: Rc<Share>,
        pipes: Rc<Pipes>,
        flow: Flow,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            near,
            far,
            from_near: Way::default(),
            to_near: Way::default(),
            share,
            pipes,
            flow,
            unread: None,
            idle_timeout,
        }
    }

    fn is_over(&self) -> bool {
        self.from_near.closed && self.to_near.closed
    }

    /// Looks after a side that is not read: it has ended, or the other does not take what it says.
    fn poll_unread(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Result<(), Broken>> {
        let half_closed = self.from_near.closed || self.to_near.closed;
        let (side, reset) = if self.from_near.closed || self.from_near.stalled {
            (&self.near, Broken::NearReset)
        } else if self.to_near.closed || self.to_near.stalled {
            (&self.far, Broken::FarReset(h2::Reason::CANCEL))
        } else {
            return Poll::Pending;
        };
        let idle_timeout = half_closed.then_some(self.idle_timeout);
        let unread = self.unread.get_or_insert_with(|| Box::new(Unread::new(idle_timeout)));
        if moved {
            unread.moved();
        }
        match ready!(unread.poll(cx, Some(side), idle_timeout)) {
            Ended::Reset => Poll::Ready(Err(reset)),
            Ended::Idle => Poll::Ready(Err(Broken::Idle)),
        }
    }
}

impl Way {
    /// Moves bytes until the source has no more or the sink takes no more; ready at the source's end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        (share, pipes): (&Rc<Share>, &Rc<Pipes>),
        mut moved: impl FnMut(usize),
    ) -> Poll<Result<(), Failed>> {
        let mut quota = QUOTA;
        while quota > 0 {
            self.stalled = true;
            let written = ready!(self.poll_write(cx, sink, share)).map_err(|_| Failed::Sink)?;
            self.stalled = false;
            if written > 0 {
                moved(written);
                quota = quota.saturating_sub(written);
                continue;
            }
            match self.poll_read(cx, source, sink, share, pipes) {
                Poll::Ready(Ok(Took::End)) => {
                    // The sink may have gone already; then writing or reading it says so.
                    let _ = ready!(Pin::new(sink).poll_shutdown(cx));
                    self.pipe = None;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(Took::Written(written))) => {
                    moved(written);
                    quota = quota.saturating_sub(written);
                }
                Poll::Ready(Err(failed)) => return Poll::Ready(Err(failed)),
                Poll::Pending => {
                    // The source pauses: the pipe may serve another connection.
                    self.pipe = None;
                    self.bulk = false;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what was read; 0 once there is nothing left.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut TcpStream,
        share: &Share,
    ) -> Poll<io::Result<usize>> {
        if !self.pending.is_empty() {
            let written = ready!(Pin::new(sink).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
            share.release(written);
            if self.pending.is_empty() {
                self.pending = Bytes::new();
            }
            return Poll::Ready(Ok(written));
        }
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| !pipe.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            ready!(sink.poll_write_ready(cx))?;
            match sink.try_io(Interest::WRITABLE, || pipe.drain(&*sink)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                result => return Poll::Ready(result),
            }
        }
    }

    /// Reads once: into the pipe, or through the scratch straight to the sink, keeping what that does not take.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        share: &Rc<Share>,
        pipes: &Rc<Pipes>,
    ) -> Poll<Result<Took, Failed>> {
        if self.bulk && self.pipe.is_none() {
            self.pipe = pipes.lend();
        }
        if let Some(pipe) = &mut self.pipe {
            loop {
                ready!(source.poll_read_ready(cx)).map_err(|_| Failed::Source)?;
                match source.try_io(Interest::READABLE, || pipe.fill(&*source)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) => return Poll::Ready(Ok(Took::End)),
                    Ok(_) => return Poll::Ready(Ok(Took::Written(0))),
                    Err(_) => return Poll::Ready(Err(Failed::Source)),
                }
            }
        }
        if share.is_used_up() {
            return self.poll_pass(cx, source, sink, share);
        }
        share.buffers().with_scratch(|scratch| {
            let mut buf = ReadBuf::new(&mut scratch[..COPY_LEN]);
            ready!(Pin::new(source).poll_read(cx, &mut buf)).map_err(|_| Failed::Source)?;
            let read = buf.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(Took::End));
            }
            self.bulk = read.len() == COPY_LEN;
            let written = match Pin::new(sink).poll_write(cx, read) {
                Poll::Ready(written) => written.map_err(|_| Failed::Sink)?,
                Poll::Pending => 0,
            };
            if written < read.len() {
                self.pending = Bytes::copy_from_slice(&read[written..]);
                share.hold(self.pending.len());
            }
            Poll::Ready(Ok(Took::Written(written)))
        })
    }

    /// Writes what the source has said, and only then takes from it what the sink took. A third system call for each
    /// copy, and nothing to hold.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        sink: &mut TcpStream,
        share: &Share,
    ) -> Poll<Result<Took, Failed>> {
        share.buffers().with_scratch(|scratch| {
            let mut buf = ReadBuf::new(&mut scratch[..COPY_LEN]);
            ready!(source.poll_peek(cx, &mut buf)).map_err(|_| Failed::Source)?;
            let said = buf.filled();
            if said.is_empty() {
                return Poll::Ready(Ok(Took::End));
            }
            // Spliced from now on: the kernel holds that.
            self.bulk = said.len() == COPY_LEN;
            self.stalled = true;
            let written = ready!(Pin::new(sink).poll_write(cx, said)).map_err(|_| Failed::Sink)?;
            self.stalled = false;
            // Not polled: that may be put off to give others their turn, and the same bytes would be written again.
            let mut taken = 0;
            while taken < written {
                match source.try_read(&mut scratch[taken..written]) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Failed::Source)),
                    Ok(count) => taken += count,
                }
            }
            Poll::Ready(Ok(Took::Written(written)))
        })
    }
}

/// What one read did.
enum Took {
    /// So many bytes reached the sink already.
    Written(usize),
    /// The source has no more.
    End,
}

impl Future for Relay {
    type Output = Result<(), Broken>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let before = this.flow.total();
        let memory = (&this.share, &this.pipes);
        if !this.from_near.closed {
            let moved = |count| this.flow.near_sent(count);
            match this.from_near.poll(cx, &mut this.near, &mut this.far, memory, moved) {
                Poll::Ready(Ok(())) => this.from_near.closed = true,
                Poll::Ready(Err(Failed::Source)) => return Poll::Ready(Err(Broken::NearReset)),
                Poll::Ready(Err(Failed::Sink)) => {
                    return Poll::Ready(Err(Broken::FarReset(h2::Reason::CANCEL)));
                }
                Poll::Pending => {}
            }
        }
        if !this.to_near.closed {
            let moved = |count| this.flow.near_got(count);
            match this.to_near.poll(cx, &mut this.far, &mut this.near, memory, moved) {
                Poll::Ready(Ok(())) => this.to_near.closed = true,
                Poll::Ready(Err(Failed::Source)) => {
                    return Poll::Ready(Err(Broken::FarReset(h2::Reason::CANCEL)));
                }
                Poll::Ready(Err(Failed::Sink)) => return Poll::Ready(Err(Broken::NearReset)),
                Poll::Pending => {}
            }
        }
        if this.is_over() {
            return Poll::Ready(Ok(()));
        }
        let moved = this.flow.total() > before;
        this.poll_unread(cx, moved)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.share.release(self.from_near.pending.len() + self.to_near.pending.len());
        if !self.is_over() {
            let _ = self.near.set_zero_linger();
            let _ = self.far.set_zero_linger();
        }
    }
}
