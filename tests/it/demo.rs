//! `cargo xtask demo` itself: it shows what it promises, and leaves nothing, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::Instant;

use adit_tests::WAIT_MAX;
use adit_tests::process::{Process, Run, program};
use adit_tests::sandbox::{self, Sandbox};
use adit_tests::slot::{self, Slot};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

/// A demo that runs, as somebody would start it; in a shell that ignores SIGINT, where asked for.
struct Demo {
    process: Process,
    id: u32,
    /// It is a load for whoever measures beside it. Last, so that it is given up when all of it is gone.
    _slot: Slot,
}

/// How SIGINT was inherited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Interrupt {
    Default,
    Ignored,
}

impl Demo {
    fn start(interrupt: Interrupt) -> Result<Self> {
        Self::start_in(slot::shared(), interrupt, &[])
    }

    fn start_in(slot: Slot, interrupt: Interrupt, args: &[&str]) -> Result<Self> {
        let demo = program("demo")?;
        let run = match interrupt {
            Interrupt::Default => Run::here_interruptible(&demo),
            Interrupt::Ignored => Run::here("sh").args(["-c", "trap '' INT; exec \"$0\""]).args([&demo]),
        };
        let process = run.args(args).with(sandbox::forget).spawn()?;
        let id = process.id();
        let demo = Self { process, id, _slot: slot };
        match interrupt {
            Interrupt::Default => demo.process.wait_interruptible()?,
            Interrupt::Ignored => demo.wait_until_it_hears()?,
        }
        Ok(demo)
    }

    /// Waits until the demo waits for signals, which it does from before it makes its namespaces: what is sent earlier
    /// is lost, to the shell or to the demo's start. (It stays ignored by `/proc`, and is waited for all the same.)
    fn wait_until_it_hears(&self) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while self.namespaces().is_empty() {
            ensure!(Instant::now() < deadline, "the demo makes no namespaces");
            thread::yield_now();
        }
        Ok(())
    }

    /// The namespaces that it has made for itself so far, as `/proc` names them.
    fn namespaces(&self) -> BTreeSet<PathBuf> {
        let of = |id: &str, name: &str| fs::read_link(Path::new("/proc").join(id).join("ns").join(name)).ok();
        ["pid_for_children", "mnt", "net", "ipc"]
            .into_iter()
            .filter_map(|name| {
                of(&self.id.to_string(), name).filter(|made| Some(made) != of("self", name).as_ref())
            })
            .collect()
    }

    /// Sends a signal, and waits until every process of the demo is gone, or past its end; nothing may be left then.
    fn end(self, signal: Signal) -> Result<ExitStatus> {
        let namespaces = self.namespaces();
        self.process.signal(signal)?;
        match self.process.wait_for_line("the end of all its processes", |_| false) {
            Err(error) if error.to_string().contains("ended before") => {}
            Err(error) => return Err(error),
            Ok(line) => bail!("no line was wanted: {line}"),
        }
        let status = self.process.wait()?;
        // A process has closed its output before it is quite gone.
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let left = left(self.id, &namespaces)?;
            if left.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "{signal} left {left:?}");
            thread::yield_now();
        }
        Ok(status)
    }
}

/// What there still is of a demo whose outermost process was this one: processes in its namespaces, and whatever bears
/// its name.
fn left(id: u32, namespaces: &BTreeSet<PathBuf>) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for process in names(Path::new("/proc"))?.iter().filter(|name| name.parse::<u32>().is_ok()) {
        let inside = ["pid", "mnt", "net", "ipc"].into_iter().any(|name| {
            let namespace = fs::read_link(Path::new("/proc").join(process).join("ns").join(name));
            namespace.is_ok_and(|namespace| namespaces.contains(&namespace))
        });
        if inside {
            let line =
                fs::read_to_string(Path::new("/proc").join(process).join("cmdline")).unwrap_or_default();
            left.push(format!("process {process} {}", line.replace('\0', " ")));
        }
    }
    let run = format!("adit{id}-");
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("the mounts")?;
    left.extend(mounts.lines().filter(|line| line.contains(&run)).map(|line| format!("mount {line}")));
    for folder in [Path::new("/run/netns"), Sandbox::folder(), Path::new("/tmp")] {
        let found = names(folder)?.into_iter().filter(|name| name.contains(&run));
        left.extend(found.map(|name| format!("file {}/{name}", folder.display())));
    }
    Ok(left)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What `cargo xtask --help` promises: under a minute after the build.
const UNDER_A_MINUTE_S: f64 = 60.0;

