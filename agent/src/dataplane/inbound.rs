//! The inbound line, by tunnel: TLS accept, the peer's identity, and then each CONNECT from policy to report.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use adit_core::net::OriginalDst;
use adit_core::report::{Direction, End, Security, Stage, TraceId, Transport};
use adit_core::resolve;
use adit_core::world::World;
use adit_proto::Reason;
use adit_proto::hbone::{Refusal, parse_authority};
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Method, Request};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::account::Account;
use super::admit::{Asked, admit, still_admitted};
use super::caller::Caller;
use super::copy::Duplex;
use super::error::{BrokenBy, ServeError, chain};
use super::flow::{Flow, Near};
use super::gate::Entered;
use super::handshake::{self, Secured};
use super::offer::Offer;
use super::pod::{Pod, Reported, Seat, log_panic};
use super::protocol::{self, RESET_REFUSED};
use super::share::Chunk;
use super::stream::MeshStream;
use super::tunnel::{HANDSHAKE_DEADLINE, security, why_broken};
use super::wire::Wire;
use crate::identity::Peer;
use crate::identity::tls;
use crate::sockets;
use crate::telemetry::shard::Role;
use crate::view::View;

#[cfg(test)]
mod tests;

/// The app must answer the connection in this time: the client's agent waits 3 s in all.
const APP_DEADLINE: Duration = Duration::from_millis(2500);

/// A tunnel that a peer opened, as its streams see it.
struct Tunnel {
    pod: Rc<Pod>,
    peer: Peer,
    security: Arc<Security>,
    /// The peer pod's address: the true client's, whatever the CONNECT says.
    client: SocketAddr,
    wire: Rc<Wire>,
    account: Rc<Account>,
    /// How long its handshake took, until its first stream has told it.
    handshake: Cell<Option<Duration>>,
    lost: Cell<Option<Reason>>,
    caller: Rc<Caller>,
    _seat: Entered,
}

/// Why a peer got no tunnel.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct NoTunnel {
    reason: Reason,
    detail: Arc<str>,
}

/// Serves one tunnel from accept until its last stream has ended.
pub(super) async fn serve(pod: Rc<Pod>, tcp: TcpStream, client: SocketAddr) {
    let client = sockets::canonical(client);
    let own = tcp.local_addr().map(sockets::canonical);
    let opened = pod.worker.handles.clock.now();
    // Boxed: a handshake's memory goes when it is over.
    match Box::pin(accept(&pod, tcp, client)).await {
        Ok((connection, tunnel)) => {
            let tunnel = Rc::new(tunnel);
            pod.accepted(&tunnel.caller);
            tunnel.caller.look(&pod.worker.handles.view.world(), opened.mono);
            drive(connection, tunnel).await;
        }
        Err(NoTunnel { reason, detail }) => {
            let Ok(own) = own else { return };
            let reported = pod.report(Direction::Inbound, client, OriginalDst(own), pod.new_trace());
            reported.get().edit(|report| report.opened = opened);
            reported.finish(End::Failed(reason, Some(detail)));
        }
    }
}

