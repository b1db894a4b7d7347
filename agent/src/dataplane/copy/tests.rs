use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use adit_core::report::{Direction, Transport};
use adit_proto::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_local, yield_now};

use super::super::buffers::{Buffers, Waiting};
use super::super::testing::{Carried, Rig, app, greet, on_worker};
use super::super::{Config, pod::Pod};

/// A client pod, a serving pod with an app, and a connection of the former to the latter.
struct Joined {
    rig: Rig,
    client_pod: Rc<Pod>,
    app: TcpListener,
    addr: SocketAddr,
    near: TcpStream,
    far: TcpStream,
}

async fn joined(config: Config) -> Joined {
    let rig = Rig::new(config);
    let client_pod = rig.pod("web");
    let server_pod = rig.serving_pod("api").await;
    let (app, addr) = app(&server_pod).await;
    let mut near = rig.connect(&client_pod, addr).await;
    let (mut far, _) = app.accept().await.unwrap();
    greet(&mut near, &mut far).await;
    Joined { rig, client_pod, app, addr, near, far }
}

/// Bytes of which any position can be recomputed.
fn byte_at(position: usize) -> u8 {
    u8::try_from((position.wrapping_mul(2_654_435_761) >> 7) & 0xff).unwrap()
}

async fn send_pattern(mut socket: impl AsyncWriteExt + Unpin, total: usize) {
    let mut at = 0;
    while at < total {
        let len = (total - at).min(200_000);
        let block: Vec<u8> = (at..at + len).map(byte_at).collect();
        socket.write_all(&block).await.unwrap();
        at += len;
    }
    socket.shutdown().await.unwrap();
}

async fn expect_pattern(mut socket: impl AsyncReadExt + Unpin, total: usize) {
    let mut at = 0;
    let mut block = vec![0; 256 * 1024];
    loop {
        let len = socket.read(&mut block).await.unwrap();
        if len == 0 {
            break;
        }
        for (offset, byte) in block[..len].iter().enumerate() {
            assert_eq!(*byte, byte_at(at + offset), "at {}", at + offset);
        }
        at += len;
    }
    assert_eq!(at, total);
}

#[test]
fn a_hundred_mebibytes_each_way_at_once_arrive_as_they_were_sent() {
    on_worker(async {
        let Joined { rig, near, far, .. } = joined(Config::default()).await;
        let total = 100 * 1024 * 1024 + 4321;
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::join!(
            send_pattern(near_write, total),
            send_pattern(far_write, total),
            expect_pattern(near_read, total),
            expect_pattern(far_read, total),
        );
        let said = rig.report(Direction::Outbound).await;
        assert_eq!(said.end.reason(), None);
        let report = said.report;
        assert_eq!((report.bytes_to_server, report.bytes_to_client), (total as u64 + 1, total as u64 + 1));
        assert_eq!(report.transport, Transport::Mtls);
        let inbound = rig.report(Direction::Inbound).await;
        assert_eq!(inbound.report.trace, report.trace, "both sides tell of one trace");
        assert_eq!(inbound.report.security.unwrap().peer, super::super::testing::id("web"));
        assert_eq!(rig.worker.buffers.held(), 0, "nothing is held for a connection that has ended");
    });
}

#[test]
fn a_half_closed_connection_still_carries_the_other_way() {
    on_worker(async {
        let Joined { rig, mut near, mut far, .. } = joined(Config::default()).await;
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut asked = Vec::new();
        far.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answered = Vec::new();
        near.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered, b"answer");
        assert_eq!(rig.reason(Direction::Outbound).await, None);
        assert_eq!(rig.reason(Direction::Inbound).await, None);
    });
}

#[test]
fn a_reset_by_the_client_is_a_reset_at_the_server() {
    on_worker(async {
        let Joined { rig, near, mut far, .. } = joined(Config::default()).await;
        near.set_zero_linger().unwrap();
        drop(near);
        let error = far.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByClient));
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::ResetByClient));
    });
}

#[test]
fn a_reset_by_the_server_is_a_reset_at_the_client() {
    on_worker(async {
        let Joined { rig, mut near, far, .. } = joined(Config::default()).await;
        far.set_zero_linger().unwrap();
        drop(far);
        let error = near.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByServer));
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::ResetByServer));
    });
}

#[test]
fn a_reset_after_the_last_word_is_still_a_reset_on_the_other_side() {
    on_worker(async {
        let Joined { rig, mut near, mut far, .. } = joined(Config::default()).await;
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        near.set_zero_linger().unwrap();
        drop(near);
        // The server has read the end; only its error tells it now.
        far.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert!(far.take_error().unwrap().is_some() || far.write(b"x").await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByClient));
    });
}

