use std::future::poll_fn;

use adit_core::draw::Seed;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::task::{spawn_local, yield_now};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::super::handshake::{Secured, accept, connect};
use super::super::testing::{id, on_worker, pair};
use super::*;
use crate::identity::{fixed, tls};
use adit_proto::Reason;

/// Who is whose peer.
#[derive(Clone, Copy)]
enum Ours {
    Client,
    Server,
}

/// A tunnel, and rustls' own idea of its other end.
async fn tunnel(ours: Ours) -> (MeshStream, TlsStream<TcpStream>) {
    let (near, far) = pair().await;
    over(ours, near, far).await
}

async fn over(ours: Ours, near: TcpStream, far: TcpStream) -> (MeshStream, TlsStream<TcpStream>) {
    let (authority, certs) = fixed::certs(fixed::clock());
    authority.issue(&id("web"));
    authority.issue(&id("api"));
    let buffers = Rc::new(Buffers::new(usize::MAX));
    let name = rustls_pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let client = certs.client(&id("web"), &id("api")).unwrap();
    let server = certs.server(&id("api")).unwrap();
    match ours {
        Ours::Client => {
            let theirs = TlsAcceptor::from(server).accept(far);
            let (ours, theirs) = tokio::join!(connect(near, client, name, &buffers), theirs);
            let Secured { stream, peer } = ours.unwrap();
            assert_eq!(peer.unwrap().id, id("api"));
            (stream, TlsStream::Server(theirs.unwrap()))
        }
        Ours::Server => {
            let theirs = TlsConnector::from(client).connect(name, far);
            let (ours, theirs) = tokio::join!(accept(near, server, &buffers), theirs);
            let Secured { stream, peer } = ours.unwrap();
            assert_eq!(peer.unwrap().id, id("web"));
            (stream, TlsStream::Client(theirs.unwrap()))
        }
    }
}

async fn flush(wire: &Wire) {
    poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
}

/// Writes all of it and ends, in pieces of every size.
async fn say(wire: &Wire, stream: &mut (impl AsyncWrite + Unpin), content: &[u8]) {
    let mut seed = Seed(1);
    let mut rest = content;
    while !rest.is_empty() {
        let size = 1 << seed.below(20);
        let (piece, after) = rest.split_at(rest.len().min(size));
        stream.write_all(piece).await.unwrap();
        if seed.below(3) == 0 {
            flush(wire).await;
        }
        rest = after;
    }
    stream.shutdown().await.unwrap();
}

fn content(len: usize) -> Vec<u8> {
    let mut seed = Seed(2);
    (0..len).map(|_| seed.draw().to_le_bytes()[0]).collect()
}

/// Carries both ways at once, and says whether all arrived as it was sent.
async fn carries(ours: MeshStream, theirs: TlsStream<TcpStream>) -> bool {
    let wire = ours.wire();
    let (mut reads, mut writes) = split(theirs);
    let (mut from, mut to) = split(ours);
    let (sent, back) = (content(3_000_000), content(2_000_000));
    let (mut got, mut got_back) = (Vec::new(), Vec::new());
    tokio::join!(
        say(&wire, &mut to, &sent),
        async { _ = from.read_to_end(&mut got_back).await.unwrap() },
        async { _ = reads.read_to_end(&mut got).await.unwrap() },
        async {
            for piece in back.chunks(70_001) {
                writes.write_all(piece).await.unwrap();
            }
            writes.shutdown().await.unwrap();
        },
    );
    got == sent && got_back == back
}

#[test]
fn rustls_and_this_side_understand_each_other_to_the_end() {
    for ours in [Ours::Client, Ours::Server] {
        on_worker(async {
            let (stream, theirs) = tunnel(ours).await;
            assert!(carries(stream, theirs).await);
        });
    }
}

#[test]
fn a_key_that_is_old_is_changed_under_way_and_rustls_follows() {
    for ours in [Ours::Client, Ours::Server] {
        on_worker(async {
            let (stream, theirs) = tunnel(ours).await;
            stream.wire.with_sealer(|sealer| sealer.seal_at_most(5));
            assert!(carries(stream, theirs).await);
        });
    }
}

#[test]
fn a_key_that_rustls_changes_is_followed() {
    for ours in [Ours::Client, Ours::Server] {
        on_worker(async {
            let (mut stream, mut theirs) = tunnel(ours).await;
            for round in 0..3 {
                match &mut theirs {
                    TlsStream::Client(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
                    TlsStream::Server(theirs) => theirs.get_mut().1.refresh_traffic_keys().unwrap(),
                }
                theirs.write_u8(round).await.unwrap();
                theirs.flush().await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), round);
            }
            assert!(carries(stream, theirs).await);
        });
    }
}

