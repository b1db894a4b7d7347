//! `cargo xtask …`: see `cargo xtask --help`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{ci, cluster, codegen, image, measure, packages, programs, suite, tidy};

/// Adit's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the mesh's main job on real traffic: two nodes and a small shop, in under a minute after the build.
    Demo {
        /// Arguments of the demo itself, such as --keep.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs everything: unit, property and integration tests, and those on a real Kubernetes cluster.
    Test {
        /// Only this part.
        #[arg(long, value_enum)]
        part: Option<suite::Part>,
        /// How many namespace tests run at once. Most of a test's time is waiting, so more than there are cores.
        #[arg(long, default_value_t = suite::THREADS)]
        threads: usize,
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Measures speed and memory against the plain path of the same run.
    Bench {
        /// Arguments of the bench itself, such as --check.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A real Kubernetes cluster on this machine: `cluster up`, `down`, `kubectl …`, `status`, `crash`, `return`.
    Cluster {
        /// Arguments of the cluster's own program; `--help` among them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Writes the images as OCI archives, which containerd, docker and skopeo load.
    Image {
        /// How the programs in them are built.
        #[arg(long, value_enum, default_value_t = image::Profile::Release)]
        profile: image::Profile,
        /// Where to; target/images, or target/images/it, unless told otherwise.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Checks layers, walls, purity, docs and the tree.
    Tidy,
    /// Prints sizes of files and functions, and import cycles.
    Measure,
    /// Regenerates committed generated files.
    Codegen {
        /// Only says whether they are up to date.
        #[arg(long)]
        check: bool,
    },
    /// Runs exactly what CI runs.
    Ci,
}

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Demo { args } => {
            packages::ensure(packages::of_demo())?;
            programs::build(programs::What::Programs)?;
            programs::become_program("demo", programs::What::Programs, &args)
        }
        Command::Bench { args } => {
            packages::ensure(&packages::BENCH)?;
            programs::build(programs::What::Shipped)?;
            programs::become_program("bench", programs::What::Shipped, &args)
        }
        Command::Cluster { args } => become_cluster(&args),
        Command::Test { part, threads, filter } => {
            let summary = suite::run(&suite::Plan { part, threads, filter })?;
            summary.print();
            Ok(summary.exit_code())
        }
        Command::Image { profile, out } => image::make(profile, out.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Tidy => Ok(tidy::report(&tidy::check()?)),
        Command::Measure => measure::print().map(|()| ExitCode::SUCCESS),
        Command::Codegen { check: true } => codegen::run(codegen::Mode::Check).map(|()| ExitCode::SUCCESS),
        Command::Codegen { check: false } => codegen::run(codegen::Mode::Write).map(|()| ExitCode::SUCCESS),
        Command::Ci => ci::run(),
    }
}

/// What starts a cluster needs all that it is made of; what looks at one finds it built.
fn become_cluster(args: &[String]) -> Result<ExitCode> {
    packages::ensure(&packages::CLUSTER)?;
    let mut variables = cluster::prepare()?.to_vec();
    if args.iter().any(|arg| arg == "up") {
        programs::build(programs::What::Programs)?;
        if args.iter().any(|arg| arg == "--mesh") {
            variables.push(cluster::prepare_mesh()?);
        }
    }
    programs::become_program_with("cluster", programs::What::Programs, args, &variables)
}