#[test]
fn the_demo_shows_what_it_promises_without_a_control_character() -> Result<()> {
    let _alone = slot::exclusive();
    let output = Run::here(program("demo")?).with(sandbox::forget).output()?;
    let said = &output.stdout;
    assert_eq!(output.status.code(), Some(0), "{said}{}", output.stderr);
    assert!(!said.contains('\x1b'), "standard output is a pipe here");
    for promised in [
        "GET /pay?card=",
        "DNAT rule of the demo's own",
        ": 0 of ",
        "X25519MLKEM768",
        "\"policy\":\"shop/no-outsiders\"",
        "\"policy\":\"shop/payments-callers\"",
        "failed though their CONNECT had not been answered: 0\n",
        ", 0 of ",
        "policy_denied",
        "every step showed what it promises",
    ] {
        assert!(said.contains(promised), "nothing of {promised:?} in\n{said}");
    }
    let took = said.lines().find_map(|line| line.trim().strip_prefix("every step showed what it promises; "));
    let took = took.and_then(|rest| rest.strip_suffix(" s in all")).context("how long it took")?;
    let took: f64 = took.parse().context("seconds")?;
    assert!(took < UNDER_A_MINUTE_S, "{took} s: less is promised");
    let has_orders = Sandbox::current().is_some_and(|sandbox| sandbox.is_real_root());
    assert_eq!(said.contains("psql "), has_orders);
    assert_eq!(said.contains("orders (PostgreSQL) is left out"), !has_orders);
    Ok(())
}

/// Begins of lines that the demo prints, in their order: where it is when it is interrupted.
const INSTANTS: [&str; 9] =
    ["1. ", "   everything is in ", "2. ", "3. ", "4. ", "5. ", "6. ", "7. ", "   2.0 s: SIGKILL"];

fn interrupt_everywhere(interrupt: Interrupt) -> Result<()> {
    let status = Demo::start(interrupt)?.end(Signal::SIGINT)?;
    // Before its first instruction it dies of the signal; later it exits with the same meaning.
    let early = status.signal() == Some(2);
    ensure!(early || status.code() == Some(130), "at once, {interrupt:?}: {status}");
    for instant in INSTANTS {
        let demo = Demo::start(interrupt)?;
        demo.process.wait_for_line("the instant", |line| line.starts_with(instant))?;
        let status = demo.end(Signal::SIGINT).with_context(|| format!("at {instant:?}, {interrupt:?}"))?;
        ensure!(status.code() == Some(130), "at {instant:?}, {interrupt:?}: {status}");
    }
    Ok(())
}

#[test]
fn sigint_at_ten_instants_of_the_demo_leaves_nothing_also_where_it_was_inherited_as_ignored() -> Result<()> {
    thread::scope(|scope| {
        let both = [Interrupt::Default, Interrupt::Ignored]
            .map(|interrupt| scope.spawn(move || interrupt_everywhere(interrupt)));
        both.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

#[test]
fn what_keep_leaves_running_can_be_looked_at_with_the_commands_it_prints_and_goes_with_ctrl_c() -> Result<()>
{
    // Alone: what it shows of load and of short lives before it is kept is measured.
    let demo = Demo::start_in(slot::exclusive(), Interrupt::Default, &["--keep"])?;
    demo.process.wait_for_line("its last word", |line| line.contains("Ctrl-C ends it all"))?;
    let said = demo.process.log();
    let line = |begin: &str, end: &str| {
        let lines = said.iter().map(|line| line.trim());
        let found = lines.into_iter().find(|line| line.starts_with(begin) && line.ends_with(end));
        found.map(str::to_owned).with_context(|| format!("no {begin} … {end} in {said:#?}"))
    };
    let enter = line("E='nsenter ", "'")?;
    let run = |command: &str| {
        let both = format!("{enter}; {command}");
        Run::here("sh").args(["-c", &both]).with(sandbox::forget).ok().with_context(|| both.clone())
    };
    let edges = run(&line("$E ", " edges")?)?;
    assert!(edges.contains("frontend") && edges.contains("payments"), "{edges}");
    let paid = run(&line("$E ", "# the frontend pays")?)?;
    assert!(paid.contains("payments"), "{paid}");
    assert_eq!(demo.end(Signal::SIGINT)?.code(), Some(130));
    Ok(())
}

#[test]
fn sigkill_of_the_demo_leaves_nothing_and_the_next_run_finds_nothing_in_its_way() -> Result<()> {
    for instant in ["1. ", "   everything is in ", "2. ", "4. ", "   6.5 s: the whole pod"] {
        let demo = Demo::start(Interrupt::Default)?;
        demo.process.wait_for_line("the instant", |line| line.starts_with(instant))?;
        assert!(!demo.namespaces().is_empty(), "it has namespaces of its own by now");
        assert_eq!(demo.end(Signal::SIGKILL)?.signal(), Some(9), "at {instant:?}");
    }
    Ok(())
}
