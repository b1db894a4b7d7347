//! The Debian programs that each command needs: found, installed as root, or named exactly.
//!
//! Installing starts no service: packages of servers would otherwise start one each on the host.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::repo;

mod no_services;

use no_services::{NoServices, POLICY};

/// A program on the PATH, or a file, that must be there, and the Debian package that brings it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Need {
    program: &'static str,
    package: &'static str,
}

impl Need {
    /// The package.
    pub const fn package(&self) -> &'static str {
        self.package
    }
}

const IPTABLES: Need = need("iptables-restore", "iptables");
const IP: Need = need("ip", "iproute2");
const NGINX: Need = need("nginx", "nginx-light");
const REDIS: Need = need("redis-server", "redis-server");
const REDIS_CLI: Need = need("redis-cli", "redis-tools");
const POSTGRES: Need = need("postgres", "postgresql");
const INITDB: Need = need("initdb", "postgresql");
const PSQL: Need = need("psql", "postgresql-client");
const CURL: Need = need("curl", "curl");
const OPENSSL: Need = need("openssl", "openssl");

/// What `cargo xtask demo` needs: PostgreSQL last, which runs where there is real root only.
const DEMO: [Need; 9] = [IPTABLES, IP, NGINX, REDIS, REDIS_CLI, CURL, POSTGRES, INITDB, PSQL];
const DEMO_OF_POSTGRES: usize = 3;
/// What `cargo xtask bench` needs.
pub const BENCH: [Need; 2] = [IPTABLES, IP];
/// What the namespace tests need: every server and client that they use as a real peer.
pub const TEST_IT: [Need; 10] =
    [IPTABLES, IP, NGINX, REDIS, REDIS_CLI, POSTGRES, INITDB, PSQL, CURL, OPENSSL];
/// What a Kubernetes cluster needs: kube-proxy's iptables, the libraries that runc is built with, a compiler for them.
pub const CLUSTER: [Need; 6] = [
    IPTABLES,
    IP,
    need("nsenter", "util-linux"),
    need("cc", "gcc"),
    need("pkg-config", "pkg-config"),
    need("/usr/include/seccomp.h", "libseccomp-dev"),
];
/// What images are made with: apt and dpkg are Debian's own.
pub const IMAGE: [Need; 4] = [
    need("apt-get", "apt"),
    need("dpkg-deb", "dpkg"),
    need("readelf", "binutils"),
    need("strip", "binutils"),
];
/// What the unit tests need: the agent's own capture tests change rules in namespaces, and certificates are also read
/// by the openssl command.
pub const TEST_UNIT: [Need; 3] = [IPTABLES, IP, OPENSSL];

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// What `cargo xtask demo` needs for this user.
pub fn of_demo() -> &'static [Need] {
    if geteuid().is_root() { &DEMO } else { &DEMO[..DEMO.len() - DEMO_OF_POSTGRES] }
}

/// Makes sure that all of `needs` are there: installs what is missing when root, and says so; otherwise fails and
/// names what is missing and how to get it.
pub fn ensure(needs: &[Need]) -> Result<()> {
    if geteuid().is_root() {
        no_services::remove_stale(Path::new(POLICY))?;
    }
    let missing: Vec<Need> = needs.iter().copied().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages_of(&missing);
    let programs: Vec<&str> = missing.iter().map(|need| need.program).collect();
    let command = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !geteuid().is_root() {
        bail!("missing: {}. As root: {command}", programs.join(", "));
    }
    println!("missing: {}; installing {} (no service is started)", programs.join(", "), packages.join(", "));
    install(&packages).with_context(|| format!("`{command}` failed; it brings {}", programs.join(", ")))?;
    match missing.iter().find(|need| find(need.program).is_none()) {
        None => Ok(()),
        Some(need) => bail!("package {} was installed and brought no {}", need.package, need.program),
    }
}

fn packages_of(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Where `program` is: where it says, if that is a path; on PATH, in the system folders (which an ordinary user's PATH lacks), or, for PostgreSQL's
/// own, in its version's folder.
fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|file| file.is_file());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let postgres = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .chain(postgres)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What may take long, the network's part, can be interrupted; unpacking and setting up cannot, and needs not be.
fn install(packages: &[&str]) -> Result<()> {
    let install = || {
        let mut command = apt_get();
        command.args(["install", "-q", "-y", "--no-install-recommends"]);
        command
    };
    repo::run(apt_get().args(["update", "-q"]))?;
    repo::run(install().arg("--download-only").args(packages))?;
    let _no_services = NoServices::begin(Path::new(POLICY))?;
    repo::run(install().args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command
}