#[test]
fn a_reader_that_stalls_is_held_for_within_its_window_and_harms_no_other() {
    on_worker(async {
        let Joined { rig, client_pod, app, addr, near, far } = joined(Config::default()).await;
        let mut stalled = vec![(near, far)];
        // More than the tunnel's connection window divided by a stream's: four would stop everything.
        for _ in 0..7 {
            let near = rig.connect(&client_pod, addr).await;
            stalled.push((near, app.accept().await.unwrap().0));
        }
        let block = vec![7; 64 * 1024];
        for (near, _) in &stalled {
            let sent = write_until_stuck(near, &block).await;
            assert!(sent > 4 * 1024 * 1024, "the window was used: {sent}");
        }
        let held = rig.worker.buffers.held();
        let bound = stalled.len() * (4 + 1) * 1024 * 1024;
        assert!(held <= bound, "{held} bytes are held, at most {bound} by windows");
        let mut near = rig.connect(&client_pod, addr).await;
        let (mut far, _) = app.accept().await.unwrap();
        tokio::join!(async { near.write_all(&block).await.unwrap() }, async {
            far.read_exact(&mut vec![0; block.len()]).await.unwrap()
        },);
    });
}

/// What is held, once nothing is taken or let go of any more.
async fn settled(buffers: &Buffers) -> usize {
    let (mut held, mut quiet) = (buffers.held(), 0);
    while quiet < 2000 {
        yield_now().await;
        quiet = if buffers.held() == held { quiet + 1 } else { 0 };
        held = buffers.held();
    }
    held
}

/// Fills the way to a reader that stalls: until nothing moves any more.
async fn write_until_stuck(socket: &TcpStream, block: &[u8]) -> usize {
    let (mut sent, mut quiet) = (0, 0);
    while quiet < 2000 {
        match socket.try_write(block) {
            Ok(len) => (sent, quiet) = (sent + len, 0),
            Err(_) => quiet += 1,
        }
        yield_now().await;
    }
    sent
}

#[test]
fn an_app_that_speaks_before_it_listens_is_heard_while_its_share_is_used_up() {
    on_worker(async {
        let config = Config { buffer_budget: 16 << 20, ..Config::default() };
        let Carried { rig, web, api, app, addr, near, far } = Carried::begin_with(config).await;
        let mut stalled = vec![(near, far, 0)];
        while !api.share.is_full() {
            if stalled.last().unwrap().2 > 0 {
                let near = rig.connect(&web, addr).await;
                stalled.push((near, app.accept().await.unwrap().0, 0));
            }
            let (near, _, sent) = stalled.last_mut().unwrap();
            *sent = write_until_stuck(near, &[7; 64 * 1024]).await;
        }
        // Like a proxy that passes on with back-pressure: it reads no request before its answer is written.
        let answer = vec![1; 24 << 20];
        for (near, far, _) in &mut stalled {
            let mut heard = vec![0; answer.len()];
            let (wrote, read) = tokio::join!(far.write_all(&answer), near.read_exact(&mut heard));
            assert!(wrote.is_ok() && read.is_ok() && heard == answer);
            assert!(api.share.is_full());
        }
        let mut reading = JoinSet::new();
        for (near, mut far, sent) in stalled {
            reading.spawn_local(async move {
                far.read_exact(&mut vec![0; sent]).await.unwrap();
                drop(near);
            });
        }
        while let Some(read) = reading.join_next().await {
            read.unwrap();
        }
        assert_eq!(settled(&rig.worker.buffers).await, 0);
    });
}

#[test]
fn a_stream_goes_on_though_its_window_became_smaller_than_the_room_that_the_peer_was_not_told_of() {
    on_worker(async {
        // Of less than half of a window that is free h2 tells nobody.
        let (untold, rest) = (vec![1; 1 << 20], vec![2; 1 << 20]);
        for narrow in ["client", "server"] {
            let config = Config { buffer_budget: 16 << 20, ..Config::default() };
            let Carried { rig: _rig, web, api, mut near, mut far, .. } = Carried::begin_with(config).await;
            let (share, source, sink) = match narrow {
                "client" => (&web.share, &mut far, &mut near),
                _ => (&api.share, &mut near, &mut far),
            };
            pass(source, sink, &untold).await;
            share.hold(8 << 20);
            assert!(share.is_pressed());
            // A word each way, for both ends to hear of it and say so.
            for _ in 0..3 {
                greet(source, sink).await;
            }
            pass(source, sink, &rest).await;
            share.release(8 << 20);
        }
    });
}

async fn pass(source: &mut TcpStream, sink: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    let (wrote, read) = tokio::join!(source.write_all(bytes), sink.read_exact(&mut got));
    assert!(wrote.is_ok() && read.is_ok() && got == bytes);
}

/// Waits for room without end, and remembers the most room that it was told of.
#[derive(Debug)]
struct Hopeful {
    buffers: Rc<Buffers>,
    held_least: Cell<usize>,
}

impl Waiting for Hopeful {
    fn has_room(&self) -> bool {
        self.held_least.set(self.held_least.get().min(self.buffers.held()));
        false
    }

