//! `cargo xtask codegen`: the generators are tests of the crates whose files they write, so that the launcher needs
//! no dependency on them. With UPDATE=1 such a test writes the file, without it compares.

use anyhow::{Context, Result};

use crate::repo;

/// What to do with a generated file that differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Fail.
    Check,
    /// Write it anew.
    Write,
}

/// The test target that generates; every package with generated files has one of this name.
const GENERATOR: &str = "codegen";

/// Runs every generator.
pub fn run(mode: Mode) -> Result<()> {
    let mut cargo = repo::cargo();
    // The whole workspace for the reason given at `programs::build`.
    cargo.args(["test", "-q", "--profile", "it", "--workspace", "--test", GENERATOR]);
    if mode == Mode::Write {
        cargo.env("UPDATE", "1");
    }
    repo::run(&mut cargo)
        .context("a generated file is not what its source says: `cargo xtask codegen` writes it anew")
}
