//! `cargo xtask ci`: exactly what CI runs, each step with its time; the tests' one line comes last.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{codegen, repo, suite, tidy};

/// The version of cargo-deny, built once into target/tools.
const CARGO_DENY: &str = "0.20.2";

/// Runs every step, also after one failed, so that one run shows all that is wrong.
pub fn run() -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.run("fmt", || repo::run(repo::cargo().args(["fmt", "--all", "--check"])));
    steps.run("tidy", || match tidy::report(&tidy::check()?) {
        ExitCode::SUCCESS => Ok(()),
        _ => bail!("see above"),
    });
    steps.run("deny", deny);
    steps.run("clippy", || {
        repo::run(repo::cargo().args([
            "clippy",
            "-q",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    });
    steps.run("doc", || {
        repo::run(
            repo::cargo()
                .args(["doc", "-q", "--workspace", "--no-deps", "--document-private-items"])
                .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
        )
    });
    steps.run("codegen", || codegen::run(codegen::Mode::Check));
    let mut summary = None;
    steps.run("test", || {
        let plan = suite::Plan { part: None, threads: suite::THREADS, filter: None };
        let ran = summary.insert(suite::run(&plan)?);
        if ran.is_ok() { Ok(()) } else { bail!("see below") }
    });
    steps.print();
    let Some(summary) = summary else {
        return Ok(ExitCode::FAILURE);
    };
    summary.print();
    Ok(if steps.failed() { ExitCode::FAILURE } else { summary.exit_code() })
}

/// The steps so far: name, time, whether it passed.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration, bool)>);

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = step();
        let took = started.elapsed();
        match &result {
            Ok(()) => println!("=== {name}: ok, {:.1} s", took.as_secs_f64()),
            Err(error) => println!("=== {name}: FAILED, {:.1} s: {error:#}", took.as_secs_f64()),
        }
        self.0.push((name, took, result.is_ok()));
    }

    fn failed(&self) -> bool {
        self.0.iter().any(|(_, _, passed)| !passed)
    }

    fn print(&self) {
        println!();
        for (name, took, passed) in &self.0 {
            println!("{name:<10} {:>8.1} s  {}", took.as_secs_f64(), if *passed { "ok" } else { "FAILED" });
        }
        let total: Duration = self.0.iter().map(|(_, took, _)| *took).sum();
        println!("{:<10} {:>8.1} s", "total", total.as_secs_f64());
    }
}

/// Bans, licences and sources. Advisories need a database from elsewhere, and are not asked.
fn deny() -> Result<()> {
    let tool = deny_tool()?;
    repo::run(
        Command::new(tool)
            .args(["--log-level", "warn", "check", "bans", "licenses", "sources"])
            .current_dir(repo::root()),
    )
}

/// cargo-deny, built first if it is not there in the pinned version.
fn deny_tool() -> Result<PathBuf> {
    let folder = repo::target().join("tools");
    let tool = folder.join("bin/cargo-deny");
    let installed = Command::new(&tool).arg("--version").output().is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim() == format!("cargo-deny {CARGO_DENY}")
    });
    if !installed {
        println!("building cargo-deny {CARGO_DENY} into {} (once) …", folder.display());
        let mut cargo = repo::cargo();
        cargo.args(["install", "-q", "--locked", "--version", CARGO_DENY, "--root"]).arg(&folder);
        // Its own folder, so that it neither waits for a build of ours nor is rebuilt with ours.
        cargo.env("CARGO_TARGET_DIR", folder.join("build")).arg("cargo-deny");
        repo::run(&mut cargo)?;
    }
    Ok(tool)
}
