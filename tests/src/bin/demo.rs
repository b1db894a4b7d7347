//! `demo [--keep] [--logs]`: shows the mesh's main job on real traffic, and fails if it does not (see
//! [`adit_tests::demo`]).
#![expect(clippy::print_stdout, reason = "its help is its output")]

use std::process::ExitCode;

use adit_tests::demo::{self, Options};
use adit_tests::sandbox::{Entered, enter};

const USAGE: &str = "\
Shows the mesh's main job on real traffic: two nodes, a small shop, no cluster. Under a minute.

Usage: cargo xtask demo [--keep] [--logs]

  --keep   leaves it running, and prints commands to play with it; Ctrl-C ends it
  --logs   prints what agents, rules, sockets and logs say if a step does not show what it promises

Exits 0 if every step showed what it promises, 1 if one did not, 64 for bad usage. Everything is in namespaces of its
own and goes with it, however it ends.";

fn main() -> ExitCode {
    let mut options = Options::default();
    for arg in std::env::args().skip(1) {
        match &*arg {
            "--keep" => options.keep = true,
            "--logs" => options.logs = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("demo: unknown argument {other}\n\n{USAGE}");
                return ExitCode::from(64);
            }
        }
    }
    let done = match enter() {
        Ok(Entered::Over(code)) => return code,
        Ok(Entered::Inside(sandbox)) => demo::run(options, &sandbox),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
