//! The socket of a tunnel, and what waits to be sent on it.
//!
//! What is written is gathered in one block, sealed there in place, and sent with one system call: at once when it is
//! more than a record, otherwise at the end of the poll of the tunnel's task. An idle tunnel has no block.

use std::cell::{Cell, RefCell};
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use adit_core::report::TcpFacts;
use adit_core::time::Mono;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::records::{ALERT_LEN, CONTENT_LEN_MAX, HEADER_LEN, KEY_UPDATE_LEN, RECORD_LEN_MAX, Sealer};
use crate::sockets::tcp_info;

/// Content up to this size is gathered until the end of the poll; more goes out at once. One full record: what is worth
/// a system call of its own.
const GATHERED_MAX: usize = CONTENT_LEN_MAX;
/// How old the kernel's figures of a tunnel may be in a report: a hundred connections that end together ask once.
const FACTS_AGE_MAX: Duration = Duration::from_millis(10);

/// The socket of a tunnel after its handshake. Shared by the stream and by those who flush it or ask for its TCP_INFO.
pub(super) struct Wire {
    tcp: RefCell<TcpStream>,
    out: RefCell<Out>,
    /// What the kernel measured, and when it was asked.
    facts: Cell<Option<(Mono, TcpFacts)>>,
    /// What ended the stream above. HTTP/2 keeps no more of it than its kind and text.
    broken: RefCell<Option<io::Error>>,
}

/// What waits to be sent: records, and after them the content of a record that is still open.
struct Out {
    sealer: Sealer,
    buffers: Rc<Buffers>,
    block: Option<Box<[u8]>>,
    /// Sealed and not sent is `at..end` of the block.
    at: usize,
    end: usize,
    /// Bytes of content after `end` and the place of its header.
    open: usize,
    /// The end has been said.
    closed: bool,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("tcp", &self.tcp).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Wire {
    /// What is sent on `tcp` is gathered in blocks of `buffers`, and sealed by `sealer`.
    pub(super) fn new(tcp: TcpStream, sealer: Sealer, buffers: Rc<Buffers>) -> Rc<Self> {
        let out = Out { sealer, buffers, block: None, at: 0, end: 0, open: 0, closed: false };
        Rc::new(Self {
            tcp: RefCell::new(tcp),
            out: RefCell::new(out),
            facts: Cell::default(),
            broken: RefCell::default(),
        })
    }

    /// Lets `look` see the socket.
    pub(super) fn with_socket<T>(&self, look: impl FnOnce(&TcpStream) -> T) -> T {
        look(&self.tcp.borrow())
    }

    /// What the kernel measured on the socket, as of now or at most [`FACTS_AGE_MAX`] ago.
    pub(super) fn tcp_facts(&self, now: Mono) -> Option<TcpFacts> {
        if let Some((asked, facts)) = self.facts.get()
            && now.since(asked) <= FACTS_AGE_MAX
        {
            return Some(facts);
        }
        let micros = |span: Duration| u32::try_from(span.as_micros()).unwrap_or(u32::MAX);
        let info = self.with_socket(tcp_info).ok()?;
        let facts = TcpFacts {
            rtt_us: micros(info.rtt),
            min_rtt_us: micros(info.min_rtt),
            retransmits: info.retransmits,
        };
        self.facts.set(Some((now, facts)));
        Some(facts)
    }

    /// Lets `judge` see the error that ended the stream, if one did: the peer's TLS alert may be in it.
    pub(super) fn broken<T>(&self, judge: impl FnOnce(&io::Error) -> T) -> Option<T> {
        self.broken.borrow().as_ref().map(judge)
    }

    /// Keeps the first error, and passes on what HTTP/2 would have made of it.
    pub(super) fn keep(&self, error: io::Error) -> io::Error {
        let passed = io::Error::new(error.kind(), error.to_string());
        self.broken.borrow_mut().get_or_insert(error);
        passed
    }

    /// Whether there may be something to read.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.borrow().poll_read_ready(cx)
    }

