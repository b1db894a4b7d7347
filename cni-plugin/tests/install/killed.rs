//! `kill -9` between any two system calls: at every such instant pods can be created and deleted, and the next start
//! goes on from there.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::node::{BRIDGE, DropIns, Installer, Node, PLAIN, Snapshot, chain, program};

/// Runs at once: most of the time of a removal is a wait.
const LANES: usize = 8;

/// What was found on the disk after a kill; what comes of one state is the same every time.
#[derive(Default)]
struct Seen(Mutex<BTreeSet<u64>>);

impl Seen {
    fn is_new(&self, node: &Node) -> bool {
        // An entry names the socket, and so the node's own folder.
        let socket = node.socket().to_str().unwrap().to_owned();
        let mut hasher = DefaultHasher::new();
        for (path, (mode, bytes)) in node.snapshot() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_temp = name.starts_with(".adit-tmp-");
            let text = str::from_utf8(&bytes).map(|text| text.replace(&socket, "")).map_err(|_| bytes.len());
            (if is_temp { "temp" } else { name }, mode, text).hash(&mut hasher);
        }
        self.0.lock().unwrap().insert(hasher.finish())
    }
}

/// How a program that was to be killed ended.
#[derive(Debug, Eq, PartialEq)]
enum End {
    Killed,
    /// It was done before.
    Done,
}

/// Starts a program and kills it before its system call number `nth`, unless it is done before: by its exit, or by
/// having said `done`.
fn kill_before(line: &[String], nth: usize, done: &str, node: &Node) -> End {
    let said = node.socket().with_file_name("said");
    // The shell waits for its input until this thread traces it, and then becomes the program.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read go; exec \"$0\" \"$@\""])
        .args(line)
        .stdin(Stdio::piped())
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let end = step(pid, nth, || fs::read_to_string(&said).unwrap().contains(done));
    reap(&mut child);
    end
}

fn step(pid: Pid, nth: usize, is_done: impl Fn() -> bool) -> End {
    let mut stops = 0;
    loop {
        #[expect(clippy::wildcard_enum_match_arm, reason = "what else may come of a process fails the test")]
        let signal = match waitpid(pid, None).unwrap() {
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0);
                return End::Done;
            }
            WaitStatus::PtraceSyscall(_) => {
                // One at its entry, one at its exit.
                stops += 1;
                if stops == 2 * nth - 1 {
                    return End::Killed;
                }
                if is_done() {
                    return End::Done;
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            WaitStatus::PtraceEvent(..) => None,
            other => panic!("{other:?}"),
        };
        ptrace::syscall(pid, signal).unwrap();
    }
}

/// Kills what is left of it.
fn reap(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Whatever the runtime is: it has a network, and what that names is there and whole.
#[track_caller]
fn pods_can_start_and_end(node: &Node, others: &[&str], binaries: &[Vec<u8>], when: &str) {
    for drop_ins in [DropIns::Chained, DropIns::Ignored] {
        let chain = chain(&node.net(), drop_ins).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(chain[..others.len()], *others, "{when}");
        if chain.len() > others.len() {
            assert!(binaries.contains(&node.binary()), "{when}: the binary is half there");
        }
    }
}

/// One way to be installed.
#[derive(Clone, Copy)]
struct Way {
    file: &'static str,
    text: &'static str,
    drop_in: &'static str,
    others: &'static [&'static str],
}

const WAYS: [Way; 3] = [
    Way { file: "10-b.conflist", text: BRIDGE, drop_in: "--drop-in=always", others: &["bridge", "portmap"] },
    Way { file: "10-b.conflist", text: BRIDGE, drop_in: "--drop-in=never", others: &["bridge", "portmap"] },
    Way { file: "10-crio.conf", text: PLAIN, drop_in: "--drop-in=auto", others: &["bridge"] },
];

/// Tries `nth` = 1, 2, 3 … until one finds its program done.
fn at_every_call(way: Way, each: impl Fn(Way, usize, &Seen) -> End + Sync) {
    let seen = Seen::default();
    let next = AtomicUsize::new(1);
    let last = AtomicUsize::new(usize::MAX);
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth > last.load(Ordering::Relaxed) {
                        return;
                    }
                    if each(way, nth, &seen) == End::Done {
                        last.fetch_min(nth, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let states = seen.0.into_inner().unwrap().len();
    assert!(
        last.into_inner() > 30 && states >= 4,
        "it was followed through its system calls: {states} states"
    );
}

/// The next start brings all in place, and an uninstall leaves the folders as they were.
fn goes_on(node: &Node, way: Way, before: &Snapshot) {
    let next = node.install(&[way.drop_in]);
    next.line("in ");
    assert_eq!(node.binary(), program());
    assert_eq!(node.chain()[way.others.len()..], ["adit-cni"]);
    drop(next);
    node.uninstall();
    assert_eq!(node.snapshot(), *before);
}

#[test]
fn an_install_that_is_killed_anywhere_leaves_a_node_that_works() {
    for way in WAYS {
        at_every_call(way, |way, nth, seen| {
            let node = Node::new(&[(way.file, way.text)]);
            let before = node.snapshot();
            let end = kill_before(&node.command("install", &[way.drop_in]), nth, "installed in", &node);
            let when = format!("install {} killed before call {nth}", way.drop_in);
            pods_can_start_and_end(&node, way.others, &[program()], &when);
            if seen.is_new(&node) {
                goes_on(&node, way, &before);
            }
            end
        });
    }
}

#[test]
fn an_upgrade_that_is_killed_anywhere_leaves_the_old_release_or_the_new() {
    // From one way to the other too: the former one's traces go last.
    for (from, to) in [(WAYS[0], WAYS[1]), (WAYS[1], WAYS[0])] {
        let former = Node::new(&[(to.file, to.text)]);
        let before = former.snapshot();
        let other = former.other_release();
        let line = former.command_of(&other, "install", &[from.drop_in, "--timeout=9"]);
        Installer::start(&line).line("installed in");
        at_every_call(to, |to, nth, seen| {
            let node = former.another();
            let end = kill_before(&node.command("install", &[to.drop_in]), nth, "installed in", &node);
            let when = format!("upgrade to {} killed before call {nth}", to.drop_in);
            let chained = chain(&node.net(), DropIns::Chained).unwrap();
            assert!(chained.len() > to.others.len(), "{when}: there was a moment without an entry");
            pods_can_start_and_end(&node, to.others, &[program(), fs::read(&other).unwrap()], &when);
            if seen.is_new(&node) {
                goes_on(&node, to, &before);
            }
            end
        });
    }
}

#[test]
fn an_uninstall_that_is_killed_anywhere_is_completed_by_another() {
    for way in WAYS {
        let installed = Node::new(&[(way.file, way.text)]);
        let before = installed.snapshot();
        installed.install(&[way.drop_in]).line("installed in");
        at_every_call(way, |way, nth, seen| {
            let node = installed.another();
            let end = kill_before(&node.command("uninstall", &[]), nth, "never said", &node);
            let when = format!("uninstall {} killed before call {nth}", way.drop_in);
            pods_can_start_and_end(&node, way.others, &[program()], &when);
            if seen.is_new(&node) {
                node.uninstall();
                assert_eq!(node.snapshot(), before, "{when}");
            }
            end
        });
    }
}
