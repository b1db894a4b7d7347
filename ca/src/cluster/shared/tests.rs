use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::cluster::scripted::{Scripted, driven};
use crate::fresh::Fresh;
use crate::home::Home;
use crate::issue::{Life, ServerNames};
use crate::keeper::{self, Keeper, Settings as Kept, Shown};

const SECRET: &str = "/api/v1/namespaces/adit-system/secrets/adit-ca";
const GIVEN: &str = "/api/v1/namespaces/adit-system/secrets/adit-ca-root";
const MAP: &str = "/api/v1/namespaces/adit-system/configmaps/adit-trust-bundle";

fn at(seconds: u64) -> Stamp {
    Stamp::of(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds))
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// A cluster in which replicas of the CA begin and end.
struct World {
    server: Scripted,
    runtime: Handle,
    pods: KnownPods,
}

impl World {
    fn new() -> Self {
        let server = Scripted::default();
        server.inner().fixed.insert("/api/v1/pods".into(), (200, json!({"metadata": {}, "items": []})));
        let world = Self { server, runtime: driven(), pods: KnownPods::default() };
        let api = {
            let _on = world.runtime.enter();
            world.server.api()
        };
        world.runtime.spawn(world.pods.clone().follow(api));
        while !world.pods.are_current() {
            std::thread::yield_now();
        }
        world
    }

    fn shared(&self) -> Shared {
        let _on = self.runtime.enter();
        Shared::new(self.server.api(), &Settings::default(), domain(), self.pods.clone())
    }

    fn replica(&self, now: Stamp) -> Result<(Keeper, Shown), keeper::KeepError> {
        let mut home = Home::Cluster(Box::new(self.shared()));
        let life = Life::new(Duration::from_secs(10)).unwrap();
        let fresh = Fresh::within(Duration::from_secs(5));
        let state = keeper::open_state(&mut home, &domain(), (life, &fresh), now)?;
        let settings = Kept {
            leaf_life: life,
            patience: Duration::from_secs(100),
            names: ServerNames { dns: vec!["ca".to_owned()], ips: Vec::new() },
            fresh,
        };
        Keeper::new(settings, home, state, Default::default(), now)
    }

    fn annotate(&self, key: &str, value: &str) {
        let mut inner = self.server.inner();
        let mut map = inner.objects[MAP].clone();
        map["metadata"]["annotations"][key] = json!(value);
        inner.put(MAP, map);
    }

    fn annotation(&self, key: &str) -> Option<String> {
        let inner = self.server.inner();
        inner.objects.get(MAP)?["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    fn acknowledge(&self, node: &str, generation: u64) {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/adit-system/leases/adit-node-{node}");
        let annotations = json!({"adit.dev/bundle-generation": generation.to_string()});
        let metadata = json!({"name": format!("adit-node-{node}"), "annotations": annotations});
        self.server.inner().put(&path, json!({"metadata": metadata}));
    }

    fn published(&self) -> Value {
        let inner = self.server.inner();
        serde_json::from_str(inner.objects[MAP]["data"]["bundle.json"].as_str().unwrap()).unwrap()
    }

    fn roots(&self) -> usize {
        self.published()["trust_domains"]["cluster.local"]["keys"].as_array().unwrap().len()
    }

    fn generation(&self) -> u64 {
        self.published()["trust_domains"]["cluster.local"]["spiffe_sequence"].as_u64().unwrap()
    }
}

fn issuer(shown: &Shown) -> Vec<u8> {
    shown.signing.borrow().issuer.chain[0].to_vec()
}

