//! The TLS listener: bounded connections, bounded handshakes; hands finished connections to tonic.
//!
//! TLS 1.3 only, ALPN h2, no client certificate (callers are known by token). The certificate is the one of the
//! moment: [`crate::keeper`] replaces it while we run.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::counts::{Counts, Dropped};
use crate::places::{Full, Place, Places};

/// How many connections may be open. An agent holds one. A hostile one can make us hold 16 streams with a message of
/// 16 KiB each, 64 KiB of HTTP/2 window and 48 KiB of TLS buffers: 368 KiB, 368 MiB for all; an idle one holds 20 KiB.
pub const CONNECTIONS_MAX: usize = 1024;
/// How many of them may come from one address: agents behind one NAT, or tests on loopback.
pub const CONNECTIONS_PER_SOURCE_MAX: usize = 256;
/// How long a TLS handshake may take. Three round trips on a bad link are below 1 s.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many finished handshakes may wait for tonic to take them; it takes them at once.
const READY_MAX: usize = 64;
/// How long a connection may be open before its first request of a known caller. An agent connects in order to ask, and
/// its call ends within 10 s; whoever has no token holds a place for no longer than this.
pub const UNKNOWN_FOR_MAX: Duration = Duration::from_secs(30);
/// How long a known caller's connection is kept; then the agent is told to open a new one. Frees what idle ones hold.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long it may take to end after that: three times what a request may take. Whoever does not read what it is told
/// is not waited for any longer.
pub const CLOSING_MAX: Duration = Duration::from_secs(30);
/// How long to wait after accept() failed for want of file descriptors, so that the loop does not spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a request came from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address.
    pub from: SocketAddr,
    known: Arc<AtomicBool>,
}

impl Peer {
    /// Notes that a request on its connection came from a known caller: it may stay open.
    pub(crate) fn is_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Whether one did.
    pub(crate) fn was_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// One from there of whom nothing is known.
    #[cfg(test)]
    pub(crate) fn stranger(from: SocketAddr) -> Self {
        Self { from, known: Arc::default() }
    }
}

/// Accepts connections for as long as the receiver of `ready` lives.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    counts: Arc<Counts>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let open = Places::new(CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX);
    // Bounded by CONNECTIONS_MAX: every handshake holds a Place.
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = ready.closed() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = match open.take(from.ip()) {
            Ok(place) => place,
            Err(full) => {
                let why = match full {
                    Full::All => Dropped::TooMany,
                    Full::OfOne => Dropped::TooManyOfOne,
                };
                drop_connection(&counts, from, why, None);
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
        let (counts, ready) = (Arc::clone(&counts), ready.clone());
        handshakes.spawn(async move {
            match handshake(acceptor, stream).await {
                // The receiver goes only when the server stops.
                Ok(stream) => drop(ready.send(Ok(Connection::new(stream, from, place, counts))).await),
                Err((why, error)) => drop_connection(&counts, from, why, error),
            }
        });
    }
}

/// A channel for finished connections, of the size that [`accept`] expects.
pub(crate) fn ready() -> (mpsc::Sender<io::Result<Connection>>, mpsc::Receiver<io::Result<Connection>>) {
    mpsc::channel(READY_MAX)
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (Dropped, Option<io::Error>)> {
    // A reply is one write; waiting for its acknowledgement would only delay it. Failure changes nothing else.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((Dropped::Handshake, Some(error))),
        Err(_) => Err((Dropped::HandshakeTimeout, None)),
    }
}

fn drop_connection(counts: &Counts, from: SocketAddr, why: Dropped, error: Option<io::Error>) {
    counts.dropped(why);
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    tracing::info!(target: "access", peer = %from, why = why.word(), error, "connection dropped");
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    _place: Place,
    counts: Arc<Counts>,
    known: Arc<AtomicBool>,
    standing: Standing,
    /// When its standing is looked at next.
    until: Pin<Box<Sleep>>,
}

/// Whether a connection may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// Until [`UNKNOWN_FOR_MAX`], if nobody known has asked by then.
    OnTrial,
    /// Until [`CLOSING_MAX`] after it was told to end.
    Admitted,
    /// It is over, whatever is still to be read or written.
    Over,
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, from: SocketAddr, place: Place, counts: Arc<Counts>) -> Self {
        let until = Box::pin(tokio::time::sleep(UNKNOWN_FOR_MAX));
        let standing = Standing::OnTrial;
        Self { stream, from, _place: place, counts, known: Arc::default(), standing, until }
    }

    /// Fails once it has been open for too long; until then, wakes who asks when that is.
    ///
    /// Asked before every read and every write: HTTP/2 always waits for one of them, but not always for a read. While
    /// it has something to answer to a peer that does not read, it waits for room to write and reads nothing either;
    /// what else ends a connection, keepalive and age, waits for the same room in order to say so.
    fn go_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.standing != Standing::Over && self.until.as_mut().poll(cx).is_ready() {
            if self.standing == Standing::OnTrial && self.known.load(Ordering::Relaxed) {
                self.standing = Standing::Admitted;
                let end = self.until.deadline() + (CONNECTION_AGE_MAX + CLOSING_MAX - UNKNOWN_FOR_MAX);
                self.until.as_mut().reset(end);
                continue;
            }
            let why = if self.standing == Standing::OnTrial { Dropped::Unknown } else { Dropped::Stuck };
            self.standing = Standing::Over;
            drop_connection(&self.counts, self.from, why, None);
        }
        if self.standing == Standing::Over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { from: self.from, known: Arc::clone(&self.known) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.go_on(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.go_on(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.go_on(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.go_on(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
