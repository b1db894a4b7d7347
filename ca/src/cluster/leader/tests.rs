use serde_json::Value;

use super::*;
use crate::cluster::scripted::Scripted;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/adit-system/leases/adit-ca-status";

fn leader(server: &Scripted, name: &str) -> Leader {
    Leader::new(server.api(), "adit-system".to_owned(), name.to_owned())
}

fn lease(server: &Scripted) -> Value {
    server.inner().objects[PATH].clone()
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_taken_at_once_and_keeps_its_count() {
    let server = Scripted::default();
    let (mut first, mut second) = (leader(&server, "first"), leader(&server, "second"));
    first.renew().await.unwrap();
    second.renew().await.unwrap();
    assert!(first.holds() && !second.holds());

    first.release().await.unwrap();
    assert!(!first.holds());
    assert_eq!(lease(&server)["spec"]["holderIdentity"], Value::Null);
    second.renew().await.unwrap();
    assert!(second.holds(), "nobody has to wait until it is over");
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "second");
    assert_eq!(lease(&server)["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn what_is_not_held_is_not_given_back() {
    let server = Scripted::default();
    let (mut first, mut second) = (leader(&server, "first"), leader(&server, "second"));
    second.release().await.unwrap();
    first.renew().await.unwrap();
    second.renew().await.unwrap();
    second.release().await.unwrap();
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "first");

    // Taken by another meanwhile, as after a long sleep.
    let mut taken = lease(&server);
    taken["spec"]["holderIdentity"] = "third".into();
    server.inner().put(PATH, taken);
    first.release().await.unwrap();
    assert_eq!(lease(&server)["spec"]["holderIdentity"], "third");
}
