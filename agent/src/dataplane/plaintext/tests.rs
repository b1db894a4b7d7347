use std::net::{IpAddr, Shutdown};

use adit_core::net::OriginalDst;
use adit_core::report::Direction;
use adit_proto::Reason;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use super::super::Config;
use super::super::testing::{Rig, app, greet, on_worker, pair};
use super::{Kind, Origin, kind_of, target};

#[test]
fn a_pod_whose_readers_stall_takes_on_no_more_plaintext() {
    on_worker(async {
        let rig = Rig::new(Config { buffer_budget: 16 << 20, ..Config::default() });
        let api = rig.pod("api");
        let (app, addr) = app(&api).await;
        for full in [false, true] {
            api.share.hold(if full { 8 << 20 } else { 0 });
            let (mut near, leg) = pair().await;
            let client = leg.peer_addr().unwrap();
            spawn_local(super::serve_to(api.clone(), leg, client, OriginalDst(addr)));
            if full {
                assert!(near.read(&mut [0; 1]).await.is_err());
                assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::MemoryLimit));
            } else {
                let (mut far, _) = app.accept().await.unwrap();
                greet(&mut near, &mut far).await;
                drop((near, far));
                assert_eq!(rig.reason(Direction::Inbound).await, None);
            }
        }
    });
}

#[test]
fn what_comes_before_the_pods_object_waits_for_it_and_is_refused_without() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let api = rig.pod("api");
        let (app, addr) = app(&api).await;
        let object = rig.forget(&api);
        for comes in [false, true] {
            let (mut near, leg) = pair().await;
            let client = leg.peer_addr().unwrap();
            spawn_local(super::serve_to(api.clone(), leg, client, OriginalDst(addr)));
            rig.until_seated(&api, 1).await;
            if comes {
                rig.change(object.clone());
                let (mut far, _) = app.accept().await.unwrap();
                greet(&mut near, &mut far).await;
                drop((near, far));
                assert_eq!(rig.reason(Direction::Inbound).await, None);
            } else {
                assert!(near.read(&mut [0; 1]).await.is_err());
                assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::PolicyNotSynced));
            }
        }
    });
}

#[test]
fn a_closed_client_of_the_node_is_a_probe_only_if_it_said_nothing() {
    on_worker(async {
        for (said, kind) in [(&b""[..], Kind::Probe), (b"POST /", Kind::Plain)] {
            let (mut client, leg) = pair().await;
            assert_eq!(kind_of(Origin::Closed, &leg), Kind::Plain, "not yet, as this side sees it");
            client.write_all(said).await.unwrap();
            SockRef::from(&client).shutdown(Shutdown::Write).unwrap();
            assert_eq!(kind_of(Origin::Closed, &leg), kind, "{said:?}");
            assert_eq!(kind_of(Origin::Node, &leg), Kind::Probe);
            assert_eq!(kind_of(Origin::HostNetworkPod, &leg), Kind::Plain);
            assert_eq!(kind_of(Origin::Elsewhere, &leg), Kind::NotQuiteProbe);
        }
    });
}

#[test]
fn an_address_that_only_the_kernel_knows_is_the_pods_unless_it_is_a_loopback_one() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        // Its own namespace says of every address that it is local.
        let pod = rig.pod("web");
        let world = rig.worker.handles.view.world();
        for (dst, expected) in [
            ("10.9.9.9:80", Ok(())),
            ("10.9.9.9:15006", Err(Reason::Loop)),
            ("127.0.0.1:80", Err(Reason::NotThisPod)),
            ("127.0.0.1:15006", Err(Reason::Loop)),
        ] {
            let dst = OriginalDst(dst.parse().unwrap());
            let client = IpAddr::from([10, 0, 0, 1]);
            let told = target(&pod, &world, client, dst);
            assert_eq!(told.map(drop).map_err(|error| error.reason()), expected, "{dst:?}");
        }
    });
}

#[test]
fn an_address_that_the_kernel_cannot_be_asked_about_for_want_of_a_descriptor_is_a_limit() {
    on_worker(async {
        let rig = Rig::new(Config::default());
        let pod = rig.pod_without_descriptors("web");
        let (mut near, leg) = pair().await;
        let (client, dst) = (leg.peer_addr().unwrap(), "10.9.9.9:80".parse().unwrap());
        spawn_local(super::serve_to(pod, leg, client, OriginalDst(dst)));
        assert!(near.read(&mut [0; 1]).await.is_err());
        assert_eq!(rig.reason(Direction::Inbound).await, Some(Reason::MemoryLimit));
    });
}
