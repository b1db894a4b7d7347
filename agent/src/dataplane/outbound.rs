//! The outbound line: accept, original destination, connect phase, copy, report.

use std::net::SocketAddr;
use std::rc::Rc;

use adit_core::net::OriginalDst;
use adit_core::report::{Direction, End};
use adit_core::resolve::NoRoute;
use adit_proto::hbone::PORTS_RESERVED;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::connect::{self, Carrier, Connected};
use super::copy::Duplex;
use super::error::{BrokenBy, CarryError};
use super::flow::{Flow, Near};
use super::pod::{Pod, Reported};
use super::relay::Relay;
use crate::sockets;
use crate::sockets::probe;

#[cfg(test)]
mod tests;

/// Serves one captured connection from accept to report.
pub(super) async fn serve(pod: Rc<Pod>, app: TcpStream, client: SocketAddr) {
    let dst = match sockets::original_dst(&app, client) {
        Ok(dst) => dst,
        Err(error) => {
            // The client has gone already, and nobody knows where it was going.
            tracing::debug!(%client, "no original destination: {error}");
            let _ = sockets::reset_on_close(&app);
            return;
        }
    };
    if probe::is_capture_probe(&dst) {
        probe::answer(&app, &dst);
        return;
    }
    serve_to(pod, app, client, dst).await;
}

/// The same, for a destination that is known.
pub(super) async fn serve_to(pod: Rc<Pod>, app: TcpStream, client: SocketAddr, dst: OriginalDst) {
    let reported = pod.report(Direction::Outbound, client, dst, pod.new_trace());
    let end = match carry(app, client, dst, &pod, &reported).await {
        Ok(()) => End::Closed,
        Err(error) => End::Failed(error.reason(), Some(error.detail())),
    };
    reported.finish(end);
}

async fn carry(
    app: TcpStream,
    client: SocketAddr,
    dst: OriginalDst,
    pod: &Rc<Pod>,
    reported: &Reported,
) -> Result<(), CarryError> {
    // The phase is boxed: its memory goes when the connection begins to carry.
    let connected = Box::pin(reach(&app, client, dst, pod, reported)).await;
    let (_seat, Connected { carrier, in_use: _in_use }) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            // A FIN would look like an answer.
            let _ = sockets::reset_on_close(&app);
            return Err(error);
        }
    };
    let worker = &pod.worker;
    let idle_timeout = worker.config.half_closed_timeout;
    let flow = Flow::new(reported.get().meter(), Near::Client, worker.handles.clock);
    match carrier {
        Carrier::Tunnel { slot, stream } => {
            let result = Duplex::new(app, stream, slot.account(), flow, idle_timeout).await;
            reported.get().edit(|report| report.tcp = slot.tcp_facts());
            result.map_err(|broken| CarryError::Broken(BrokenBy::outbound(&broken, slot.lost())))
        }
        Carrier::Plain(upstream) => {
            let (share, pipes) = (Rc::clone(&pod.share), Rc::clone(&worker.pipes));
            let result = Box::pin(Relay::new((app, upstream), share, pipes, flow, idle_timeout)).await;
            result.map_err(|broken| CarryError::Broken(BrokenBy::outbound(&broken, None)))
        }
    }
}

/// The connect phase, given up when the client does.
async fn reach(
    app: &TcpStream,
    client: SocketAddr,
    dst: OriginalDst,
    pod: &Rc<Pod>,
    reported: &Reported,
) -> Result<(super::pod::Seat, Connected), CarryError> {
    if is_for_our_listener(app, dst) {
        return Err(CarryError::NoRoute(NoRoute::Loop));
    }
    let seat = pod.seat().map_err(CarryError::AcceptLimit)?;
    if pod.share.is_full() {
        return Err(CarryError::MemoryLimit(pod.share.held()));
    }
    let report = reported.get();
    let connected = tokio::select! {
        biased;
        connected = connect::connect(pod, client, dst, report) => connected?,
        _ = app.ready(Interest::ERROR) => return Err(CarryError::ClientGone),
    };
    report.carried();
    Ok((seat, connected))
}

/// Whether a process of the pod dialled our listener itself. What was redirected has another original destination than
/// the address that it was accepted at; this one would be accepted here again, without end. By whichever of the pod's
/// addresses: also those of which nobody has told us.
fn is_for_our_listener(app: &TcpStream, dst: OriginalDst) -> bool {
    let OriginalDst(dst) = dst;
    // The ports alone nearly always spare the system call.
    PORTS_RESERVED.contains(&dst.port())
        && app
            .local_addr()
            .map(sockets::canonical)
            .is_ok_and(|own| (own.ip(), own.port()) == (dst.ip(), dst.port()))
}
