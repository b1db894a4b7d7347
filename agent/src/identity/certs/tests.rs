use super::super::testing::{Authority, Spec, bundle, id, unchecked, wall};
use super::*;
use crate::clock::Clock;

fn serving(name: &str) -> (Publish, CertSource) {
    let tls = Tls::new(Clock::paused(wall()));
    let root = Authority::root("root");
    let trust = Trust::new(Arc::new(bundle(1, &[&root])), tls.algorithms()).unwrap();
    let (publish, certs) = channel(tls.clone(), Arc::new(trust));
    publish.publish(&unchecked(&id(name), &Spec::of(&id(name)), &root, &tls));
    (publish, certs)
}

#[test]
fn a_client_configuration_is_made_once_per_expected_peer() {
    let (_publish, certs) = serving("web");
    let first = certs.client(&id("web"), &id("api")).unwrap();
    assert!(Arc::ptr_eq(&first, &certs.clone().client(&id("web"), &id("api")).unwrap()));
    assert!(!Arc::ptr_eq(&first, &certs.client(&id("web"), &id("cart")).unwrap()));
    assert!(Arc::ptr_eq(&first, &certs.client(&id("web"), &id("api")).unwrap()));
    assert_eq!(certs.client(&id("api"), &id("web")).unwrap_err(), NoCertificate { id: id("api") });
}

#[test]
fn client_configurations_are_bounded_however_many_peers_there_are() {
    let (publish, certs) = serving("web");
    for n in 0..=CLIENT_CONFIGS_MAX {
        certs.client(&id("web"), &id(&format!("peer-{n}"))).unwrap();
    }
    let served = publish.shared.current.load().served[&id("web")].clone();
    assert_eq!(served.clients.load().len(), 1, "full: it began anew with the last");
}

#[test]
fn a_new_bundle_makes_new_configurations_of_the_same_certificate() {
    let (publish, certs) = serving("web");
    let (server, client) = (certs.server(&id("web")).unwrap(), certs.client(&id("web"), &id("api")).unwrap());
    let generation = certs.generation(&id("web"));
    let trust = Arc::new(Trust::nobody(publish.shared.tls.algorithms()));
    assert_eq!(publish.trust_in(&trust, wall()), [id("web")], "it does not lead to the new bundle");
    assert!(!Arc::ptr_eq(&server, &certs.server(&id("web")).unwrap()));
    assert!(!Arc::ptr_eq(&client, &certs.client(&id("web"), &id("api")).unwrap()));
    assert_ne!(certs.generation(&id("web")), generation);
}

#[tokio::test]
async fn waiting_ends_with_the_certificate_or_its_loss_and_not_with_anothers() {
    let (publish, certs) = serving("web");
    certs.wait_for(&id("web")).await;
    let api = id("api");
    let waiting = certs.wait_for(&api);
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let web = id("web");
    let losing = certs.wait_for_loss(&web);
    tokio::pin!(losing);
    assert!(futures_util::poll!(&mut losing).is_pending());
    publish.withdraw(&id("web"));
    assert!(futures_util::poll!(&mut losing).is_ready());
    certs.wait_for_loss(&web).await;
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let root = Authority::root("root");
    publish.publish(&unchecked(&id("api"), &Spec::of(&id("api")), &root, &publish.shared.tls));
    assert!(futures_util::poll!(&mut waiting).is_ready());
    assert_eq!(certs.generation(&id("web")), 0);
}
