//! Builds what demo, bench and tests run, once, and becomes one of them.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::repo;

/// The packages whose programs demo, bench and tests start. Their binaries: adit-agent, adit-ca, adit-cni, adit, and
/// the programs in tests/src/bin.
const PACKAGES: [&str; 5] = ["adit-agent", "adit-ca", "adit-cni", "adit", "adit-tests"];

/// Builds all programs in the profile `it` (optimised like a release, checked like a development build).
pub fn build() -> Result<()> {
    let started = Instant::now();
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", "it", "--bins"]);
    cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    if !std::io::stderr().is_terminal() {
        cargo.arg("-q");
    }
    println!("building the agent, the CA, the CNI plugin, the tool and the test programs (profile it) …");
    repo::run(&mut cargo)?;
    println!("built in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Replaces this process by the program `name` of the profile `it`; returns only if that fails.
pub fn become_program(name: &str, args: &[String]) -> Result<ExitCode> {
    let program = repo::programs().join(name);
    let error = Command::new(&program).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
