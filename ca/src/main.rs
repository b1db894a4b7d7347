//! `adit-ca`: runs the CA, and asks things of a running one. Exit codes: 0 done, 1 failed, 64 bad usage or
//! configuration.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use adit_ca::config::LogFormat;
use adit_ca::lifecycle::Request;
use adit_ca::state::Subject;
use adit_ca::{App, Config, report, store};
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// The certificate authority of an Adit mesh.
#[derive(Parser)]
#[command(name = "adit-ca", version = VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; prints `adit-ca ready on ADDRESS` once it does.
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make the store with its root and intermediate, if it has none, and say where.
    Init {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ask the CA that holds the store to replace its root; see `status` for how far it is.
    Rotate(StoreArguments),
    /// Ask the CA that holds the store to put a certificate or an identity on the kill list.
    Revoke {
        #[command(flatten)]
        store: StoreArguments,
        #[command(flatten)]
        subject: SubjectArguments,
        /// Take it off the list again.
        #[arg(long)]
        undo: bool,
    },
    /// Say how the CA stands: roots, rotation, kill list, requests.
    Status {
        #[command(flatten)]
        store: StoreArguments,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct StoreArguments {
    /// The store's directory.
    #[arg(long)]
    store: PathBuf,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SubjectArguments {
    /// A certificate's serial, in hex.
    #[arg(long)]
    serial: Option<adit_ca::serial::Serial>,
    /// A SPIFFE ID: every certificate of it, present and future.
    #[arg(long)]
    identity: Option<adit_proto::SpiffeId>,
}

/// Release and commit.
const VERSION: &str = adit_version::version!();

/// Exit code for bad usage or configuration (sysexits.h, EX_USAGE).
const BAD_USAGE: u8 = 64;

fn main() -> ExitCode {
    without_core_files();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { BAD_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = match arguments.command {
        Command::Run { config } => return with_config(&config, run),
        Command::Init { config } => return with_config(&config, init),
        Command::Rotate(StoreArguments { store }) => ask(store, Request::RotateRoot),
        Command::Revoke { store, subject, undo } => revoke(store.store, subject, undo),
        Command::Status { store, json } => status(store.store, json),
    };
    exit(done)
}

/// Has the kernel write no core file of this process: the mesh's private keys would be in it. The limit alone does not
/// bind where core files go to a program (core(5)).
fn without_core_files() {
    // Less than was allowed is always allowed.
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
}

fn exit(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn with_config(path: &std::path::Path, work: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    match Config::load(path) {
        Ok(config) => exit(work(config)),
        Err(errors) => {
            complain(&errors.to_string());
            ExitCode::from(BAD_USAGE)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    log_to_stderr(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let app = tokio::select! {
            bound = App::bind(config, VERSION) => bound?,
            // It may have to wait for an API server.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        say(&format!("adit-ca ready on {}", app.address()))?;
        app.run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
        Ok(())
    })
}

fn init(config: Config) -> anyhow::Result<()> {
    let store = config.place.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let root = runtime.block_on(App::init(config))?;
    say(&format!("store {store}: root {root}"))
}

fn revoke(store: PathBuf, subject: SubjectArguments, undo: bool) -> anyhow::Result<()> {
    let subject = match (subject.serial, subject.identity) {
        (Some(serial), _) => Subject::Serial(serial),
        (None, Some(identity)) => Subject::Identity(identity),
        (None, None) => anyhow::bail!("--serial or --identity is needed"),
    };
    let request = if undo { Request::Restore(subject) } else { Request::Revoke(subject) };
    ask(store, request)
}

fn ask(dir: PathBuf, request: Request) -> anyhow::Result<()> {
    let name = store::leave(&dir, request, SystemTime::now())?;
    let by = if store::is_held(&dir) {
        "the running CA takes it up"
    } else {
        "no CA runs on this store now: the next one takes it up"
    };
    say(&format!("request {name} left; {by} (adit-ca status --store {})", dir.display()))
}

fn status(dir: PathBuf, json: bool) -> anyhow::Result<()> {
    let progress = store::progress(&dir)?
        .with_context(|| format!("{} is no store, or its CA has not run yet", dir.display()))?;
    if json {
        return say(&serde_json::to_string_pretty(&progress)?);
    }
    let running = if store::is_held(&dir) { "running" } else { "not running; what follows is its last word" };
    let pending = store::pending(&dir)?;
    say(format!("adit-ca         {running}\n{progress}waiting         {pending} requests").as_str())
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let mut filter = tracing_subscriber::EnvFilter::try_new(&config.log_level)?;
    // It tells each failure once more, at every attempt; who asked tells it once. Whoever names it gets it.
    if !config.log_level.contains("kube_client") {
        filter = filter.add_directive("kube_client=off".parse()?);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn complain(text: &str) {
    // Nothing can be done where even this fails.
    let _ = writeln!(std::io::stderr(), "adit-ca: {text}");
}
