use std::rc::Rc;

use adit_core::net::OriginalDst;
use adit_core::report::Direction;
use adit_proto::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::yield_now;

use super::super::Config;
use super::super::testing::{Rig, greet, on_worker};
use super::COPY_LEN;

/// Bytes that no part of repeats within a block of any size: what is lost or doubled is seen.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|n| n.wrapping_mul(0x9E37_79B1).to_be_bytes()[0] ^ (n >> 12).to_le_bytes()[0]).collect()
}

#[test]
fn bulk_and_small_bytes_pass_through_the_kernel_unchanged() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let pod = rig.pod("web");
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = rig.connect(&pod, outside.local_addr().unwrap()).await;
        let (mut far, _) = outside.accept().await.unwrap();
        for round in 0..20_u8 {
            near.write_all(&[round; 10]).await.unwrap();
            let mut small = [0; 10];
            far.read_exact(&mut small).await.unwrap();
            assert_eq!(small, [round; 10]);
            let sent = bytes(3_000_000);
            let mut got = vec![0; sent.len()];
            let (wrote, read) = tokio::join!(far.write_all(&sent), near.read_exact(&mut got));
            wrote.unwrap();
            read.unwrap();
            assert!(got == sent, "round {round}");
        }
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        let said = rig.report(Direction::Outbound).await;
        assert_eq!(said.end.reason(), None);
        assert_eq!((said.report.bytes_to_server, said.report.bytes_to_client), (200, 60_000_000));
        assert_eq!(rig.worker.buffers.held(), 0);
    });
}

#[test]
fn a_reset_passes_through_both_ways() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let pod = rig.pod("web");
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = rig.connect(&pod, outside.local_addr().unwrap()).await;
        let (mut far, _) = outside.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        near.set_zero_linger().unwrap();
        drop(near);
        assert!(far.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByClient));

        let mut near = rig.connect(&pod, outside.local_addr().unwrap()).await;
        let (mut far, _) = outside.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        far.set_zero_linger().unwrap();
        drop(far);
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::ResetByServer));
    });
}

#[test]
fn a_refused_destination_outside_resets_the_app() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let pod = rig.pod("web");
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = gone.local_addr().unwrap();
        drop(gone);
        let mut near = rig.connect(&pod, addr).await;
        let error = near.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let said = rig.report(Direction::Outbound).await;
        assert_eq!(said.end.reason(), Some(Reason::Refused));
        assert_eq!(said.report.destination, OriginalDst(addr));
        assert_eq!(Rc::strong_count(&pod), 2, "the test and its rig: the connection let go of its pod");
    });
}

#[test]
fn while_a_pods_share_is_used_up_it_takes_on_no_more_and_what_it_has_goes_on_without_being_held() {
    on_worker(async {
        let rig = Rig::new(Config { buffer_budget: 16 << 20, ..Config::default() });
        let (web, cart) = (rig.pod("web"), rig.pod("cart"));
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = outside.local_addr().unwrap();
        let mut near = rig.connect(&web, addr).await;
        let (mut far, _) = outside.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        web.share.hold(8 << 20);
        let mut refused = rig.connect(&web, addr).await;
        assert!(refused.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Outbound).await, Some(Reason::MemoryLimit));
        let mut other = rig.connect(&cart, addr).await;
        let (mut other_far, _) = outside.accept().await.unwrap();
        greet(&mut other, &mut other_far).await;
        greet(&mut near, &mut far).await;

        // More than all sockets take, in pieces that are not worth a splice.
        let sent = bytes(20_000_000);
        let (mut read, mut write) = near.split();
        let (mut far_read, mut far_write) = far.split();
        let mut got = vec![0; sent.len()];
        let listen = async {
            // It listens only once it is not heard any more.
            far_write.write_all(&sent).await.unwrap();
            far_read.read_exact(&mut got).await.unwrap();
        };
        let mut heard = vec![0; sent.len()];
        let speak = async {
            for piece in sent.chunks(10_000) {
                write.write_all(piece).await.unwrap();
                assert_eq!(web.share.held(), 8 << 20, "nothing is held of it");
            }
        };
        let (_, _, heard_all) = tokio::join!(listen, speak, read.read_exact(&mut heard));
        heard_all.unwrap();
        assert!(got == sent && heard == sent);
        web.share.release(8 << 20);
    });
}

#[test]
fn what_a_reader_does_not_take_is_held_in_its_pods_share() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let web = rig.pod("web");
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = rig.connect(&web, outside.local_addr().unwrap()).await;
        let (mut far, _) = outside.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        let mut sent = 0;
        while web.share.held() == 0 {
            // Less than is copied at once: it is not spliced.
            sent += near.try_write(&[7; 10_000]).unwrap_or(0);
            yield_now().await;
        }
        assert!(web.share.held() <= COPY_LEN);
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!((got.len(), web.share.held()), (sent, 0));
    });
}