#[test]
fn bytes_may_come_one_after_the_other() {
    on_worker(async {
        let ((near, path), (path_far, far)) = (pair().await, pair().await);
        path.set_nodelay(true).unwrap();
        let (mut from_far, mut to_far) = path_far.into_split();
        let (mut from_near, mut to_near) = path.into_split();
        spawn_local(async move { drop(copy(&mut from_near, &mut to_far).await) });
        spawn_local(async move {
            let mut byte = [0];
            while from_far.read_exact(&mut byte).await.is_ok() {
                to_near.write_all(&byte).await.unwrap();
            }
        });
        let (mut stream, mut theirs) = over(Ours::Client, near, far).await;
        let sent = content(40_000);
        theirs.write_all(&sent).await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = vec![0; sent.len()];
        let _ = stream.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
    });
}

#[test]
fn what_is_written_waits_for_the_flush_unless_it_is_much() {
    on_worker(async {
        let (mut stream, mut theirs) = tunnel(Ours::Client).await;
        let wire = stream.wire();
        stream.write_all(b"little").await.unwrap();
        stream.write_all(b" by little").await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(wire.poll_flush(cx))).await.is_ready());
        let mut got = [0; 16];
        let _ = theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"little by little");
        stream.write_all(&[7; 20_000]).await.unwrap();
        let mut got = vec![0; 20_000];
        let _ = theirs.read_exact(&mut got).await.unwrap();
        assert!(!wire.holds_a_block());
    });
}

#[test]
fn nothing_is_held_while_nothing_is_said() {
    on_worker(async {
        let (mut stream, mut theirs) = tunnel(Ours::Server).await;
        let wire = stream.wire();
        theirs.write_all(&[1; 100_000]).await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = vec![0; 100_000];
        let _ = stream.read_exact(&mut got).await.unwrap();
        stream.write_all(b"answer").await.unwrap();
        assert!(wire.holds_a_block());
        flush(&wire).await;
        let _ = theirs.read_exact(&mut [0; 6]).await.unwrap();
        assert!(!wire.holds_a_block() && !stream.inbox.holds_a_block());
        // Of a record that has come in part, only that part is kept.
        theirs.get_mut().0.write_all(&[23, 3, 3, 0x40, 0, 9, 9]).await.unwrap();
        while stream.inbox.keeps() < 7 {
            assert!(
                poll_fn(|cx| Poll::Ready(stream.poll_fill(cx, &mut ReadBuf::new(&mut [0]))))
                    .await
                    .is_pending()
            );
            yield_now().await;
        }
        assert!(!stream.inbox.holds_a_block());
    });
}

#[test]
fn a_peer_that_breaks_off_is_no_end_in_order() {
    on_worker(async {
        let (mut stream, mut theirs) = tunnel(Ours::Client).await;
        theirs.write_all(b"last").await.unwrap();
        theirs.flush().await.unwrap();
        theirs.get_mut().0.shutdown().await.unwrap();
        let mut got = Vec::new();
        let error = stream.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((got.as_slice(), error.kind()), (&b"last"[..], io::ErrorKind::UnexpectedEof));
        assert_eq!(stream.wire.broken(tls::reason_of), Some(Reason::TunnelLost));
    });
}

#[test]
fn a_record_that_is_none_is_refused_with_an_alert_after_what_came_before() {
    on_worker(async {
        let (mut stream, mut theirs) = tunnel(Ours::Client).await;
        theirs.write_all(b"before").await.unwrap();
        theirs.flush().await.unwrap();
        theirs.get_mut().0.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
        theirs.get_mut().0.write_all(&[5; 20]).await.unwrap();
        let mut got = Vec::new();
        let error = stream.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((got.as_slice(), error.kind()), (&b"before"[..], io::ErrorKind::InvalidData));
        assert_eq!(stream.wire.broken(tls::reason_of), Some(Reason::PeerProtocol));
        let told = theirs.read_u8().await.unwrap_err();
        let told = told.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap().clone();
        assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
    });
}

#[test]
fn a_handshake_that_is_none_fails_and_the_peer_is_told() {
    on_worker(async {
        let (near, mut far) = pair().await;
        let (authority, certs) = fixed::certs(fixed::clock());
        authority.issue(&id("api"));
        let buffers = Rc::new(Buffers::new(usize::MAX));
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let refused = accept(near, certs.server(&id("api")).unwrap(), &buffers).await.err().unwrap();
        assert_eq!(tls::reason_of(&refused), Reason::PeerProtocol);
        let mut told = Vec::new();
        let _ = far.read_to_end(&mut told).await.unwrap();
        assert_eq!(told.first(), Some(&21), "an alert");

        let (near, far) = pair().await;
        drop(far);
        let gone = accept(near, certs.server(&id("api")).unwrap(), &buffers).await.err().unwrap();
        assert_eq!(tls::reason_of(&gone), Reason::TunnelLost);
    });
}
