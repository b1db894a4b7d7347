//! Checks what no compiler does: layers, walls, purity, docs, and the tree itself. Each check is also a test.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::repo;
use violation::Violation;

pub mod cycles;
pub mod docs;
pub mod layers;
pub mod purity;
pub mod tree;
pub mod violation;
pub mod walls;

/// A named check of the checkout whose top it is given.
pub type Check = (&'static str, fn(&Path) -> Result<Vec<Violation>>);

/// Every check.
pub const CHECKS: [Check; 12] = [
    ("layers", layers::check),
    ("walls", walls::check),
    ("purity", purity::check),
    ("import cycles", cycles::check),
    ("commands in the README", docs::commands),
    ("limits in ARCHITECTURE.md", docs::limits),
    ("reasons in the docs", docs::reasons),
    ("links", docs::links),
    ("unfinished work", tree::unfinished),
    ("orphan files", tree::orphans),
    ("doc examples", tree::doc_examples),
    ("manifests", tree::manifests),
];

/// Runs every check.
pub fn check() -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for (_, check) in CHECKS {
        found.extend(check(repo::root())?);
    }
    Ok(found)
}

/// Prints what was found; the exit code of `cargo xtask tidy`.
pub fn report(violations: &[Violation]) -> ExitCode {
    for violation in violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("tidy: {} checks, nothing found", CHECKS.len());
            ExitCode::SUCCESS
        }
        count => {
            println!("tidy: {count} found");
            ExitCode::FAILURE
        }
    }
}
