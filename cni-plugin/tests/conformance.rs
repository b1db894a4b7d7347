//! The built binary against the letter of the CNI specification, with a scripted agent on a unix socket.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use adit_proto::cni::{self, Code, Failure, Reply, Request};
use serde_json::{Value, json};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A network namespace that is there.
const NETNS: &str = "/proc/self/ns/net";
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=6c7b";

/// A folder of its own for one test, removed with it: socket, state directory.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("adit-cni-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("cni.sock")
    }

    /// Writes the file that the agent keeps of namespaces.
    fn known(&self, namespaces: &Value) {
        let file = json!({ "version": cni::VERSION, "namespaces": namespaces });
        fs::write(self.0.join(cni::NAMESPACES_FILE), file.to_string()).unwrap();
    }

    /// The entry as the runtime passes it, with a short wait and a result as a bridge plugin makes it.
    fn input(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "net", "type": "adit-cni",
            "socket": self.socket(), "stateDir": self.0, "timeout": 0,
            "capabilities": {"io.kubernetes.cri.pod-annotations": true, "cgroupPath": true},
            "runtimeConfig": {
                "cgroupPath": "/kubepods/burstable/pod6c7b",
                "io.kubernetes.cri.pod-annotations": {"adit.dev/mesh": "enabled", "other": "x"},
            },
            "prevResult": result(version),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What a plugin before ours prints in this version, with keys that nobody knows.
fn result(version: &str) -> Value {
    let mut ip =
        json!({"address": "10.0.0.7/24", "gateway": "10.0.0.1", "interface": 1, "future": {"a": [1]}});
    if version < "1.0.0" {
        ip["version"] = "4".into();
    }
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "veth1"}, {"name": "eth0", "mac": "00:01", "sandbox": NETNS, "mtu": 1450}],
        "ips": [ip], "routes": [{"dst": "0.0.0.0/0", "priority": 3}], "dns": {}, "x-vendor": "kept",
    })
}

fn run(verb: &str, input: &str, without: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit-cni"));
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", NETNS)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", ARGS)
        .env("CNI_PATH", "/opt/cni/bin");
    for pair in without {
        match pair.split_once('=') {
            Some((name, value)) => command.env(name, value),
            None => command.env_remove(pair),
        };
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A plugin that fails early may not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The one JSON value on stdout of a call that succeeded.
fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn silent_success(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// The error object of a call that failed, checked for its form.
fn failed(output: &Output, version: &str, code: u64) -> Value {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&error["cniVersion"], &error["code"]), (&json!(version), &json!(code)), "{error}");
    assert!(!error["msg"].as_str().unwrap().is_empty() && error["details"].is_string(), "{error}");
    error
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut bytes = Vec::new();
    let mut chunk = [0; 512];
    loop {
        if let Some((request, _)) = cni::decode(&bytes).unwrap() {
            return request;
        }
        let count = stream.read(&mut chunk).unwrap();
        assert_ne!(count, 0, "the plugin closed before its frame was whole");
        bytes.extend_from_slice(&chunk[..count]);
    }
}

/// An agent that answers one connection per reply, in order, and hands on what it was asked.
fn agent(socket: &Path, replies: Vec<Reply>) -> mpsc::Receiver<Request> {
    let listener = UnixListener::bind(socket).unwrap();
    let (asked, requests) = mpsc::channel();
    thread::spawn(move || {
        for reply in replies {
            let (mut stream, _) = listener.accept().unwrap();
            asked.send(read_request(&mut stream)).unwrap();
            stream.write_all(&cni::encode(&reply).unwrap()).unwrap();
        }
    });
    requests
}

/// The next connection of a plugin, which must not have ended instead.
fn accept_again(listener: &UnixListener, plugin: &thread::JoinHandle<Output>) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) => assert!(!plugin.is_finished(), "it ended without asking again: {error}"),
        }
        thread::yield_now();
    };
    stream.set_nonblocking(false).unwrap();
    stream
}

fn refusal() -> Reply {
    Reply::Failed(Failure {
        code: Code::TryAgainLater,
        message: "no certificate for spiffe://cluster.local/ns/shop/sa/web".into(),
        details: "is adit-ca running?".into(),
    })
}

fn without(mut input: Value, key: &str) -> String {
    input.as_object_mut().unwrap().remove(key);
    input.to_string()
}