    /// Reads what there is, as far as `into` takes it; 0 is the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(into);
        ready!(Pin::new(&mut *self.tcp.borrow_mut()).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Takes content; pending while what was sealed before has not gone out.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let out = &mut *self.out.borrow_mut();
        if out.at < out.end {
            ready!(self.poll_out(cx, out))?;
        }
        let mut taken = 0;
        for buf in bufs {
            let count = out.take(buf)?;
            taken += count;
            if count < buf.len() {
                break;
            }
        }
        if out.end + out.open > GATHERED_MAX {
            out.seal_open()?;
            if let Poll::Ready(sent) = self.poll_out(cx, out) {
                sent?;
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Sends what was gathered. To be called at the end of each poll of the tunnel's task.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let out = &mut *self.out.borrow_mut();
        out.seal_open()?;
        out.update_key()?;
        self.poll_out(cx, out)
    }

    /// Says this alert as the last thing; without waiting, as far as the socket takes it.
    pub(super) fn last_word(&self, cx: &mut Context<'_>, alert: AlertDescription) {
        let out = &mut *self.out.borrow_mut();
        // A socket that is broken or full hears nothing anyway.
        let _ = out.seal_open().and_then(|()| out.alert(alert));
        let _ = self.poll_out(cx, out);
    }

    /// Says what was gathered, then that this is the end, and ends this side of the TCP connection. Asked again while
    /// pending, it says the end once.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let out = &mut *self.out.borrow_mut();
            out.seal_open()?;
            if !std::mem::replace(&mut out.closed, true) {
                out.alert(AlertDescription::CloseNotify)?;
            }
            ready!(self.poll_out(cx, out))?;
        }
        Pin::new(&mut *self.tcp.borrow_mut()).poll_shutdown(cx)
    }

    #[cfg(test)]
    pub(super) fn with_sealer<T>(&self, change: impl FnOnce(&mut Sealer) -> T) -> T {
        change(&mut self.out.borrow_mut().sealer)
    }

    #[cfg(test)]
    pub(super) fn holds_a_block(&self) -> bool {
        self.out.borrow().block.is_some()
    }

    /// Sends what is sealed, and gives the block back once nothing is left in it.
    fn poll_out(&self, cx: &mut Context<'_>, out: &mut Out) -> Poll<io::Result<()>> {
        if let Some(block) = &out.block {
            while out.at < out.end {
                let mut tcp = self.tcp.borrow_mut();
                match ready!(Pin::new(&mut *tcp).poll_write(cx, &block[out.at..out.end]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    sent => out.at += sent,
                }
            }
        }
        out.rewind();
        Poll::Ready(Ok(()))
    }
}

impl Out {
    /// Gathers of `bytes` what there is room for; returns how much that is.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let whole = bytes.len();
        while !bytes.is_empty() && self.has_room(RECORD_LEN_MAX + KEY_UPDATE_LEN) {
            self.update_key()?;
            let (start, room) = (self.end + HEADER_LEN + self.open, CONTENT_LEN_MAX - self.open);
            let count = bytes.len().min(room);
            self.block()[start..start + count].copy_from_slice(&bytes[..count]);
            self.open += count;
            bytes = &bytes[count..];
            if self.open == CONTENT_LEN_MAX {
                self.seal_open()?;
            }
        }
        Ok(whole - bytes.len())
    }

    /// Whether records of these bytes, and an alert after them, fit after what is sealed.
    fn has_room(&mut self, len: usize) -> bool {
        let end = self.end;
        self.block().len() - end >= len + ALERT_LEN
    }

    fn block(&mut self) -> &mut [u8] {
        self.block.get_or_insert_with(|| self.buffers.take_block())
    }

    fn seal_open(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.open) {
            0 => Ok(()),
            len => self.seal(|sealer, room| sealer.seal_data(room, len)),
        }
    }

    /// The key is changed between records only: not while one is open.
    fn update_key(&mut self) -> io::Result<()> {
        if self.open == 0 && self.sealer.must_update() && self.has_room(KEY_UPDATE_LEN) {
            self.seal(Sealer::seal_update)?;
        }
        Ok(())
    }

    fn alert(&mut self, alert: AlertDescription) -> io::Result<()> {
        if self.has_room(0) { self.seal(|sealer, room| sealer.seal_alert(room, alert)) } else { Ok(()) }
    }

    fn seal(&mut self, seal: impl FnOnce(&mut Sealer, &mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let block = self.block.get_or_insert_with(|| self.buffers.take_block());
        self.end += seal(&mut self.sealer, &mut block[self.end..])?;
        Ok(())
    }

    /// Begins the block anew once all sealed in it is sent.
    fn rewind(&mut self) {
        if self.open == 0 {
            (self.at, self.end) = (0, 0);
            if let Some(block) = self.block.take() {
                self.buffers.give_back(block);
            }
        }
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.buffers.give_back(block);
        }
    }
}
