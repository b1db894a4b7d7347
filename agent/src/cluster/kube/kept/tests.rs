use std::cell::Cell;

use adit_core::world::Kind;
use serde_json::json;

use super::*;

const PODS: Watched = Watched::Kind(Kind::Pod);

fn object(name: &str, word: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name}, "word": word})
}

fn open(dir: &Path, boot: &str) -> Kept {
    Kept::open(dir.join("kube"), boot, "this one").unwrap()
}

/// What the next agent finds: `name=word` of what is there.
fn found(dir: &Path, boot: &str) -> Option<Vec<String>> {
    let mut there = BTreeMap::new();
    let name = |value: &Value| value["metadata"]["name"].as_str().unwrap().to_owned();
    let is_there = open(dir, boot).recall(PODS, |line| match line {
        Line::There(value) => drop(there.insert(name(&value), value["word"].as_str().unwrap().to_owned())),
        Line::Gone(value) => drop(there.remove(&name(&value))),
    });
    is_there.then(|| there.into_iter().map(|(name, word)| format!("{name}={word}")).collect())
}

fn listed(kept: &mut Kept, objects: &[(&str, &str)]) {
    kept.list_begins(PODS);
    for (name, word) in objects {
        kept.there(PODS, &object(name, word));
    }
    kept.list_ends(PODS);
}

#[test]
fn a_copy_is_there_when_its_list_has_ended_and_follows_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    kept.list_begins(PODS);
    kept.there(PODS, &object("a", "1"));
    kept.flush();
    assert_eq!(found(dir.path(), "b1"), None, "a list that has not ended is no copy");
    kept.list_begins(PODS);
    kept.there(PODS, &object("a", "1"));
    kept.there(PODS, &object("b", "1"));
    kept.list_ends(PODS);
    kept.there(PODS, &object("a", "2"));
    kept.gone(PODS, "shop", "b");
    kept.there(PODS, &object("c", "1"));
    kept.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=2", "c=1"]);
    listed(&mut kept, &[("d", "1")]);
    assert_eq!(found(dir.path(), "b1").unwrap(), ["d=1"], "a new list takes the old one's place");
}

#[test]
fn what_another_boot_left_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    listed(&mut kept, &[("a", "1")]);
    kept.announce(&PodUid("u".into()), true).unwrap();
    assert!(open(dir.path(), "b1").is_announced(&PodUid("u".into())), "by an agent before");
    assert!(!open(dir.path(), "b2").is_announced(&PodUid("u".into())));
    assert_eq!(found(dir.path(), "b2"), None);
}

#[test]
fn an_object_that_cannot_be_read_goes_on_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    listed(&mut kept, &[("a", "1"), ("b", "1")]);
    kept.there(PODS, &object("a", "2"));
    kept.flush();
    kept.list_begins(PODS);
    for name in ["a", "never"] {
        kept.as_it_was(PODS, "shop", name);
    }
    kept.list_ends(PODS);
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=2"]);
}

#[test]
fn a_copy_that_has_grown_is_written_anew_with_what_is_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    listed(&mut kept, &[("a", "1"), ("b", "1"), ("c", "1")]);
    kept.gone(PODS, "shop", "b");
    let long = "x".repeat(1000);
    for _ in 0..1100 {
        kept.there(PODS, &object("a", &long));
    }
    kept.there(PODS, &object("a", "last"));
    kept.flush();
    let len = || fs::metadata(dir.path().join("kube/Pod.jsonl")).unwrap().len();
    assert!(len() < 1000, "{}", len());
    kept.there(PODS, &object("d", "1"));
    kept.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=last", "c=1", "d=1"]);
}

#[test]
fn a_line_that_was_cut_off_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    listed(&mut open(dir.path(), "b1"), &[("a", "1")]);
    let path = dir.path().join("kube/Pod.jsonl");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"there":{"metadata":{"na"#).unwrap();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=1"]);
}

#[test]
fn an_agent_that_was_succeeded_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = open(dir.path(), "b1");
    listed(&mut old, &[("a", "1")]);
    let mut new = Kept::open(dir.path().join("kube"), "b1", "the next").unwrap();
    old.there(PODS, &object("a", "2"));
    old.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=2"], "one that has only started has taken nothing");
    listed(&mut new, &[("b", "1")]);
    old.there(PODS, &object("c", "1"));
    old.flush();
    listed(&mut old, &[("d", "1")]);
    new.there(PODS, &object("e", "1"));
    new.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["b=1", "e=1"]);
}

