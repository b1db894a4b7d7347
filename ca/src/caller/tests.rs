use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

const GOOD: &str = "\
nodes:
  node-a:
    token: aaaaaaaaaaaaaaaa
    identities:
      - spiffe://cluster.local/ns/shop/sa/web
  node-b:
    token: 1234567890123456
    identities: [spiffe://cluster.local/ns/cart/*]
";

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn node(callers: &Callers, authorization: &str) -> Result<String, Unauthenticated> {
    callers.authenticate(Some(authorization.as_bytes())).map(|caller| caller.node.to_string())
}

#[test]
fn a_bearer_token_says_which_node_calls_and_what_it_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.yaml");
    write(&path, GOOD);
    let callers = Callers::open(&path).unwrap();
    assert_eq!(node(&callers, "Bearer aaaaaaaaaaaaaaaa"), Ok("node-a".to_owned()));
    assert_eq!(node(&callers, "bearer  1234567890123456 "), Ok("node-b".to_owned()));
    let caller = callers.authenticate(Some(b"Bearer 1234567890123456")).unwrap();
    let allowed: Vec<String> = caller.allowed.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["spiffe://cluster.local/ns/cart/*"]);
    assert_eq!(callers.authenticate(None).unwrap_err(), Unauthenticated::Absent);
    for not_bearer in ["", "Bearer", "Bearer ", "Basic aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa"] {
        assert_eq!(node(&callers, not_bearer), Err(Unauthenticated::NotBearer), "{not_bearer:?}");
    }
    for unknown in ["Bearer aaaaaaaaaaaaaaab", "Bearer aaaaaaaaaaaaaaa", "Bearer aaaaaaaaaaaaaaaaa"] {
        assert_eq!(node(&callers, unknown), Err(Unauthenticated::Unknown), "{unknown:?}");
    }
    // Neither as text nor as the numbers of its bytes.
    let debug = format!("{callers:?}");
    assert!(!debug.contains("aaaaaaaa") && !debug.contains("97, 97, 97, 97"), "{debug}");
}

#[test]
fn a_changed_file_is_taken_and_a_wrong_one_changes_nothing_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.yaml");
    write(&path, GOOD);
    let callers = Callers::open(&path).unwrap();
    assert!(matches!(callers.reload(), Reloaded::Same));
    write(&path, &GOOD.replace("aaaaaaaaaaaaaaaa", "cccccccccccccccc"));
    assert!(matches!(callers.reload(), Reloaded::New(2)));
    assert!(node(&callers, "Bearer aaaaaaaaaaaaaaaa").is_err());
    assert!(node(&callers, "Bearer cccccccccccccccc").is_ok());
    type Break = fn(&Path);
    let breaks: [Break; 3] = [
        |path| write(path, "nodes: [broken"),
        |path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    for wrong in breaks {
        wrong(&path);
        assert!(matches!(callers.reload(), Reloaded::Refused(_)));
        assert!(matches!(callers.reload(), Reloaded::Same));
        assert!(node(&callers, "Bearer cccccccccccccccc").is_ok());
    }
    write(&path, GOOD);
    assert!(matches!(callers.reload(), Reloaded::New(2)));
}

#[test]
fn every_mistake_is_reported_at_once_with_file_and_line_and_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.yaml");
    write(
        &path,
        "nodes:
  a:
    token: short
    identities: [spiffe://cluster.local/ns/x/sa/y]
  b:
    token: 0123456789abcdef
    identities:
      - spiffe://cluster.local/ns/x/sa/y
      - http://cluster.local/x
  c:
    token: 0123456789abcdef
    identities: ['*']
",
    );
    let text = Callers::open(&path).unwrap_err().to_string();
    let file = path.display();
    assert_eq!(
        text,
        format!(
            "{file}:3: nodes.a.token: a token has 16 to 4096 visible ASCII characters\n\
             {file}:9: nodes.b.identities[1]: \"http://cluster.local/x\": scheme is not spiffe\n\
             {file}:11: nodes.c.token: node b has the same token: it could not be told who calls\n\
             {file}:12: nodes.c.identities[0]: \"*\": scheme is not spiffe"
        )
    );
}

#[test]
fn what_is_no_token_file_is_refused_with_its_line_and_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.yaml");
    for (text, line) in [
        ("nodes:\n  a:\n    token: sesamesesamesesame\n    identity: x\n", 4),
        ("nodes:\n  a:\n    token: sesamesesamesesame\n    identities: {}\n", 4),
        ("nodes:\n  a:\n    sesamesesamesesame: token\n    identities: []\n", 3),
        ("sesamesesamesesame:\n  a: {}\n", 1),
        ("nodes:\n  a: [\n", 0),
        ("callers: {}\n", 1),
    ] {
        write(&path, text);
        let report = crate::report(&Callers::open(&path).unwrap_err());
        assert!(report.starts_with(&path.display().to_string()), "{report}");
        assert!(line == 0 || report.contains(&format!(":{line}: ")), "{report}");
        assert!(!report.contains("sesame"), "{report}");
    }
    write(&path, GOOD);
    for mode in [0o640, 0o604, 0o620, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let report = Callers::open(&path).unwrap_err().to_string();
        assert!(
            report.ends_with(&format!("has mode {mode:04o}: only its owner may have access (chmod 0600)")),
            "{report}"
        );
    }
    assert!(crate::report(&Callers::open(&dir.path().join("none")).unwrap_err()).contains("No such file"));
}

#[test]
fn whoever_is_refused_has_the_file_read_again_only_if_it_was_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.yaml");
    write(&path, GOOD);
    let callers = Callers::open(&path).unwrap();
    // As if another text had been judged: reading again would find a new one.
    callers.lock().seen = [0; 32];
    callers.reload_if_changed();
    assert!(matches!(callers.reload(), Reloaded::New(2)), "it was read though nobody touched it");
    write(&dir.path().join("next"), &GOOD.replace("node-a", "node-c"));
    fs::rename(dir.path().join("next"), &path).unwrap();
    callers.reload_if_changed();
    assert_eq!(node(&callers, "Bearer aaaaaaaaaaaaaaaa"), Ok("node-c".to_owned()));
}

#[test]
fn whoever_is_refused_waits_for_a_reading_that_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let (path, pipe, next) =
        (dir.path().join("tokens.yaml"), dir.path().join("pipe"), dir.path().join("next"));
    write(&path, GOOD);
    let callers = Callers::open(&path).unwrap();
    let text = GOOD.replace("aaaaaaaaaaaaaaaa", "cccccccccccccccc");
    write(&next, &text);
    // A file that does not end before its writer does: the first reader stands in the middle of it.
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::rename(&pipe, &path).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| callers.reload());
        let mut writer = loop {
            match OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path) {
                Ok(writer) => break writer,
                Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32)),
            }
            thread::yield_now();
        };
        let (said, says) = mpsc::channel();
        let refused = callers.clone();
        scope.spawn(move || {
            refused.reload_if_changed();
            said.send(node(&refused, "Bearer cccccccccccccccc")).unwrap();
        });
        let early = says.recv_timeout(Duration::from_millis(100));
        fs::rename(&next, &path).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "it was judged by the file before");
        assert_eq!(says.recv().unwrap(), Ok("node-a".to_owned()));
        assert!(matches!(reader.join().unwrap(), Reloaded::New(2)));
    });
}
