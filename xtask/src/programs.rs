//! Builds what demo, bench and tests run, once, and becomes one of them.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::repo;

/// What to build.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// Every program, and the namespace tests.
    Programs,
    /// All that, and every other test.
    Everything,
    /// Every program, as it is shipped: what a bench measures.
    Shipped,
}

impl What {
    /// Cargo's profile: `release` for what is shipped. Otherwise `it`: optimised like a release, checked like a development build, which
    /// costs up to a fifth more CPU per request.
    pub const fn profile(self) -> &'static str {
        match self {
            Self::Shipped => "release",
            Self::Programs | Self::Everything => "it",
        }
    }
}

/// Builds in the profile that it is for; returns the test binaries.
///
/// Always the whole workspace and always with a test in it: cargo unites the features of what is built together, so
/// a narrower selection would build tokio, and all above it, a second time with others.
pub fn build(what: What) -> Result<Vec<TestBinary>> {
    let started = Instant::now();
    let mut cargo = repo::cargo();
    cargo.args(["build", "--profile", what.profile(), "--workspace", "--bins"]);
    match what {
        What::Programs => cargo.args(["--test", NAMESPACE_SUITE]),
        What::Everything => cargo.arg("--tests"),
        What::Shipped => &mut cargo,
    };
    cargo.arg("--message-format=json-render-diagnostics");
    if !std::io::stderr().is_terminal() {
        cargo.arg("-q");
    }
    println!(
        "building {} (profile {}) …",
        match what {
            What::Programs | What::Shipped =>
                "the agent, the CA, the CNI plugin, the tool and the test programs",
            What::Everything => "the programs and all tests",
        },
        what.profile(),
    );
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the build failed");
    }
    println!("built in {:.1} s", started.elapsed().as_secs_f64());
    test_binaries(&output.stdout)
}

/// An error unless Go is there, which brings its own modules and, where it is older, the version that they ask for.
pub fn ensure_go() -> Result<()> {
    let found = Command::new("go").arg("version").stdout(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        Ok(_) | Err(_) => bail!(
            "missing: go, on the PATH. The tests' peers are built with it: https://go.dev/dl, 1.26 or later"
        ),
    }
}

/// Builds the Go program of tests/cluster/peers beside the others: the tests' sandbox has no network to fetch its
/// modules by. Go itself knows whether anything is to be done.
pub fn build_peers() -> Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(repo::programs().join("peers")).arg(".");
    let status = go.current_dir(repo::root().join("tests/cluster/peers")).status();
    let status = status.context("cannot start go")?;
    if status.success() { Ok(()) } else { bail!("`go build` in tests/cluster/peers failed") }
}

/// Replaces this process by the program `name` of what was built; returns only if that fails.
pub fn become_program(name: &str, of: What, args: &[String]) -> Result<ExitCode> {
    become_program_with(name, of, args, &[])
}

/// The same with these variables in its environment.
pub fn become_program_with(
    name: &str,
    of: What,
    args: &[String],
    variables: &[(&str, OsString)],
) -> Result<ExitCode> {
    let program = repo::target().join(of.profile()).join(name);
    let error = Command::new(&program).args(args).envs(variables.iter().cloned()).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// A built test binary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TestBinary {
    /// Package, kind and target, as people say it: `core (lib adit_core)`.
    pub name: String,
    /// The target's name.
    target: String,
    /// The file.
    pub executable: PathBuf,
    /// Where cargo would run it.
    pub folder: PathBuf,
}

/// The test target that needs namespaces, and its package's folder: others have a target of that name too.
const NAMESPACE_SUITE: &str = "it";
const NAMESPACE_FOLDER: &str = "tests";

impl TestBinary {
    /// Whether it runs in namespaces of its own.
    pub fn is_namespace_suite(&self) -> bool {
        self.target == NAMESPACE_SUITE && self.folder.ends_with(NAMESPACE_FOLDER)
    }

    /// A command to run it as cargo would.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// A line of cargo's JSON messages, as far as it is read here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The test binaries that cargo announced; the long one last, so that a broken unit test is seen first.
fn test_binaries(messages: &[u8]) -> Result<Vec<TestBinary>> {
    let mut binaries = Vec::new();
    for line in messages.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Message = serde_json::from_slice(line).context("cargo printed what is not its JSON")?;
        binaries.extend(test_binary(message));
    }
    binaries.sort_by_key(|binary| (binary.is_namespace_suite(), binary.name.clone()));
    Ok(binaries)
}

/// The test binary that `message` announces, if it announces one.
fn test_binary(message: Message) -> Option<TestBinary> {
    let Message { reason, manifest_path, target, executable, profile } = message;
    if reason != "compiler-artifact" || !profile?.test {
        return None;
    }
    let (folder, target) = (manifest_path?.parent()?.to_owned(), target?);
    let package = folder.strip_prefix(repo::root()).unwrap_or(&folder).display().to_string();
    let name = format!("{package} ({} {})", target.kind.join(" "), target.name);
    Some(TestBinary { name, target: target.name, executable: executable?, folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_told_from_programs_and_the_namespace_suite_comes_last() {
        let line = |folder: &str, name: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/r/{folder}/Cargo.toml","target":{{"name":"{name}","kind":["test"]}},
                "executable":"/t/{name}","profile":{{"test":{test}}}}}"#
            )
            .replace('\n', "")
        };
        let messages = [
            line("tests", "it", true),
            line("ca", "it", true),
            line("ca", "adit-ca", false),
            line("xtask", "tidy", true),
        ];
        let messages = messages.join("\n");
        let found = test_binaries(messages.as_bytes()).unwrap();
        let folders: Vec<_> = found.iter().map(|binary| binary.folder.as_path()).collect();
        assert_eq!(folders, ["/r/ca", "/r/xtask", "/r/tests"].map(std::path::Path::new));
        assert_eq!(found.iter().filter(|binary| binary.is_namespace_suite()).count(), 1);
    }
}
