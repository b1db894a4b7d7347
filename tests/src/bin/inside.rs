//! `inside PROGRAM ARGS…`: runs a program in a sandbox of its own (see [`adit_tests::sandbox`]).

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use adit_tests::sandbox::{Entered, enter_with_cgroups};
use anyhow::{Context, Result};

fn main() -> Result<ExitCode> {
    match enter_with_cgroups()? {
        Entered::Over(code) => Ok(code),
        Entered::Inside(_) => {
            let mut args = std::env::args_os().skip(1);
            let program = args.next().context("usage: inside PROGRAM ARGS…")?;
            Err(Command::new(&program).args(args).exec())
                .with_context(|| format!("cannot start {}", program.display()))
        }
    }
}