#[test]
fn two_replicas_that_begin_at_once_agree_on_one_root() {
    let world = World::new();
    let (mut one, mut two) = (world.shared(), world.shared());
    // Both have seen that there is nothing.
    assert!(one.load().unwrap().is_none() && two.load().unwrap().is_none());
    let state = |authority| State::first(domain(), authority, Duration::from_secs(10));
    let first = state(Authority::make(&domain(), at(0)).unwrap());
    let second = state(Authority::make(&domain(), at(0)).unwrap());
    one.save(&first).unwrap();
    assert!(two.save(&second).unwrap_err().is_conflict());
    let found = two.load().unwrap().unwrap();
    assert_eq!(found.root_serial().unwrap(), first.root_serial().unwrap());

    // The same, as the keeper does it: the other begins between its look and its first save.
    let world = World::new();
    let theirs = serde_json::to_string(&first).unwrap();
    world.server.before_each(move |asked, inner| {
        if asked.method == Method::POST && asked.path.ends_with("secrets") && inner.objects.is_empty() {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(&theirs);
            inner.put(SECRET, json!({"metadata": {"name": "adit-ca"}, "data": {"state.json": text}}));
        }
    });
    let (_keeper, shown) = world.replica(at(1)).unwrap();
    let found = crate::signing::Signing::of(&first, Life::DEFAULT).unwrap();
    assert_eq!(issuer(&shown), found.issuer.chain[0].to_vec());
    let (_keeper, other) = world.replica(at(1)).unwrap();
    assert_eq!(issuer(&other), issuer(&shown));
    assert_eq!(world.server.count(Method::POST, "configmaps"), 1, "the second publishes nothing");
    assert_eq!(world.server.count(Method::PUT, "adit-trust-bundle"), 1, "but for the progress, by the first");
}

#[test]
fn a_rotation_by_annotation_goes_on_whichever_replica_lives() {
    let world = World::new();
    world.acknowledge("node1", 1);
    world.acknowledge("node2", 1);
    let (mut one, shown_one) = world.replica(at(0)).unwrap();
    let (mut two, shown_two) = world.replica(at(0)).unwrap();
    let old = issuer(&shown_one);
    assert_eq!((world.roots(), issuer(&shown_two) == old), (1, true));
    assert_eq!(world.annotation("adit.dev/rotation").unwrap(), "steady");

    world.annotate("adit.dev/rotate-root", "now");
    one.tick(at(1));
    assert_eq!((world.roots(), world.generation()), (2, 2));
    assert_eq!(world.annotation("adit.dev/rotate-root"), None);
    assert!(world.annotation("adit.dev/last-request").unwrap().ends_with("rotate-root: done"));
    let waiting = "published; waiting for 2 of 2 agents: node1, node2";
    assert_eq!(world.annotation("adit.dev/rotation").unwrap(), waiting);
    assert_eq!(issuer(&shown_one), old);
    // The one that did it dies here; the other goes on.
    drop((one, shown_one));
    two.tick(at(2));
    assert_eq!(issuer(&shown_two), old, "nobody signs with what not every agent knows");
    world.acknowledge("node1", 2);
    two.tick(at(12));
    let waiting = "published; waiting for 1 of 2 agents: node2";
    assert_eq!(world.annotation("adit.dev/rotation").unwrap(), waiting);
    // One that starts anew finds it as it stands.
    let (mut three, shown_three) = world.replica(at(13)).unwrap();
    world.acknowledge("node2", 2);
    three.tick(at(23));
    let new = issuer(&shown_three);
    assert!(new != old && world.roots() == 2);
    two.tick(at(23));
    assert_eq!(issuer(&shown_two), new, "the other takes up what is stored");
    assert!(world.annotation("adit.dev/rotation").unwrap().starts_with("signing with the new root"));
    // A leaf of 10 s may have been signed until 5 s after the change, by a replica that had not noticed.
    three.tick(at(38));
    assert_eq!(world.roots(), 2);
    two.tick(at(40));
    three.tick(at(40));
    assert_eq!((world.roots(), world.generation()), (1, 3));
    assert_eq!(issuer(&shown_three), new);
    assert_eq!(world.annotation("adit.dev/rotation").unwrap(), "steady");
}

#[test]
fn the_agents_are_asked_for_now_and_again_and_only_while_a_root_waits_for_them() {
    let world = World::new();
    world.acknowledge("node1", 1);
    let (mut one, _shown) = world.replica(at(0)).unwrap();
    let lists = || world.server.count(Method::GET, "/leases");
    one.tick(at(1));
    assert_eq!(lists(), 0);
    world.annotate("adit.dev/rotate-root", "now");
    for second in 2..32 {
        one.tick(at(second));
    }
    assert_eq!(lists(), 3);
    // A clock that steps back makes what was listed no younger.
    one.tick(at(1));
    assert_eq!(lists(), 4);
    world.acknowledge("node1", 2);
    for second in 11..50 {
        one.tick(at(second));
    }
    assert_eq!((lists(), world.roots()), (5, 1));
}

