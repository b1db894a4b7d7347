use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::issue::LIFE_MAX;
use crate::lifecycle::{Agents, Due, Outside, Request};
use crate::root::{Authority, pem_text};
use crate::stamp::Stamp;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn state() -> State {
    let authority = Authority::make(&domain(), Stamp::of(SystemTime::now())).unwrap();
    State::first(domain(), authority, LIFE_MAX)
}

fn open(dir: &Path) -> Store {
    Store::open(dir, Disk::real()).unwrap()
}

fn message<T>(result: Result<T, StoreError>) -> String {
    crate::report(&result.err().expect("an error"))
}

/// Steps in which the first state of a store is written: two files of six steps.
const STEPS: u64 = 12;

#[test]
fn a_state_that_is_saved_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("deep/store");
    let state = state();
    {
        let store = open(&dir);
        assert!(store.load(&domain()).unwrap().is_none());
        store.save(&state).unwrap();
    }
    let read = open(&dir).load(&domain()).unwrap().unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&state).unwrap());
    for (name, mode) in [("", 0o700), (STATE, 0o600), (BEGUN, 0o600), (LOCK, 0o600)] {
        let found = fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name:?}");
    }
}

#[test]
fn a_writer_killed_at_any_point_leaves_the_old_state_or_the_new() {
    for steps in 0..=STEPS {
        let dir = tempfile::tempdir().unwrap();
        let old = state();
        open(dir.path()).save(&old).unwrap();
        let new = old.asked(&Request::RotateRoot, Stamp::of(UNIX_EPOCH)).unwrap();
        let dying = Store::open(dir.path(), Disk::dying_after(steps)).unwrap();
        let saved = dying.save(&new).is_ok();
        drop(dying);
        let found = open(dir.path()).load(&domain()).unwrap().unwrap().generation;
        assert!(found == 2 || (found == 1 && !saved), "{steps}: generation {found}, saved: {saved}");
        // And the next save works, whatever lies around.
        open(dir.path()).save(&new).unwrap();
        assert_eq!(open(dir.path()).load(&domain()).unwrap().unwrap().generation, 2);
    }
}

#[test]
fn a_first_start_killed_at_any_point_can_be_repeated() {
    let mut begun = 0;
    for steps in 0..=STEPS {
        let dir = tempfile::tempdir().unwrap();
        let first = state();
        let dying = Store::open(dir.path(), Disk::dying_after(steps)).unwrap();
        let saved = dying.save(&first).is_ok();
        assert_eq!(saved, steps == STEPS);
        drop(dying);
        let store = open(dir.path());
        match store.load(&domain()).unwrap() {
            // Nothing was stored, so nothing was published or signed: a new root is right.
            None => store.save(&state()).unwrap(),
            Some(found) => {
                assert_eq!(found.authority.roots, first.authority.roots);
                store.save(&found).unwrap();
                begun += 1;
            }
        }
        assert!(dir.path().join(BEGUN).exists());
    }
    // After the rename of state.json: its fsync, six steps of the marker, and the end.
    assert_eq!(begun, 8);
}

#[test]
fn a_broken_or_lost_state_is_an_error_that_names_the_file_and_never_a_new_root() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STATE);
    let store = open(dir.path());
    store.save(&state()).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let shown = path.display().to_string();

    for (broken, expected) in [
        (String::new(), "EOF while parsing a value at line 1 column 0"),
        (good[..good.len() / 2].to_owned(), "EOF while parsing"),
        (good.replace("\"generation\": 1", "\"generation\": -1"), "line 4"),
        (good.replace("\"generation\": 1", "\"generation\": 1, \"x\": 2"), "unknown field `x`"),
        (good.replace("\"version\": 2", "\"version\": 0"), "has version 0; this program knows 1 to 2"),
        (
            good.replace("cluster.local", "other.local"),
            "is of trust domain other.local, but cluster.local is configured",
        ),
        (good.replace("BEGIN CERTIFICATE", "BEGIN NOTHING"), "holds no PEM block CERTIFICATE"),
        (swap_keys(&good), "does not lead to a root"),
    ] {
        fs::write(&path, broken).unwrap();
        let text = message(store.load(&domain()));
        assert!(text.contains(&shown) && text.contains(expected), "{text}");
    }
    fs::write(&path, vec![b' '; 5 * 1024 * 1024]).unwrap();
    assert!(message(store.load(&domain())).contains("longer than"));
    fs::remove_file(&path).unwrap();
    let text = message(store.load(&domain()));
    assert!(text.contains("state.json is missing, although this store was begun"), "{text}");
}

#[test]
fn a_state_of_any_known_version_is_read_and_one_of_a_later_version_is_refused_by_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STATE);
    let store = open(dir.path());
    let state = state();
    store.save(&state).unwrap();
    let present: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((&present["version"], present.get("former")), (&2.into(), None));

    let first = present.to_string().replace("\"version\":2", "\"version\":1");
    fs::write(&path, &first).unwrap();
    let read = store.load(&domain()).unwrap().unwrap();
    assert_eq!(read.authority.roots, state.authority.roots);
    store.save(&read).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&fs::read(&path).unwrap()).unwrap(), present);

    let later = read.after(Due::RenewIntermediate, &outside(Stamp::of(SystemTime::now()))).unwrap();
    let next_day = Stamp::of(SystemTime::now()).plus(Duration::from_secs(2 * 24 * 3600));
    let second = later.after(Due::DropRetired, &outside(next_day)).unwrap();
    assert_eq!(second.former.len(), 1);
    store.save(&second).unwrap();
    assert_eq!(store.load(&domain()).unwrap().unwrap().former, second.former);

    let third = first.replace("\"version\":1", "\"version\":3,\"what-this-has\":\"is not known here\"");
    fs::write(&path, third).unwrap();
    let text = message(store.load(&domain()));
    assert!(text.ends_with("state.json has version 3; this program knows 1 to 2"), "{text}");
}

