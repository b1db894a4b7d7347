//! What the installer does at SIGTERM: what the agent says, and nothing where it says nothing.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;

use adit_proto::cni::{self, Removal, Reply, Request};

use crate::node::{BRIDGE, Installer, Node, program, read_some};

/// An agent that answers these in turn, one connection each; `None` is one that does not know the question.
fn agent(node: &Node, answers: Vec<Option<Removal>>) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(node.socket()).unwrap();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(matches!(cni::decode(&read_some(&mut stream)), Ok(Some((Request::Removal, _)))));
            if let Some(adit) = answer {
                stream.write_all(&cni::encode(&Reply::Removal { adit }).unwrap()).unwrap();
            }
        }
    })
}

fn installed() -> Node {
    Node::new(&[("10-bridge.conflist", BRIDGE)])
}

#[test]
fn where_the_agent_says_that_adit_leaves_everything_is_as_it_was() {
    for flags in [&["--drop-in=always"][..], &["--drop-in=never"]] {
        let node = installed();
        let before = node.snapshot();
        let agent = agent(&node, vec![Some(Removal::Undecided), Some(Removal::Leaves)]);
        let installer = node.install(flags);
        installer.line("installed in");
        assert_eq!(installer.terminate(), ["adit-cni: uninstalled: the entry and the plugin are gone"]);
        assert_eq!(node.snapshot(), before);
        agent.join().unwrap();
    }
}

#[test]
fn an_uninstall_that_waits_ends_at_sigterm_when_all_is_out_already() {
    let node = installed();
    let before = node.snapshot();
    let installer = node.install(&["--drop-in=always"]);
    installer.line("installed in");
    drop(installer);
    let uninstall = Installer::start(&node.command("uninstall", &["--then=wait"]));
    uninstall.line("waits for SIGTERM");
    assert_eq!(node.snapshot(), before);
    assert_eq!(uninstall.terminate(), [""; 0]);
}

#[test]
fn where_the_agent_says_that_adit_stays_all_is_left_in_place() {
    let node = installed();
    let agent = agent(&node, vec![Some(Removal::Stays)]);
    let installer = node.install(&[]);
    installer.line("installed in");
    assert_eq!(installer.terminate(), ["adit-cni: ends; Adit stays, and its plugin in place"]);
    assert_eq!(node.chain(), ["bridge", "portmap", "adit-cni"]);
    agent.join().unwrap();
}

#[test]
fn an_agent_that_is_gone_or_of_an_older_release_leaves_all_in_place() {
    for answers in [vec![], vec![None]] {
        let node = installed();
        let agent = agent(&node, answers);
        let installer = node.install(&[]);
        installer.line("installed in");
        let said = installer.terminate();
        assert!(said[0].starts_with("adit-cni: ends, and leaves the plugin in place: "), "{said:?}");
        assert_eq!(node.chain(), ["bridge", "portmap", "adit-cni"]);
        assert_eq!(node.binary(), program());
        agent.join().unwrap();
    }
}
