//! The program as it is run: its commands, its signals, and kill -9 at many instants.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::common::{Ask, Files, connect, tls};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No wait takes longer; what passes it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_adit-ca"))
}

/// A CA process; killed when the test ends.
struct Ca {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ca {
    fn start(files: &Files) -> Self {
        Self::run(&config(files))
    }

    fn start_with(files: &Files, settings: &str) -> Self {
        let path = files.path("other.yaml");
        std::fs::write(&path, settings).unwrap();
        Self::run(&path)
    }

    fn run(config: &Path) -> Self {
        let mut child = program()
            .args(["run", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Waits for the ready line, and returns the address in it.
    fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        // Ends with the process, if not with a line.
        self.out.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("adit-ca ready on ").map(str::parse);
        address.unwrap_or_else(|| panic!("{line:?}: {}", self.log())).unwrap()
    }

    fn log(&mut self) -> String {
        let _ = self.child.kill();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn config(files: &Files) -> std::path::PathBuf {
    let path = files.path("ca.yaml");
    let text = format!(
        "listen: 127.0.0.1:0\nstore: {dir}/store\ntokens: {dir}/tokens.yaml\npublish: {dir}/mesh\n\
         leaf-life: 10s\npoll: 10ms\nready-file: {dir}/ready\nlog-format: json\n",
        dir = files.dir.path().display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn ask(store: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    said(&program().args(arguments).arg("--store").arg(store).output().unwrap())
}

/// Asks until `look` is satisfied.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn it_serves_says_where_logs_without_secrets_and_ends_at_sigterm() {
    let files = Files::new();
    let mut ca = Ca::start(&files);
    let address = ca.address();
    let channel = connect(address, tls(&files.roots())).await.unwrap();
    Ask::good().of(&channel).await.unwrap();
    let mut refused = Ask::good();
    refused.authorization = Some("Bearer a-token-that-nobody-has".to_owned());
    refused.of(&channel).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(files.path("ready")).unwrap(), format!("{address}\n"));
    ca.signal(Signal::SIGTERM);
    assert_eq!(ca.exit_code(), Some(0));
    let log = ca.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let access: Vec<_> = lines.iter().filter(|line| line["target"] == "access").collect();
    assert_eq!(access.len(), 2, "{log}");
    assert_eq!(
        (&access[0]["message"], &access[0]["node"], &access[0]["identity"]),
        (&"issued".into(), &"node-a".into(), &crate::common::WEB.into())
    );
    assert_eq!(access[0]["serial"].as_str().unwrap().len(), 32);
    assert_eq!(
        (&access[1]["message"], &access[1]["step"], &access[1]["refusal"]),
        (&"refused".into(), &"authenticate".into(), &"unknown_token".into())
    );
    for secret in [crate::common::TOKEN, "a-token-that-nobody-has", "PRIVATE", "BEGIN"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
}

#[tokio::test]
async fn its_page_counts_each_request_by_its_result_and_says_when_the_issuer_ends() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let files = Files::new();
    // An address that no other process of tests uses: all of 127/8 is loopback.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let page = SocketAddr::from(([127, a, b, c], 15022));
    let mut settings = std::fs::read_to_string(config(&files)).unwrap();
    settings.push_str(&format!("metrics-address: {page}\n"));
    let mut ca = Ca::start_with(&files, &settings);
    let channel = connect(ca.address(), tls(&files.roots())).await.unwrap();
    Ask::good().of(&channel).await.unwrap();
    Ask { validity: -1, ..Ask::good() }.of(&channel).await.unwrap_err();
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(page).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: ca\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = get("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    for line in [
        "# TYPE adit_ca_requests_total counter",
        "adit_ca_requests_total{result=\"issued\"} 1",
        "adit_ca_requests_total{result=\"bad_validity\"} 1",
        "adit_ca_requests_total{result=\"busy\"} 0",
        "adit_ca_connections_dropped_total{cause=\"handshake\"} 0",
        "adit_ca_bundle_generation 1",
    ] {
        assert!(answer.lines().any(|found| found == line), "no {line}: {answer}");
    }
    assert!(answer.contains("\nadit_build_info{version=\""), "{answer}");
    let seconds = |name: &str| -> u64 {
        let line = answer.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days = |name| (seconds(name) - now + 60) / 86_400;
    assert_eq!(days("adit_ca_issuer_expiry_timestamp_seconds"), 365);
    assert_eq!(days("adit_ca_root_expiry_timestamp_seconds"), 3650);
    assert!(get("/").await.starts_with("HTTP/1.1 404 "));
    for (path, says) in [("/healthz/ready", "ready: it can issue"), ("/healthz/live", "alive")] {
        let answer = get(path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(says), "{answer}");
    }
}

#[test]
fn no_core_file_of_it_is_written_as_its_keys_would_be_in_it() {
    let files = Files::new();
    let mut ca = Ca::start(&files);
    ca.address();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ca.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"], "{limits}");
    ca.signal(Signal::SIGABRT);
    let ended = ca.child.wait().unwrap();
    assert!(ended.signal() == Some(6) && !ended.core_dumped(), "{ended}");
}

#[test]
fn rotate_revoke_and_status_reach_the_running_ca() {
    let files = Files::new();
    let mut ca = Ca::start(&files);
    ca.address();
    let store = files.path("store");
    let root = files.roots();
    let (code, text) = ask(&store, &["rotate"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the running CA takes it up"), "{text}");
    until(|| Some(files.roots()).filter(|roots| !roots.contains(&root[0])));
    // The status is written at the end of the tick that published.
    let told = |look: &str| ask(&store, &["status"]).1.contains(look).then_some(());
    until(|| told("adit-ca         running"));
    until(|| told("generation 3, published 3"));
    let (code, text) = ask(&store, &["revoke", "--serial", "0A:BC"]);
    assert_eq!(code, Some(0), "{text}");
    let manifest = || std::fs::read_to_string(files.path("mesh/trust-bundle.yaml")).unwrap();
    until(|| manifest().contains("\"serial\":\"0abc\"").then_some(()));
    ask(&store, &["revoke", "--identity", crate::common::WEB]);
    until(|| manifest().contains(&format!("\"identity\":\"{}\"", crate::common::WEB)).then_some(()));
    ask(&store, &["revoke", "--undo", "--identity", crate::common::WEB]);
    until(|| (!manifest().contains(crate::common::WEB)).then_some(()));
    until(|| told("generation 6, published 6"));
    let (code, json) = ask(&store, &["status", "--json"]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["generation"], &json["rotation"]["step"], &json["revoked"]),
        (&6.into(), &"steady".into(), &1.into())
    );
}

#[test]
fn what_is_wrong_is_said_and_the_exit_code_tells_usage_from_failure() {
    let files = Files::new();
    for (arguments, code, expected) in [
        (vec!["revoke", "--serial", "xyz"], 64, "invalid value 'xyz'"),
        (vec!["revoke"], 64, "required"),
        (vec!["revoke", "--serial", "1", "--identity", crate::common::WEB], 64, "cannot be used with"),
        (vec!["rotate"], 1, "is no store: no adit-ca has begun one there"),
        (vec!["status"], 1, "is no store, or its CA has not run yet"),
    ] {
        let (found, text) = ask(&files.path("store"), &arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let bad = files.path("bad.yaml");
    std::fs::write(&bad, "stor: x\nleaf-life: 1s\n").unwrap();
    let (code, text) = said(&program().args(["run", "--config"]).arg(&bad).output().unwrap());
    assert_eq!(code, Some(64));
    for expected in
        ["bad.yaml: store: is missing", "bad.yaml:1: stor: there is no such key", "bad.yaml:2: leaf-life: "]
    {
        assert!(text.contains(expected), "{text}");
    }
    let init = || said(&program().args(["init", "--config"]).arg(config(&files)).output().unwrap());
    let (code, first) = init();
    assert_eq!(code, Some(0), "{first}");
    assert_eq!(init(), (Some(0), first), "the second time it is the same root");
    std::fs::write(files.path("store/state.json"), "{").unwrap();
    let (code, text) = init();
    assert_eq!(code, Some(1));
    assert!(text.contains("state.json is broken; no new root is made in its place"), "{text}");
}

#[test]
fn two_processes_on_one_store_the_second_gives_up() {
    let files = Files::new();
    let mut first = Ca::start(&files);
    first.address();
    let mut second = Ca::start(&files);
    assert_eq!(second.exit_code(), Some(1));
    assert!(second.log().contains("is held by another adit-ca"));
}

/// kill -9 at 40 instants, spread over start, publication and rotations. Whatever is published was stored before: the
/// agents know no root that the next start does not.
#[test]
fn killed_at_any_instant_it_comes_back_with_what_it_had_published() {
    const ROUNDS: u64 = 40;
    let files = Files::new();
    let mut seen = 0;
    for round in 0..ROUNDS {
        let mut ca = Ca::start(&files);
        // The first half dies while starting; the second while serving, in the steps of rotations.
        if round >= ROUNDS / 2 {
            ca.address();
            ask(&files.path("store"), &["rotate"]);
        }
        // An instant, not a wait for something: nothing is expected to have happened by then.
        let (_hold, never) = mpsc::channel::<()>();
        let _ = never.recv_timeout(Duration::from_micros(round % (ROUNDS / 2) * 2000));
        ca.signal(Signal::SIGKILL);
        assert_eq!(ca.exit_code(), None);
        if !files.path("mesh/trust-bundle.yaml").exists() {
            continue;
        }
        seen += 1;
        let stored = adit_ca::store::peek(&files.path("store")).unwrap().expect("published, so stored");
        let trusted: Vec<_> = stored.roots().iter().map(|root| root.der().clone()).collect();
        let published = files.generation();
        assert!(published <= stored.generation, "{published} is published, {} stored", stored.generation);
        if published == stored.generation {
            assert_eq!(files.roots(), trusted);
        }
    }
    assert!(seen >= ROUNDS / 2, "{seen}");
    // A start takes up what was left before it says that it is ready.
    Ca::start(&files).address();
    let (_, text) = ask(&files.path("store"), &["status"]);
    assert!(text.contains("not running") && text.contains("waiting         0 requests"), "{text}");
}