async fn accept(
    pod: &Rc<Pod>,
    tcp: TcpStream,
    client: SocketAddr,
) -> Result<(Connection<MeshStream, Chunk>, Tunnel), NoTunnel> {
    let worker = &pod.worker;
    let Some(tunnel_seat) = pod.tunnel_seat(client.ip()) else {
        let _ = sockets::reset_on_close(&tcp);
        let detail = "the pod has too many tunnels, in all or from this address".into();
        return Err(NoTunnel { reason: Reason::AcceptLimit, detail });
    };
    let Some(_entered) = worker.handshakes.enter(client.ip()) else {
        let _ = sockets::reset_on_close(&tcp);
        let detail = "too many handshakes at once".into();
        return Err(NoTunnel { reason: Reason::HandshakeLimit, detail });
    };
    let refused = |reason| move |error: &dyn std::error::Error| NoTunnel { reason, detail: chain(error) };
    let config =
        worker.handles.certs.server(&pod.identity).map_err(|error| refused(error.reason())(&error))?;
    let late = || NoTunnel {
        reason: Reason::HandshakeTimeout,
        detail: "the handshake did not finish in time".into(),
    };
    let begun = worker.handles.clock.now().mono;
    let secured = timeout(HANDSHAKE_DEADLINE, handshake::accept(tcp, config, &worker.buffers))
        .await
        .map_err(|_| late())
        .and_then(|shaken| shaken.map_err(|error| refused(tls::reason_of(&error))(&error)))
        .and_then(|Secured { stream, peer }| match peer {
            Ok(peer) => Ok((stream, peer)),
            Err(error) => Err(refused(error.reason())(&error)),
        });
    worker.shard.handshake(Role::Server, secured.as_ref().err().map(|none| none.reason));
    let (stream, peer) = secured?;
    let handshake_took = worker.handles.clock.now().mono.since(begun);
    let wire = stream.wire();
    // The wire gathers now; HTTP/2's first flight must go out while its answer is awaited.
    let mut handshake = Box::pin(protocol::server().handshake(stream));
    let handshake = poll_fn(|cx| {
        let result = handshake.as_mut().poll(cx);
        match wire.poll_flush(cx) {
            // A broken socket shows at the next read, with its reason.
            Poll::Ready(_) | Poll::Pending => result,
        }
    });
    let connection = timeout(HANDSHAKE_DEADLINE, handshake)
        .await
        .map_err(|_| late())?
        .map_err(|error| refused(why_broken(&error, &wire))(&error))?;
    let account = Account::new(Rc::clone(&pod.share));
    let now = worker.handles.clock.now().mono;
    let caller = Caller::new(peer.id.clone(), client.ip(), Rc::clone(&account), now);
    let tunnel = Tunnel {
        pod: Rc::clone(pod),
        security: Arc::new(security(&peer)),
        peer,
        client: SocketAddr::new(client.ip(), 0),
        wire,
        account,
        handshake: Cell::new(Some(handshake_took)),
        lost: Cell::new(None),
        caller,
        _seat: tunnel_seat,
    };
    Ok((connection, tunnel))
}

/// Moves a tunnel's frames and serves its streams, until the peer ends it, it breaks or idles, or the peer is revoked.
async fn drive(mut connection: Connection<MeshStream, Chunk>, tunnel: Rc<Tunnel>) {
    let mut streams = JoinSet::new();
    let mut certs = tunnel.pod.worker.handles.certs.clone();
    let mut offer = Offer::new();
    let mut refusing = Box::pin(tunnel.pod.refusing());
    let mut told = false;
    // A change between the handshake and this clone would be missed by it.
    let mut distrusted = certs.distrusts(&tunnel.peer);
    while distrusted.is_none() {
        tokio::select! {
            next = poll_fn(|cx| poll_next(&mut connection, &tunnel, &mut offer, cx)) => match next {
                Some(Ok((request, respond))) => {
                    tunnel.caller.idle_since(None);
                    let wanted = Wanted::of(request);
                    streams.spawn_local(serve_stream(Rc::clone(&tunnel), wanted, respond));
                }
                Some(Err(reason)) => {
                    tunnel.lost.set(Some(reason));
                    break;
                }
                None => break,
            },
            Some(ended) = streams.join_next(), if !streams.is_empty() => {
                log_panic(ended);
                if streams.is_empty() {
                    tunnel.caller.idle_since(Some(tunnel.pod.worker.handles.clock.now().mono));
                }
            }
            () = certs.trust_changed() => distrusted = certs.distrusts(&tunnel.peer),
            () = &mut refusing, if !told => {
                told = true;
                connection.graceful_shutdown();
            }
        }
    }
    if distrusted.is_some() {
        tunnel.lost.set(distrusted);
    }
    // The streams find their tunnel broken, and say why in their own reports.
    drop(connection);
    while let Some(ended) = streams.join_next().await {
        log_panic(ended);
    }
}