#[test]
fn a_request_is_done_once_even_if_its_annotation_could_not_be_taken_off() {
    let world = World::new();
    let (mut one, _shown) = world.replica(at(0)).unwrap();
    world.annotate("adit.dev/rotate-root", "");
    // Killed after the state was stored: its next write fails.
    world.server.before_each(|asked, inner| {
        let is_write = asked.method == Method::PUT && asked.path == MAP;
        if is_write {
            inner.is_down = true;
        }
    });
    one.tick(at(1));
    drop(one);
    assert!(world.annotation("adit.dev/rotate-root").is_some());
    world.server.before_each(|_, _| {});
    world.server.inner().is_down = false;
    let (_two, shown) = world.replica(at(2)).unwrap();
    assert_eq!(world.annotation("adit.dev/rotate-root"), None);
    let said = world.annotation("adit.dev/last-request").unwrap();
    assert!(said.ends_with("refused: a root rotation is already in progress"), "{said}");
    // No agents: the announced root signs at once, and only one was made.
    let serials = world.published()["trust_domains"]["cluster.local"]["keys"].as_array().unwrap().len();
    assert_eq!((serials, world.generation()), (2, 2));
    assert!(shown.signing.borrow().generation == 2);
}

#[test]
fn the_kill_list_is_changed_by_annotations_one_by_one() {
    let world = World::new();
    let (mut one, shown) = world.replica(at(0)).unwrap();
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    world.annotate("adit.dev/revoke", &format!("0a0b, nonsense,{web}"));
    one.tick(at(1));
    assert_eq!(world.annotation("adit.dev/revoke"), None);
    assert_eq!(shown.signing.borrow().revoked.iter().map(|id| id.as_str()).collect::<Vec<_>>(), [web]);
    let revoked = world.server.inner().objects[MAP]["data"]["revoked.json"].to_string();
    assert!(revoked.contains("a0b") && revoked.contains(web) && !revoked.contains("nonsense"), "{revoked}");
    world.annotate("adit.dev/restore", web);
    one.tick(at(2));
    assert!(shown.signing.borrow().revoked.is_empty());
    assert!(world.annotation("adit.dev/last-request").unwrap().ends_with(&format!("restore {web}: done")));
}

#[test]
fn what_another_has_stored_is_never_overwritten() {
    let world = World::new();
    let (mut one, shown_one) = world.replica(at(0)).unwrap();
    let (mut two, shown_two) = world.replica(at(0)).unwrap();
    world.annotate("adit.dev/rotate-root", "");
    // A third sees the request, and stands still until another has done it.
    let mut home = world.shared();
    assert!(matches!(home.look().unwrap(), Stored::Other(_)));
    two.tick(at(1));
    let asked = home.asked();
    assert_eq!(asked.len(), 1, "it still sees the request");
    let stale = State::first(domain(), Authority::make(&domain(), at(0)).unwrap(), Duration::from_secs(10));
    assert!(home.save(&stale).unwrap_err().is_conflict());
    assert!(home.close(&asked[0], "done").unwrap_err().is_conflict());
    one.tick(at(2));
    assert_eq!(issuer(&shown_one), issuer(&shown_two));
    assert_eq!(world.generation(), 2);
}

#[test]
fn a_lost_secret_is_told_and_no_new_root_is_made() {
    let world = World::new();
    let (mut one, shown) = world.replica(at(0)).unwrap();
    let old = issuer(&shown);
    world.server.inner().objects.remove(SECRET);
    let lost = world.replica(at(1)).err().unwrap().to_string();
    assert!(lost.contains("Secret adit-system/adit-ca is missing, although ConfigMap"), "{lost}");
    // One that still knows it stores it again.
    one.tick(at(2));
    let (_two, shown) = world.replica(at(3)).unwrap();
    assert_eq!(issuer(&shown), old);
    // A broken one is not replaced either.
    world
        .server
        .inner()
        .put(SECRET, json!({"metadata": {"name": "adit-ca"}, "data": {"state.json": "e30="}}));
    assert!(world.replica(at(4)).err().unwrap().to_string().contains("no new root is made in its place"));
    world.server.inner().put(SECRET, json!({"metadata": {"name": "adit-ca"}, "data": {}}));
    assert!(world.replica(at(4)).err().unwrap().to_string().contains("has no state.json"));
}

