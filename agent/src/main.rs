//! The node agent. Exit codes: 0 ended by a signal; 1 cannot start; 64 bad usage or configuration; 70 a vital part
//! panicked.

use std::path::PathBuf;
use std::process::ExitCode;

use adit_agent::app::{App, Reload, Stamp};
use adit_agent::config::{Config, NodeFacts};
use adit_agent::telemetry::log;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Captures, secures, decides and reports the TCP traffic of this node's enrolled pods.
#[derive(Parser)]
#[command(name = "adit-agent", version = VERSION)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Release and commit.
const VERSION: &str = adit_version::version!();

const BAD_CONFIG: u8 = 64;

fn main() -> ExitCode {
    without_core_files();
    without_huge_pages();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version come as errors too; they go to standard output and are no failure.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    // Before it is read: what changes from here on is a change.
    let seen = Stamp::of(&args.config);
    let config = match Config::load(&args.config, &NodeFacts::from_env()) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("adit-agent: {errors}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let level = match log::init(&config.telemetry.log_level, config.telemetry.log_format) {
        Ok(level) => level,
        Err(error) => {
            eprintln!("adit-agent: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if let Err(error) = allow_descriptors(&config) {
        tracing::warn!("cannot raise the bound of open descriptors: {error}");
    }
    match run(config, Reload { path: args.config, seen, level }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adit-agent: cannot run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has the kernel write no core file of this process: the pods' private keys would be in it. The limit alone does not
/// bind where core files go to a program (core(5)); children get back what the flag takes away, and keep the limit.
fn without_core_files() {
    // Less than was allowed is always allowed.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Has the kernel give memory in pages of 4 KiB. The allocator asks for pages of 2 MiB, which count whole while something
/// in them is used: 5,000 idle connections then weigh nearly half more. Not allowed to: it costs memory, nothing else.
fn without_huge_pages() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Raises the soft bound of open descriptors, of which systemd leaves 1,024, to the hard one. A connection takes two:
/// where not even one pod's fit, that is said.
fn allow_descriptors(config: &Config) -> nix::Result<()> {
    /// What the agent opens besides: listeners, tunnels, pipes, files.
    const BESIDES: u64 = 1000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let connections = u64::try_from(config.dataplane.connections_per_pod).unwrap_or(u64::MAX);
    let wanted = connections.saturating_mul(2).saturating_add(BESIDES);
    if hard < wanted {
        tracing::warn!(
            "at most {hard} descriptors may be open (RLIMIT_NOFILE); dataplane.connections-per-pod wants {wanted}"
        );
    }
    Ok(())
}

/// The control thread: everything but connections.
fn run(config: Config, reload: Reload) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = App::bind(config, VERSION).await?;
        app.run(reload).await?;
        Ok(())
    })
}
