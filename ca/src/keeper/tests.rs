use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::*;
use crate::caller::Callers;
use crate::disk::Disk;
use crate::home::Directory;
use crate::lifecycle::Request;
use crate::publish::Mesh;
use crate::state::Subject;
use crate::store::{self, Store};

fn at(seconds: u64) -> Stamp {
    Stamp::of(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds))
}

/// A directory with a begun store, a token file and a mesh.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self::unbegun();
        drop(world.keeper(Disk::real(), at(0)).unwrap());
        world
    }

    /// One in whose store `given` lies from the first.
    fn new_with(given: &Authority) -> Self {
        let world = Self::unbegun();
        world.give(given);
        fs::set_permissions(world.path("store"), fs::Permissions::from_mode(0o700)).unwrap();
        world
    }

    fn unbegun() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(world.path("tokens.yaml"), "nodes: {}\n").unwrap();
        fs::set_permissions(world.path("tokens.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
        world
    }

    /// Puts root and intermediate into the store, as a user does by hand.
    fn give(&self, authority: &Authority) {
        fs::create_dir_all(self.path("store")).unwrap();
        for (name, text) in [
            ("tls.crt", authority.chain[0].pem()),
            ("tls.key", authority.key.pair().unwrap().serialize_pem()),
            ("ca.crt", authority.roots[0].pem()),
        ] {
            fs::write(self.path("store").join(name), text).unwrap();
            fs::set_permissions(self.path("store").join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn keeper(&self, disk: Disk, now: Stamp) -> Result<(Keeper, Shown), KeepError> {
        let store = Store::open(&self.path("store"), disk)?;
        let mesh = Mesh::new(self.path("mesh"), Disk::real());
        let callers = Callers::open(&self.path("tokens.yaml")).unwrap();
        let mut home = Home::Directory(Directory { store, mesh: Some(mesh), callers });
        let domain = "cluster.local".parse().unwrap();
        let life = Life::new(Duration::from_secs(10)).unwrap();
        let state = open_state(&mut home, &domain, (life, &Fresh::always()), now)?;
        let settings = Settings {
            leaf_life: life,
            patience: Duration::from_secs(100),
            names: ServerNames { dns: vec!["ca".to_owned()], ips: Vec::new() },
            fresh: Fresh::always(),
        };
        Keeper::new(settings, home, state, Arc::new(Counts::default()), now)
    }

    fn acknowledge(&self, node: &str, generation: u64) {
        fs::create_dir_all(self.path("mesh/status")).unwrap();
        let text = format!("bundle-generation: {generation}\n");
        fs::write(self.path(&format!("mesh/status/{node}.yaml")), text).unwrap();
    }

    fn published(&self) -> String {
        fs::read_to_string(self.path("mesh/trust-bundle.yaml")).unwrap()
    }

    fn leave(&self, request: Request) {
        store::leave(&self.path("store"), request, SystemTime::now()).unwrap();
    }
}

fn roots_in(manifest: &str) -> usize {
    manifest.matches("\"x5c\"").count()
}

/// What signs now leads to a root that lies published now: else agents would refuse new leaves.
fn assert_trusted(world: &World, shown: &Shown) {
    use base64::Engine as _;
    let published = world.published();
    let signing = shown.signing.borrow();
    let leaf_chain = &signing.issuer.chain[0];
    let trusted = published.split('"').any(|word| {
        let Ok(der) = base64::engine::general_purpose::STANDARD.decode(word) else {
            return false;
        };
        let pem = crate::root::pem_text("CERTIFICATE", &der);
        let Ok(root) = crate::root::Certificate::all_in(pem.as_bytes()) else {
            return false;
        };
        let chain = crate::root::pem_text("CERTIFICATE", leaf_chain);
        crate::root::Certificate::all_in(chain.as_bytes()).unwrap()[0].was_signed_by(&root[0])
    });
    assert!(trusted, "signing with a root that is not published");
}

#[test]
fn a_rotation_goes_on_as_agents_acknowledge_and_signs_with_nothing_unpublished() {
    let world = World::new();
    world.acknowledge("a", 1);
    world.acknowledge("b", 1);
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    let issuer = || shown.signing.borrow().issuer.chain[0].clone();
    let old = issuer();
    world.leave(Request::RotateRoot);
    keeper.tick(at(2));
    assert_eq!((roots_in(&world.published()), issuer()), (2, old.clone()));
    world.acknowledge("a", 2);
    keeper.tick(at(3));
    assert_eq!(issuer(), old);
    let waiting = store::progress(&world.path("store")).unwrap().unwrap().to_string();
    assert!(waiting.contains("acknowledged generation 2: 1 to go: b"), "{waiting}");
    world.acknowledge("b", 2);
    keeper.tick(at(4));
    assert_ne!(issuer(), old);
    assert_trusted(&world, &shown);
    keeper.tick(at(15));
    assert_eq!(
        roots_in(&world.published()),
        2,
        "leaves of the old root live until 14, and a second for rounding"
    );
    keeper.tick(at(16));
    assert_eq!(roots_in(&world.published()), 1);
    assert_trusted(&world, &shown);
    let steady = store::progress(&world.path("store")).unwrap().unwrap().to_string();
    assert!(steady.contains("steady: one root") && steady.contains("generation 3, published 3"), "{steady}");
}

#[test]
fn a_keeper_killed_at_any_write_of_a_rotation_finishes_it_once() {
    let mut deaths = 0;
    for steps in 0..40 {
        let world = World::new();
        world.acknowledge("a", 2);
        world.leave(Request::RotateRoot);
        // The dying one: what it says it cannot write, it must not act upon.
        if let Ok((mut keeper, shown)) = world.keeper(Disk::dying_after(steps), at(1)) {
            for second in [2, 3, 4, 15, 16, 17] {
                keeper.tick(at(second));
                assert_trusted(&world, &shown);
            }
        }
        let (mut keeper, shown) = world.keeper(Disk::real(), at(20)).unwrap();
        deaths +=
            usize::from(!matches!(keeper.state.rotation, Rotation::Steady) || keeper.state.generation != 3);
        for second in 21..40 {
            keeper.tick(at(second));
            assert_trusted(&world, &shown);
        }
        assert_eq!(keeper.state.generation, 3, "{steps}: announced once, dropped once");
        assert_eq!(roots_in(&world.published()), 1);
        assert_eq!(store::pending(&world.path("store")).unwrap(), 0);
    }
    assert!(deaths > 10, "most of the writes were cut: {deaths}");
}

#[test]
fn a_revocation_reaches_the_bundle_and_the_service_and_can_be_taken_back() {
    let world = World::new();
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    let identity: adit_proto::SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let subject = Subject::Identity(identity.clone());
    world.leave(Request::Revoke(subject.clone()));
    keeper.tick(at(2));
    assert!(world.published().contains(
        "{\"at\":\"2023-11-14T22:13:22Z\",\"identity\":\"spiffe://cluster.local/ns/shop/sa/web\"}"
    ));
    assert!(shown.signing.borrow().revoked.contains(&identity));
    world.leave(Request::Restore(subject));
    keeper.tick(at(3));
    assert!(!world.published().contains("sa/web"));
    assert!(shown.signing.borrow().revoked.is_empty());
}

fn serial_of(certificate: &[u8]) -> crate::serial::Serial {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    crate::serial::Serial::from_octets(parsed.raw_serial()).unwrap()
}

fn revoke(certificate: &[u8]) -> Request {
    Request::Revoke(Subject::Serial(serial_of(certificate)))
}

#[test]
fn a_leaked_intermediate_signs_no_more_once_it_is_revoked() {
    let world = World::new();
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    let leaked = shown.signing.borrow().issuer.chain[0].clone();
    let serial = serial_of(&leaked);
    world.leave(revoke(&leaked));
    keeper.tick(at(2));
    assert!(!shown.signing.borrow().issuer.chain.contains(&leaked));
    assert_trusted(&world, &shown);
    for later in [2, 100 * 24 * 3600] {
        keeper.tick(at(later));
        assert!(world.published().contains(&format!("\"serial\":\"{serial}\"")), "{later}");
    }
}

#[test]
fn an_issuer_of_ours_that_could_not_be_replaced_is_tried_again_and_asked_of_nobody() {
    let mut seen = 0;
    for steps in 0..40 {
        let world = World::new();
        let Ok((mut keeper, shown)) = world.keeper(Disk::dying_after(steps), at(1)) else {
            continue;
        };
        world.leave(revoke(&shown.signing.borrow().issuer.chain[0]));
        keeper.tick(at(2));
        if keeper.state.revoked_issuer().unwrap().is_some() {
            let complaint = &keeper.complaints["issuer"];
            assert_eq!(complaint.mended_by, MendedBy::Tick, "{steps}");
            assert!(!complaint.error.contains("tls.crt"), "{steps}: {}", complaint.error);
            seen += 1;
        }
    }
    assert!(seen > 0, "some write of the replacement failed after the revocation was stored");
}

#[test]
fn an_issuer_given_by_hand_is_complained_of_to_its_giver_until_another_signs() {
    let domain = "cluster.local".parse().unwrap();
    let world = World::new_with(&Authority::make(&domain, at(0)).unwrap());
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    world.leave(revoke(&shown.signing.borrow().issuer.chain[0]));
    keeper.tick(at(2));
    let complaint = &keeper.complaints["issuer"];
    assert_eq!(complaint.mended_by, MendedBy::Giver);
    assert!(complaint.error.contains("tls.crt"), "{}", complaint.error);
    world.give(&Authority::make(&domain, at(0)).unwrap());
    keeper.tick(at(3));
    assert!(keeper.complaints.is_empty(), "{:?}", keeper.complaints);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_shown_and_removed() {
    let world = World::new();
    let (mut keeper, _shown) = world.keeper(Disk::real(), at(1)).unwrap();
    world.leave(Request::RotateRoot);
    world.leave(Request::RotateRoot);
    let scribble = world.path("store/requests/0.json");
    fs::write(&scribble, "scribble").unwrap();
    fs::set_permissions(&scribble, fs::Permissions::from_mode(0o600)).unwrap();
    keeper.tick(at(2));
    assert_eq!(store::pending(&world.path("store")).unwrap(), 0);
    let outcomes = store::progress(&world.path("store")).unwrap().unwrap().outcomes;
    let refused: Vec<_> = outcomes.iter().map(|outcome| outcome.refused.as_deref()).collect();
    assert!(refused[0].unwrap().starts_with("is no request: expected value at line 1"), "{refused:?}");
    assert_eq!(refused[1..], [None, Some("a root rotation is already in progress")]);
}

#[test]
fn the_bundle_is_mended_signed_anew_daily_and_the_tls_certificate_renewed() {
    let world = World::new();
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    let first = world.published();
    fs::remove_file(world.path("mesh/trust-bundle.yaml")).unwrap();
    keeper.tick(at(2));
    assert_eq!(world.published(), first);
    let tls = Arc::clone(&shown.tls.borrow());
    keeper.tick(at(43_000));
    assert!(Arc::ptr_eq(&tls, &shown.tls.borrow()));
    keeper.tick(at(43_201));
    assert!(!Arc::ptr_eq(&tls, &shown.tls.borrow()));
    assert_eq!(world.published(), first);
    keeper.tick(at(86_401));
    assert_ne!(world.published(), first);
    assert_eq!(keeper.bundle.generation, 1);
}

#[test]
fn a_bundle_that_cannot_be_written_holds_the_rotation_and_not_the_service() {
    let world = World::new();
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    let mesh = world.path("mesh");
    fs::rename(&mesh, world.path("aside")).unwrap();
    fs::write(&mesh, "a file in the directory's place").unwrap();
    world.leave(Request::RotateRoot);
    let old = shown.signing.borrow().issuer.chain[0].clone();
    for second in 2..500 {
        keeper.tick(at(second));
    }
    assert_eq!(shown.signing.borrow().issuer.chain[0], old, "longer than the time bound");
    fs::remove_file(&mesh).unwrap();
    keeper.tick(at(501));
    assert_ne!(shown.signing.borrow().issuer.chain[0], old, "no agents: published is enough");
}

#[test]
fn what_is_given_by_hand_is_used_from_the_first_start_and_taken_up_later() {
    let domain: adit_proto::TrustDomain = "cluster.local".parse().unwrap();
    let theirs = Authority::make(&domain, at(0)).unwrap();
    // Later: announced, acknowledged, signing, as any other root.
    let world = World::new();
    world.acknowledge("a", 1);
    let (mut keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    world.give(&theirs);
    keeper.tick(at(2));
    assert_ne!(&shown.signing.borrow().issuer.chain[0], theirs.chain[0].der());
    assert_eq!(roots_in(&world.published()), 2);
    world.acknowledge("a", 2);
    keeper.tick(at(3));
    assert_eq!(&shown.signing.borrow().issuer.chain[0], theirs.chain[0].der());
    keeper.tick(at(20));
    assert_eq!(roots_in(&world.published()), 1);
    assert_trusted(&world, &shown);
    // From the first start.
    let world = World::new_with(&theirs);
    let (_keeper, shown) = world.keeper(Disk::real(), at(1)).unwrap();
    assert_eq!(&shown.signing.borrow().issuer.chain[0], theirs.chain[0].der());
    assert_eq!(roots_in(&world.published()), 1);
}

#[test]
fn what_could_not_be_stored_is_neither_published_nor_signed_with() {
    // Enough steps to start in, so that the next writes, those of a step, are the ones that fail.
    for steps in 6..20 {
        let world = World::new();
        let (mut keeper, shown) = world.keeper(Disk::dying_after(steps), at(1)).unwrap();
        world.leave(Request::RotateRoot);
        for second in 2..6 {
            keeper.tick(at(second));
            let stored = store::peek(&world.path("store")).unwrap().unwrap();
            let published = world.published();
            assert!(
                roots_in(&published) <= stored.roots().len(),
                "{steps}: a root is published that is not on disk"
            );
            let signing = shown.signing.borrow().issuer.chain[0].clone();
            assert!(
                stored.authorities().any(|authority| *authority.chain[0].der() == signing),
                "{steps}: a key signs that is not on disk"
            );
        }
    }
}

#[test]
fn a_request_whose_file_could_not_be_removed_is_not_done_twice() {
    let world = World::new();
    let (mut keeper, _shown) = world.keeper(Disk::real(), at(1)).unwrap();
    world.leave(Request::RotateRoot);
    let dir = world.path("store/requests");
    let left = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let text = fs::read(&left).unwrap();
    keeper.tick(at(2));
    assert!(!left.exists());
    // No agents: it signs with the new root at once, and drops the old one when its leaves have expired.
    keeper.tick(at(20));
    assert!(matches!(keeper.state.rotation, Rotation::Steady));
    drop(keeper);
    fs::write(&left, &text).unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o600)).unwrap();
    let (mut keeper, _shown) = world.keeper(Disk::real(), at(21)).unwrap();
    keeper.tick(at(22));
    assert!(matches!(keeper.state.rotation, Rotation::Steady), "done once, also across a restart");
    assert_eq!(keeper.state.generation, 3);
    assert!(!left.exists());
}

#[test]
fn a_request_that_cannot_be_read_now_is_kept_and_holds_up_no_other() {
    let world = World::new();
    // A directory opens and does not read.
    let unreadable = world.path("store/requests/0-unreadable.json");
    fs::create_dir_all(&unreadable).unwrap();
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o700)).unwrap();
    let identity: adit_proto::SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    world.leave(Request::Revoke(Subject::Identity(identity)));
    let (mut keeper, _shown) = world.keeper(Disk::real(), at(1)).unwrap();
    keeper.tick(at(2));
    assert_eq!(keeper.state.revoked.len(), 1);
    assert!(matches!(&*keeper.outcomes, [one] if one.refused.is_none()), "{:?}", keeper.outcomes);
    assert!(keeper.complaints["request"].error.contains("0-unreadable.json"), "{:?}", keeper.complaints);
    fs::remove_dir(unreadable).unwrap();
    keeper.tick(at(3));
    assert!(keeper.complaints.is_empty(), "{:?}", keeper.complaints);
}