fn with(mut input: Value, key: &str, value: Value) -> String {
    input[key] = value;
    input.to_string()
}

#[test]
fn add_prints_the_result_before_it_unchanged_in_every_version() {
    for version in VERSIONS {
        let place = Place::new(&format!("add-{version}"));
        let requests = agent(&place.socket(), vec![Reply::Ok]);
        let output = run("ADD", &place.input(version).to_string(), &[]);
        assert_eq!(printed(&output), result(version), "{version}");
        let Request::Add(add) = requests.recv().unwrap() else { panic!("not an Add") };
        assert_eq!(add.container_id.as_str(), "c0ffee");
        assert_eq!((add.netns.as_str(), add.ifname.as_str()), (NETNS, "eth0"));
        assert_eq!((add.pod.namespace.as_str(), add.pod.name.as_str()), ("shop", "web-0"));
        assert_eq!(add.pod.uid, "6c7b");
        assert_eq!(add.ips, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(add.cgroup.as_deref(), Some("/kubepods/burstable/pod6c7b"));
        let annotations = add.annotations.unwrap();
        assert_eq!(annotations.into_iter().collect::<Vec<_>>(), [("adit.dev/mesh".into(), "enabled".into())]);
    }
}

#[test]
fn add_prints_a_result_of_another_version_in_the_one_asked() {
    let place = Place::new("convert");
    let _requests = agent(&place.socket(), vec![Reply::Ok, Reply::Ok]);
    let down = with(place.input("0.4.0"), "prevResult", result("1.1.0"));
    assert_eq!(printed(&run("ADD", &down, &[])), {
        let mut wanted = result("0.4.0");
        wanted["ips"][0]["version"] = "4".into();
        wanted
    });
    let up = with(place.input("1.0.0"), "prevResult", result("0.3.1"));
    assert_eq!(printed(&run("ADD", &up, &[])), result("1.0.0"));
}

#[test]
fn what_the_agent_refuses_is_told_to_the_runtime_in_every_version() {
    for version in VERSIONS {
        let place = Place::new(&format!("refused-{version}"));
        let _requests = agent(&place.socket(), vec![refusal()]);
        let error = failed(&run("ADD", &place.input(version).to_string(), &[]), version, 11);
        assert!(error["msg"].as_str().unwrap().contains("spiffe://"), "{error}");
    }
}

#[test]
fn add_without_a_result_before_it_is_refused_as_not_chained() {
    let place = Place::new("unchained");
    for version in VERSIONS {
        let error = failed(&run("ADD", &without(place.input(version), "prevResult"), &[]), version, 7);
        assert!(error["details"].as_str().unwrap().contains("prevResult"), "{error}");
    }
    let null = with(place.input("1.1.0"), "prevResult", Value::Null);
    failed(&run("ADD", &null, &[]), "1.1.0", 7);
}

#[test]
fn del_succeeds_twice_for_unknown_containers_without_netns_result_or_agent() {
    for version in VERSIONS {
        let place = Place::new(&format!("del-{version}"));
        let bare = without(place.input(version), "prevResult");
        // The agent away, then there, then answering with an error.
        silent_success(&run("DEL", &bare, &["CNI_NETNS"]));
        let requests = agent(&place.socket(), vec![Reply::Ok, Reply::Ok, refusal()]);
        for _ in 0..3 {
            silent_success(&run("DEL", &bare, &["CNI_NETNS=", "CNI_ARGS"]));
            assert!(
                matches!(requests.recv().unwrap(), Request::Del(del) if del.container_id.as_str() == "c0ffee")
            );
        }
    }
}

#[test]
fn check_asks_the_agent_from_0_4_0_on() {
    let place = Place::new("check");
    failed(&run("CHECK", &place.input("0.3.1").to_string(), &[]), "0.3.1", 1);
    let requests = agent(&place.socket(), vec![Reply::Ok, Reply::Ok, Reply::Ok, refusal()]);
    for version in &VERSIONS[1..] {
        silent_success(&run("CHECK", &place.input(version).to_string(), &[]));
        assert!(matches!(requests.recv().unwrap(), Request::Check(_)));
    }
    failed(&run("CHECK", &place.input("1.1.0").to_string(), &[]), "1.1.0", 11);
    failed(&run("CHECK", &without(place.input("1.1.0"), "prevResult"), &[]), "1.1.0", 7);
    failed(&run("CHECK", &place.input("1.1.0").to_string(), &["CNI_NETNS"]), "1.1.0", 4);
}

#[test]
fn check_of_a_network_namespace_that_is_gone_fails_and_its_del_succeeds() {
    let place = Place::new("check-gone");
    let requests = agent(&place.socket(), vec![Reply::Ok, Reply::Ok]);
    let gone = ["CNI_NETNS=/var/run/netns/gone"];
    let error = failed(&run("CHECK", &place.input("1.1.0").to_string(), &gone), "1.1.0", 4);
    assert!(error["msg"].as_str().unwrap().contains("CNI_NETNS is /var/run/netns/gone"), "{error}");
    silent_success(&run("DEL", &place.input("1.1.0").to_string(), &gone));
    assert!(matches!(requests.recv().unwrap(), Request::Del(_)), "nobody was asked to check");
}

#[test]
fn check_fails_while_the_agent_is_away() {
    let place = Place::new("check-away");
    failed(&run("CHECK", &place.input("1.0.0").to_string(), &[]), "1.0.0", 11);
}

#[test]
fn gc_passes_the_valid_attachments_on_from_1_1_0_on() {
    let place = Place::new("gc");
    let key = "cni.dev/valid-attachments";
    let list = json!([{"containerID": "a1", "ifname": "eth0"}, {"containerID": "b2", "ifname": "net1"}]);
    for version in &VERSIONS[..3] {
        failed(&run("GC", &with(place.input(version), key, list.clone()), &[]), version, 1);
    }
    let requests = agent(&place.socket(), vec![Reply::Ok, Reply::Ok, refusal()]);
    let alone = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
    silent_success(&run("GC", &with(place.input("1.1.0"), key, list.clone()), &alone));
    let Request::Gc(gc) = requests.recv().unwrap() else { panic!("not a Gc") };
    let valid: Vec<_> =
        gc.valid.iter().map(|item| (item.container_id.as_str(), item.ifname.as_str())).collect();
    assert_eq!(valid, [("a1", "eth0"), ("b2", "net1")]);
    silent_success(&run("GC", &with(place.input("1.1.0"), key, json!([])), &alone));
    failed(&run("GC", &with(place.input("1.1.0"), key, list), &alone), "1.1.0", 11);
}

#[test]
fn gc_without_a_sound_list_collects_nothing() {
    let place = Place::new("gc-list");
    let key = "cni.dev/valid-attachments";
    let requests = agent(&place.socket(), vec![Reply::Ok]);
    failed(&run("GC", &place.input("1.1.0").to_string(), &[]), "1.1.0", 7);
    for list in [
        json!(null),
        json!({}),
        json!([{"containerID": "a"}]),
        json!([{"containerID": "../a", "ifname": "e"}]),
    ] {
        failed(&run("GC", &with(place.input("1.1.0"), key, list), &[]), "1.1.0", 7);
    }
    assert!(requests.try_recv().is_err(), "the agent was asked");
}

#[test]
fn status_is_good_without_the_agent_and_bad_only_for_a_bad_configuration() {
    let place = Place::new("status");
    for version in &VERSIONS[..3] {
        failed(&run("STATUS", &place.input(version).to_string(), &[]), version, 1);
    }
    let bare = without(place.input("1.1.0"), "prevResult");
    silent_success(&run("STATUS", &bare, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]));
    let error = failed(&run("STATUS", &with(place.input("1.1.0"), "socket", json!(1)), &[]), "1.1.0", 50);
    assert!(error["details"].as_str().unwrap().contains("socket"), "{error}");
}

