//! The programs that a Kubernetes cluster is made of: found where they are, or built once from pinned Go modules and kept
//! outside the checkout.
//!
//! A set of programs is taken whole, from one folder: `KUBEBUILDER_ASSETS` or one of the PATH, if all of it is there in the
//! version that is pinned here; otherwise it is built. What was built lies in a folder named after all that went into
//! it: the module's go.mod and go.sum, its sources and the flags.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{image, programs, repo};

/// The variable by which the test programs know where each set is, `SET=FOLDER` joined by `:`.
const PROGRAMS: &str = "ADIT_CLUSTER_PROGRAMS";
/// The variable by which they know the images, archives joined by `:`.
const IMAGES: &str = "ADIT_CLUSTER_IMAGES";
/// The variable by which they know the images of a mesh.
const MESH_IMAGES: &str = "ADIT_CLUSTER_MESH_IMAGES";

/// Programs of one Go module, that are built and found together.
struct Set {
    name: &'static str,
    /// The folder below tests/cluster with its go.mod.
    module: &'static str,
    programs: &'static [Program],
    flags: &'static [&'static str],
    cgo: Cgo,
    /// What the first program says of its version where it is one that will do; none is never looked for elsewhere.
    version: Option<&'static str>,
}

struct Program {
    name: &'static str,
    package: &'static str,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cgo {
    Off,
    On,
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

const KUBERNETES: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";
const PLAIN: &str = "-s -w";

const SETS: [Set; 7] = [
    Set {
        name: "kubernetes",
        module: "kubernetes",
        programs: &[
            program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
        // Without a version kubectl complains, and clients see v0.0.0.
        flags: &["-ldflags", KUBERNETES],
        cgo: Cgo::Off,
        version: Some("v1.36."),
    },
    Set {
        name: "etcd",
        module: "kubernetes",
        programs: &[program("etcd", "go.etcd.io/etcd/server/v3")],
        flags: &["-ldflags", PLAIN],
        cgo: Cgo::Off,
        version: Some("etcd Version: 3.6."),
    },
    Set {
        name: "containerd",
        module: "containerd",
        programs: &[
            program("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            program(
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            program("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
        flags: &["-ldflags", PLAIN, "-tags", "no_btrfs no_zfs no_devmapper"],
        cgo: Cgo::Off,
        version: Some("/v2 v2."),
    },
    Set {
        name: "plugins",
        module: "plugins",
        programs: &[
            program("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            program("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            program("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
            program("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
        ],
        flags: &["-ldflags", PLAIN],
        cgo: Cgo::Off,
        version: None,
    },
    Set {
        name: "runc",
        module: "runc",
        programs: &[program("runc", "github.com/opencontainers/runc")],
        // Without it every pod fails: "seccomp not supported".
        flags: &["-ldflags", PLAIN, "-tags", "seccomp"],
        cgo: Cgo::On,
        version: Some("libseccomp: "),
    },
    Set {
        name: "coredns",
        module: "coredns",
        programs: &[program("coredns", "github.com/coredns/coredns")],
        flags: &["-ldflags", PLAIN],
        cgo: Cgo::Off,
        version: Some("CoreDNS-1."),
    },
    Set {
        name: "pause",
        module: "pause",
        programs: &[program("pause", ".")],
        flags: &["-ldflags", PLAIN],
        cgo: Cgo::Off,
        version: None,
    },
];

/// Finds or builds all that a cluster is made of; returns the variables that say where it is.
pub fn prepare() -> Result<[(&'static str, OsString); 2]> {
    programs::ensure_go()?;
    let images = env::join_paths([image::pause()?]).context("the checkout's path has a colon")?;
    Ok([(PROGRAMS, sets()?), (IMAGES, images)])
}

/// Makes the images of a mesh, of programs that are built; returns the variable that says where they are.
pub fn prepare_mesh() -> Result<(&'static str, OsString)> {
    let images = env::join_paths(image::for_tests(None)?).context("the checkout's path has a colon")?;
    Ok((MESH_IMAGES, images))
}

fn sets() -> Result<OsString> {
    let cache = cache()?;
    let mut found = Vec::new();
    for set in &SETS {
        let folder = match elsewhere(set) {
            Some(folder) => folder,
            None => built(set, &cache)?,
        };
        found.push(format!("{}={}", set.name, folder.display()));
    }
    Ok(found.join(":").into())
}

/// The folder with a set of programs, where one was built.
pub fn folder_of(set: &str) -> Result<PathBuf> {
    let set = SETS.iter().find(|known| known.name == set).with_context(|| format!("no set {set}"))?;
    elsewhere(set).map_or_else(|| built(set, &cache()?), Ok)
}

/// A folder of somebody else's that has the whole set in a version that will do.
fn elsewhere(set: &Set) -> Option<PathBuf> {
    let version = set.version?;
    let path = env::var_os("PATH").unwrap_or_default();
    let folders =
        env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).into_iter().chain(env::split_paths(&path));
    folders.into_iter().find(|folder| {
        let is_whole = set.programs.iter().all(|program| folder.join(program.name).is_file());
        is_whole && says(&folder.join(set.programs[0].name), version)
    })
}

/// Whether a program says this of its version.
fn says(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).contains(version)
    })
}

/// Where what is built is kept: `$XDG_CACHE_HOME/adit/cluster`, or `~/.cache/adit/cluster`.
fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache =
        cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME says where built programs are kept")?;
    Ok(cache.join("adit/cluster"))
}

/// The folder with the set, built if it is not there.
fn built(set: &Set, cache: &Path) -> Result<PathBuf> {
    let module = repo::root().join("tests/cluster").join(set.module);
    let folder = cache.join(format!("{}-{}", set.name, digest(set, &module)?));
    if folder.is_dir() {
        return Ok(folder);
    }
    // Made under another name: a build that is killed leaves nothing that looks done.
    let fresh = cache.join(format!(".{}-{}", set.name, std::process::id()));
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    let done = build(set, &module, &fresh);
    let placed = done.and_then(|()| match fs::rename(&fresh, &folder) {
        // Another run was faster.
        Err(_) if folder.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot make {}", folder.display())),
    });
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    placed.map(|()| folder)
}

fn build(set: &Set, module: &Path, into: &Path) -> Result<()> {
    for (number, program) in set.programs.iter().enumerate() {
        println!(
            "building {} for the cluster, once ({} of {} of {}) …",
            program.name,
            number + 1,
            set.programs.len(),
            set.name
        );
        let started = Instant::now();
        let mut go = Command::new("go");
        go.args(["build", "-trimpath"])
            .args(set.flags)
            .arg("-o")
            .arg(into.join(program.name))
            .arg(program.package);
        go.current_dir(module).env("CGO_ENABLED", if set.cgo == Cgo::On { "1" } else { "0" });
        let status = go.status().context("cannot start go")?;
        if !status.success() {
            bail!("`go build {}` in {} failed", program.package, module.display());
        }
        println!("built in {:.1} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What all that goes into a set's programs comes to.
fn digest(set: &Set, module: &Path) -> Result<String> {
    let mut sha = Sha256::new();
    let mut files: Vec<PathBuf> = fs::read_dir(module)
        .with_context(|| format!("cannot list {}", module.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot list {}", module.display()))?;
    files.sort();
    for file in files {
        sha.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        sha.update([0]);
    }
    for program in set.programs {
        sha.update(program.name);
        sha.update(program.package);
    }
    for flag in set.flags {
        sha.update(flag);
    }
    sha.update([u8::from(set.cgo == Cgo::On)]);
    Ok(sha.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}
