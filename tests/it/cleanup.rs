//! Nothing outlives a run, however it ends: no process, namespace, mount or file.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use adit_tests::has_real_root;
use adit_tests::process::{Process, Run, program};
use adit_tests::sandbox;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

/// Does, inside a sandbox of its own, what a run does: a namespace, a mount, files, processes that left their group.
/// Between the steps it says where it is.
const WORK: &str = "
    echo step 1; ip netns add left-over
    echo step 2; ip -n left-over link add bridge0 type bridge
    echo step 3; mkdir /run/tmp/mounted
    echo step 4; mount -t tmpfs left-over /run/tmp/mounted
    echo step 5; echo text > /run/tmp/mounted/file
    echo step 6; setsid sleep LENGTH &
    echo step 7; ip netns exec left-over sleep LENGTH &
    echo step 8; (setsid sh -c 'trap \"\" TERM INT HUP; sleep LENGTH' &)
    echo step 9; sleep LENGTH";

/// What there is of what a run could leave.
#[derive(Debug, Eq, PartialEq)]
struct Traces {
    mounts: BTreeSet<String>,
    names: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Traces {
    /// `mark` is in the command line of the processes that count: other tests run beside this one.
    fn look(mark: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let of_work = |text: &&str| text.contains("left-over");
        let names = |folder: &str| -> Result<BTreeSet<String>> {
            let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
            Ok(entries.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        };
        let processes = names("/proc")?
            .into_iter()
            .filter_map(|id| fs::read(format!("/proc/{id}/cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(mark))
            .collect();
        Ok(Self {
            mounts: mounts.lines().filter(of_work).map(str::to_owned).collect(),
            names: names("/run/netns")?.into_iter().filter(|name| name == "left-over").collect(),
            processes,
            files: names("/run/tmp")?.into_iter().filter(|name| name == "mounted").collect(),
        })
    }

    fn none() -> Self {
        Self {
            mounts: BTreeSet::new(),
            names: BTreeSet::new(),
            processes: BTreeSet::new(),
            files: BTreeSet::new(),
        }
    }
}

/// Starts the work in a sandbox; `length` of its sleeps marks its processes.
fn start(length: u32, ignoring: &str) -> Result<Process> {
    let work = WORK.replace("LENGTH", &length.to_string());
    let script = format!("trap '' {ignoring}; exec \"$0\" \"$@\"");
    let inside = program("inside")?;
    let run = if ignoring.is_empty() {
        Run::here_interruptible(&inside)
    } else {
        Run::here("sh").args(["-c", &script]).args([&inside])
    };
    run.args(["sh", "-c", &work]).with(sandbox::forget).spawn()
}

/// Waits until every process of the run has closed its output: all of them are gone then, or past their end.
fn wait_for_all(run: &Process) -> Result<()> {
    match run.wait_for_line("the end of all its processes", |_| false) {
        Err(error) if error.to_string().contains("ended before") => Ok(()),
        Err(error) => Err(error),
        Ok(line) => anyhow::bail!("no line was wanted: {line}"),
    }
}

#[test]
fn sigkill_leaves_nothing() -> Result<()> {
    let mark = "700001";
    let run = start(700_001, "")?;
    run.wait_for_line("the last step", |line| line == "step 9")?;
    assert!(!Traces::look(mark)?.processes.is_empty(), "its processes can be seen from here");
    run.signal(Signal::SIGKILL)?;
    wait_for_all(&run)?;
    run.wait()?;
    assert_eq!(Traces::look(mark)?, Traces::none());
    Ok(())
}

#[test]
fn sigint_at_any_instant_leaves_nothing_also_where_it_was_inherited_as_ignored() -> Result<()> {
    for ignoring in ["", "INT"] {
        for step in 1..=9u32 {
            let length = 710_000 + step + if ignoring.is_empty() { 0 } else { 100 };
            let run = start(length, ignoring)?;
            run.wait_for_line("its step", |line| line == format!("step {step}"))?;
            run.signal(Signal::SIGINT)?;
            wait_for_all(&run)?;
            assert_eq!(run.wait()?.code(), Some(130), "at step {step}, ignoring {ignoring:?}");
            assert_eq!(
                Traces::look(&length.to_string())?,
                Traces::none(),
                "step {step}, ignoring {ignoring:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn sigint_at_once_leaves_nothing() -> Result<()> {
    let run = start(720_001, "")?;
    run.wait_interruptible()?;
    run.signal(Signal::SIGINT)?;
    wait_for_all(&run)?;
    let status = run.wait()?;
    // Before its first instruction it dies of the signal, later it exits with the same meaning.
    assert!(status.signal() == Some(2) || status.code() == Some(130), "{status}");
    assert_eq!(Traces::look("720001")?, Traces::none());
    Ok(())
}

#[test]
fn a_runs_exit_code_is_the_programs_own() -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        let run = Run::here(program("inside")?).args(["sh", "-c", script]);
        let output = run.with(sandbox::forget).output()?;
        assert_eq!(output.status.code(), Some(code), "{script}: {}", output.stderr);
    }
    Ok(())
}

#[test]
fn an_ordinary_user_gets_a_sandbox_in_a_user_namespace() -> Result<()> {
    if !has_real_root("it becomes another user first") {
        return Ok(());
    }
    // Not below /run, which the new sandbox hides, and not where only root may look. Gone with this sandbox.
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let own = Path::new("/mnt").join("inside");
    // By another process: a file that a thread of ours holds open for writing could be inherited by a child that is
    // just being started by another, and could then not be executed.
    Run::here("cp").args([&program("inside")?, &own]).ok().context("a copy that everybody may read")?;
    let script =
        "id -u; ip link add dummy0 type dummy && ip link show dummy0 up; echo $ADIT_SANDBOX; ls /run";
    let run = Run::here(&own).args(["sh", "-c", script]).user(65_534, 65_534);
    let said = run.with(sandbox::forget).ok()?;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.first(), Some(&"0"), "{said}");
    assert!(said.contains(" user\n") && said.contains("netns"), "{said}");
    Ok(())
}