    fn wake(&self) {}
}

#[test]
fn those_who_wait_for_room_are_told_of_none_that_a_slow_reader_takes_back_at_once() {
    on_worker(async {
        let Joined { rig, mut near, far, .. } = joined(Config::default()).await;
        let buffers = Rc::clone(&rig.worker.buffers);
        let mut block = vec![7; 512 * 1024];
        let mut held = 0;
        while held < 2 * 1024 * 1024 {
            near.write_all(&block).await.unwrap();
            held = settled(&buffers).await;
        }
        // All that was sent has come: from now on what is held only falls.
        let hopeful = Rc::new(Hopeful { buffers: Rc::clone(&buffers), held_least: Cell::new(held) });
        buffers.await_room(Rc::<Hopeful>::clone(&hopeful));
        while buffers.held() > 0 {
            far.readable().await.unwrap();
            let _ = far.try_read(&mut block);
            assert_eq!(settled(&buffers).await, hopeful.held_least.get(), "it was never less than it is now");
        }
    });
}

#[test]
fn ten_thousand_small_frames_at_a_stalled_reader_leave_the_tunnel_alive() {
    on_worker(async {
        let Joined { rig, client_pod, app, addr, mut near, mut far } = joined(Config::default()).await;
        near.set_nodelay(true).unwrap();
        // First fill the way to the app, so that each further write is a frame that waits.
        let block = vec![1; 64 * 1024];
        let mut filled = 0;
        let mut quiet = 0;
        while quiet < 2000 && filled < 3 * 1024 * 1024 {
            match near.try_write(&block) {
                Ok(len) => (filled, quiet) = (filled + len, 0),
                Err(_) => quiet += 1,
            }
            yield_now().await;
        }
        for _ in 0..10_000 {
            near.write_all(b"x").await.unwrap();
            yield_now().await;
        }
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), filled + 10_000);
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
        let said = rig.report(Direction::Outbound).await;
        assert_eq!(said.end.reason(), None);
        let near = rig.connect(&client_pod, addr).await;
        app.accept().await.unwrap();
        drop(near);
        assert_eq!(rig.report(Direction::Outbound).await.report.tunnel_reused, Some(true));
    });
}

#[test]
fn a_half_closed_connection_without_a_byte_is_ended() {
    on_worker(async {
        let config =
            Config { half_closed_timeout: std::time::Duration::from_millis(50), ..Config::default() };
        let Joined { rig, mut near, far, .. } = joined(config).await;
        near.shutdown().await.unwrap();
        let error = near.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let reasons = [rig.reason(Direction::Outbound).await, rig.reason(Direction::Inbound).await];
        assert!(reasons.contains(&Some(Reason::IdleTimeout)), "{reasons:?}");
        drop(far);
    });
}

#[test]
fn many_connections_share_one_tunnel() {
    on_worker(async {
        let Joined { rig, client_pod, app, addr, near, far } = joined(Config::default()).await;
        let mut open = vec![(near, far)];
        for _ in 0..99 {
            let near = rig.connect(&client_pod, addr).await;
            open.push((near, app.accept().await.unwrap().0));
        }
        assert_eq!(client_pod.pool.tunnels(), 1);
        let near = rig.connect(&client_pod, addr).await;
        open.push((near, app.accept().await.unwrap().0));
        assert_eq!(client_pod.pool.tunnels(), 2, "the hundred-and-first needs another");
        let _ = spawn_local(async move { drop(open) }).await;
    });
}

#[test]
fn a_reset_reaches_a_server_that_does_not_read() {
    on_worker(async {
        let Joined { rig, near, far, .. } = joined(Config::default()).await;
        write_until_stuck(&near, &[1; 64 * 1024]).await;
        near.set_zero_linger().unwrap();
        drop(near);
        far.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByClient));
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::ResetByClient));
    });
}

#[test]
fn a_pod_whose_readers_stall_takes_on_no_more_and_starves_no_other() {
    on_worker(async {
        let config = Config { buffer_budget: 16 << 20, ..Config::default() };
        let Joined { rig, client_pod, app, addr, near, far } = joined(config).await;
        let block = vec![7; 64 * 1024];
        let mut stalled = vec![(near, far)];
        while !client_pod.share.is_full() {
            write_until_stuck(&stalled.last().unwrap().1, &block).await;
            if !client_pod.share.is_full() {
                let near = rig.connect(&client_pod, addr).await;
                stalled.push((near, app.accept().await.unwrap().0));
            }
        }
        let mut refused = rig.connect(&client_pod, addr).await;
        assert!(refused.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::MemoryLimit));

        let other = rig.pod("cart");
        let mut near = rig.connect(&other, addr).await;
        let (mut far, _) = app.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        drop(stalled);
        while client_pod.share.held() > 0 {
            yield_now().await;
        }
    });
}