#[test]
fn version_echoes_what_was_asked_and_lists_what_is_supported() {
    for asked in VERSIONS.into_iter().chain(["0.1.0", "9.0.0"]) {
        let output =
            run("VERSION", &json!({ "cniVersion": asked }).to_string(), &["CNI_CONTAINERID", "CNI_ARGS"]);
        assert_eq!(printed(&output), json!({"cniVersion": asked, "supportedVersions": VERSIONS}));
    }
    assert_eq!(printed(&run("VERSION", "", &[]))["cniVersion"], "1.1.0");
    failed(&run("VERSION", "{", &[]), "1.1.0", 6);
    failed(&run("VERSION", r#"{"cniVersion":1}"#, &[]), "1.1.0", 6);
}

#[test]
fn a_version_that_is_not_supported_or_missing_is_refused_for_every_verb() {
    let place = Place::new("versions");
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "", "latest"] {
            failed(&run(verb, &place.input(version).to_string(), &[]), "1.1.0", 1);
        }
        failed(&run(verb, &without(place.input("1.1.0"), "cniVersion"), &[]), "1.1.0", 1);
    }
}

#[test]
fn garbage_on_standard_input_is_a_decode_error_for_every_verb() {
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for input in ["", "{", "[]", "null", "7", "\u{0}", r#"{"cniVersion":7}"#] {
            failed(&run(verb, input, &[]), "1.1.0", 6);
        }
        let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
        failed(&run(verb, &deep, &[]), "1.1.0", 6);
        failed(&run(verb, &" ".repeat(4 * 1024 * 1024 + 1), &[]), "1.1.0", 6);
    }
}

