//! `cargo xtask test`: builds all test binaries, runs each, and sums them up in one line.
//!
//! The unit part is every test that needs no namespace; the parts `it` and `cluster` are the one binary tests/it, run by
//! the program `inside` in namespaces of its own, once for each. A test that cannot run here says so in the file named by
//! ADIT_NOT_RUN and is listed, never counted as passed.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::cluster;
use crate::packages::{self, Need};
use crate::programs::{self, TestBinary, What};
use crate::repo;

mod failures;

use failures::Failures;

/// A part of the tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// Unit and property tests, and integration tests that need no namespace.
    Unit,
    /// Tests over namespaces, with the kernel's real redirects.
    It,
    /// Tests on a real Kubernetes cluster, which is built first where it is not there.
    Cluster,
}

/// How the names of the tests on a cluster begin: they are in the one binary of all tests over namespaces.
const ON_A_CLUSTER: &str = "cluster::";

/// How many namespace tests run at once unless told otherwise: on 2 cores, 8 keep both busy while most wait.
pub const THREADS: usize = 8;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Only this part; `None` is all.
    pub part: Option<Part>,
    /// How many namespace tests run at once.
    pub threads: usize,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

impl Plan {
    fn wants(&self, part: Part) -> bool {
        self.part.is_none_or(|only| only == part)
    }

    /// Those of the binary over namespaces that this plan takes.
    fn choose(&self, names: Vec<String>) -> Chosen {
        let mut chosen = Chosen::default();
        for name in names {
            let (part, tests) = if name.starts_with(ON_A_CLUSTER) {
                (Part::Cluster, &mut chosen.cluster)
            } else {
                (Part::It, &mut chosen.it)
            };
            if !self.wants(part) || self.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
                chosen.left_out += 1;
                continue;
            }
            tests.push(name);
        }
        chosen
    }
}

/// Tests over namespaces, by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Chosen {
    it: Vec<String>,
    cluster: Vec<String>,
    left_out: usize,
}

/// What must be there before tests can run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Preparation {
    needs: &'static [Need],
    programs: What,
    /// The Go program that namespace tests talk with: their sandbox has no network to build it in.
    peers: bool,
}

impl Preparation {
    /// For a part of the tests; `None` is all. What a cluster is made of comes only where one is needed.
    const fn of(part: Option<Part>) -> Self {
        match part {
            None => Self { needs: &packages::TEST_IT, programs: What::Everything, peers: true },
            Some(Part::Unit) => {
                Self { needs: &packages::TEST_UNIT, programs: What::Everything, peers: false }
            }
            Some(Part::It) => Self { needs: &packages::TEST_IT, programs: What::Programs, peers: true },
            Some(Part::Cluster) => Self { needs: &[], programs: What::Programs, peers: false },
        }
    }
}

/// What all binaries together said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    counts: Counts,
    /// `test: why` for each test that could not run here.
    not_run: Vec<String>,
    /// `test: what it said` for each test that failed.
    tests_failed: Vec<String>,
    /// The binaries that failed.
    failed: Vec<String>,
    took: Duration,
}

/// One libtest run in numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
    filtered: usize,
}

/// Builds and runs what `plan` asks for.
pub fn run(plan: &Plan) -> Result<Summary> {
    let started = Instant::now();
    let mut summary = Summary::default();
    let preparation = Preparation::of(plan.part);
    packages::ensure(preparation.needs)?;
    // Before minutes of building.
    if preparation.peers {
        programs::ensure_go()?;
    }
    let binaries = programs::build(preparation.programs)?;
    if preparation.peers {
        programs::build_peers()?;
    }
    for binary in binaries {
        if !binary.is_namespace_suite() {
            if plan.wants(Part::Unit) {
                summary.add(&binary.name, run_unit(&binary, plan)?);
            }
            continue;
        }
        let Chosen { it, cluster, left_out } = plan.choose(names(&binary)?);
        summary.counts.filtered += left_out;
        if !it.is_empty() {
            summary.add(&binary.name, run_in_namespaces(&binary, plan.threads, &it, &[])?);
        }
        if !cluster.is_empty() {
            summary.add(&binary.name, run_on_clusters(&binary, plan.threads, &cluster)?);
        }
    }
    summary.took = started.elapsed();
    Ok(summary)
}

impl Summary {
    fn add(&mut self, binary: &str, outcome: Outcome) {
        self.counts.passed += outcome.counts.passed.saturating_sub(outcome.not_run.len());
        self.counts.failed += outcome.counts.failed;
        self.counts.ignored += outcome.counts.ignored;
        self.counts.filtered += outcome.counts.filtered;
        self.not_run.extend(outcome.not_run);
        self.tests_failed.extend(outcome.tests_failed);
        if !outcome.success {
            self.failed.push(binary.to_owned());
        }
    }

