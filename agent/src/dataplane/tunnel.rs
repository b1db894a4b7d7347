//! One outbound tunnel: dialled, driven, and asked for streams.
//!
//! A [`Tunnel`] is kept by the pool and by its streams; when the last of them lets go, HTTP/2 ends it in order. Its
//! [`Driver`] moves frames, applies windows, and pings while no stream is open. Does not choose peers or retry: see
//! [`super::pool`] and [`super::connect`].

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use adit_core::report::{Security, TcpFacts};
use adit_core::time::Mono;
use adit_proto::{Reason, SpiffeId};
use h2::client::{Connection, SendRequest};
use h2::{PingPong, RecvStream, SendStream};
use http::Request;
use rustls_pki_types::ServerName;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::account::Account;
use super::handshake::{self, Secured};
use super::legs::Legs;
use super::offer::Offer;
use super::protocol::{self, Refused, STREAMS_MAX};
use super::share::{Chunk, Share};
use super::stream::MeshStream;
use super::wire::Wire;
use crate::clock::Clock;
use crate::identity::tls::{self, HandshakeError, Peer};
use crate::identity::{CertSource, NoCertificate};
use crate::sockets::DialError;

/// The TLS handshake must finish in this time, on either side.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// TCP and TLS together: an attempt that waits for it gives up sooner, but the tunnel may serve the next one.
const DIAL_DEADLINE: Duration = Duration::from_secs(8);
/// How often a tunnel without streams is pinged, and how soon it must answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// This pod has no certificate.
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Neither TCP nor TLS in time.
    #[error("{peer} did not finish {stage} in time")]
    Timeout {
        /// The peer.
        peer: SocketAddr,
        /// What was waited for.
        stage: DialStage,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {peer} failed")]
    Tls {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The handshake finished, but not as a tunnel must.
    #[error("{peer} is no peer")]
    Handshake {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: HandshakeError,
    },
    /// HTTP/2 did not begin.
    #[error("HTTP/2 with {peer} failed")]
    Http {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: h2::Error,
    },
    /// The pod's pool is closed.
    #[error("the pod is gone")]
    PodGone,
}

/// What a tunnel's opening waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DialStage {
    /// The TCP handshake.
    Tcp,
    /// The TLS handshake.
    Tls,
}

impl std::fmt::Display for DialStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "the TCP handshake",
            Self::Tls => "the TLS handshake",
        })
    }
}

/// Where a tunnel leads and who must be there.
#[derive(Clone, Debug)]
pub(super) struct Towards {
    /// The peer agent's listener in the destination pod.
    pub(super) addr: SocketAddr,
    /// Whose certificate this side shows.
    pub(super) own: SpiffeId,
    /// Whose certificate the other side must show.
    pub(super) expected: SpiffeId,
}

/// How long a dial took.
#[derive(Clone, Copy, Debug)]
pub(super) struct DialTimes {
    /// The TCP handshake.
    pub(super) tcp: Duration,
    /// The TLS handshake.
    pub(super) tls: Duration,
}

/// An open tunnel.
#[derive(Debug)]
pub(super) struct Tunnel {
    requests: SendRequest<Chunk>,
    vitals: Rc<Vitals>,
    /// What the handshake proved.
    pub(super) security: Arc<Security>,
    /// The same, as the kill list wants it.
    pub(super) peer: Peer,
    /// The generation of certificate and trust under which it was opened.
    pub(super) generation: u64,
}

/// What a tunnel, its streams and its driver share.
#[derive(Debug)]
struct Vitals {
    wire: Rc<Wire>,
    account: Rc<Account>,
    active: Cell<usize>,
    idle_since: Cell<Mono>,
    ended: Cell<bool>,
    cut: Cell<bool>,
    lost: Cell<Option<Reason>>,
    clock: Clock,
}

/// A place for one stream in a tunnel; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    tunnel: Rc<Tunnel>,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The peer answered, and not with 200.
    #[error("peer refused: {}", .0.reason())]
    Refused(Refused),
    /// The tunnel was ending before the stream began: the peer has not seen it.
    #[error("tunnel is ending")]
    GoAway,
    /// The peer did not take the stream (REFUSED_STREAM): it has done nothing with it.
    #[error("peer took no further stream")]
    RefusedStream,
    /// The peer reset the stream instead of answering.
    #[error("peer reset the stream: {0}")]
    Reset(h2::Reason),
    /// The tunnel broke.
    #[error("tunnel broke: {0}")]
    Lost(Reason),
}

