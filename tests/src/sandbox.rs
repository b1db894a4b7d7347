//! Namespaces of its own for a whole program, made so that nothing outlives it.
//!
//! Three processes of the same program: *outside* waits and passes the exit code on; *init* is process 1 of a new PID
//! namespace, mounts private file systems and reaps; *inside* does the work. When outside ends, by whatever signal,
//! the kernel kills init (parent-death signal) and with it every process of the PID namespace; with the last of them
//! go the mounts, the network namespaces with their rules, the IPC objects, and the files, which lie on a tmpfs.
//!
//! An ordinary user gets the same within a user namespace, in which only one uid exists: see [`Sandbox::is_real_root`].

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Pid, Uid, getegid, geteuid, getpid};

/// Tells a process of ours which of the three it is: absent outside, `init PID KIND` in init, `inside ID KIND` inside.
const STAGE: &str = "ADIT_SANDBOX";

/// Connections of the largest test (10,000 idle ones, twice through two agents, and as many for the apps), doubled.
const FILES_MAX: u64 = 1 << 17;

/// The world that this process runs in.
#[derive(Clone, Debug)]
pub struct Sandbox {
    run: String,
    real_root: bool,
}

/// What [`enter`] comes back with.
#[derive(Debug)]
pub enum Entered {
    /// This process is inside; it does the work.
    Inside(Sandbox),
    /// This process was outside or init, and the work is done: exit with this.
    Over(ExitCode),
}

/// Makes a sandbox and runs this very program in it, with the same arguments and environment.
///
/// To be called first in `main`, before any thread is made. The program's file must not lie below `/run`, which is
/// empty inside.
pub fn enter() -> Result<Entered> {
    enter_and(Leftovers::None)
}

/// The same for a program that makes control groups, all of them below one of the run's name: they outlive processes, so
/// they are removed when the sandbox has ended. That also where *outside* was killed: by a fourth process, *guard*.
pub fn enter_with_cgroups() -> Result<Entered> {
    enter_and(Leftovers::Cgroups)
}

/// What of a run is in none of its namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Leftovers {
    None,
    Cgroups,
}

fn enter_and(leftovers: Leftovers) -> Result<Entered> {
    let stage = env::var(STAGE).ok();
    let words: Vec<&str> = stage.as_deref().unwrap_or("").split(' ').collect();
    match words[..] {
        ["init", outside, kind] => init(outside, kind).map(Entered::Over),
        ["inside", run, kind] => {
            Ok(Entered::Inside(Sandbox { run: run.to_owned(), real_root: kind == Kind::Root.word() }))
        }
        ["guard", outside] => guard(outside).map(Entered::Over),
        _ => outside(leftovers).map(Entered::Over),
    }
}

impl Sandbox {
    /// The sandbox that this process is in, if it is in one.
    pub fn current() -> Option<Self> {
        match env::var(STAGE).ok()?.split(' ').collect::<Vec<_>>()[..] {
            ["inside", run, kind] => Some(Self { run: run.to_owned(), real_root: kind == Kind::Root.word() }),
            _ => None,
        }
    }

    /// The run's id, unique among the runs alive on this machine.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Whether uid 0 in here is uid 0 outside. If not, there is no other uid: PostgreSQL, which refuses to run as
    /// root, cannot run, and the agent's listeners cannot have an fsuid of their own.
    pub fn is_real_root(&self) -> bool {
        self.real_root
    }

    /// A folder on the sandbox's own tmpfs.
    pub fn folder() -> &'static Path {
        Path::new("/run/tmp")
    }
}

/// Takes the sandbox out of the environment of a program that shall make one of its own.
pub fn forget(command: &mut Command) {
    command.env_remove(STAGE);
}

#[derive(Clone, Copy)]
enum Kind {
    Root,
    User,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user",
        }
    }
}

/// The signals that end a run. They are blocked and waited for, which also works where they were inherited as
/// ignored: a blocked signal is never thrown away.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The name of a run, by the process that is *outside*.
fn run_of(outside: impl std::fmt::Display) -> String {
    format!("adit{outside}")
}

/// Waits until *outside* has ended, and removes the control groups of its run, unless it has done so itself.
fn guard(outside: &str) -> Result<ExitCode> {
    nix::unistd::setsid().context("cannot leave the session")?;
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    // Its end of the pipe is open until it ends, however that comes.
    let mut pipe = [0];
    let _ = io::Read::read(&mut io::stdin(), &mut pipe);
    crate::cluster::cgroups::remove(&run_of(outside)).map(|()| ExitCode::SUCCESS)
}

fn start_guard() -> Result<Child> {
    this_program()?
        .env(STAGE, format!("guard {}", getpid()))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("cannot start the process that removes control groups")
}

