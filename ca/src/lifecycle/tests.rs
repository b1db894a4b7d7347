use super::*;
use crate::issue::{Life, ServerNames};
use crate::root::INTERMEDIATE_LIFE;
use crate::serial::Serial;

fn at(seconds: u64) -> Stamp {
    Stamp::of(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds))
}

fn state() -> State {
    let domain = "cluster.local".parse().unwrap();
    let authority = Authority::make(&domain, at(0)).unwrap();
    State::first(domain, authority, LIFE_MAX)
}

/// What is stored is what comes back: every step in these tests goes through the file's form, as after a restart.
fn restarted(state: &State) -> State {
    let text = serde_json::to_string(state).unwrap();
    let state: State = serde_json::from_str(&text).unwrap();
    state.check(&"cluster.local".parse().unwrap()).unwrap();
    state
}

fn outside(now: Stamp, published: Option<u64>, agents: &[(&str, u64)]) -> Outside {
    Outside {
        now,
        published,
        agents: Agents::Known(agents.iter().map(|(node, known)| ((*node).to_owned(), *known)).collect()),
        patience: Duration::from_secs(3600),
        leaf_life: LIFE_MAX,
    }
}

fn step(state: &State, expected: Due, outside: &Outside) -> State {
    assert_eq!(state.due(outside).unwrap(), Some(expected));
    restarted(&state.after(expected, outside).unwrap())
}

fn nothing(state: &State, outside: &Outside) {
    assert_eq!(state.due(outside).unwrap(), None);
}

const DAY_S: u64 = 86_400;

#[test]
fn a_root_is_replaced_in_steps_each_of_which_survives_a_restart() {
    let first = state();
    nothing(&first, &outside(at(0), Some(1), &[("a", 1)]));
    let old = first.authority.roots[0].clone();

    let announced = restarted(&first.asked(&Request::RotateRoot, at(10)).unwrap());
    assert_eq!(announced.generation, 2);
    assert_eq!(announced.roots().len(), 2);
    assert_eq!(announced.authority.roots[0], old, "the old root still signs");

    // Not published yet: neither acknowledgement nor time counts.
    nothing(&announced, &outside(at(20), Some(1), &[]));
    nothing(&announced, &outside(at(99_999), None, &[("a", 2)]));
    let published = step(&announced, Due::NotePublished, &outside(at(30), Some(2), &[("a", 1)]));
    nothing(&published, &outside(at(40), Some(2), &[("a", 2), ("b", 1)]));

    let overlap = step(&published, Due::SignWithNew, &outside(at(50), Some(2), &[("a", 2), ("b", 3)]));
    assert_ne!(overlap.authority.roots[0], old, "the new root signs");
    assert_eq!(overlap.roots().len(), 2);
    assert_eq!(overlap.roots()[1], &old);
    assert_eq!(overlap.generation, 2, "what is trusted has not changed");

    // Until the last leaf of the old root has expired, to the second.
    nothing(&overlap, &outside(at(50 + DAY_S + 1), Some(2), &[]));
    let done = step(&overlap, Due::DropOld, &outside(at(50 + DAY_S + 2), Some(2), &[]));
    assert_eq!(done.roots().len(), 1);
    assert!(!done.roots().contains(&&old));
    assert_eq!(done.generation, 3);
    assert!(matches!(done.rotation, Rotation::Steady));
}

#[test]
fn the_time_bound_counts_from_publication_and_is_told_apart() {
    let announced = state().asked(&Request::RotateRoot, at(0)).unwrap();
    let published = step(&announced, Due::NotePublished, &outside(at(500), Some(2), &[("gone", 0)]));
    nothing(&published, &outside(at(500 + 3599), Some(2), &[("gone", 0)]));
    step(&published, Due::SignWithNewAnyway, &outside(at(500 + 3600), Some(2), &[("gone", 0)]));
    let unknown = Outside {
        agents: Agents::Unknown("no mesh directory".to_owned()),
        ..outside(at(500 + 3599), Some(2), &[])
    };
    nothing(&published, &unknown);
    step(&published, Due::SignWithNewAnyway, &Outside { now: at(500 + 3600), ..unknown });
}

