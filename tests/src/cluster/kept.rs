//! A cluster that outlives the command that started it.
//!
//! `up` starts `serve` in a session of its own, and shows what it says until it is ready; if `up` ends before, however,
//! so does `serve`. From then on the cluster is `serve`'s, and goes with it. Whoever wants something of the cluster
//! enters the sandbox's namespaces: with kubectl, or to ask `serve` itself over a socket.
#![expect(clippy::print_stdout, reason = "progress is the output of the program that this is of")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::{Cluster, Programs, Settings};
use crate::WAIT_MAX;

/// What a cluster is called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name(String);

impl Name {
    /// That of a cluster of which no name is said.
    pub const USUAL: &'static str = "adit";
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=32).contains(&name.len()) && name.chars().all(is_word),
            "a cluster's name has 1 to 32 lower-case letters, digits and '-'"
        );
        Ok(Self(name.to_owned()))
    }
}

/// Where it is written down which process keeps which cluster.
const FOLDER: &str = "/run/adit-cluster";
/// What `serve` says when the cluster can be used.
const READY: &str = "the cluster is ready";
/// Where `serve` listens, in the sandbox.
const SOCKET: &str = "/run/cluster.sock";

/// The process that keeps a cluster: its id may be another's by now, but not with the same start.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Keeper {
    id: i32,
    started: String,
}

impl Keeper {
    fn of(id: u32) -> Result<Self> {
        let id = i32::try_from(id).context("a process id")?;
        let started = started(id).with_context(|| format!("process {id} is gone"))?;
        Ok(Self { id, started })
    }

    /// The one that runs, if one does.
    fn find(name: &Name) -> Result<Option<Self>> {
        let file = file(name, "keeper");
        let Ok(text) = fs::read_to_string(&file) else { return Ok(None) };
        let words = text.trim().split_once(' ').and_then(|(id, started)| Some((id.parse().ok()?, started)));
        let (id, begun) =
            words.with_context(|| format!("{} does not name a process: {text:?}", file.display()))?;
        let is_it = started(id).is_some_and(|started| started == begun);
        Ok(is_it.then(|| Self { id, started: begun.to_owned() }))
    }

    fn write(&self, name: &Name) -> Result<()> {
        let file = file(name, "keeper");
        fs::write(&file, format!("{} {}\n", self.id, self.started))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn is_running(&self) -> bool {
        started(self.id).is_some_and(|started| started == self.started)
    }

    /// The process inside the sandbox: the child of the one child, the sandbox's process 1, that has one itself.
    fn inside(&self) -> Result<i32> {
        let children = |of: i32| -> Vec<i32> {
            let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
            children.split_whitespace().filter_map(|id| id.parse().ok()).collect()
        };
        let inside = children(self.id).into_iter().find_map(|child| children(child).first().copied());
        inside.context("the cluster is on its way down")
    }
}

/// When a process started, in the kernel's ticks since boot; `None` for one that is gone, or dead and not yet reaped.
fn started(id: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // Field 22 of all; the state is field 3.
    if state == "Z" { None } else { fields.nth(18).map(str::to_owned) }
}

fn file(name: &Name, what: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{}.{what}", name.0))
}

/// Starts `serve` with this program's own arguments, and waits until it says that the cluster is ready.
pub fn up(name: &Name) -> Result<()> {
    ensure!(geteuid().is_root(), "a cluster needs real root: its nodes run containers");
    fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
    if let Some(keeper) = Keeper::find(name)? {
        bail!("cluster {} is up already (process {}); `down` ends it", name.0, keeper.id);
    }
    let log = file(name, "log");
    let errors = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let args = std::env::args_os().map(|arg| if arg == "up" { "serve".into() } else { arg });
    let mut serve = Command::new("setsid");
    serve.arg(std::env::current_exe().context("cannot tell what program this is")?).args(args.skip(1));
    serve.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut serve = serve.spawn().context("cannot start the process that keeps the cluster")?;
    let keeper = Keeper::of(serve.id())?;
    keeper.write(name)?;
    let said = serve.stdout.take().context("standard output was asked to be a pipe")?;
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what the cluster says")?;
        println!("{line}");
        if line == READY {
            let cluster = command(name);
            println!("`{cluster} kubectl get pods -A` looks at it, `{cluster} down` ends it");
            return Ok(());
        }
    }
    let status = serve.wait().context("cannot wait for the process that keeps the cluster")?;
    let words = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(file(name, "keeper"));
    bail!("the cluster did not start ({status}):\n{}", words.trim_end())
}

