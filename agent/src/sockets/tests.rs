//! What needs no privilege: in the thread's own namespace, on loopback.

use std::path::Path;

use super::*;

fn own() -> Netns {
    Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap()
}

#[tokio::test]
async fn a_connection_is_made_measured_and_reset() {
    let listener = listen(&own(), Family::V4, 0, &Options::default()).unwrap();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.socket.local_addr().unwrap().port()));
    let listener = tokio::net::TcpListener::from_std(listener.socket).unwrap();
    let client = TcpStream::connect(to).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let accepted = SockRef::from(&server);
    assert!(
        accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap(),
        "a listener's options are inherited"
    );
    assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(tcp_info(&client).unwrap().retransmits, 0);
    reset_on_close(&server).unwrap();
    drop(server);
    client.readable().await.unwrap();
    assert_eq!(client.try_read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn two_listeners_share_a_port_and_a_stranger_does_not() {
    let first = listen(&own(), Family::V4, 0, &Options::default()).unwrap();
    let port = first.socket.local_addr().unwrap().port();
    let _second = listen(&own(), Family::V4, port, &Options::default()).unwrap();
    let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    assert_eq!(
        stranger.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
}

#[test]
fn mapped_addresses_become_ipv4_and_others_stay() {
    for (from, to) in [
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("[fe80::1%3]:80", "[fe80::1%3]:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
    ] {
        assert_eq!(canonical(from.parse().unwrap()), to.parse().unwrap());
    }
}

#[test]
fn only_the_two_probe_addresses_are_probes() {
    for (addr, is) in [
        ("192.0.2.173:9", true),
        ("192.0.2.172:9", false),
        ("[2001:db8:ad17::ad]:1", true),
        ("[::1]:1", false),
    ] {
        assert_eq!(probe::is_capture_probe(&OriginalDst(addr.parse().unwrap())), is, "{addr}");
    }
}

#[test]
fn the_kernel_knows_its_own_addresses() {
    for (ip, is) in [("127.0.0.1", true), ("127.8.9.10", true), ("192.0.2.9", false), ("2001:db8::9", false)]
    {
        assert_eq!(local::is_local(&own(), ip.parse().unwrap()).unwrap(), is, "{ip}");
    }
}
