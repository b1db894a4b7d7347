//! The byte stream of one tunnel: TLS over TCP, with large reads and one write per tick.
//!
//! [`MeshStream`] hides what seals and opens the records (tokio-rustls) from its users. Under it lies a [`Wire`]: the
//! socket with a read-ahead block that is attached only while it holds unread bytes, and a small outbox that gathers
//! what one poll of the tunnel's task writes. Knows neither HTTP/2 nor identities.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::buffers::{BLOCK_LEN, Buffers};

/// Sealed bytes that rustls may queue before it takes no more: one full scratch read and its record headers.
const TLS_SEND_LIMIT: usize = BLOCK_LEN + 16 * 1024;
/// Writes up to this size are gathered until the end of the poll; larger ones go out with what was gathered. 16 KiB is
/// one TLS record: what is worth a system call of its own.
const OUTBOX_LEN_MAX: usize = 16 * 1024;
/// What an idle tunnel keeps of its outbox: a few small frames.
const OUTBOX_KEPT: usize = 1024;
/// Bytes read in one poll before the other tasks of the worker get their turn: about 0.5 ms.
const READ_QUOTA: usize = 1024 * 1024;
/// Slices handed to one `writev`: the outbox and what rustls passes (64 records at most).
const SLICES_MAX: usize = 65;

/// The socket of a tunnel. Shared by the stream and by those who flush it or ask for its TCP_INFO.
#[derive(Debug)]
pub(super) struct Wire {
    tcp: RefCell<TcpStream>,
    outbox: RefCell<Vec<u8>>,
    /// Whether small writes wait for [`Wire::poll_flush`]; not during the handshake.
    gathers: Cell<bool>,
    /// What ended the stream above. HTTP/2 keeps no more of it than its kind and text.
    broken: RefCell<Option<io::Error>>,
}

impl Wire {
    /// Wraps a connected socket; every write goes out at once until [`MeshStream::new`].
    pub(super) fn new(tcp: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            tcp: RefCell::new(tcp),
            outbox: RefCell::default(),
            gathers: Cell::new(false),
            broken: RefCell::default(),
        })
    }

    /// Lets `look` see the socket.
    pub(super) fn with_socket<T>(&self, look: impl FnOnce(&TcpStream) -> T) -> T {
        look(&self.tcp.borrow())
    }

    /// Lets `judge` see the error that ended the stream, if one did: the peer's TLS alert may be in it.
    pub(super) fn broken<T>(&self, judge: impl FnOnce(&io::Error) -> T) -> Option<T> {
        self.broken.borrow().as_ref().map(judge)
    }

    /// Keeps the first error, and passes on what HTTP/2 would have made of it.
    fn keep(&self, error: io::Error) -> io::Error {
        let passed = io::Error::new(error.kind(), error.to_string());
        self.broken.borrow_mut().get_or_insert(error);
        passed
    }

    /// Writes what was gathered. To be called at the end of each poll of the tunnel's task.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox.borrow_mut();
        let mut tcp = self.tcp.borrow_mut();
        let mut at = 0;
        while at < outbox.len() {
            match Pin::new(&mut *tcp).poll_write(cx, &outbox[at..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => at += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    outbox.drain(..at);
                    return Poll::Pending;
                }
            }
        }
        outbox.clear();
        outbox.shrink_to(OUTBOX_KEPT);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut outbox = self.outbox.borrow_mut();
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.gathers.get() && outbox.len() + total <= OUTBOX_LEN_MAX {
            bufs.iter().for_each(|buf| outbox.extend_from_slice(buf));
            return Poll::Ready(Ok(total));
        }
        let mut tcp = self.tcp.borrow_mut();
        loop {
            let waiting = outbox.len();
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            slices[0] = IoSlice::new(&outbox);
            let used = bufs.len().min(SLICES_MAX - 1);
            slices[1..=used].copy_from_slice(&bufs[..used]);
            let first = usize::from(waiting == 0);
            let written = ready!(Pin::new(&mut *tcp).poll_write_vectored(cx, &slices[first..=used]))?;
            outbox.drain(..written.min(waiting));
            if written > waiting || total == 0 {
                return Poll::Ready(Ok(written.saturating_sub(waiting)));
            }
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
    }
}

/// A [`Wire`] as rustls sees it.
#[derive(Debug)]
pub(super) struct Socket {
    wire: Rc<Wire>,
    buffers: Rc<Buffers>,
    ahead: Option<Ahead>,
    read_since_pending: usize,
}

/// A read-ahead block and what is unread in it.
#[derive(Debug)]
struct Ahead {
    block: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Socket {
    /// A socket whose read-ahead blocks come from `buffers`.
    pub(super) fn new(wire: Rc<Wire>, buffers: Rc<Buffers>) -> Self {
        Self { wire, buffers, ahead: None, read_since_pending: 0 }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.read_since_pending >= READ_QUOTA {
            self.read_since_pending = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Asked first, so that a socket with nothing to read costs no block.
        if self.wire.tcp.borrow().poll_read_ready(cx).is_pending() {
            self.read_since_pending = 0;
            return Poll::Pending;
        }
        let mut block = self.buffers.take_block();
        let mut buf = ReadBuf::new(&mut block);
        let result = Pin::new(&mut *self.wire.tcp.borrow_mut()).poll_read(cx, &mut buf);
        let end = buf.filled().len();
        match result {
            Poll::Ready(Ok(())) if end > 0 => {
                self.read_since_pending += end;
                self.ahead = Some(Ahead { block, at: 0, end });
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                self.read_since_pending = 0;
                self.buffers.give_back(block);
                Poll::Pending
            }
            Poll::Ready(result) => {
                self.buffers.give_back(block);
                Poll::Ready(result)
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            self.buffers.give_back(ahead.block);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_none() {
            ready!(self.poll_fill(cx))?;
        }
        let Some(mut ahead) = self.ahead.take() else { return Poll::Ready(Ok(())) };
        let count = buf.remaining().min(ahead.end - ahead.at);
        buf.put_slice(&ahead.block[ahead.at..ahead.at + count]);
        ahead.at += count;
        if ahead.at == ahead.end {
            self.buffers.give_back(ahead.block);
        } else {
            self.ahead = Some(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire.poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// While gathering, does nothing: HTTP/2 flushes after each frame, the tunnel's task once per poll.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.gathers.get() { Poll::Ready(Ok(())) } else { self.wire.poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.wire.poll_flush(cx))?;
        Pin::new(&mut *self.wire.tcp.borrow_mut()).poll_shutdown(cx)
    }
}

/// One tunnel's bytes, sealed and opened. Reads and writes like any stream, but small writes wait until
/// [`Wire::poll_flush`].
#[derive(Debug)]
pub(super) struct MeshStream {
    tls: TlsStream<Socket>,
}

impl MeshStream {
    /// Takes a finished handshake over; from now on small writes wait for [`Wire::poll_flush`].
    pub(super) fn new(mut tls: TlsStream<Socket>) -> Self {
        let socket = match &mut tls {
            TlsStream::Client(tls) => {
                let (socket, session) = tls.get_mut();
                session.set_buffer_limit(Some(TLS_SEND_LIMIT));
                socket
            }
            TlsStream::Server(tls) => {
                let (socket, session) = tls.get_mut();
                session.set_buffer_limit(Some(TLS_SEND_LIMIT));
                socket
            }
        };
        socket.wire.gathers.set(true);
        Self { tls }
    }

    fn keep(&self, error: io::Error) -> io::Error {
        self.tls.get_ref().0.wire.keep(error)
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf).map_err(|error| self.keep(error))
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
