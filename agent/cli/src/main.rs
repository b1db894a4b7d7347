//! `adit`: what the mesh does, asked of its agents.
//!
//! Exit codes: 0 done; 1 an agent could not be asked; 64 bad usage.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
mod cmd;

/// Shows what the mesh does: who talks to whom, how it is secured, what was refused and why.
#[derive(Parser)]
#[command(name = "adit", version = adit_version::version!(), disable_help_subcommand = true)]
struct Args {
    /// The directory of a mesh without a cluster; its agents are found through DIR/status.
    #[arg(long, env = "ADIT_MESH", value_name = "DIR", global = true)]
    mesh: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Each pair of workloads that talked: identities, security, connections, failures, latency.
    Edges(cmd::edges::Args),
    /// Single connections, the newest last, with what became of them; one that stays open is told once a minute.
    Flows(cmd::flows::Args),
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version come as errors too; they go to standard output and are no failure.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let Some(mesh) = args.mesh else {
        eprintln!("adit: say which mesh with --mesh DIR (or ADIT_MESH)");
        return ExitCode::from(64);
    };
    let done =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Into::into).and_then(
            |runtime| {
                runtime.block_on(async {
                    match args.command {
                        Command::Edges(args) => cmd::edges::run(&mesh, &args).await,
                        Command::Flows(args) => cmd::flows::run(&mesh, &args).await,
                    }
                })
            },
        );
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("adit: {error:#}");
            ExitCode::FAILURE
        }
    }
}
