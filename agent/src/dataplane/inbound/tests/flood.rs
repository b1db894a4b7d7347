//! Peers that send all that their windows let through to an app that reads nothing.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use adit_core::report::Direction;
use adit_proto::Reason;
use bytes::Bytes;
use h2::SendStream;
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::net::TcpListener;
use tokio::task::{spawn_local, yield_now};

use super::super::super::Config;
use super::super::super::pod::Pod;
use super::super::super::testing::{Rig, app, on_worker};
use super::{leg, raw};

const MIB: usize = 1024 * 1024;
/// The least budget that a worker has.
const BUDGET: usize = 16 * MIB;
/// Half of the budget, and a tunnel's whole window.
const HELD_BOUND: usize = (8 + 16) * MIB;
/// Streams of a tunnel, with 4 MiB of window each.
const STREAMS: usize = 20;

const FRAME_SETTINGS: u8 = 4;
const FLAG_ACK: u8 = 1;

/// A serving pod whose app takes connections and reads nothing, and the most that was ever held for it.
struct Stalled {
    rig: Rig,
    api: Rc<Pod>,
    addr: SocketAddr,
    held_most: Rc<Cell<usize>>,
}

impl Stalled {
    async fn begin() -> Self {
        let rig = Rig::new(Config { buffer_budget: BUDGET, ..Config::default() });
        let _ = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        spawn_local(take_and_read_nothing(app));
        let held_most = Rc::new(Cell::new(0));
        let (watched, most) = (Rc::clone(&api.share), Rc::clone(&held_most));
        spawn_local(async move {
            loop {
                most.set(most.get().max(watched.held()));
                yield_now().await;
            }
        });
        Self { rig, api, addr, held_most }
    }

    /// Opens streams on a tunnel.
    async fn open(&self, requests: &SendRequest<Bytes>) -> Vec<SendStream<Bytes>> {
        let mut opened = Vec::new();
        for _ in 0..STREAMS {
            let request =
                Request::builder().method(Method::CONNECT).uri(self.addr.to_string()).body(()).unwrap();
            let mut requests = requests.clone().ready().await.unwrap();
            let (answer, send) = requests.send_request(request, false).unwrap();
            assert!(answer.await.unwrap().status().is_success());
            opened.push(send);
        }
        opened
    }
}

async fn take_and_read_nothing(app: TcpListener) {
    let mut taken = Vec::new();
    while let Ok(connection) = app.accept().await {
        taken.push(connection);
    }
}

/// Sends as long as anything is taken.
async fn send_all(mut send: SendStream<Bytes>) {
    let block = Bytes::from(vec![7; 64 * 1024]);
    loop {
        send.reserve_capacity(block.len());
        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        if send.send_data(block.slice(..room.min(block.len())), false).is_err() {
            return;
        }
    }
}

/// A leg whose opener hears of the first windows only, and so neither heeds nor acknowledges others.
fn deaf(leg: impl AsyncRead + AsyncWrite + Unpin + 'static) -> DuplexStream {
    let (near, far) = duplex(MIB);
    let (mut from_agent, mut to_agent) = split(leg);
    let (mut from_peer, mut to_peer) = split(far);
    spawn_local(async move { tokio::io::copy(&mut from_peer, &mut to_agent).await });
    spawn_local(async move {
        let mut orders = 0;
        let mut head = [0; 9];
        while from_agent.read_exact(&mut head).await.is_ok() {
            let [a, b, c, kind, flags, ..] = head;
            let mut frame = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            let _ = from_agent.read_exact(&mut frame).await.unwrap();
            let is_order = kind == FRAME_SETTINGS && flags & FLAG_ACK == 0;
            orders += usize::from(is_order);
            if is_order && orders > 1 {
                continue;
            }
            to_peer.write_all(&head).await.unwrap();
            to_peer.write_all(&frame).await.unwrap();
        }
    });
    near
}

#[test]
fn peers_that_heed_no_smaller_windows_are_cut_before_they_use_up_the_agents_memory() {
    on_worker(async {
        let stalled = Stalled::begin().await;
        let (mut tunnels, mut streams) = (Vec::new(), Vec::new());
        // All are open before anything is held: after that none would be.
        for _ in 0..3 {
            let tunnel = raw(deaf(leg(&stalled.rig, &stalled.api).await)).await;
            streams.extend(stalled.open(&tunnel).await);
            tunnels.push(tunnel);
        }
        for stream in streams {
            spawn_local(send_all(stream));
        }
        // Of three tunnels with 16 MiB of window each, what exceeds one and a half.
        for _ in 0..STREAMS {
            assert_eq!(stalled.rig.reason(Direction::Inbound).await, Some(Reason::MemoryLimit));
        }
        assert!(stalled.api.share.is_full());
        let most = stalled.held_most.get();
        assert!((HELD_BOUND - MIB..HELD_BOUND + MIB).contains(&most), "{most}");
    });
}

#[test]
fn a_tunnel_whose_streams_stall_all_at_once_is_held_for_and_not_cut() {
    on_worker(async {
        for heeds in [Heeds::All, Heeds::First] {
            let stalled = Stalled::begin().await;
            let leg = leg(&stalled.rig, &stalled.api).await;
            let tunnel = match heeds {
                Heeds::All => raw(leg).await,
                Heeds::First => raw(deaf(leg)).await,
            };
            for stream in stalled.open(&tunnel).await {
                spawn_local(send_all(stream));
            }
            let mut quiet = 0;
            let mut held = 0;
            while quiet < 2000 {
                yield_now().await;
                quiet = if stalled.api.share.held() == held { quiet + 1 } else { 0 };
                held = stalled.api.share.held();
            }
            assert_eq!(stalled.held_most.get(), held, "{heeds:?}: nothing was cut");
            assert!((BUDGET / 3..=HELD_BOUND).contains(&held), "{heeds:?}: {held}");
        }
    });
}

/// Which windows a peer heeds.
#[derive(Clone, Copy, Debug)]
enum Heeds {
    All,
    First,
}
