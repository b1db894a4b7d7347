//! `cargo xtask cluster …`: what it starts can be used and taken down, and leaves nothing, however it ends.

use std::fs;
use std::path::Path;

use adit_tests::process::{Process, Run, program};
use adit_tests::sandbox;
use adit_tests::{has_real_root, slot};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::until::until;

/// `cluster ARGS`, as somebody would call it.
fn cluster(args: &[&str]) -> Result<Run> {
    Ok(Run::here(program("cluster")?).args(args).with(sandbox::forget))
}

fn up(name: &str) -> Result<Keeper> {
    let said = cluster(&["--name", name, "up", "--nodes", "1"])?.ok()?;
    ensure!(said.contains("the cluster is ready"), "{said}");
    Keeper::find(name)
}

/// The process that keeps a cluster, by the file that names it.
struct Keeper(i32);

impl Keeper {
    fn find(name: &str) -> Result<Self> {
        let said = fs::read_to_string(format!("/run/adit-cluster/{name}.keeper"))?;
        let id = said.split(' ').next().and_then(|id| id.parse().ok());
        Ok(Self(id.with_context(|| format!("no process in {said:?}"))?))
    }

    fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.0), Signal::SIGKILL).context("cannot kill what keeps the cluster")
    }

    /// Waits until no process and no control group of it is left.
    fn wait_gone(&self) -> Result<()> {
        let run = format!("adit{}", self.0);
        until("that nothing of the cluster is left", || {
            let groups = groups_of(&run)?;
            Ok((groups == 0 && !Path::new(&format!("/proc/{}", self.0)).exists()).then_some(()))
        })
    }
}

/// In how many hierarchies there is a group of this name.
fn groups_of(run: &str) -> Result<usize> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root)?.map(|entry| entry.map(|entry| entry.path()));
    let below: Vec<_> = below.collect::<Result<_, _>>()?;
    let all = below.iter().map(|path| path.join(run)).chain([root.join(run)]);
    Ok(all.filter(|group| group.is_dir()).count())
}

#[test]
fn two_clusters_run_side_by_side_and_each_goes_with_its_down() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let (one, two) = (up("one")?, up("two")?);
    for name in ["one", "two"] {
        let nodes = cluster(&["--name", name, "kubectl", "get", "nodes", "-o", "name"])?.ok()?;
        ensure!(nodes.trim() == "node/node1", "{nodes}");
    }
    let again = cluster(&["--name", "one", "up"])?.output()?;
    ensure!(!again.status.success() && again.stderr.contains("is up already"), "{again:?}");
    ensure!(groups_of(&format!("adit{}", one.0))? > 0, "its pods are in groups of its name");
    cluster(&["--name", "one", "down"])?.ok()?;
    one.wait_gone()?;
    let nodes = cluster(&["--name", "two", "kubectl", "get", "nodes", "-o", "name"])?.ok()?;
    ensure!(nodes.trim() == "node/node1", "the other goes on: {nodes}");
    cluster(&["--name", "two", "down"])?.ok()?;
    two.wait_gone()
}

#[test]
fn a_cluster_whose_keeper_is_killed_leaves_nothing() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let killed = up("killed")?;
    killed.kill()?;
    killed.wait_gone()?;
    let said = cluster(&["--name", "killed", "kubectl", "version"])?.output()?;
    ensure!(said.stderr.contains("there is no cluster killed"), "{said:?}");
    Ok(())
}

#[test]
fn an_up_that_is_interrupted_or_killed_before_its_cluster_is_ready_leaves_nothing() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let starting: Process = Run::here_interruptible(program("cluster")?)
            .args(["--name", "never", "up", "--nodes", "1"])
            .with(sandbox::forget)
            .spawn()?;
        starting.wait_interruptible()?;
        starting.wait_for_line("that it starts", |line| line.starts_with("starting "))?;
        let keeper = Keeper::find("never")?;
        starting.signal(signal)?;
        keeper.wait_gone().with_context(|| signal.to_string())?;
    }
    Ok(())
}