/// Dials a tunnel. The driver must be polled for anything to happen.
pub(super) async fn dial(
    legs: &Legs,
    certs: &CertSource,
    share: &Rc<Share>,
    clock: Clock,
    towards: &Towards,
) -> Result<(Tunnel, Driver, DialTimes), TunnelError> {
    let peer = towards.addr;
    let begun = clock.now().mono;
    let generation = certs.generation(&towards.own);
    let config = certs.client(&towards.own, &towards.expected)?;
    let late = |stage| move |_| TunnelError::Timeout { peer, stage };
    let tcp = timeout(DIAL_DEADLINE, legs.tunnel(peer)).await.map_err(late(DialStage::Tcp))??;
    let connected = clock.now().mono;

    // By address: no name is sent (SNI), and the verifier compares identities.
    let name = ServerName::IpAddress(peer.ip().into());
    let Secured { stream, peer: proven } =
        timeout(HANDSHAKE_DEADLINE, handshake::connect(tcp, config, name, share.buffers()))
            .await
            .map_err(late(DialStage::Tls))?
            .map_err(|source| TunnelError::Tls { peer, source })?;
    let proven = proven.map_err(|source| TunnelError::Handshake { peer, source })?;
    let secured = clock.now();

    let wire = stream.wire();
    let http = |source| TunnelError::Http { peer, source };
    let (requests, mut connection) = protocol::client().handshake(stream).await.map_err(http)?;
    let ping_pong = connection.ping_pong().expect("nobody has asked this connection for its ping before");
    let vitals = Rc::new(Vitals {
        wire,
        account: Account::new(Rc::clone(share)),
        active: Cell::new(0),
        idle_since: Cell::new(secured.mono),
        ended: Cell::new(false),
        cut: Cell::new(false),
        lost: Cell::new(None),
        clock,
    });
    let driver = Driver {
        connection,
        vitals: Rc::clone(&vitals),
        pinger: Pinger::new(ping_pong),
        offer: Offer::new(),
    };
    let tunnel = Tunnel { requests, vitals, security: Arc::new(security(&proven)), peer: proven, generation };
    let times = DialTimes { tcp: connected.since(begun), tls: secured.mono.since(connected) };
    Ok((tunnel, driver, times))
}

/// A verified peer as reports say it.
pub(super) fn security(peer: &Peer) -> Security {
    Security {
        peer: peer.id.clone(),
        peer_serial: Arc::clone(&peer.serial),
        peer_not_after: peer.not_after,
        version: peer.tls.version,
        suite: peer.tls.suite,
        group: peer.tls.group,
    }
}

impl Tunnel {
    /// Streams that may be open at once: ours or the peer's bound, whichever is less.
    pub(super) fn streams_max(&self) -> usize {
        self.requests.current_max_send_streams().min(STREAMS_MAX as usize)
    }

    /// Whether a further stream may be opened.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.vitals.active.get() < self.streams_max()
    }

    /// Whether it has neither ended nor broken.
    pub(super) fn is_open(&self) -> bool {
        !self.vitals.ended.get()
    }

    /// Takes a place, whether there is room or not.
    pub(super) fn slot(self: &Rc<Self>) -> Slot {
        self.vitals.active.set(self.vitals.active.get() + 1);
        Slot { tunnel: Rc::clone(self) }
    }

    /// Since when no stream has been open; none while one is.
    pub(super) fn idle_since(&self) -> Option<Mono> {
        (self.vitals.active.get() == 0).then(|| self.vitals.idle_since.get())
    }

    /// Breaks it, for this reason.
    pub(super) fn cut(&self, reason: Reason) {
        self.vitals.lost.set(Some(reason));
        self.vitals.cut.set(true);
        self.vitals.account.wake_driver();
    }

    /// Streams open now.
    pub(super) fn active(&self) -> usize {
        self.vitals.active.get()
    }
}

impl Slot {
    /// The tunnel.
    pub(super) fn tunnel(&self) -> &Rc<Tunnel> {
        &self.tunnel
    }

    /// The account that the stream's bytes belong to.
    pub(super) fn account(&self) -> Rc<Account> {
        Rc::clone(&self.tunnel.vitals.account)
    }

    /// What the kernel measured on the tunnel.
    pub(super) fn tcp_facts(&self) -> Option<TcpFacts> {
        let vitals = &self.tunnel.vitals;
        vitals.wire.tcp_facts(vitals.clock.now().mono)
    }

    /// Why the tunnel broke, if it did: a certificate that the peer refused is known only after the handshake.
    pub(super) fn lost(&self) -> Option<Reason> {
        self.tunnel.vitals.lost.get()
    }