type Accepted = (Request<RecvStream>, SendResponse<Chunk>);

fn poll_next(
    connection: &mut Connection<MeshStream, Chunk>,
    tunnel: &Tunnel,
    offer: &mut Offer,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Accepted, Reason>>> {
    offer.follow(&tunnel.account, connection, cx);
    if tunnel.caller.is_gone() {
        return Poll::Ready(Some(Err(Reason::PodGone)));
    }
    if tunnel.caller.is_idle() {
        // Says GOAWAY and closes: a stream that was just being opened is refused unprocessed.
        connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    }
    let why = |error| why_broken(&error, &tunnel.wire);
    let next = connection.poll_accept(cx).map(|next| next.map(|next| next.map_err(why)));
    offer.settle(&tunnel.account, connection, cx);
    match tunnel.wire.poll_flush(cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Some(Err(tls::reason_of(&error)))),
        Poll::Ready(Ok(())) | Poll::Pending => next,
    }
}

/// What is kept of a request: a stream's task holds it for the connection's life.
struct Wanted {
    trace: Option<TraceId>,
    /// None where it is no CONNECT to an address.
    dst: Option<SocketAddr>,
    recv: RecvStream,
}

impl Wanted {
    fn of(request: Request<RecvStream>) -> Self {
        let is_connect =
            *request.method() == Method::CONNECT && request.extensions().get::<h2::ext::Protocol>().is_none();
        let authority = request.uri().authority().filter(|_| is_connect);
        let dst = authority.and_then(|authority| parse_authority(authority.as_str()).ok());
        Self { trace: protocol::trace_of(request.headers()), dst, recv: request.into_body() }
    }
}

/// Serves one CONNECT from its headers to its report.
async fn serve_stream(tunnel: Rc<Tunnel>, wanted: Wanted, mut respond: SendResponse<Chunk>) {
    let Wanted { trace, dst, recv } = wanted;
    let trace = trace.unwrap_or_else(|| tunnel.pod.new_trace());
    let shown = dst.unwrap_or_else(|| tunnel.own_addr());
    let reported = tunnel.pod.report(Direction::Inbound, tunnel.client, OriginalDst(shown), trace);
    let handshake = tunnel.handshake.take();
    reported.get().edit(|report| {
        report.transport = Transport::Mtls;
        report.security = Some(Arc::clone(&tunnel.security));
        report.tunnel_reused = Some(handshake.is_none());
        if let Some(took) = handshake {
            report.stages.set(Stage::Tls, took);
        }
    });
    let result = carry(&tunnel, dst, recv, &mut respond, &reported).await;
    let end = match result {
        Ok(()) => End::Closed,
        Err(error) => End::Failed(tunnel.reason_of(&error), Some(chain(&error))),
    };
    let now = tunnel.pod.worker.handles.clock.now().mono;
    reported.get().edit(|report| report.tcp = tunnel.wire.tcp_facts(now));
    reported.finish(end);
}

async fn carry(
    tunnel: &Rc<Tunnel>,
    dst: Option<SocketAddr>,
    recv: RecvStream,
    respond: &mut SendResponse<Chunk>,
    reported: &Reported,
) -> Result<(), ServeError> {
    let mut view = tunnel.pod.worker.handles.view.clone();
    let reached = Box::pin(reach(tunnel, dst, &mut view, reported)).await;
    let (dst, _seat, app) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            // A peer that has gone meanwhile needs no answer.
            let _ = respond.send_response(protocol::refused(error.status(), &error.refusal()), true);
            return Err(error);
        }
    };
    let send = respond.send_response(protocol::accepted(), false).map_err(|_| ServeError::ClientGone)?;
    reported.get().carried();
    let worker = &tunnel.pod.worker;
    let flow = Flow::new(reported.get().meter(), Near::Server, worker.handles.clock);
    let account = Rc::clone(&tunnel.account);
    let mut duplex = Duplex::new(app, (send, recv), account, flow, worker.config.half_closed_timeout);
    loop {
        // Policy is asked again whenever it may have changed.
        tokio::select! {
            biased;
            result = &mut duplex => {
                return result.map_err(|broken| {
                    ServeError::Broken(BrokenBy::inbound(&broken, tunnel.lost.get()))
                });
            }
            () = view.policies_changed() => {
                if let Err(refusal) = tunnel.still_admitted(&view.latest(), dst, reported) {
                    duplex.reset_with(RESET_REFUSED);
                    return Err(ServeError::NoLongerAllowed(Box::new(refusal)));
                }
            }
        }
    }
}