    /// Whether nothing failed; what could not run here is not a failure, and not a success either.
    pub fn is_ok(&self) -> bool {
        self.counts.failed == 0 && self.failed.is_empty()
    }

    /// Prints what failed, what could not run, and last the one line for all binaries.
    pub fn print(&self) {
        println!();
        for test in &self.not_run {
            println!("NOT RUN: {test}");
        }
        for failed in self.tests_failed.iter().chain(&self.failed) {
            println!("FAILED: {failed}");
        }
        let Counts { passed, failed, ignored, filtered } = self.shown();
        println!(
            "test result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; {filtered} filtered \
             out; finished in {:.2}s",
            if self.is_ok() { "ok" } else { "FAILED" },
            self.took.as_secs_f64()
        );
        match self.not_run.len() {
            0 => println!("{passed} passed, {failed} failed"),
            skipped => println!("{passed} passed, {failed} failed, {skipped} skipped"),
        }
    }

    /// The counts, where a binary that died without a word of its own counts as one failure.
    fn shown(&self) -> Counts {
        Counts { failed: self.counts.failed.max(self.failed.len()), ..self.counts }
    }

    /// 0: all passed. 1: something failed. 2: nothing failed, and something could not run here.
    pub fn exit_code(&self) -> ExitCode {
        match (self.is_ok(), self.not_run.is_empty()) {
            (false, _) => ExitCode::FAILURE,
            (true, false) => ExitCode::from(2),
            (true, true) => ExitCode::SUCCESS,
        }
    }
}

/// What one binary said.
struct Outcome {
    counts: Counts,
    success: bool,
    not_run: Vec<String>,
    tests_failed: Vec<String>,
}

/// Runs a binary quietly: one line, and its whole output where it failed.
fn run_unit(binary: &TestBinary, plan: &Plan) -> Result<Outcome> {
    let started = Instant::now();
    let output = binary
        .command()
        .args(&plan.filter)
        .stderr(Stdio::inherit())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", binary.executable.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts: Vec<Counts> = text.lines().filter_map(Counts::parse).collect();
    let success = output.status.success() && !counts.is_empty();
    if !success {
        println!("{text}\n{}: {}", binary.name, output.status);
    }
    let mut failures = Failures::default();
    text.lines().for_each(|line| failures.read(line));
    let counts = counts.into_iter().fold(Counts::default(), Counts::plus);
    if counts.passed + counts.failed > 0 {
        println!(
            "{:<44} {:>5} passed {:>3} failed {:>7.2} s",
            binary.name,
            counts.passed,
            counts.failed,
            started.elapsed().as_secs_f64()
        );
    }
    Ok(Outcome { counts, success, not_run: Vec::new(), tests_failed: failures.lines() })
}

