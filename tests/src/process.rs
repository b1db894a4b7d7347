//! Processes in namespaces: short ones with their output and a time bound, long ones that end with their handle.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::WAIT_MAX;
use crate::netns::Netns;

/// A command to be run, in a namespace or in the harness's own.
#[derive(Debug)]
pub struct Run {
    netns: Option<Netns>,
    command: Command,
    stdin: Vec<u8>,
    bound: Duration,
}

/// What a command that has ended left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    pub(crate) fn new(netns: Option<Netns>, program: &OsStr) -> Self {
        let mut command = Command::new(program);
        // A group of its own, so that it can be ended with its children.
        command.process_group(0);
        Self { netns, command, stdin: Vec::new(), bound: WAIT_MAX }
    }

    /// A command to be run in the harness's own namespace.
    pub fn here(program: impl AsRef<OsStr>) -> Self {
        Self::new(None, program.as_ref())
    }

    /// A command that begins with SIGINT's default action, whatever it would inherit: in a script's background job, and
    /// in all that it starts, SIGINT is ignored. [`Process::wait_interruptible`] tells when it is so.
    pub fn here_interruptible(program: impl AsRef<OsStr>) -> Self {
        Self::here("env").args(["--default-signal=INT"]).args([program.as_ref()])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Clears the environment, as a container runtime does for a plugin.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Runs it as another user. Needs real root.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// What it reads on standard input; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take; [`WAIT_MAX`] otherwise.
    #[must_use]
    pub const fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Changes the command itself, for what this type does not say.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Runs it to its end. An error if it cannot be started or passes its bound, when it is killed with its group.
    pub fn output(mut self) -> Result<Output> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = self.shown();
        let mut child = self.start()?;
        let (mut stdin, mut stdout, mut stderr) = pipes(&mut child);
        let watch = Watchdog::start(&child, self.bound);
        let input = std::mem::take(&mut self.stdin);
        let (out, err) = thread::scope(|scope| {
            scope.spawn(move || {
                // A program that ends without reading all is judged by its exit, not by this.
                let _ = stdin.write_all(&input);
            });
            let err = scope.spawn(move || read_all(&mut stderr));
            let out = read_all(&mut stdout);
            (out, err.join().unwrap_or_default())
        });
        let late = watch.ended(&child)?;
        let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
        let output = Output { status, stdout: out, stderr: err };
        if late {
            bail!("`{shown}` took longer than {:?}\n{}{}", self.bound, output.stdout, output.stderr);
        }
        Ok(output)
    }

    /// Runs it to its end and returns its standard output; any exit but 0 is an error with all that it said.
    pub fn ok(self) -> Result<String> {
        let shown = self.shown();
        let Output { status, stdout, stderr } = self.output()?;
        if status.success() { Ok(stdout) } else { bail!("`{shown}` failed: {status}\n{stdout}{stderr}") }
    }

    /// Starts it, to run until its handle is dropped.
    pub fn spawn(mut self) -> Result<Process> {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = self.shown();
        let mut child = self.start()?;
        let log = Arc::new(Log::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        for pipe in [stdout.map(boxed), stderr.map(boxed)].into_iter().flatten() {
            let log = Arc::clone(&log);
            log.change(|inner| inner.writers += 1);
            thread::spawn(move || log.follow(pipe));
        }
        Ok(Process { name, child, log })
    }

    fn start(&mut self) -> Result<Child> {
        let command = &mut self.command;
        let started = match &self.netns {
            Some(netns) => netns.run(|| command.spawn())?,
            None => command.spawn(),
        };
        started.with_context(|| format!("cannot start `{}`", self.shown()))
    }

    fn shown(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<OsString> = words.map(OsStr::to_owned).collect();
        let place = self.netns.as_ref().map(|netns| format!("{}: ", netns.name())).unwrap_or_default();
        format!("{place}{}", words.join(OsStr::new(" ")).display())
    }
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

fn pipes(child: &mut Child) -> (impl Write + use<>, impl Read + use<>, impl Read + use<>) {
    const ASKED: &str = "all three were asked to be pipes";
    (child.stdin.take().expect(ASKED), child.stdout.take().expect(ASKED), child.stderr.take().expect(ASKED))
}

fn read_all(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is what there is to show.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Kills a process group that passes its bound.
struct Watchdog {
    ended: mpsc::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(child: &Child, bound: Duration) -> Self {
        let group = pid(child);
        let (ended, wait) = mpsc::channel();
        let thread = thread::spawn(move || {
            let late = wait.recv_timeout(bound) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                // Not yet reaped, so the number is still its own.
                let _ = killpg(group, Signal::SIGKILL);
            }
            late
        });
        Self { ended, thread }
    }

    /// Waits until the child has ended, without reaping it; then whether it was late.
    fn ended(self, child: &Child) -> Result<bool> {
        waitid(Id::Pid(pid(child)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).context("cannot wait")?;
        // The receiver is gone where the bound was passed first.
        let _ = self.ended.send(());
        self.thread.join().map_err(|_| anyhow!("the watchdog panicked"))
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// A process that runs until this is dropped; then it is killed with its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
}

impl Process {
    /// Its process id in the sandbox.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, the latest [`LOG_LINES_MAX`] lines of it.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// Waits until it prints, or has printed, a line for which `wanted` says yes; returns that line.
    pub fn wait_for_line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_for_line_after(0, what, wanted).map(|(_, line)| line)
    }

    /// The same for lines with at least this number; returns the line's own. See [`Process::next_line`].
    pub fn wait_for_line_after(
        &self,
        first: u64,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(u64, String)> {
        let deadline = Instant::now() + WAIT_MAX;
        let mut inner = self.log.lock();
        let mut seen = first;
        loop {
            if let Some(line) = inner.lines.iter().find(|(number, line)| *number >= seen && wanted(line)) {
                return Ok(line.clone());
            }
            seen = seen.max(inner.next);
            if inner.writers == 0 {
                bail!("{} ended before {what}; it said:\n{}", self.name, tail(&inner));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "{what} did not come from {} within {WAIT_MAX:?}; it said:\n{}",
                    self.name,
                    tail(&inner)
                );
            }
            let waited = self.log.grown.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The lines so far that have at least this number and are still kept. See [`Process::next_line`].
    pub fn lines_from(&self, first: u64) -> Vec<String> {
        let inner = self.log.lock();
        inner.lines.iter().filter(|(number, _)| *number >= first).map(|(_, line)| line.clone()).collect()
    }

    /// The number that its next line will have: lines of later are waited for from here.
    pub fn next_line(&self) -> u64 {
        self.log.lock().next
    }

    /// Sends it a signal, but not its children.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(pid(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills it with its group, and waits for its end.
    pub fn kill(&mut self) {
        // Already gone and reaped: its number may be another's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(pid(&self.child), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }

    /// Waits until it no longer ignores SIGINT (see [`Run::here_interruptible`]).
    pub fn wait_interruptible(&self) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        let file = format!("/proc/{}/status", self.id());
        loop {
            let status = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
            if !ignores(&status, Signal::SIGINT).with_context(|| format!("no ignored signals in {file}"))? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{} ignores SIGINT still", self.name);
            }
            // Nothing tells of it; what it waits for is two system calls of the process away.
            thread::yield_now();
        }
    }

    /// Waits for its end, [`WAIT_MAX`] at most.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let watch = Watchdog::start(&self.child, WAIT_MAX);
        let late = watch.ended(&self.child)?;
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        if late {
            bail!("{} did not end within {WAIT_MAX:?}", self.name);
        }
        Ok(status)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("cannot look at {}", self.name))?.is_none())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process ignores a signal, by its `/proc/ID/status`: bit N-1 of the mask SigIgn is signal N (proc(5)).
fn ignores(status: &str, signal: Signal) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal as u32 - 1) & 1 == 1)
}

