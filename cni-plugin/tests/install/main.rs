//! The built binary as its own installer, in folders of a node's form, beside other writers and a scripted agent.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

mod keeps;
mod killed;
mod node;
mod removal;

use node::{BRIDGE, Node, PLAIN, program, run};

#[test]
fn a_drop_in_completes_the_network_and_edits_nobodys_file() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let before = node.snapshot();
    let installer = node.install(&[]);
    let told = installer.line("installed in");
    assert!(told.ends_with("network bridge of 10-bridge.conflist, by bridge/99-adit.conf"), "{told}");
    assert_eq!(node.chain(), ["bridge", "portmap", "adit-cni"]);
    assert_eq!(node.text("10-bridge.conflist"), BRIDGE);
    assert_eq!(node.binary(), program());
    drop(installer);
    node.uninstall();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn a_list_is_edited_where_drop_ins_are_not_wanted_and_is_as_before_afterwards() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    node.set_mode("10-bridge.conflist", 0o600);
    let before = node.snapshot();
    node.install(&["--drop-in", "never", "--timeout=7"]).line("installed in");
    assert_eq!(node.chain_of_old_libcni(), ["bridge", "portmap", "adit-cni"]);
    assert!(node.text("10-bridge.conflist").contains(r#""timeout":7"#));
    node.uninstall();
    assert_eq!(node.snapshot(), before, "its mode too");
}

#[test]
fn a_plain_configuration_is_wrapped() {
    let node = Node::new(&[("10-crio.conf", PLAIN)]);
    let before = node.snapshot();
    node.install(&[]).line("installed in");
    assert_eq!(node.chain_of_old_libcni(), ["bridge", "adit-cni"]);
    node.uninstall();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn the_network_may_come_after_the_installer() {
    let node = Node::new(&[]);
    let installer = node.install(&[]);
    installer.line("waits for a network in");
    assert_eq!(node.binary(), program(), "the binary is there before any entry");
    node.write("10-bridge.conflist", BRIDGE);
    installer.line("installed in");
    assert_eq!(node.chain(), ["bridge", "portmap", "adit-cni"]);
}

#[test]
fn a_broken_list_is_named_with_line_and_column_until_it_is_mended() {
    let node = Node::new(&[("10-bridge.conflist", &BRIDGE.replace("\"cni0\",", "\"cni0\""))]);
    let installer = node.install(&["--drop-in=never"]);
    let told = installer.line("cannot be chained");
    let place = format!("{}/10-bridge.conflist:7:7: expected `,` or `}}`", node.net().display());
    assert!(told.ends_with(&place), "{told}");
    node.write("10-bridge.conflist", BRIDGE);
    installer.line("installed in");
}

#[test]
fn a_runtime_that_calls_the_plugin_is_found_out_by_its_first_call() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    let installer = node.install(&["--drop-in", "auto"]);
    installer.line("installed in");
    node.call("STATUS", "bridge/99-adit.conf");
    installer.line("the runtime calls the plugin through the drop-in");
    drop(installer);
    // What was found out holds for the next release and other flags, too.
    node.install(&["--drop-in", "auto", "--timeout=7"])
        .line("the runtime calls the plugin through the drop-in");
    let mark = node.socket().with_file_name("called");
    assert!(mark.exists());
    node.uninstall();
    assert!(!mark.exists(), "nothing of it is left");
    std::fs::write(&mark, "").unwrap();
    node.install(&["--drop-in", "auto"]).line("installed in");
    assert!(!mark.exists(), "but a new entry has to be called itself");
}

#[test]
fn what_was_left_half_done_is_cleared_away() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE), (".adit-tmp-7-7", "half"), (".adit-reload", "")]);
    node.install(&[]).line("installed in");
    let top = node.names();
    assert_eq!(top, [".bridge.adit-made", "10-bridge.conflist", "bridge"]);
}

#[test]
fn a_list_behind_a_symbolic_link_is_not_edited() {
    let node = Node::new(&[("elsewhere", BRIDGE)]);
    std::os::unix::fs::symlink("elsewhere", node.net().join("10-bridge.conflist")).unwrap();
    let before = node.snapshot();
    let output = run(&node.command("install", &["--drop-in", "never"]));
    assert_eq!(output.code, 1);
    let told = "10-bridge.conflist: it is a symbolic link, whose target is not edited";
    assert!(output.said.contains(told), "{output:?}");
    node.uninstall();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn an_uninstall_where_nothing_is_installed_changes_nothing() {
    for files in [&[("10-bridge.conflist", BRIDGE)][..], &[]] {
        let node = Node::new(files);
        let before = node.snapshot();
        node.uninstall();
        assert_eq!(node.snapshot(), before);
    }
}

#[test]
fn the_binary_stays_for_a_list_that_cannot_be_read_and_may_name_it() {
    let node = Node::new(&[("10-bridge.conflist", BRIDGE)]);
    node.install(&["--drop-in=never"]).line("installed in");
    node.write("10-bridge.conflist", &node.text("10-bridge.conflist").replace("\"cni0\",", "\"cni0\""));
    let output = run(&node.command("uninstall", &[]));
    assert_eq!(output.code, 1);
    assert!(output.said.contains("10-bridge.conflist:7:7: expected"), "{output:?}");
    assert_eq!(node.binary(), program());
}

#[test]
fn a_wrong_command_line_ends_with_64_and_help_with_0() {
    let node = Node::new(&[]);
    let wrong = run(&node.command("install", &["--drop-in", "maybe"]));
    assert_eq!(wrong.code, 64);
    assert!(wrong.said.contains("--drop-in must be auto, always or never, but is \"maybe\""), "{wrong:?}");
    assert_eq!(run(&node.command("remove", &[])).code, 64);
    let help = node.help();
    assert!(help.contains("adit-cni uninstall [FLAGS]"), "{help}");
}