#[test]
fn a_bundle_is_never_replaced_by_an_older_one_and_mended_where_somebody_changed_it() {
    let world = World::new();
    let (mut one, _shown) = world.replica(at(0)).unwrap();
    let good = world.server.inner().objects[MAP].clone();
    for (key, text) in
        [("bundle.json", "{}"), ("crl.pem", ""), ("revoked.json", "[1]"), ("crl.pem", "nonsense")]
    {
        let mut map = good.clone();
        map["data"][key] = json!(text);
        map["data"]["other"] = json!("theirs");
        world.server.inner().put(MAP, map);
        one.tick(at(1));
        let found = world.server.inner().objects[MAP].clone();
        assert_eq!(found["data"]["bundle.json"], good["data"]["bundle.json"], "{key}");
        assert_eq!(found["data"]["revoked.json"], good["data"]["revoked.json"], "{key}");
        assert!(found["data"]["crl.pem"].to_string().contains("X509 CRL"), "{key}");
        assert_eq!(found["data"]["other"], "theirs");
    }
    let newer = good["data"]["bundle.json"]
        .as_str()
        .unwrap()
        .replace("\"spiffe_sequence\":1", "\"spiffe_sequence\":9");
    let mut map = good.clone();
    map["data"]["bundle.json"] = json!(newer);
    world.server.inner().put(MAP, map);
    one.tick(at(2));
    assert_eq!(world.generation(), 9);
}

#[test]
fn a_list_that_is_due_is_signed_anew_by_one_replica_for_both() {
    let world = World::new();
    let (mut one, _one) = world.replica(at(0)).unwrap();
    let (mut two, _two) = world.replica(at(5)).unwrap();
    let crl = || world.server.inner().objects[MAP]["data"]["crl.pem"].clone();
    let first = crl();
    one.tick(at(86_399));
    two.tick(at(86_399));
    assert_eq!(crl(), first);
    one.tick(at(86_401));
    let second = crl();
    assert!(second != first);
    two.tick(at(86_410));
    two.tick(at(86_500));
    assert_eq!(crl(), second, "the other finds it good");
}

#[test]
fn a_root_given_in_a_secret_is_used_and_followed() {
    use base64::Engine as _;
    let world = World::new();
    let given = |authority: &Authority| {
        let encode = |text: String| json!(base64::engine::general_purpose::STANDARD.encode(text));
        let data = json!({
            "tls.crt": encode(authority.chain[0].pem()),
            "tls.key": encode(authority.key.pair().unwrap().serialize_pem()),
            "ca.crt": encode(authority.roots[0].pem()),
        });
        world.server.inner().put(GIVEN, json!({"type": "kubernetes.io/tls", "metadata": {}, "data": data}));
    };
    let theirs = Authority::make(&domain(), at(0)).unwrap();
    given(&theirs);
    let (mut one, shown) = world.replica(at(1)).unwrap();
    assert_eq!(issuer(&shown), theirs.chain[0].der().to_vec());
    // Asked to rotate, it says whose root it is.
    world.annotate("adit.dev/rotate-root", "");
    one.tick(at(2));
    assert!(world.annotation("adit.dev/last-request").unwrap().contains("given by hand"));
    // Another is announced first.
    let next = Authority::make(&domain(), at(0)).unwrap();
    given(&next);
    world.acknowledge("node1", 1);
    one.tick(at(3));
    assert_eq!((world.roots(), issuer(&shown)), (2, theirs.chain[0].der().to_vec()));
    world.acknowledge("node1", 2);
    one.tick(at(13));
    assert_eq!(issuer(&shown), next.chain[0].der().to_vec());
    // One that is there in part is not believed.
    world.server.inner().put(GIVEN, json!({"metadata": {}, "data": {"tls.key": "eA==", "tls.crt": ""}}));
    let said = world.shared().given().unwrap_err().to_string();
    assert!(said.contains("Secret adit-system/adit-ca-root has no tls.crt"), "{said}");
}

#[test]
fn a_server_that_is_away_leaves_all_as_it_is_but_the_right_to_sign() {
    let world = World::new();
    let (mut one, shown) = world.replica(at(0)).unwrap();
    let before = issuer(&shown);
    world.server.inner().is_down = true;
    one.tick(at(10));
    one.tick(at(100_000));
    assert_eq!(issuer(&shown), before);
    world.server.inner().is_down = false;
    one.tick(at(100_001));
    assert_eq!((world.roots(), world.annotation("adit.dev/rotation").unwrap()), (1, "steady".to_owned()));
}