fn outside(now: Stamp) -> Outside {
    Outside {
        now,
        published: None,
        agents: Agents::Known(Vec::new()),
        patience: Duration::ZERO,
        leaf_life: LIFE_MAX,
    }
}

/// The root's key in the place of the intermediate's.
fn swap_keys(state: &str) -> String {
    let mut state: serde_json::Value = serde_json::from_str(state).unwrap();
    state["authority"]["key"] = state["authority"]["root-key"].clone();
    state.to_string()
}

#[test]
fn files_with_keys_must_be_their_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).save(&state()).unwrap();
    fs::set_permissions(dir.path().join(STATE), fs::Permissions::from_mode(0o640)).unwrap();
    let text = message(open(dir.path()).load(&domain()));
    assert!(
        text.ends_with("state.json has mode 0640: only its owner may have access (chmod 0600)"),
        "{text}"
    );
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let text = message(Store::open(dir.path(), Disk::real()));
    assert!(text.contains("has mode 0777"), "{text}");
}

#[test]
fn two_cas_on_one_store_are_refused_by_name_and_the_lock_ends_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let held = open(dir.path());
    assert!(is_held(dir.path()));
    let text = message(Store::open(dir.path(), Disk::real()));
    assert!(text.contains(&format!("held by another adit-ca (process {})", std::process::id())), "{text}");
    // Looking does not hold: a start in the same instant must not be refused.
    assert!(is_held(dir.path()));
    drop(held);
    assert!(!is_held(dir.path()));
    open(dir.path());
}

#[test]
fn the_lock_ends_with_its_holder_though_a_process_on_its_way_to_another_program_has_the_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let copy = store._lock.0.try_clone().unwrap();
    drop(store);
    drop(open(dir.path()));
    drop(copy);
}

#[test]
fn requests_are_left_read_in_order_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
    let text = leave(dir, Request::RotateRoot, at(1)).unwrap_err().to_string();
    assert!(text.contains("is no store"), "{text}");
    let store = open(dir);
    store.save(&state()).unwrap();
    let revoke = |subject: &str| Request::Revoke(serde_json::from_str(subject).unwrap());
    let asked = [
        (2_000_000_000_000, revoke(r#"{"identity": "spiffe://cluster.local/ns/a/sa/b"}"#)),
        (5, Request::RotateRoot),
        (70, revoke(r#"{"serial": "0abc"}"#)),
    ];
    for (millis, request) in asked.clone() {
        leave(dir, request, at(millis)).unwrap();
    }
    fs::write(dir.join("requests/.x.json.tmp"), "half").unwrap();
    let left = store.requests().unwrap();
    let read: Vec<_> = left.iter().map(|left| left.request.as_ref().unwrap().clone()).collect();
    assert_eq!(read, [asked[1].1.clone(), asked[2].1.clone(), asked[0].1.clone()]);
    assert_eq!(pending(dir).unwrap(), 3);
    for left in &left {
        store.forget_request(&left.name).unwrap();
        store.forget_request(&left.name).unwrap();
    }
    assert_eq!(pending(dir).unwrap(), 0);
    let scribble = dir.join("requests/1.json");
    fs::write(&scribble, "{\"ask\": \"reboot\"}").unwrap();
    fs::set_permissions(&scribble, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(store.requests().unwrap()[0].request, Err(RequestError::Json(_))));
}

fn give(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_root_given_by_hand_is_read_whole_or_refused_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    assert!(store.given().unwrap().is_none());
    let made = state().authority;
    let other = state().authority;
    let key = made.key.pair().unwrap().serialize_pem();
    give(dir, "tls.crt", &made.chain[0].pem());
    assert!(
        message(store.given())
            .ends_with("tls.key is missing: tls.crt, tls.key and ca.crt are used together or not at all")
    );
    give(dir, "tls.key", &key);
    assert!(message(store.given()).contains("ca.crt is missing"));
    // Several roots, in any order: the one that signed the chain comes first.
    give(dir, "ca.crt", &format!("{}{}", other.roots[0].pem(), made.roots[0].pem()));
    let given = store.given().unwrap().unwrap();
    assert_eq!(given.roots, [made.roots[0].clone(), other.roots[0].clone()]);
    given.check(&domain()).unwrap();
    let check =
        |given: Authority, domain: &str| crate::report(&given.check(&domain.parse().unwrap()).unwrap_err());
    assert!(check(given.clone(), "other.local").contains("has a certificate of spiffe://cluster.local"));
    let mut wrong = given.clone();
    wrong.roots = other.roots.clone();
    assert!(check(wrong, "cluster.local").contains("UnknownIssuer"));
    let mut wrong = given;
    wrong.key = other.key.clone();
    assert!(check(wrong, "cluster.local").contains("does not lead to a root"));
    give(dir, "tls.key", "nothing");
    assert!(message(store.given()).ends_with("tls.key holds no PEM block PRIVATE KEY, or a broken one"));
    give(dir, "tls.key", &pem_text("PRIVATE KEY", b"nonsense"));
    assert!(message(store.given()).contains("tls.key is no private key that can sign"));
    give(dir, "tls.key", &key);
    fs::set_permissions(dir.join("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(message(store.given()).contains("tls.key has mode 0644"));
}
