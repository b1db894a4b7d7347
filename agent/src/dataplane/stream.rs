//! The byte stream of one tunnel: TLS over TCP, its records sealed and opened in place.
//!
//! [`MeshStream`] is what HTTP/2 reads and writes. What it writes waits in the [`Wire`] until [`Wire::poll_flush`]. Knows
//! neither HTTP/2 nor identities; the handshake before it is [`super::handshake`]'s.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::inbox::{Early, Inbox};
use super::records::{Opened, Opener, RecordError, Schedule, Sealer, Session};
use super::wire::Wire;

#[cfg(test)]
mod tests;

/// One tunnel's bytes, sealed and opened. Reads and writes like any stream, but what is written waits until
/// [`Wire::poll_flush`].
pub(super) struct MeshStream {
    wire: Rc<Wire>,
    inbox: Inbox,
    state: State,
}

enum State {
    Open,
    /// The peer has said that it sends no more.
    Ended,
    /// To be told once what came before is taken.
    Failed(Option<io::Error>),
}

impl MeshStream {
    /// Goes on where a handshake ended.
    pub(super) fn new(
        tcp: TcpStream,
        secrets: ExtractedSecrets,
        schedule: Schedule,
        early: Early,
        buffers: Rc<Buffers>,
    ) -> Result<Self, rustls::Error> {
        let session = Session::new(schedule);
        let sealer = Sealer::new(secrets.tx, Rc::clone(&session))?;
        let opener = Opener::new(secrets.rx, session)?;
        let inbox = Inbox::new(opener, Rc::clone(&buffers), early);
        Ok(Self { wire: Wire::new(tcp, sealer, buffers), inbox, state: State::Open })
    }

    /// The socket below, and what waits to be sent on it.
    pub(super) fn wire(&self) -> Rc<Wire> {
        Rc::clone(&self.wire)
    }

    /// Reads until `buf` is full, or there is no more for now. At least a byte, unless it is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            if self.inbox.take(buf) {
                continue;
            }
            if let State::Failed(error) = &mut self.state {
                let told = buf.filled().len() == before;
                return Poll::Ready(error.take_if(|_| told).map_or(Ok(()), Err));
            }
            let opened = match self.state {
                State::Open => self.inbox.open_next(),
                State::Ended | State::Failed(_) => break,
            };
            match opened {
                Ok(Some(Opened::Data(_) | Opened::Nothing)) => {}
                Ok(Some(Opened::End)) => self.state = State::Ended,
                Ok(None) if buf.filled().len() > before => break,
                Ok(None) => {
                    if let Err(error) = ready!(self.inbox.poll_fill(cx, &self.wire)) {
                        self.state = State::Failed(Some(error));
                    }
                }
                Err(error) => {
                    if let Some(alert) = alert_for(&error) {
                        self.wire.last_word(cx, alert);
                    }
                    self.state = State::Failed(Some(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the peer is told of an error of its own.
fn alert_for(error: &io::Error) -> Option<AlertDescription> {
    error.get_ref()?.downcast_ref::<RecordError>().map(|error| error.alert())
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_fill(cx, buf).map_err(|error| self.wire.keep(error))
    }
}

impl AsyncWrite for MeshStream {
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

    /// Does nothing: HTTP/2 flushes after each frame, the tunnel's task once per poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_shutdown(cx)
    }
}
