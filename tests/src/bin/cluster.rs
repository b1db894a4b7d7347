//! `cargo xtask cluster …`: a real Kubernetes cluster on this machine, kept until it is taken down (see
//! [`adit_tests::cluster`] for what it is made of, and [`adit_tests::cluster::kept`] for how it is kept).
#![expect(clippy::print_stdout, reason = "what it says is its output")]

use std::path::PathBuf;
use std::process::ExitCode;

use adit_tests::cluster::kept::{self, Name, With};
use adit_tests::cluster::{Families, Settings};
use adit_tests::sandbox::{Entered, enter_with_cgroups};
use anyhow::Result;
use clap::{Parser, Subcommand};

/// A real Kubernetes cluster on this machine: etcd, API server, controllers, scheduler, DNS, and nodes with containerd,
/// kubelet and kube-proxy. Needs root. Everything goes with `down`.
#[derive(Parser)]
#[command(name = "cargo xtask cluster", bin_name = "cargo xtask cluster")]
struct Args {
    /// Which cluster: several run side by side.
    #[arg(long, global = true, default_value = Name::USUAL)]
    name: Name,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts it, and returns when every node is ready.
    Up(Up),
    /// Takes it down: no process, mount, namespace or control group is left.
    Down,
    /// Runs kubectl as its administrator.
    #[command(trailing_var_arg = true)]
    Kubectl {
        /// What kubectl is given.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Shows its nodes and pods.
    Status,
    /// Takes a node away as a power cut does.
    Crash {
        /// Its name.
        node: String,
    },
    /// Brings a node back that crashed.
    Return {
        /// Its name.
        node: String,
    },
    /// Loads OCI archives into every node.
    Load {
        /// The files.
        archives: Vec<PathBuf>,
    },
    /// Keeps it: what `up` starts.
    #[command(hide = true)]
    Serve(Up),
    /// Asks the process that keeps it, from within its sandbox.
    #[command(hide = true)]
    Ask { words: Vec<String> },
}

#[derive(clap::Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Pods and Services have IPv6 addresses too.
    #[arg(long)]
    dual_stack: bool,
    /// Adit of this checkout is installed in it, and images of applications are in every node.
    #[arg(long)]
    mesh: bool,
}

impl Up {
    fn settings(&self) -> Settings {
        let families = if self.dual_stack { Families::Dual } else { Families::V4 };
        Settings { nodes: self.nodes, families }
    }

    fn with(&self) -> With {
        if self.mesh { With::Mesh } else { With::Nothing }
    }
}

fn main() -> ExitCode {
    let Args { name, command } = Args::parse();
    match run(&name, command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &Name, command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(_) => kept::up(name).map(|()| ExitCode::SUCCESS),
        Command::Down => kept::down(name).map(|()| ExitCode::SUCCESS),
        Command::Kubectl { args } => kept::kubectl(name, &args),
        Command::Status => kept::kubectl(name, &["get", "nodes,pods", "-A", "-o", "wide"].map(str::to_owned)),
        Command::Crash { node } => kept::ask(name, &["crash", &node]),
        Command::Return { node } => kept::ask(name, &["return", &node]),
        Command::Load { archives } => {
            for archive in archives {
                let archive = std::path::absolute(&archive)?;
                let code = kept::ask(name, &["load", &archive.to_string_lossy()])?;
                if code != ExitCode::SUCCESS {
                    return Ok(code);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Ask { words } => {
            println!("{}", kept::ask_here(&words)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(up) => match enter_with_cgroups()? {
            Entered::Over(code) => Ok(code),
            Entered::Inside(_) => kept::serve(name, up.settings(), up.with()).map(|()| ExitCode::SUCCESS),
        },
    }
}
