//! What the installer keeps in place while others write the same folders, and what the runtime hears of it.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use nix::sys::signal::Signal;

use crate::node::{BRIDGE, DropIns, Installer, Node, chain, program};

const CHAIN: [&str; 3] = ["bridge", "portmap", "adit-cni"];

#[test]
fn a_deleted_or_overwritten_binary_is_put_back() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let installer = node.install(&[]);
    installer.line("installed in");
    fs::remove_file(node.binary_path()).unwrap();
    assert!(installer.line("repaired").ends_with("bin/adit-cni, which was missing"));
    assert_eq!(node.binary(), program());
    fs::remove_file(node.binary_path()).unwrap();
    fs::copy("/bin/true", node.binary_path()).unwrap();
    installer.line("repaired");
    assert_eq!(node.binary(), program());
}

#[test]
fn a_list_that_its_owner_writes_anew_gets_the_entry_again() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let installer = node.install(&["--drop-in=never"]);
    installer.line("installed in");
    let anew = BRIDGE.replace("cni0", "cni1");
    node.write("10-bridge.conflist", &anew);
    installer.line("repaired in");
    assert_eq!(node.chain_of_old_libcni(), CHAIN);
    node.uninstall();
    assert_eq!(node.text("10-bridge.conflist"), anew);
}

#[test]
fn a_drop_in_is_put_back_follows_a_new_name_and_moves_to_a_new_network_in_front() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let installer = node.install(&["--drop-in=always"]);
    installer.line("installed in");
    fs::remove_dir_all(node.net().join("bridge")).unwrap();
    installer.line("repaired in");
    assert_eq!(node.chain(), CHAIN);

    node.write("10-bridge.conflist", &BRIDGE.replace("\"name\": \"bridge\"", "\"name\": \"podnet\""));
    assert!(installer.line("repaired in").contains("network podnet"));
    assert_eq!(node.chain(), CHAIN);

    let front = BRIDGE.replace("\"name\": \"bridge\"", "\"name\": \"front\"");
    node.write("05-front.conflist", &front);
    assert!(installer.line("repaired in").contains("network front of 05-front.conflist"));
    assert_eq!(node.chain(), CHAIN);
    assert_eq!(
        node.names(),
        [".front.adit-made", "05-front.conflist", "10-bridge.conflist", "front"],
        "nothing of the former ones is left"
    );
}

#[test]
fn against_another_writer_it_repairs_ever_more_rarely() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let installer = node.install(&["--drop-in=never"]);
    installer.line("installed in");
    let mut times = Vec::new();
    for _ in 0..5 {
        node.write("10-bridge.conflist", BRIDGE);
        installer.line("repaired in");
        // The installer's own instant: this thread may read its line late.
        times.push(fs::metadata(node.net().join("10-bridge.conflist")).unwrap().modified().unwrap());
    }
    // Three at once, then after 2 and 4 s, less what the edit before took.
    let gap = |nth: usize| times[nth].duration_since(times[nth - 1]).unwrap();
    assert!(gap(3) > Duration::from_millis(1500), "{:?}", gap(3));
    assert!(gap(4) > Duration::from_millis(3000), "{:?}", gap(4));
}

#[test]
fn a_newer_installer_takes_over_and_the_older_leaves_what_it_did() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let old = node.install(&["--drop-in=always", "--timeout=5"]);
    old.line("installed in");
    let other = node.other_release();
    let new = Installer::start(&node.command_of(&other, "install", &["--drop-in=always", "--timeout=6"]));
    new.line("installed in");
    old.line("stands by for a newer installer");
    assert_eq!(old.terminate(), ["adit-cni: ends; another installer goes on"]);
    assert_eq!(node.binary(), fs::read(&other).unwrap());
    assert!(node.text("bridge/99-adit.conf").contains("\"timeout\":6"));
    assert_eq!(node.chain(), CHAIN);
}

#[test]
fn an_older_installer_goes_on_when_the_newer_was_killed() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let old = node.install(&["--drop-in=always", "--timeout=5"]);
    old.line("installed in");
    let new = Installer::start(&node.command_of(&node.other_release(), "install", &["--drop-in=always"]));
    new.line("installed in");
    old.line("stands by for a newer installer");
    new.signal(Signal::SIGKILL);
    old.line("repaired in");
    assert_eq!(node.binary(), program());
    assert!(node.text("bridge/99-adit.conf").contains("\"timeout\":5"));
}

/// What containerd does: reads the folder of networks again after what it reacts to, and after nothing else.
struct Runtime(mpsc::Receiver<Vec<String>>);

impl Runtime {
    fn of(node: &Node) -> Self {
        let mut inotify = Inotify::init().unwrap();
        let net = node.net();
        // Not CREATE and not ATTRIB; a rename counts by the name that goes.
        let mask = WatchMask::MODIFY | WatchMask::MOVED_FROM | WatchMask::DELETE;
        inotify.watches().add(&net, mask).unwrap();
        let (sender, loaded) = mpsc::channel();
        let binary = node.binary_path();
        let load = move || chain(&net, DropIns::Chained).unwrap_or_default();
        let names_us = |chain: &[String]| chain.iter().any(|plugin| plugin == "adit-cni");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while inotify.read_events_blocking(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {
                let loaded = load();
                // Read again: this thread may have slept over the whole removal.
                let is_bad = names_us(&loaded) && !binary.exists() && names_us(&load());
                assert!(!is_bad, "an entry without its binary");
                if sender.send(loaded).is_err() {
                    return;
                }
            }
        });
        Self(loaded)
    }

    /// Waits until the runtime has loaded this chain.
    #[track_caller]
    fn loads(&self, wanted: &[&str]) {
        while self.0.recv_timeout(Duration::from_secs(60)).unwrap() != wanted {}
    }
}

#[test]
fn the_runtime_hears_of_an_entry_and_of_its_removal_before_the_binary_goes() {
    for flags in [&["--drop-in=always"][..], &["--drop-in=never"]] {
        let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
        let runtime = Runtime::of(&node);
        let installer = node.install(flags);
        runtime.loads(&CHAIN);
        installer.line("installed in");
        drop(installer);
        node.uninstall();
        runtime.loads(&CHAIN[..2]);
        assert!(!node.binary_path().exists());
    }
}

#[test]
fn an_uninstall_after_one_that_broke_off_before_the_reload_makes_up_for_it() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    fs::create_dir(node.net().join("bridge")).unwrap();
    fs::write(node.net().join("bridge/50-other.conf"), r#"{"type": "other"}"#).unwrap();
    node.install(&["--drop-in=always"]).line("installed in");
    // In the sub-folder, of which the runtime does not hear.
    fs::remove_file(node.net().join("bridge/99-adit.conf")).unwrap();
    let runtime = Runtime::of(&node);
    node.uninstall();
    runtime.loads(&["bridge", "portmap", "other"]);
}
