//! The inbound line, in clear: what came to the pod's port without a tunnel. Refused, or passed on to the app.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use adit_core::net::OriginalDst;
use adit_core::report::{Direction, End, Transport};
use adit_core::resolve::{self, InboundRefusal, Target};
use adit_core::world::World;
use adit_proto::Reason;
use adit_proto::hbone::is_link_local_v6;
use tokio::net::TcpStream;

use super::admit::{Asked, admit, still_admitted};
use super::error::{BrokenBy, ServeError, chain};
use super::flow::{Flow, Near};
use super::inbound::dial_app;
use super::pod::{Pod, Reported, Seat};
use super::relay::Relay;
use super::share::Share;
use crate::node::Origin;
use crate::sockets;
use crate::view::View;

#[cfg(test)]
mod tests;

/// What a plaintext connection is, as far as the node can tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// The kubelet, probing a port that the pod declares for it.
    Probe,
    /// It looks like a probe, but comes through a host port or another host.
    NotQuiteProbe,
    /// Anything else: plaintext without identity.
    Plain,
}

/// Serves one plaintext connection from accept to report.
pub(super) async fn serve(pod: Rc<Pod>, client_leg: TcpStream, client: SocketAddr) {
    let client = sockets::canonical(client);
    let dst = match sockets::original_dst(&client_leg, client) {
        Ok(dst) => dst,
        Err(error) => {
            tracing::debug!(%client, "no original destination: {error}");
            let _ = sockets::reset_on_close(&client_leg);
            return;
        }
    };
    serve_to(pod, client_leg, client, dst).await;
}

/// The same, for a destination that is known.
async fn serve_to(pod: Rc<Pod>, client_leg: TcpStream, client: SocketAddr, dst: OriginalDst) {
    let reported = pod.report(Direction::Inbound, client, dst, pod.new_trace());
    let end = match carry(&pod, client_leg, client, dst, &reported).await {
        Ok(()) => End::Closed,
        Err((reason, error)) => End::Failed(reason, Some(chain(&error))),
    };
    reported.finish(end);
}

async fn carry(
    pod: &Rc<Pod>,
    client_leg: TcpStream,
    client: SocketAddr,
    dst: OriginalDst,
    reported: &Reported,
) -> Result<(), (Reason, ServeError)> {
    let mut view = pod.worker.handles.view.clone();
    let world = pod.known(&mut view).await;
    // Right at accept: a probe's socket may be gone in a moment.
    let kind = kind(pod, &world, &client_leg, client, dst.0);
    let reached = Box::pin(reach(pod, &world, kind, client, dst, reported)).await;
    let (_seat, app) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            let _ = sockets::reset_on_close(&client_leg);
            let almost = kind == Kind::NotQuiteProbe && error.reason() == Reason::PlaintextRefused;
            let reason = if almost { Reason::ProbeViaHostPort } else { error.reason() };
            return Err((reason, error));
        }
    };
    let worker = &pod.worker;
    let flow = Flow::new(reported.get().meter(), Near::Client, worker.handles.clock);
    let (share, pipes) = (Rc::clone(share(pod, kind)), Rc::clone(&worker.pipes));
    let timeout = worker.config.half_closed_timeout;
    let relay = Box::pin(Relay::new((client_leg, app), share, pipes, flow, timeout));
    copy(relay, pod, kind, client, dst, (&mut view, reported)).await.map_err(|error| (error.reason(), error))
}

/// Carries, and asks policy again whenever it may have changed.
async fn copy(
    mut relay: std::pin::Pin<Box<Relay>>,
    pod: &Pod,
    kind: Kind,
    client: SocketAddr,
    dst: OriginalDst,
    (view, reported): (&mut View, &Reported),
) -> Result<(), ServeError> {
    loop {
        tokio::select! {
            biased;
            result = &mut relay => {
                // The near side is the client here, so a broken near side was reset by the client.
                return result.map_err(|broken| ServeError::Broken(BrokenBy::outbound(&broken, None)));
            }
            () = view.policies_changed(), if kind != Kind::Probe => {
                let (shard, report) = (&pod.worker.shard, reported.get());
                still_admitted(&view.latest(), &asked(pod, client, dst), shard, report)
                    .map_err(|refusal| ServeError::NoLongerAllowed(Box::new(refusal)))?;
            }
        }
    }
}