#[test]
fn a_missing_or_bad_variable_is_named() {
    let place = Place::new("environment");
    let input = place.input("1.1.0").to_string();
    let named = |verb: &str, change: &str, name: &str| {
        let error = failed(&run(verb, &input, &[change]), "1.1.0", 4);
        assert!(error["details"].as_str().unwrap().contains(name), "{verb} {change}: {error}");
    };
    for change in ["CNI_COMMAND", "CNI_COMMAND=", "CNI_COMMAND=add", "CNI_COMMAND=UPDATE"] {
        named("ADD", change, "CNI_COMMAND");
    }
    for verb in ["ADD", "DEL", "CHECK"] {
        for change in ["CNI_CONTAINERID", "CNI_CONTAINERID=", "CNI_CONTAINERID=../x", "CNI_CONTAINERID=.x"] {
            named(verb, change, "CNI_CONTAINERID");
        }
        for change in ["CNI_IFNAME", "CNI_IFNAME=", "CNI_IFNAME=a/b", "CNI_IFNAME=sixteen-bytes-xx"] {
            named(verb, change, "CNI_IFNAME");
        }
    }
    for change in ["CNI_NETNS", "CNI_NETNS="] {
        named("ADD", change, "CNI_NETNS");
    }
    for change in ["CNI_ARGS=K8S_POD_NAME=a", "CNI_ARGS=nonsense"] {
        named("ADD", change, "CNI_ARGS");
    }
}

#[test]
fn the_networks_name_is_required() {
    let place = Place::new("name");
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        failed(&run(verb, &without(place.input("1.1.0"), "name"), &[]), "1.1.0", 7);
    }
}

#[test]
fn a_container_that_is_no_pod_passes_without_the_agent() {
    let place = Place::new("no-pod");
    let output = run("ADD", &place.input("1.1.0").to_string(), &["CNI_ARGS=IgnoreUnknown=1"]);
    assert_eq!(printed(&output), result("1.1.0"));
}