/// Two agents, the second of which took over from the first.
fn succeeded(dir: &Path) -> (Kept, Kept) {
    let mut old = open(dir, "b1");
    listed(&mut old, &[("a", "1")]);
    let mut new = Kept::open(dir.join("kube"), "b1", "the next").unwrap();
    listed(&mut new, &[("b", "1")]);
    old.flush();
    (old, new)
}

#[test]
fn a_copy_that_is_taken_back_from_an_agent_that_ended_holds_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, new) = succeeded(dir.path());
    drop(new);
    old.there(PODS, &object("c", "1"));
    assert!(old.claim_again(), "it lacks something");
    assert_eq!(found(dir.path(), "b1"), None, "what lacks something is no copy");
    listed(&mut old, &[("c", "1")]);
    old.there(PODS, &object("d", "1"));
    old.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["c=1", "d=1"]);
    assert!(!old.claim_again(), "nobody took it");
    assert_eq!(found(dir.path(), "b1").unwrap(), ["c=1", "d=1"]);
}

#[test]
fn an_agent_that_stood_aside_before_its_first_list_takes_nothing_from_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = open(dir.path(), "b1");
    old.list_begins(PODS);
    old.stand_aside();
    let mut new = Kept::open(dir.path().join("kube"), "b1", "the next").unwrap();
    listed(&mut new, &[("b", "1")]);
    old.list_ends(PODS);
    listed(&mut old, &[("a", "1")]);
    assert!(new.is_owned());
    assert_eq!(found(dir.path(), "b1").unwrap(), ["b=1"]);
}

#[test]
fn an_agent_that_cannot_read_whose_the_copy_is_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    listed(&mut kept, &[("a", "1")]);
    let owner = dir.path().join("kube").join(OWNER);
    fs::remove_file(&owner).unwrap();
    assert!(kept.is_owned(), "nothing is there");
    fs::write(&owner, "").unwrap();
    assert!(kept.is_owned(), "it is being written");
    fs::remove_file(&owner).unwrap();
    fs::create_dir(&owner).unwrap();
    assert!(kept.is_owned(), "it cannot be read");
    kept.there(PODS, &object("b", "1"));
    kept.flush();
    assert_eq!(found(dir.path(), "b1").unwrap(), ["a=1", "b=1"]);
}

#[test]
fn two_agents_that_list_at_once_do_not_write_into_each_others_copies() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = open(dir.path(), "b1");
    listed(&mut old, &[("a", "1")]);
    old.list_begins(PODS);
    let mut new = Kept::open(dir.path().join("kube"), "b1", "the next").unwrap();
    new.list_begins(PODS);
    new.there(PODS, &object("b", "1"));
    old.there(PODS, &object("c", "1"));
    old.list_ends(PODS);
    new.list_ends(PODS);
    assert_eq!(found(dir.path(), "b1").unwrap(), ["b=1"]);
}

#[test]
fn a_copy_that_was_never_finished_is_removed_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut killed = open(dir.path(), "b1");
    killed.list_begins(PODS);
    let unfinished = killed.fresh_path(PODS);
    assert!(unfinished.exists());
    open(dir.path(), "b1");
    assert!(!unfinished.exists());
}

#[test]
fn a_uid_that_is_no_file_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let kept = open(dir.path(), "b1");
    for uid in ["", "..", "a/b"] {
        assert!(kept.announce(&PodUid(uid.into()), true).is_err(), "{uid:?}");
    }
}

#[test]
fn a_long_copy_is_judged_once_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = open(dir.path(), "b1");
    let names: Vec<String> = (0..20_000).map(|at| format!("p{at}")).collect();
    let objects: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    listed(&mut kept, &objects);
    let judged = Cell::new(0);
    let (_, offsets) = last_lines(&kept.path(PODS), |(_, name)| {
        judged.set(judged.get() + 1);
        name.ends_with('7')
    })
    .unwrap();
    assert_eq!((judged.get(), offsets.len()), (20_000, 2_000));
}