#[test]
fn one_change_of_root_at_a_time() {
    let announced = state().asked(&Request::RotateRoot, at(0)).unwrap();
    assert!(matches!(announced.asked(&Request::RotateRoot, at(1)), Err(Declined::Rotating)));
    let published = step(&announced, Due::NotePublished, &outside(at(2), Some(2), &[]));
    let overlap = step(&published, Due::SignWithNew, &outside(at(3), Some(2), &[]));
    assert!(matches!(overlap.asked(&Request::RotateRoot, at(4)), Err(Declined::Rotating)));
}

#[test]
fn the_old_root_outlives_the_longest_leaf_ever_given_not_the_present_setting() {
    let short = Outside { leaf_life: Duration::from_secs(10), ..outside(at(2), Some(2), &[]) };
    let announced = state().asked(&Request::RotateRoot, at(0)).unwrap();
    let published = step(&announced, Due::NotePublished, &short);
    let overlap = step(&published, Due::SignWithNew, &short);
    nothing(&overlap, &Outside { now: at(1000), ..short.clone() });
    let done = step(&overlap, Due::DropOld, &Outside { now: at(2 + DAY_S + 2), ..short });
    assert_eq!(done.longest_leaf_s, 10, "from here on only short leaves are in use");
    // A longer life is noted before anything is issued with it.
    let noted = step(&done, Due::NoteLeafLife, &outside(at(3 + DAY_S), Some(3), &[]));
    assert_eq!(noted.longest_leaf_s, DAY_S);
}

#[test]
fn an_intermediate_is_renewed_at_half_its_life_and_its_predecessor_kept_for_revocation() {
    let first = state();
    let half = INTERMEDIATE_LIFE.as_secs() / 2;
    nothing(&first, &outside(at(half - 200), Some(1), &[]));
    let renewed = step(&first, Due::RenewIntermediate, &outside(at(half), Some(1), &[]));
    assert_eq!(renewed.authority.roots, first.authority.roots);
    assert_ne!(renewed.authority.chain, first.authority.chain);
    assert_eq!(renewed.authority.retired.len(), 1);
    assert_eq!(renewed.authority.retired[0].certificate, first.authority.chain[0]);
    assert_eq!(renewed.generation, 1, "the roots are the same");
    nothing(&renewed, &outside(at(half + DAY_S + 1), Some(1), &[]));
    let dropped = step(&renewed, Due::DropRetired, &outside(at(half + DAY_S + 2), Some(1), &[]));
    assert!(dropped.authority.retired.is_empty());
}

#[test]
fn an_intermediate_made_while_the_clock_was_ahead_is_replaced_once_the_clock_is_right() {
    let ahead = state();
    let right = Stamp::of(std::time::UNIX_EPOCH + Duration::from_secs(1_600_000_000));
    let mended = step(&ahead, Due::RenewIntermediate, &outside(right, Some(1), &[]));
    nothing(&mended, &outside(right, Some(1), &[]));
    let issuing = Facts::read(mended.authority.issuing().unwrap()).unwrap();
    assert!(issuing.not_before <= right && right < issuing.not_after);
    // A small step back, as clocks make, is covered by how far certificates are backdated.
    nothing(&ahead, &outside(at(0).minus(Duration::from_secs(299)), Some(1), &[]));
}

#[test]
fn a_root_that_nears_its_end_is_replaced_without_being_asked() {
    let ten_years = ROOT_LIFE.as_secs();
    let mut late = state();
    // The intermediate has been renewed all along.
    late.authority = late.authority.renewed(&late.trust_domain, at(ten_years * 8 / 10), at(0)).unwrap();
    late.authority.retired.clear();
    nothing(&late, &outside(at(ten_years * 8 / 10), Some(1), &[]));
    let announced = step(&late, Due::AnnounceRoot, &outside(at(ten_years * 8 / 10 + 1), Some(1), &[]));
    assert_eq!(announced.roots().len(), 2);
}

