//! A node's folders, a runtime that reads them as libcni does, and installers that are run on it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) const BRIDGE: &str = r#"{
  "cniVersion": "1.1.0",
  "name": "bridge",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0",
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;
pub(crate) const PLAIN: &str = r#"{"cniVersion": "0.4.0", "name": "crio", "type": "bridge", "bridge": "cni0"}
"#;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program that is tested, byte by byte.
pub(crate) fn program() -> Vec<u8> {
    fs::read(env!("CARGO_BIN_EXE_adit-cni")).unwrap()
}

/// By path below the node's folder: mode and bytes.
pub(crate) type Snapshot = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Folders for plugins and networks, and one for sockets.
pub(crate) struct Node(tempfile::TempDir);

impl Node {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for dir in ["bin", "net", "run"] {
            fs::create_dir(node.0.path().join(dir)).unwrap();
        }
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    /// Another node in the same state. The binary is a link: who writes it anew puts another file in its place.
    pub(crate) fn another(&self) -> Self {
        let other = Self::new(&[]);
        let mut dirs = vec![self.net(), self.0.path().join("bin")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let copy = other.0.path().join(path.strip_prefix(self.0.path()).unwrap());
                if path.is_dir() {
                    fs::create_dir(copy).unwrap();
                    dirs.push(path);
                } else {
                    fs::hard_link(path, copy).unwrap();
                }
            }
        }
        other
    }

    pub(crate) fn net(&self) -> PathBuf {
        self.0.path().join("net")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("run/cni.sock")
    }

    pub(crate) fn binary_path(&self) -> PathBuf {
        self.0.path().join("bin/adit-cni")
    }

    pub(crate) fn binary(&self) -> Vec<u8> {
        let data = fs::metadata(self.binary_path()).unwrap();
        assert_eq!(data.permissions().mode() & 0o777, 0o755);
        fs::read(self.binary_path()).unwrap()
    }

    /// Another program, of which the installer knows nothing, of the same behaviour and other bytes.
    pub(crate) fn other_release(&self) -> PathBuf {
        let path = self.0.path().join("other-release");
        // By another process: a file that this one has open for writing, and so each child that another test starts in
        // that moment, cannot be run (ETXTBSY).
        let script = "cat \"$0\" > \"$1\" && printf other >> \"$1\" && chmod 755 \"$1\"";
        let made =
            Command::new("/bin/sh").args(["-c", script, env!("CARGO_BIN_EXE_adit-cni")]).arg(&path).status();
        assert!(made.unwrap().success());
        path
    }

    /// As other plugins do it: temporary file and rename.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temp = self.net().join(".other-temp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, self.net().join(name)).unwrap();
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.net().join(name)).unwrap()
    }

    pub(crate) fn set_mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.net().join(name), Permissions::from_mode(mode)).unwrap();
    }

    /// What is in the folder of networks.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.net()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every file and folder of plugins and networks, with its mode and bytes.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.net(), self.0.path().join("bin")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let data = fs::symlink_metadata(&path).unwrap();
                let bytes = if data.is_dir() {
                    dirs.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                let path = path.strip_prefix(self.0.path()).unwrap();
                found.insert(path.to_owned(), (data.permissions().mode(), bytes));
            }
        }
        found
    }

    /// The plugins that a runtime with libcni 1.3 or later calls.
    pub(crate) fn chain(&self) -> Vec<String> {
        chain(&self.net(), DropIns::Chained).unwrap()
    }

    /// The plugins that an older one calls.
    pub(crate) fn chain_of_old_libcni(&self) -> Vec<String> {
        chain(&self.net(), DropIns::Ignored).unwrap()
    }

    pub(crate) fn command(&self, command: &str, flags: &[&str]) -> Vec<String> {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_adit-cni")), command, flags)
    }

    pub(crate) fn command_of(&self, program: &Path, command: &str, flags: &[&str]) -> Vec<String> {
        let path = |dir: &str| self.0.path().join(dir).to_str().unwrap().to_owned();
        let mut line = vec![program.to_str().unwrap().to_owned(), command.to_owned()];
        for (flag, dir) in [("--bin-dir", "bin"), ("--net-dir", "net"), ("--socket", "run/cni.sock")] {
            line.extend([flag.to_owned(), path(dir)]);
        }
        line.extend(flags.iter().map(|flag| (*flag).to_owned()));
        line
    }

    pub(crate) fn install(&self, flags: &[&str]) -> Installer {
        Installer::start(&self.command("install", flags))
    }

    pub(crate) fn uninstall(&self) {
        let output = run(&self.command("uninstall", &[]));
        assert_eq!(output.code, 0, "{output:?}");
    }

    pub(crate) fn help(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_adit-cni")).arg("--help").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Calls the installed plugin as the runtime does, with a drop-in's configuration.
    pub(crate) fn call(&self, verb: &str, drop_in: &str) {
        let mut config: Value = serde_json::from_str(&self.text(drop_in)).unwrap();
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("bridge");
        let mut child = Command::new(self.binary_path())
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

/// Whether a runtime adds `NETWORK/*.conf` to a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DropIns {
    Chained,
    Ignored,
}

/// The types that a runtime calls, in order, read as go-cni and libcni do; or why it has no network.
pub(crate) fn chain(net: &Path, drop_ins: DropIns) -> Result<Vec<String>, String> {
    let files = |dir: &Path, endings: &[&str]| {
        let Ok(entries) = fs::read_dir(dir) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap())
            .filter(|entry| !entry.file_type().unwrap().is_dir())
            .map(|entry| entry.path())
            .filter(|path| endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)))
            .collect();
        paths.sort();
        paths
    };
    let parse = |path: &Path| {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice::<Value>(&bytes).map_err(|error| format!("{}: {error}", path.display()))
    };
    let first = files(net, &[".conf", ".conflist", ".json"]).into_iter().next().ok_or("no network")?;
    let list = parse(&first)?;
    if !first.to_str().unwrap().ends_with(".conflist") {
        return Ok(vec![list["type"].as_str().ok_or("no type")?.to_owned()]);
    }
    let mut plugins = list["plugins"].as_array().ok_or("no plugins")?.clone();
    if drop_ins == DropIns::Chained && list["loadOnlyInlinedPlugins"] != json!(true) {
        for path in files(&net.join(list["name"].as_str().ok_or("no name")?), &[".conf"]) {
            plugins.push(parse(&path)?);
        }
    }
    let types = plugins
        .iter()
        .map(|plugin| plugin["type"].as_str().map(str::to_owned).ok_or_else(|| "no type".to_owned()));
    types.collect()
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) said: String,
}

pub(crate) fn run(line: &[String]) -> Ended {
    let output = Command::new(&line[0]).args(&line[1..]).output().unwrap();
    Ended { code: output.status.code().unwrap(), said: String::from_utf8(output.stderr).unwrap() }
}

/// A running `adit-cni install`, killed when it is let go of.
pub(crate) struct Installer {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Installer {
    pub(crate) fn start(line: &[String]) -> Self {
        let mut child = Command::new(&line[0])
            .args(&line[1..])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line with this in it; those before are passed over.
    #[track_caller]
    pub(crate) fn line(&self, part: &str) -> String {
        let mut passed = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => passed.push(line),
                Err(error) => panic!("no line with {part:?} ({error}): {passed:#?}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Ends it as the kubelet does, and returns the rest of what it said.
    pub(crate) fn terminate(mut self) -> Vec<String> {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
        let mut rest = Vec::new();
        while let Ok(line) = self.lines.recv() {
            rest.push(line);
        }
        rest
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what is there of a frame's bytes; a client that goes ends it.
pub(crate) fn read_some(stream: &mut impl Read) -> Vec<u8> {
    let mut chunk = [0; 512];
    let count = stream.read(&mut chunk).unwrap();
    chunk[..count].to_vec()
}
