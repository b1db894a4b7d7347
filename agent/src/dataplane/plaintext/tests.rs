use adit_core::net::OriginalDst;
use adit_core::report::Direction;
use adit_proto::Reason;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_local;

use super::super::Config;
use super::super::testing::{Rig, app, greet, on_worker, pair};

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