#[test]
fn an_intermediate_never_outlives_its_root() {
    let first = state();
    let late = first.authority.renewed(&first.trust_domain, at(ROOT_LIFE.as_secs() - 3600), at(0)).unwrap();
    assert_eq!(
        Facts::read(late.issuing().unwrap()).unwrap().not_after,
        Facts::read(late.root().unwrap()).unwrap().not_after
    );
}

#[test]
fn a_revocation_counts_once_and_a_serial_leaves_the_list_when_its_leaf_has_expired() {
    let serial = Subject::Serial(Serial::draw().unwrap());
    let identity = Subject::Identity("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    let first = state();
    let one = first.asked(&Request::Revoke(serial.clone()), at(0)).unwrap();
    assert!(matches!(one.asked(&Request::Revoke(serial.clone()), at(1)), Err(Declined::Already)));
    let both = restarted(&one.asked(&Request::Revoke(identity.clone()), at(1)).unwrap());
    assert_eq!((both.generation, both.revoked.len(), both.revoked_identities().len()), (3, 2, 1));
    nothing(&both, &outside(at(DAY_S + 1), Some(3), &[]));
    let left = step(&both, Due::DropRevoked, &outside(at(DAY_S + 2), Some(3), &[]));
    assert_eq!(left.revoked.len(), 1);
    nothing(&left, &outside(at(100 * DAY_S), Some(4), &[]));
    let restored = left.asked(&Request::Restore(identity.clone()), at(DAY_S + 3)).unwrap();
    assert!(restored.revoked.is_empty());
    assert_eq!(restored.generation, 5);
    assert!(matches!(restored.asked(&Request::Restore(identity), at(0)), Err(Declined::Already)));
    let foreign = Subject::Identity("spiffe://other/ns/a/sa/b".parse().unwrap());
    assert!(matches!(restored.asked(&Request::Revoke(foreign), at(0)), Err(Declined::TrustDomain(_))));
}

fn serial_of(certificate: &Certificate) -> Subject {
    Subject::Serial(Facts::read(certificate).unwrap().serial)
}

#[test]
fn the_intermediate_that_signs_is_replaced_at_once_when_revoked_and_stays_listed_to_its_own_end() {
    let first = state();
    let leaked = serial_of(&first.authority.chain[0]);
    let revoked = restarted(&first.asked(&Request::Revoke(leaked.clone()), at(10)).unwrap());
    let renewed = step(&revoked, Due::RenewIntermediate, &outside(at(10), Some(2), &[]));
    assert_ne!(serial_of(&renewed.authority.chain[0]), leaked);
    nothing(&renewed, &outside(at(11), Some(2), &[]));
    // Its leaves have expired, and so has what a leaf's serial would be listed for; it goes on being believed.
    let dropped = step(&renewed, Due::DropRetired, &outside(at(10 + 2 * DAY_S), Some(2), &[]));
    nothing(&dropped, &outside(at(100 * DAY_S), Some(2), &[]));
    let end = at(INTERMEDIATE_LIFE.as_secs());
    let mut old = dropped;
    old.authority = old.authority.renewed(&old.trust_domain, end, end).unwrap();
    old.authority.retired.clear();
    nothing(&old, &outside(end, Some(2), &[]));
    let left = step(&old, Due::DropRevoked, &outside(end.plus(Duration::from_secs(1)), Some(2), &[]));
    assert!(left.revoked.is_empty());
}

#[test]
fn an_intermediate_that_signs_no_more_can_be_revoked_for_as_long_as_it_lives() {
    let half = INTERMEDIATE_LIFE.as_secs() / 2;
    let first = state();
    let (leaked, end) = (serial_of(&first.authority.chain[0]), at(INTERMEDIATE_LIFE.as_secs()));
    let renewed = step(&first, Due::RenewIntermediate, &outside(at(half), Some(1), &[]));
    let dropped = step(&renewed, Due::DropRetired, &outside(at(half + 2 * DAY_S), Some(1), &[]));
    for (state, now) in [(renewed, half + 1), (dropped, half + 3 * DAY_S)] {
        let revoked = restarted(&state.asked(&Request::Revoke(leaked.clone()), at(now)).unwrap());
        assert_eq!(revoked.revoked[0].until, Some(end));
        assert_eq!(revoked.authority.chain, state.authority.chain, "another signs");
    }
}

#[test]
fn a_kill_list_stored_without_ends_is_taken_up_and_each_entry_given_its_own() {
    let first = state();
    let leaf = Subject::Serial(Serial::draw().unwrap());
    let identity = Subject::Identity("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    let mut stored = first.clone();
    for subject in [serial_of(&first.authority.chain[0]), leaf, identity] {
        stored = stored.asked(&Request::Revoke(subject), at(0)).unwrap();
    }
    let mut json = serde_json::to_value(&stored).unwrap();
    for entry in json["revoked"].as_array_mut().unwrap() {
        entry.as_object_mut().unwrap().remove("until");
    }
    let old: State = serde_json::from_value(json).unwrap();
    assert!(old.revoked.iter().all(|entry| entry.until.is_none()));
    let renewed = step(&old, Due::RenewIntermediate, &outside(at(2 * DAY_S), Some(4), &[]));
    let noted = step(&renewed, Due::NoteUntil, &outside(at(2 * DAY_S), Some(4), &[]));
    let ends: Vec<_> = noted.revoked.iter().map(|entry| entry.until).collect();
    assert_eq!(ends, [Some(at(INTERMEDIATE_LIFE.as_secs())), Some(at(DAY_S + 1)), None]);
    let left = step(&noted, Due::DropRevoked, &outside(at(2 * DAY_S), Some(4), &[]));
    assert_eq!(left.revoked.len(), 2);
}

#[test]
fn an_intermediate_given_by_hand_is_revoked_and_goes_on_signing_until_another_is_given() {
    let domain = "cluster.local".parse().unwrap();
    let theirs = Authority::make(&domain, at(0)).unwrap();
    let own = State::first(domain.clone(), given_from(&theirs, false), LIFE_MAX);
    let leaked = serial_of(&theirs.chain[0]);
    let revoked = own.asked(&Request::Revoke(leaked.clone()), at(5)).unwrap();
    nothing(&revoked, &outside(at(5), Some(2), &[]));
    assert_eq!(revoked.revoked_issuer().unwrap().map(Subject::Serial), Some(leaked));
    let next = given_from(&theirs.renewed(&domain, at(6), at(0)).unwrap(), false);
    let replaced = restarted(&revoked.adopting(&next, at(6)).unwrap().unwrap());
    assert_eq!(replaced.revoked_issuer().unwrap(), None);
}

/// A middle certificate under `root` and an issuing one under that, which both end after [`THEIR_LIFE_S`], as a
/// company's CA gives them.
fn three_deep_under(root: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>) -> Authority {
    let signed_by = |name, issuer: &rcgen::Issuer<'_, _>| {
        rcgen::CertifiedIssuer::signed_by(their_params(name), rcgen::KeyPair::generate().unwrap(), issuer)
    };
    let middle = signed_by("middle", root).unwrap();
    let issuing = signed_by("issuing", &middle).unwrap();
    let pem = |pem: String| Certificate::all_in(pem.as_bytes()).unwrap();
    Authority {
        roots: pem(root.pem()),
        root_key: None,
        chain: pem(issuing.pem() + &middle.pem()),
        key: crate::root::Key::from(issuing.key()),
        retired: Vec::new(),
    }
}

fn their_params(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_before = at(0).offset();
    params.not_after = at(THEIR_LIFE_S).offset();
    params
}

const THEIR_LIFE_S: u64 = 300 * DAY_S;

#[test]
fn every_certificate_of_a_replaced_chain_can_be_revoked_for_as_long_as_it_lives() {
    let key = rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertifiedIssuer::self_signed(their_params("root"), key).unwrap();
    let (old, new) = (three_deep_under(&root), three_deep_under(&root));
    let first = State::first("cluster.local".parse().unwrap(), old.clone(), LIFE_MAX);
    let replaced = restarted(&first.adopting(&new, at(100)).unwrap().unwrap());
    let dropped = step(&replaced, Due::DropRetired, &outside(at(2 * DAY_S), Some(1), &[]));
    for certificate in &old.chain {
        for (state, now) in [(&replaced, 101), (&dropped, 3 * DAY_S)] {
            let revoked = restarted(&state.asked(&Request::Revoke(serial_of(certificate)), at(now)).unwrap());
            assert_eq!(revoked.revoked[0].until, Some(at(THEIR_LIFE_S)), "{:?}", Facts::read(certificate));
        }
    }
    let late = outside(at(THEIR_LIFE_S + 1), Some(1), &[]);
    let forgotten = dropped.after(Due::NoteLeafLife, &late).unwrap();
    assert!(forgotten.former.is_empty(), "what has expired is forgotten");
}

#[test]
fn what_leads_to_a_root_that_stays_trusted_after_its_change_can_be_revoked_for_as_long_as_it_lives() {
    let domain = "cluster.local".parse().unwrap();
    let made = Authority::make(&domain, at(0)).unwrap();
    let first = State::first(domain.clone(), given_from(&made, false), LIFE_MAX);
    // Renewed just before the change, so that the one before is dropped with the root's authority.
    let renewed = given_from(&made.renewed(&domain, at(100), at(0)).unwrap(), false);
    let second = first.adopting(&renewed, at(100)).unwrap().unwrap();
    let mut given = given_from(&Authority::make(&domain, at(0)).unwrap(), false);
    given.roots.extend(made.roots.clone());
    let announced = restarted(&second.adopting(&given, at(101)).unwrap().unwrap());
    let published = step(&announced, Due::NotePublished, &outside(at(101), Some(2), &[]));
    let overlap = step(&published, Due::SignWithNew, &outside(at(101), Some(2), &[]));
    let done = step(&overlap, Due::DropOld, &outside(at(101 + DAY_S + 2), Some(2), &[]));
    assert!(done.roots().contains(&&made.roots[0]), "the old root is the second of those given");
    for certificate in [&made.chain[0], &renewed.chain[0]] {
        let leaked = Request::Revoke(serial_of(certificate));
        let revoked = restarted(&done.asked(&leaked, at(2 * DAY_S)).unwrap());
        assert_eq!(revoked.revoked[0].until, Some(Facts::read(certificate).unwrap().not_after));
        nothing(&revoked, &outside(at(100 * DAY_S), Some(4), &[]));
    }
}

#[test]
fn a_roots_serial_is_not_taken_for_revoked() {
    let first = state();
    let root = serial_of(&first.authority.roots[0]);
    assert!(matches!(first.asked(&Request::Revoke(root), at(0)), Err(Declined::Root(_))));
}

/// A root of our own making, as if a user had given it: with its intermediate, or to sign with directly.
fn given_from(made: &Authority, directly: bool) -> Authority {
    let (chain, key) = if directly {
        (made.roots.clone(), made.root_key.clone().unwrap())
    } else {
        (made.chain.clone(), made.key.clone())
    };
    Authority { roots: made.roots.clone(), root_key: None, chain, key, retired: Vec::new() }
}

#[test]
fn what_is_given_by_hand_is_announced_before_it_signs_unless_it_is_trusted_already() {
    let domain = "cluster.local".parse().unwrap();
    let theirs = Authority::make(&domain, at(0)).unwrap();
    for directly in [false, true] {
        let given = given_from(&theirs, directly);
        given.check(&domain).unwrap();
        let announced = restarted(&state().adopting(&given, at(5)).unwrap().unwrap());
        assert!(announced.adopting(&given, at(6)).unwrap().is_none(), "once");
        let published = step(&announced, Due::NotePublished, &outside(at(7), Some(2), &[]));
        let signing = step(&published, Due::SignWithNew, &outside(at(8), Some(2), &[]));
        assert_eq!(signing.authority.chain, given.chain);
        let done = step(&signing, Due::DropOld, &outside(at(8 + DAY_S + 2), Some(2), &[]));
        assert!(done.adopting(&given, at(9 + DAY_S)).unwrap().is_none());
        assert!(matches!(done.asked(&Request::RotateRoot, at(9 + DAY_S)), Err(Declined::ByHand)));
        // Never renewed by us, however old.
        nothing(&done, &outside(at(3000 * DAY_S), Some(3), &[]));
    }
    // Its intermediate is renewed by hand: it signs at once, the old one goes on to revoke.
    let given = given_from(&theirs, false);
    let own = State::first(domain.clone(), given, LIFE_MAX);
    let next = given_from(&theirs.renewed(&domain, at(100), at(0)).unwrap(), false);
    let renewed = own.adopting(&next, at(100)).unwrap().unwrap();
    assert!(matches!(renewed.rotation, Rotation::Steady));
    assert_eq!((renewed.authority.chain.clone(), renewed.authority.retired.len()), (next.chain.clone(), 1));
    assert_eq!(renewed.generation, 1);
    // A second root beside the first is published at once.
    let mut two = next;
    two.roots.push(Authority::make(&domain, at(0)).unwrap().roots[0].clone());
    let with_two = renewed.adopting(&two, at(101)).unwrap().unwrap();
    assert_eq!((with_two.generation, with_two.roots().len(), with_two.authority.retired.len()), (2, 2, 1));
}

#[test]
fn a_leaf_given_in_any_step_verifies_against_what_is_published_in_that_step_and_the_next() {
    let verifies = |state: &State,
                    leaf: &crate::issue::Leaf,
                    chain: &[rustls_pki_types::CertificateDer<'_>]| {
        let anchors: Vec<_> = state
            .roots()
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root.der()).unwrap().to_owned())
            .collect();
        let end = webpki::EndEntityCert::try_from(&leaf.der).unwrap();
        let time = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
        let usage = webpki::KeyUsage::client_auth();
        end.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, chain, time, usage, None, None).is_ok()
    };
    let first = state();
    let announced = first.asked(&Request::RotateRoot, at(0)).unwrap();
    let published = step(&announced, Due::NotePublished, &outside(at(0), Some(2), &[]));
    let overlap = step(&published, Due::SignWithNew, &outside(at(0), Some(2), &[]));
    let done = step(&overlap, Due::DropOld, &outside(at(DAY_S + 2), Some(2), &[]));
    let states = [first, announced, published, overlap, done];
    let key = rcgen::KeyPair::generate().unwrap();
    let names = ServerNames { dns: vec!["ca".to_owned()], ips: Vec::new() };
    for (index, state) in states.iter().enumerate() {
        let issuer = state.authority.issuer().unwrap();
        let grant = crate::attest::grant_for_test("spiffe://cluster.local/ns/shop/sa/web");
        let leaf =
            crate::issue::leaf(&issuer, &grant, &key, Serial::draw().unwrap(), at(0), Life::DEFAULT).unwrap();
        assert!(verifies(state, &leaf, &issuer.chain), "{index}");
        if let Some(next) = states.get(index + 1) {
            assert!(verifies(next, &leaf, &issuer.chain), "{index} in the next step");
        }
        crate::issue::server(&issuer, &names, &key, Serial::draw().unwrap(), at(0), Life::DEFAULT).unwrap();
    }
    let old = states[0].authority.issuer().unwrap();
    let grant = crate::attest::grant_for_test("spiffe://cluster.local/ns/shop/sa/web");
    let leaf = crate::issue::leaf(&old, &grant, &key, Serial::draw().unwrap(), at(0), Life::DEFAULT).unwrap();
    assert!(!verifies(&states[4], &leaf, &old.chain), "a dropped root is not trusted any more");
}