/// The last lines, for a message.
fn tail(inner: &LogInner) -> String {
    let skip = inner.lines.len().saturating_sub(40);
    inner.lines.iter().skip(skip).map(|(_, line)| format!("  {line}\n")).collect()
}

/// How many lines of a process are kept: at ~300 B a line, 15 MB.
pub const LOG_LINES_MAX: usize = 50_000;

/// What a process printed, and who waits for more of it.
#[derive(Debug, Default)]
struct Log {
    inner: Mutex<LogInner>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogInner {
    lines: VecDeque<(u64, String)>,
    next: u64,
    /// Pipes that are still open.
    writers: usize,
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, LogInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut LogInner)) {
        change(&mut self.lock());
        self.grown.notify_all();
    }

    fn follow(&self, pipe: Box<dyn Read + Send>) {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            self.change(|inner| {
                if inner.lines.len() == LOG_LINES_MAX {
                    inner.lines.pop_front();
                }
                let number = inner.next;
                inner.lines.push_back((number, line));
                inner.next += 1;
            });
        }
        self.change(|inner| inner.writers -= 1);
    }
}

/// A program of ours, built beside the one that runs now: `target/it/NAME`, or `target/debug/NAME` under `cargo test`.
pub fn program(name: &str) -> Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("cannot tell what program this is")?;
    let folder = own.ancestors().skip(1).find(|folder| folder.join(name).is_file());
    Ok(folder.with_context(|| format!("{name} is not built beside {}", own.display()))?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_off_their_mask() {
        let status = "Name:\tapp\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001000\n";
        assert_eq!(ignores(status, Signal::SIGINT), Some(false));
        assert_eq!(ignores(status, Signal::SIGPIPE), Some(true));
        assert_eq!(ignores(&status.replace("1000", "0002"), Signal::SIGINT), Some(true));
        assert_eq!(ignores("Name:\tapp\n", Signal::SIGINT), None);
    }
}