/// From the CONNECT to the app's answer.
async fn reach(
    tunnel: &Rc<Tunnel>,
    dst: Option<SocketAddr>,
    view: &mut View,
    reported: &Reported,
) -> Result<(SocketAddr, Seat, TcpStream), ServeError> {
    let pod = &tunnel.pod;
    let dst = dst.ok_or(ServeError::BadConnect)?;
    // Marked as seen before it is asked: a change from here on wakes the copy.
    let world = pod.known(view).await;
    let seat = pod.seat().map_err(ServeError::AcceptLimit)?;
    if pod.share.is_full() {
        return Err(ServeError::MemoryLimit(pod.share.held()));
    }
    let local = pod.local(&world);
    reported.get().edit(|report| report.remote = world.workload_by_ip(tunnel.client.ip()).cloned());
    let target = resolve::inbound(&world, &local, &pod.ips, tunnel.client.ip(), dst)?;
    tunnel.admit(&world, target.addr, reported).map_err(|refusal| ServeError::Denied(Box::new(refusal)))?;
    let app = dial_app(pod, target.addr, tunnel.client, reported).await?;
    Ok((target.addr, seat, app))
}

/// Dials the app as the true client.
pub(super) async fn dial_app(
    pod: &Pod,
    app: SocketAddr,
    client: SocketAddr,
    reported: &Reported,
) -> Result<TcpStream, ServeError> {
    let clock = pod.worker.handles.clock;
    let begun = clock.now().mono;
    let stream = timeout(APP_DEADLINE, pod.legs.app(app, client.ip()))
        .await
        .map_err(|_| ServeError::AppTimeout(app))?
        .map_err(ServeError::App)?;
    reported.get().edit(|report| {
        report.target = Some(app);
        report.attempts = 1;
        report.stages.set(Stage::Connect, clock.now().mono.since(begun));
    });
    Ok(stream)
}

impl Tunnel {
    fn admit(&self, world: &World, destination: SocketAddr, reported: &Reported) -> Result<(), Refusal> {
        admit(world, &self.asked(destination), &self.pod.worker.shard, reported.get())
    }

    fn still_admitted(
        &self,
        world: &World,
        destination: SocketAddr,
        reported: &Reported,
    ) -> Result<(), Refusal> {
        still_admitted(world, &self.asked(destination), &self.pod.worker.shard, reported.get())
    }

    fn asked(&self, destination: SocketAddr) -> Asked<'_> {
        let (peer, client) = (Some(&self.peer.id), self.client.ip());
        Asked { pod: &self.pod.key.uid, peer, client, destination }
    }

    /// A stream that ends because its tunnel was ended says why the tunnel was.
    fn reason_of(&self, error: &ServeError) -> Reason {
        match (self.lost.get(), error) {
            (Some(reason @ (Reason::IdentityRevoked | Reason::PeerUntrusted | Reason::PodGone)), _) => reason,
            (Some(_) | None, error) => error.reason(),
        }
    }

    /// The listener's address, for the report of a CONNECT that names none.
    fn own_addr(&self) -> SocketAddr {
        let local = self.wire.with_socket(TcpStream::local_addr);
        local.map_or_else(|_| SocketAddr::new(self.pod.first_ip(), 0), sockets::canonical)
    }
}

/// The size of the future that [`serve_stream`] makes, without a stream at hand to make one.
#[cfg(test)]
fn stream_future_len() -> usize {
    fn len<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    len(serve_stream)
}
