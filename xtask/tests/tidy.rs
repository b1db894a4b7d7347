//! Every check of `cargo xtask tidy` as a test, so that `cargo test` alone finds what CI would refuse.

use xtask::{repo, tidy};

fn check(name: &str) {
    let (_, check) = tidy::CHECKS.iter().find(|(known, _)| *known == name).expect("the check has this name");
    let found = check(repo::root()).expect("the tree can be read");
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "\n{}", shown.join("\n"));
}

#[test]
fn modules_of_the_agent_import_only_from_lower_layers() {
    check("layers");
}

#[test]
fn crates_keep_to_their_walls() {
    check("walls");
}

#[test]
fn the_pure_crates_are_pure() {
    check("purity");
}

#[test]
fn no_modules_of_core_objects_and_agent_import_each_other() {
    check("import cycles");
}

#[test]
fn the_readme_names_both_commands() {
    check("commands in the README");
}

#[test]
fn every_limit_is_in_the_architecture() {
    check("limits in ARCHITECTURE.md");
}

#[test]
fn every_reason_is_in_the_docs() {
    check("reasons in the docs");
}

#[test]
fn every_link_leads_somewhere() {
    check("links");
}

#[test]
fn no_work_is_left_without_an_issue() {
    check("unfinished work");
}

#[test]
fn every_source_file_is_compiled() {
    check("orphan files");
}

#[test]
fn no_doc_example_goes_unrun() {
    check("doc examples");
}

#[test]
fn every_manifest_is_a_kubernetes_object() {
    check("manifests");
}
