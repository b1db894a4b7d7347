//! Control groups: a kubelet makes one for each pod, in every hierarchy, and they outlive all processes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where the hierarchies are: version 1 has a folder for each, version 2 is one.
const ROOT: &str = "/sys/fs/cgroup";

/// How long processes that were killed may take to leave their groups.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// The controllers that a kubelet asks for in version 2.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Makes the group `name` in every hierarchy that has controllers, with all that a kubelet wants of it.
pub(super) fn make(name: &str) -> Result<()> {
    for root in hierarchies()?.into_iter().filter(|root| has_controllers(root)) {
        let mut parent = root.clone();
        for part in name.split('/') {
            delegate(&parent)?;
            let group = parent.join(part);
            fs::create_dir_all(&group).with_context(|| format!("cannot make {}", group.display()))?;
            inherit_cpuset(&parent, &group)?;
            parent = group;
        }
    }
    Ok(())
}

/// Makes, below a node's group, one for the programs of the node itself, as a service manager has one beside that for pods
/// (`system.slice`, `kubepods`). Without it each of their processes would have as much of the processor as all pods
/// together. Returns the files by which a process joins it.
pub(super) fn make_system(node: &str) -> Result<Vec<PathBuf>> {
    let name = format!("{node}/system");
    make(&name)?;
    let mut joined = Vec::new();
    for root in hierarchies()? {
        let group = root.join(&name);
        let all = root.join(node.split('/').next().unwrap_or(node));
        // Whatever else runs has the default, a quarter of that.
        for (file, share) in [("cpu.shares", "4096"), ("cpu.weight", "400")] {
            if group.join(file).is_file() {
                let file = all.join(file);
                fs::write(&file, share).with_context(|| format!("cannot write {}", file.display()))?;
                joined.push(group.join("cgroup.procs"));
            }
        }
    }
    Ok(joined)
}

/// Removes the group `name` and all below it, from every hierarchy. Processes in it must be on their way out.
pub fn remove(name: &str) -> Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    for root in hierarchies()? {
        let group = root.join(name);
        loop {
            match remove_below(&group) {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).with_context(|| format!("cannot remove {}", group.display()));
                }
                // The last process of it is still going.
                Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    }
    Ok(())
}

fn remove_below(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Beside the hierarchies of version 1 there may be one of version 2, `unified`, without a controller: runtimes make groups
/// there by themselves.
fn has_controllers(root: &Path) -> bool {
    root == Path::new(ROOT) || !is_version_2(root)
}

/// The roots of all hierarchies.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if is_version_2(root) {
        return Ok(vec![root.to_owned()]);
    }
    let mut roots = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("cannot list {ROOT}"))? {
        let path = entry.with_context(|| format!("cannot list {ROOT}"))?.path();
        // `cpu` is a link to `cpu,cpuacct` on some distributions: one hierarchy, once.
        if path.join("cgroup.procs").is_file() && !path.is_symlink() {
            roots.push(path);
        }
    }
    if roots.is_empty() {
        bail!("no control groups in {ROOT}: a kubelet needs them");
    }
    Ok(roots)
}

fn is_version_2(root: &Path) -> bool {
    root.join("cgroup.controllers").is_file()
}

/// Lets groups below `parent` have the controllers that `parent` has: version 2 does not by itself.
fn delegate(parent: &Path) -> Result<()> {
    let Ok(has) = fs::read_to_string(parent.join("cgroup.controllers")) else { return Ok(()) };
    let wanted: Vec<String> = has
        .split_whitespace()
        .filter(|controller| CONTROLLERS.contains(controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    let file = parent.join("cgroup.subtree_control");
    fs::write(&file, wanted.join(" ")).with_context(|| format!("cannot delegate in {}", file.display()))
}

/// A group of version 1's cpuset begins without a processor, and takes no process until it has one.
fn inherit_cpuset(parent: &Path, group: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), group.join(file));
        if is_version_2(parent) || !to.is_file() {
            continue;
        }
        let value = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        fs::write(&to, value.trim()).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