/// The names of a binary's tests.
fn names(binary: &TestBinary) -> Result<Vec<String>> {
    let listed = repo::output(binary.command().args(["--list", "--format", "terse"]))?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Finds or builds what clusters are made of, and runs their tests; these print their figures.
fn run_on_clusters(binary: &TestBinary, threads: usize, tests: &[String]) -> Result<Outcome> {
    let mut variables = Vec::new();
    // Without root they say that they cannot run, and nothing is built for them.
    if geteuid().is_root() {
        packages::ensure(&packages::CLUSTER)?;
        variables.extend(cluster::prepare()?);
        variables.push(cluster::prepare_mesh()?);
    }
    let shown: Vec<String> = tests.iter().cloned().chain(["--show-output".to_owned()]).collect();
    run_in_namespaces(binary, threads, &shown, &variables)
}

/// Runs tests in namespaces of their own, printing each as it ends. What was left out is not counted here.
fn run_in_namespaces(
    binary: &TestBinary,
    threads: usize,
    tests: &[String],
    variables: &[(&'static str, OsString)],
) -> Result<Outcome> {
    let not_run = repo::programs().join(format!("not-run.{}", std::process::id()));
    fs::write(&not_run, "").with_context(|| format!("cannot write {}", not_run.display()))?;
    println!("\n{}, in namespaces of its own, {threads} at a time", binary.name);
    let mut child = Command::new(repo::programs().join("inside"))
        .arg(&binary.executable)
        .args(["--test-threads", &threads.to_string(), "--exact"])
        .args(tests)
        .envs(variables.iter().cloned())
        .current_dir(&binary.folder)
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .env("ADIT_NOT_RUN", &not_run)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the program `inside`")?;
    let stdout = child.stdout.take().expect("standard output was asked to be a pipe");
    let (mut counts, mut failures) = (Vec::new(), Failures::default());
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read the tests' output")?).into_owned();
        match Counts::parse(&line) {
            Some(parsed) => counts.push(parsed),
            None => {
                failures.read(&line);
                println!("{line}");
            }
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    let success = status.success() && !counts.is_empty();
    if !success {
        println!("{}: {status}", binary.name);
    }
    let listed = fs::read_to_string(&not_run).context("cannot read what was not run")?;
    let removed = fs::remove_file(&not_run);
    removed.with_context(|| format!("cannot remove {}", not_run.display()))?;
    let counts = counts.into_iter().fold(Counts::default(), Counts::plus);
    Ok(Outcome {
        counts: Counts { filtered: 0, ..counts },
        success,
        not_run: listed.lines().map(str::to_owned).collect(),
        tests_failed: failures.lines(),
    })
}

impl Counts {
    /// Reads libtest's closing line.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut counts = Self::default();
        for part in numbers.split("; ") {
            let (number, word) = part.split_once(' ')?;
            let field = match word {
                "passed" => &mut counts.passed,
                "failed" => &mut counts.failed,
                "ignored" => &mut counts.ignored,
                "filtered out" => &mut counts.filtered,
                _ => continue,
            };
            *field = number.parse().ok()?;
        }
        Some(counts)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            filtered: self.filtered + other.filtered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_finds_what_its_tests_take() {
        let all = |part| {
            let Preparation { needs, programs, peers } = Preparation::of(part);
            (needs.iter().map(Need::package).collect::<Vec<_>>(), programs, peers)
        };
        let (unit, programs, peers) = all(Some(Part::Unit));
        // The capture tests of the agent's own crate make their namespaces themselves.
        assert_eq!(unit, ["iptables", "iproute2", "openssl"]);
        assert_eq!((programs, peers), (What::Everything, false));

        let (it, programs, peers) = all(Some(Part::It));
        assert_eq!((programs, peers), (What::Programs, true), "the sandbox has no network to build peers in");
        for server in ["nginx-light", "redis-server", "postgresql"] {
            assert!(it.contains(&server), "{server}: {it:?}");
        }

        let (both, programs, peers) = all(None);
        assert_eq!((programs, peers), (What::Everything, true));
        for package in unit.iter().chain(&it) {
            assert!(both.contains(package), "{package}: {both:?}");
        }
    }

    #[test]
    fn each_test_over_namespaces_is_of_one_part_and_runs_unless_left_out() {
        let chosen = |part, filter: Option<&str>| {
            let plan = Plan { part, threads: 1, filter: filter.map(str::to_owned) };
            let names = ["smoke::one", "smoke::kept", "cluster::kept::one"];
            let Chosen { it, cluster, left_out } = plan.choose(names.map(str::to_owned).to_vec());
            format!("{} / {} / {left_out}", it.join(" "), cluster.join(" "))
        };
        assert_eq!(chosen(None, None), "smoke::one smoke::kept / cluster::kept::one / 0");
        assert_eq!(chosen(None, Some("kept")), "smoke::kept / cluster::kept::one / 1");
        assert_eq!(chosen(Some(Part::It), Some("kept")), "smoke::kept /  / 2");
        assert_eq!(chosen(Some(Part::Cluster), None), " / cluster::kept::one / 2");
        assert_eq!(chosen(Some(Part::Cluster), Some("smoke")), " /  / 3");
    }

    #[test]
    fn libtests_closing_line_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.10s";
        assert_eq!(Counts::parse(line), Some(Counts { passed: 12, failed: 3, ignored: 0, filtered: 7 }));
        assert_eq!(Counts::parse("test result of mine: ok"), None);
    }

    #[test]
    fn a_test_that_could_not_run_is_not_counted_as_passed() {
        let mut summary = Summary::default();
        let counts = Counts { passed: 5, ..Counts::default() };
        let not_run = vec!["postgres: needs root".into()];
        summary.add("it", Outcome { counts, success: true, not_run, tests_failed: Vec::new() });
        assert_eq!(summary.shown().passed, 4);
        assert!(summary.is_ok());
        assert_eq!(summary.exit_code(), ExitCode::from(2));
    }

    #[test]
    fn a_binary_that_dies_without_a_word_is_a_failure() {
        let mut summary = Summary::default();
        let counts = Counts::default();
        summary.add("it", Outcome { counts, success: false, not_run: Vec::new(), tests_failed: Vec::new() });
        assert!(!summary.is_ok());
        assert_eq!(summary.shown().failed, 1);
    }
}