    /// Sends the CONNECT and waits for its answer; the caller bounds the wait. Dropped before, it resets the stream.
    pub(super) async fn open(
        &self,
        request: Request<()>,
    ) -> Result<(SendStream<Chunk>, RecvStream), StreamError> {
        let mut requests = self.tunnel.requests.clone();
        let failed = |error| self.stream_error(&error);
        poll_fn(|cx| requests.poll_ready(cx)).await.map_err(failed)?;
        let (answer, send) = requests.send_request(request, false).map_err(failed)?;
        drop(requests);
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(error) => {
                // The driver may be about to say why the tunnel broke: let it have its turn first.
                tokio::task::yield_now().await;
                return Err(self.stream_error(&error));
            }
        };
        Refused::of(&answer).map_err(StreamError::Refused)?;
        Ok((send, answer.into_body()))
    }

    fn stream_error(&self, error: &h2::Error) -> StreamError {
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => StreamError::RefusedStream,
            Some(code) if error.is_reset() => StreamError::Reset(code),
            Some(h2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => StreamError::GoAway,
            Some(_) | None => {
                let lost = self.lost();
                StreamError::Lost(lost.unwrap_or_else(|| why_broken(error, &self.tunnel.vitals.wire)))
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let vitals = &self.tunnel.vitals;
        vitals.active.set(vitals.active.get() - 1);
        if vitals.active.get() == 0 {
            vitals.idle_since.set(vitals.clock.now().mono);
        }
    }
}

/// The closed reason for a tunnel's end.
pub(super) fn reason_of(error: &h2::Error) -> Reason {
    match error.get_io() {
        Some(io) => tls::reason_of(io),
        None if error.is_remote() => Reason::TunnelLost,
        None => Reason::PeerProtocol,
    }
}

/// The same where what broke the stream below is at hand: in HTTP/2's error a TLS alert is but a text.
pub(super) fn why_broken(error: &h2::Error, wire: &Wire) -> Reason {
    let io = error.is_io().then(|| wire.broken(tls::reason_of)).flatten();
    io.unwrap_or_else(|| reason_of(error))
}

/// Moves one tunnel's frames until it ends. Dropped, it breaks the tunnel.
pub(super) struct Driver {
    connection: Connection<MeshStream, Chunk>,
    vitals: Rc<Vitals>,
    pinger: Pinger,
    offer: Offer,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.offer.follow(&this.vitals.account, &mut this.connection, cx);
        if this.vitals.cut.get() {
            return Poll::Ready(());
        }
        let result = Pin::new(&mut this.connection).poll(cx);
        this.offer.settle(&this.vitals.account, &mut this.connection, cx);
        let flushed = this.vitals.wire.poll_flush(cx);
        let lost = match (result, flushed) {
            (Poll::Ready(Ok(())), _) => return Poll::Ready(()),
            (Poll::Ready(Err(error)), _) => why_broken(&error, &this.vitals.wire),
            // The socket is dead, and reading it, which now soon ends too, may still say why: what a peer that refuses
            // our certificate answers comes with the reset of what we had sent meanwhile.
            (Poll::Pending, Poll::Ready(Err(_))) => return Poll::Pending,
            (Poll::Pending, Poll::Ready(Ok(())) | Poll::Pending) => {
                let idle = this.vitals.active.get() == 0;
                ready!(this.pinger.poll(cx, idle));
                Reason::TunnelLost
            }
        };
        this.vitals.lost.set(Some(lost));
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.vitals.ended.set(true);
    }
}

/// Asks a tunnel without streams whether it lives. Tunnels with streams are watched by TCP (user time-out).
struct Pinger {
    ping_pong: PingPong,
    timer: Pin<Box<Sleep>>,
    awaits_pong: bool,
}

impl Pinger {
    fn new(ping_pong: PingPong) -> Self {
        Self { ping_pong, timer: Box::pin(sleep_until(Instant::now() + PING_INTERVAL)), awaits_pong: false }
    }

    /// Ready when the peer did not answer in time.
    fn poll(&mut self, cx: &mut Context<'_>, idle: bool) -> Poll<()> {
        loop {
            if self.awaits_pong && self.ping_pong.poll_pong(cx).is_ready() {
                self.awaits_pong = false;
                self.timer.as_mut().reset(Instant::now() + PING_INTERVAL);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.awaits_pong {
                return Poll::Ready(());
            }
            self.awaits_pong = idle && self.ping_pong.send_ping(h2::Ping::opaque()).is_ok();
            let next = if self.awaits_pong { PING_DEADLINE } else { PING_INTERVAL };
            self.timer.as_mut().reset(Instant::now() + next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pinger() -> (SendRequest<bytes::Bytes>, Connection<tokio::io::DuplexStream, bytes::Bytes>, Pinger)
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        // A peer that takes everything and says nothing.
        std::mem::forget(far);
        let (requests, mut connection) = h2::client::Builder::new().handshake(near).await.unwrap();
        let pinger = Pinger::new(connection.ping_pong().unwrap());
        (requests, connection, pinger)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_whose_peer_is_silent_is_given_up() {
        let (_requests, mut connection, mut pinger) = pinger().await;
        let begun = Instant::now();
        poll_fn(|cx| {
            let _ = Pin::new(&mut connection).poll(cx);
            pinger.poll(cx, true)
        })
        .await;
        let took = begun.elapsed();
        let due = PING_INTERVAL + PING_DEADLINE;
        assert!((due..due + Duration::from_millis(10)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_with_streams_is_not_pinged() {
        let (_requests, mut connection, mut pinger) = pinger().await;
        let given_up = poll_fn(|cx| {
            let _ = Pin::new(&mut connection).poll(cx);
            pinger.poll(cx, false)
        });
        assert!(timeout(Duration::from_secs(3600), given_up).await.is_err());
        assert!(!pinger.awaits_pong);
    }
}