#[test]
fn excluded_namespaces_pass_without_asking_even_an_agent_that_listens() {
    let place = Place::new("excluded");
    let listener = UnixListener::bind(place.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    for namespace in cni::NAMESPACES_EXCLUDED {
        let args = format!("CNI_ARGS=K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=a;K8S_POD_UID=b");
        let input = with(place.input("1.1.0"), "unreachable", json!("refuse-all"));
        assert_eq!(printed(&run("ADD", &input, &[&args])), result("1.1.0"), "{namespace}");
        silent_success(&run("CHECK", &input, &[&args]));
    }
    assert!(listener.accept().is_err(), "the agent was dialled");
}

#[test]
fn an_agent_away_lets_only_namespaces_known_to_have_nothing_enrolled_pass_at_once() {
    let place = Place::new("away");
    // A long wait, which passing at once does not take.
    let input = with(place.input("1.1.0"), "timeout", json!(60));
    let start = Instant::now();
    for state in ["unenrolled", "excluded"] {
        place.known(&json!({ "shop": state }));
        assert_eq!(printed(&run("ADD", &input, &[])), result("1.1.0"), "{state}");
    }
    assert!(start.elapsed() < Duration::from_secs(30));
    let input = place.input("1.1.0");
    for known in [json!({"shop": "enrolled"}), json!({"other": "unenrolled"}), json!({"shop": "later word"})]
    {
        place.known(&known);
        failed(&run("ADD", &input.to_string(), &[]), "1.1.0", 11);
    }
    fs::write(place.0.join(cni::NAMESPACES_FILE), "{").unwrap();
    failed(&run("ADD", &input.to_string(), &[]), "1.1.0", 11);
    place.known(&json!({"shop": "unenrolled"}));
    failed(&run("ADD", &with(input, "unreachable", json!("refuse-all")), &[]), "1.1.0", 11);
}

#[test]
fn pods_of_unenrolled_namespaces_are_told_to_an_agent_that_is_there() {
    let place = Place::new("told");
    place.known(&json!({"shop": "unenrolled"}));
    let requests = agent(&place.socket(), vec![Reply::Ok, refusal()]);
    printed(&run("ADD", &place.input("1.1.0").to_string(), &[]));
    assert!(matches!(requests.recv().unwrap(), Request::Add(_)));
    // What it says counts, though its absence would not have.
    failed(&run("ADD", &place.input("1.1.0").to_string(), &[]), "1.1.0", 11);
}

#[test]
fn add_waits_for_an_agent_that_comes_later() {
    let place = Place::new("later");
    let input = with(place.input("1.1.0"), "timeout", json!(60));
    let plugin = thread::spawn(move || run("ADD", &input, &[]));
    // The first dial finds a socket that nobody accepts on any more, as after a crash.
    drop(UnixListener::bind(place.socket()).unwrap());
    while UnixStream::connect(place.socket()).is_ok() {}
    fs::remove_file(place.socket()).unwrap();
    let requests = agent(&place.socket(), vec![Reply::Ok]);
    assert!(matches!(requests.recv_timeout(Duration::from_secs(60)).unwrap(), Request::Add(_)));
    assert_eq!(printed(&plugin.join().unwrap()), result("1.1.0"));
}

#[test]
fn an_agent_that_goes_away_before_its_answer_is_asked_again() {
    let place = Place::new("again");
    let input = with(place.input("1.1.0"), "timeout", json!(60));
    let listener = UnixListener::bind(place.socket()).unwrap();
    let plugin = thread::spawn(move || run("ADD", &input, &[]));
    let (mut stream, _) = listener.accept().unwrap();
    let first = read_request(&mut stream);
    drop(stream);
    let mut stream = accept_again(&listener, &plugin);
    assert_eq!(read_request(&mut stream), first);
    stream.write_all(&cni::encode(&Reply::Ok).unwrap()).unwrap();
    assert_eq!(printed(&plugin.join().unwrap()), result("1.1.0"));
}

#[test]
fn an_add_whose_namespace_is_enrolled_while_it_waits_does_not_pass() {
    let place = Place::new("enrolled-meanwhile");
    place.known(&json!({"shop": "unenrolled"}));
    let input = with(place.input("1.1.0"), "timeout", json!(60));
    let listener = UnixListener::bind(place.socket()).unwrap();
    let plugin = thread::spawn(move || run("ADD", &input, &[]));
    let (mut stream, _) = listener.accept().unwrap();
    let first = read_request(&mut stream);
    place.known(&json!({"shop": "enrolled"}));
    drop(stream);
    let mut stream = accept_again(&listener, &plugin);
    assert_eq!(read_request(&mut stream), first);
    stream.write_all(&cni::encode(&refusal()).unwrap()).unwrap();
    failed(&plugin.join().unwrap(), "1.1.0", 11);
}

#[test]
fn an_answer_that_is_no_frame_fails_at_once() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\x01\xff\xff\xff\xff", b"\0\x01\0\0\0\x02{}"]
    {
        let place = Place::new("no-frame");
        let listener = UnixListener::bind(place.socket()).unwrap();
        let input = with(place.input("1.1.0"), "timeout", json!(60));
        let plugin = thread::spawn(move || run("ADD", &input, &[]));
        let (mut stream, _) = listener.accept().unwrap();
        read_request(&mut stream);
        stream.write_all(answer).unwrap();
        failed(&plugin.join().unwrap(), "1.1.0", 11);
    }
}

#[test]
fn an_add_too_long_for_a_frame_is_refused_before_anyone_is_asked() {
    let place = Place::new("long");
    let mut input = place.input("1.1.0");
    input["runtimeConfig"]["io.kubernetes.cri.pod-annotations"]["adit.dev/x"] =
        "x".repeat(cni::FRAME_LEN_MAX).into();
    failed(&run("ADD", &input.to_string(), &[]), "1.1.0", 11);
}