fn outside(leftovers: Leftovers) -> Result<ExitCode> {
    let mut awaited = SigSet::from_iter(ENDING);
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block().context("cannot block signals")?;
    // Before the namespaces: what it removes is outside them.
    let guard = (leftovers == Leftovers::Cgroups).then(start_guard).transpose()?;
    let kind = leave_namespaces()?;
    raise_file_limit().context("cannot raise the limit of open files")?;
    let mut child = this_program()?
        .env(STAGE, format!("init {} {}", getpid(), kind.word()))
        .spawn()
        .context("cannot start the first process of the sandbox")?;
    loop {
        let signal = awaited.wait().context("cannot wait for a signal")?;
        if signal == Signal::SIGCHLD {
            if let Some(status) = child.try_wait().context("cannot wait for the sandbox")? {
                dismiss(guard)?;
                return Ok(exit_code(status));
            }
        } else {
            end(&mut child)?;
            dismiss(guard)?;
            return Ok(killed_by(signal));
        }
    }
}

/// Lets the guard do its work, and waits for it.
fn dismiss(guard: Option<Child>) -> Result<()> {
    let Some(mut guard) = guard else { return Ok(()) };
    drop(guard.stdin.take());
    let status = guard.wait().context("cannot wait for the removal of control groups")?;
    if status.success() { Ok(()) } else { bail!("control groups are left: {status}") }
}

/// Kills init; its end is waited for, and comes after the end of every process in its PID namespace.
fn end(child: &mut Child) -> Result<()> {
    child.kill().context("cannot end the sandbox")?;
    child.wait().context("cannot wait for the sandbox's end")?;
    Ok(())
}

/// Leaves the machine's namespaces: as root directly, otherwise, or where root may not, through a user namespace.
fn leave_namespaces() -> Result<Kind> {
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC;
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() && unshare(all).is_ok() {
        return Ok(Kind::Root);
    }
    unshare(all | CloneFlags::CLONE_NEWUSER).context(
        "cannot make namespaces: neither as root nor in a user namespace (see sysctl user.max_user_namespaces, and \
         kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    map_ids(uid, gid).context("cannot become root of the user namespace")?;
    Ok(Kind::User)
}

fn map_ids(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn raise_file_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Only root may pass the hard limit; without it, what is there must do.
    setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX.max(hard))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

fn init(outside: &str, kind: &str) -> Result<ExitCode> {
    set_pdeathsig(Signal::SIGKILL).context("cannot tie the sandbox to its parent")?;
    if parent_outside()?.as_deref() != Some(outside) {
        bail!("the parent was gone before the sandbox was tied to it");
    }
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    mount_private().context("cannot make the sandbox's own file systems")?;
    let run = run_of(outside);
    let child = this_program()?
        .env(STAGE, format!("inside {run} {kind}"))
        .env("TMPDIR", Sandbox::folder())
        .env("PATH", path())
        .spawn()
        .context("cannot start the program inside the sandbox")?;
    reap_until(&child)
}

/// The parent's process id as the outside sees it: `/proc` is still the outside's here.
fn parent_outside() -> Result<Option<String>> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    Ok(status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|pid| pid.trim().to_owned()))
}

/// `/proc` of the new PID namespace, and an empty `/run`: namespaces, sockets and locks in it are the run's own.
fn mount_private() -> Result<()> {
    let none = None::<&str>;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("/ as private")?;
    mount(Some("proc"), "/proc", Some("proc"), quiet | MsFlags::MS_NOEXEC, none)
        .context("/proc (a container may forbid it)")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), quiet, Some("mode=0755")).context("/run")?;
    for folder in ["/run/netns", "/run/lock"] {
        fs::create_dir(folder).with_context(|| folder.to_owned())?;
    }
    // As /tmp is: a server that runs as another user finds its folder in here.
    fs::DirBuilder::new().mode(0o1777).create(Sandbox::folder()).context("the folder for files")?;
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o1777);
    fs::set_permissions(Sandbox::folder(), mode).context("the folder for files")
}

/// PATH with the system folders, which an ordinary user's lacks, and PostgreSQL's own.
fn path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let postgres = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgres = postgres.map(|version| version.path().join("bin"));
    let folders = env::split_paths(&given).chain(system).chain(postgres);
    // A folder with a colon in its name cannot be on a PATH; then the given one must do.
    env::join_paths(folders).unwrap_or(given)
}

/// Reaps whatever ends until `child` does; as process 1 this is the parent of all orphans.
fn reap_until(child: &Child) -> Result<ExitCode> {
    let program = Pid::from_raw(child.id().cast_signed());
    loop {
        let status = wait().context("cannot wait for the program inside the sandbox")?;
        if status.pid() != Some(program) {
            continue;
        }
        if let WaitStatus::Exited(_, code) = status {
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        if let WaitStatus::Signaled(_, signal, _) = status {
            return Ok(killed_by(signal));
        }
    }
}

/// What a shell says of a program that died of a signal.
fn killed_by(signal: Signal) -> ExitCode {
    ExitCode::from(128 + u8::try_from(signal as i32).unwrap_or(0))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// This very program with its own arguments.
fn this_program() -> Result<Command> {
    let program: PathBuf = env::current_exe().context("cannot tell what program this is")?;
    let mut args = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    Ok(command)
}