async fn reach(
    pod: &Pod,
    world: &World,
    kind: Kind,
    client: SocketAddr,
    dst: OriginalDst,
    reported: &Reported,
) -> Result<(Seat, TcpStream), ServeError> {
    let transport = if kind == Kind::Probe { Transport::Probe } else { Transport::Plaintext };
    reported.get().edit(|report| {
        report.transport = transport;
        report.remote = world.workload_by_ip(client.ip()).cloned();
    });
    if matches!(client.ip(), IpAddr::V6(ip) if is_link_local_v6(&ip)) {
        return Err(ServeError::NotForUs(InboundRefusal::LinkLocal));
    }
    let seat = pod.seat().map_err(ServeError::AcceptLimit)?;
    let share = share(pod, kind);
    if share.is_full() {
        return Err(ServeError::MemoryLimit(share.held()));
    }
    let target = target(pod, world, client.ip(), dst)?;
    if kind != Kind::Probe {
        let asked = asked(pod, client, OriginalDst(target.addr));
        admit(world, &asked, &pod.worker.shard, reported.get())
            .map_err(|refusal| ServeError::Denied(Box::new(refusal)))?;
    }
    let app = dial_app(pod, target.addr, client, reported).await?;
    reported.get().carried();
    Ok((seat, app))
}

/// What the connection's bytes count in. A pod whose readers stall is not to fail its probes for that.
fn share(pod: &Pod, kind: Kind) -> &Rc<Share> {
    match kind {
        Kind::Probe => &pod.worker.probes,
        Kind::NotQuiteProbe | Kind::Plain => &pod.share,
    }
}

/// Where in the pod it is for. The redirect takes what comes for any address that the pod has: also a second interface's,
/// or one that was added since, which neither the runtime nor the pod's object names, and only the kernel knows.
fn target(pod: &Pod, world: &World, client: IpAddr, dst: OriginalDst) -> Result<Target, ServeError> {
    let (local, ip) = (pod.local(world), dst.0.ip());
    let told = resolve::inbound(world, &local, &pod.ips, client, dst.0);
    // A loopback address is the pod's, too; but what its apps have there is for nobody outside.
    if told != Err(InboundRefusal::NotThisPod) || ip.is_loopback() {
        return Ok(told?);
    }
    match pod.legs.is_pods_own(ip) {
        Ok(true) => Ok(resolve::inbound(world, &local, &[ip], client, dst.0)?),
        Ok(false) => Ok(told?),
        Err(source) => Err(ServeError::WhoseUnknown { ip, source }),
    }
}

fn asked(pod: &Pod, client: SocketAddr, dst: OriginalDst) -> Asked<'_> {
    Asked { pod: &pod.key.uid, peer: None, client: client.ip(), destination: dst.0 }
}

/// Asks the node whose socket this is, where everything else says that it may be the kubelet's.
fn kind(pod: &Pod, world: &World, leg: &TcpStream, client: SocketAddr, dst: SocketAddr) -> Kind {
    let worker = &pod.worker;
    let of_the_node = worker.handles.node.as_ref().is_some_and(|node| node.owns(client.ip()));
    if !of_the_node || !pod.local(world).pod.probe_ports.contains(&dst.port()) {
        return Kind::Plain;
    }
    let mut lookup = worker.lookup.borrow_mut();
    match lookup.as_mut().map(|lookup| lookup.origin(client, dst)) {
        Some(Ok(origin)) => kind_of(origin, leg),
        None => Kind::Plain,
        Some(Err(error)) => {
            tracing::warn!("cannot tell a probe from other plaintext: {error}");
            Kind::Plain
        }
    }
}

/// What comes from there. A client that has closed may have been a hostNetwork pod's: a TCP probe says nothing, and what a
/// closed client has said is here by now.
fn kind_of(origin: Origin, leg: &TcpStream) -> Kind {
    match origin {
        Origin::Node => Kind::Probe,
        Origin::Closed if sockets::said_nothing(leg) => Kind::Probe,
        Origin::Closed | Origin::HostNetworkPod => Kind::Plain,
        Origin::Elsewhere => Kind::NotQuiteProbe,
    }
}
