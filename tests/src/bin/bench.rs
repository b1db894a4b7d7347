//! `cargo xtask bench`: what the mesh costs, against the plain path of the same run.
#![expect(clippy::print_stdout, reason = "the client's report is its output")]

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use adit_tests::bench::client::{self, Load};
use adit_tests::bench::run::{self, Wanted};
use adit_tests::bench::server;
use adit_tests::sandbox::{Entered, enter};
use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures speed and memory against the plain path of the same run.
///
/// Prints a table and, after a whole run, writes it into docs/performance.md.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Args {
    /// Exit with 1 when a row is missed. A row that is missed is measured again with 9 rounds, and that median counts.
    #[arg(long)]
    check: bool,
    /// Only rows of this name, or whose names begin so.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Rounds of each row; medians are taken over them.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each load runs on each path, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A look in a minute: one round of a second each, nothing measured again, nothing written.
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What runs in the pods.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    /// Serves.
    Server,
    /// Loads the server at `server`.
    Client { server: IpAddr, kind: String, count: usize, rate: u32, millis: u64 },
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Entered::Over(code) = enter()? {
        return Ok(code);
    }
    match args.part {
        Some(Part::Server) => server::run().map(|()| ExitCode::SUCCESS),
        Some(Part::Client { server, kind, count, rate, millis }) => {
            let load = Load::parse(&kind, count, rate)?;
            let report = client::run(load, server, Duration::from_millis(millis))?;
            println!("{}", serde_json::to_string(&report)?);
            Ok(ExitCode::SUCCESS)
        }
        None => run::run(&Wanted {
            check: args.check,
            only: args.only,
            rounds: if args.quick { 1 } else { args.rounds.max(1) },
            duration: Duration::from_secs_f64(if args.quick { 1.0 } else { args.seconds }),
            quick: args.quick,
        }),
    }
}