/// Ends it, and returns when all of it is gone.
pub fn down(name: &Name) -> Result<()> {
    let Some(keeper) = Keeper::find(name)? else {
        let _ = fs::remove_file(file(name, "keeper"));
        println!("there is no cluster {}", name.0);
        return Ok(());
    };
    kill(Pid::from_raw(keeper.id), Signal::SIGTERM).context("cannot end the cluster")?;
    let deadline = Instant::now() + WAIT_MAX;
    while keeper.is_running() {
        ensure!(Instant::now() < deadline, "process {} does not end within {WAIT_MAX:?}", keeper.id);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    for what in ["keeper", "log"] {
        let file = file(name, what);
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    println!("cluster {} is down", name.0);
    Ok(())
}

fn running(name: &Name) -> Result<Keeper> {
    let found = Keeper::find(name)?;
    found.with_context(|| format!("there is no cluster {}: `cargo xtask cluster up` starts one", name.0))
}

/// Becomes kubectl in the control plane's namespace, in this folder.
pub fn kubectl(name: &Name, args: &[String]) -> Result<ExitCode> {
    let keeper = running(name)?;
    let inside = keeper.inside()?.to_string();
    let here = std::env::current_dir().context("cannot tell what folder this is")?;
    let here = format!("--wdns={}", here.display());
    let network = format!("--net=/run/netns/adit{}-control", keeper.id);
    let kubectl = Programs::find()?.kubernetes("kubectl");
    let mut command = Command::new("nsenter");
    command.args(["-t", &inside, "-m", "-p", &here, "--", "nsenter", &network, "--"]).arg(kubectl).args(args);
    let folder = super::own_folder();
    command.env("KUBECONFIG", folder.join("pki/admin.kubeconfig"));
    command.env("KUBECACHEDIR", folder.join("kubectl-cache"));
    Err(command.exec()).context("cannot start nsenter")
}

/// Has the process that keeps the cluster do something.
pub fn ask(name: &Name, words: &[&str]) -> Result<ExitCode> {
    let inside = running(name)?.inside()?.to_string();
    let own = std::env::current_exe().context("cannot tell what program this is")?;
    let mut command = Command::new("nsenter");
    command.args(["-t", &inside, "-m", "-p", "--"]).arg(own).arg("ask").args(words);
    let status = command.status().context("cannot start nsenter")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same, from within the sandbox; returns the answer.
pub fn ask_here(words: &[String]) -> Result<String> {
    let mut stream = UnixStream::connect(SOCKET).context("the cluster does not listen")?;
    writeln!(stream, "{}", words.join(" ")).context("cannot ask the cluster")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("the cluster does not answer")?;
    match answer.trim().split_once(' ') {
        Some(("error", why)) => bail!("{why}"),
        Some((_, said)) => Ok(said.to_owned()),
        None => bail!("the cluster ended before it answered"),
    }
}

/// What a cluster is kept with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum With {
    /// Nothing but itself.
    Nothing,
    /// Adit, of this checkout, and images of applications to try it with.
    Mesh,
}

/// Keeps a cluster until this process is ended.
pub fn serve(name: &Name, settings: Settings, with: With) -> Result<()> {
    let waiting = std::thread::spawn(end_with_who_waits);
    println!("starting {} nodes …", settings.nodes);
    let mut cluster = Cluster::start(settings)?;
    cluster.load_images()?;
    if with == With::Mesh {
        println!("installing Adit …");
        cluster.load_mesh_images()?;
        cluster.install_mesh()?;
        println!("{}", next_commands(name));
    }
    let listener = UnixListener::bind(SOCKET).context("cannot listen")?;
    // The last word on the pipe, whose reader may go now.
    READY_SAID.store(true, std::sync::atomic::Ordering::Release);
    println!("{READY}");
    drop(waiting);
    for stream in listener.incoming() {
        let mut stream = stream.context("cannot accept")?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).context("cannot read a request")?;
        let answer = match perform(&mut cluster, line.trim()) {
            Ok(said) => format!("ok {said}"),
            Err(error) => format!("error {error:#}").replace('\n', "; "),
        };
        // Who asked may be gone; it was done all the same.
        let _ = writeln!(stream, "{answer}");
    }
    Ok(())
}

/// How commands for it begin.
fn command(name: &Name) -> String {
    match name.0.as_str() {
        Name::USUAL => "cargo xtask cluster".to_owned(),
        other => format!("cargo xtask cluster --name {other}"),
    }
}

/// What somebody does with a mesh first.
fn next_commands(name: &Name) -> String {
    [
        "Adit is installed. Next, for instance:",
        "  K create namespace shop",
        "  K label namespace shop adit.dev/mesh=enabled",
        concat!(
            "  K -n shop run web --image=localhost/adit-test-apps:",
            env!("CARGO_PKG_VERSION"),
            " --command -- nginx"
        ),
        "  K -n shop get pods -o yaml | grep adit.dev/capture",
    ]
    .join("\n")
    .replace("K ", &format!("{} kubectl ", command(name)))
}

static READY_SAID: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn perform(cluster: &mut Cluster, request: &str) -> Result<String> {
    match request.split_once(' ') {
        Some(("crash", node)) => cluster.crash(node).map(|()| format!("{node} is gone")),
        Some(("return", node)) => {
            cluster.bring_back(node)?;
            cluster.wait_ready().map(|()| format!("{node} is back, and ready"))
        }
        Some(("load", archive)) => {
            cluster.load_image(Path::new(archive)).map(|()| format!("{archive} is in every node"))
        }
        Some(_) | None => bail!("{request} is nothing that a cluster does"),
    }
}

/// Ends this process, and with it the sandbox, if whoever waits for its word goes before it has come: interrupted or
/// killed, it leaves nothing.
fn end_with_who_waits() {
    let stdout = std::io::stdout();
    loop {
        let mut reader = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut reader, PollTimeout::NONE) {
            Ok(_) if READY_SAID.load(std::sync::atomic::Ordering::Acquire) => return,
            Ok(_) => std::process::exit(1),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                eprintln!("cannot watch for the end of who waits: {error}");
                return;
            }
        }
    }
}
