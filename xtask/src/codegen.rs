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

/// The packages that hold generated files; in each the test binary `codegen` makes them.
const GENERATORS: [&str; 2] = ["adit-agent", "adit-ca"];

/// Runs every generator.
pub fn run(mode: Mode) -> Result<()> {
    for package in GENERATORS {
        let mut cargo = repo::cargo();
        cargo.args([
            "test",
            "-q",
            "--profile",
            "it",
            "-p",
            package,
            "--test",
            "codegen",
        ]);
        if mode == Mode::Write {
            cargo.env("UPDATE", "1");
        }
        repo::run(&mut cargo).with_context(|| {
            format!("generated files of {package}: `cargo xtask codegen` writes them anew")
        })?;
    }
    Ok(())
}
