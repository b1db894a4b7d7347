//! The command line of people and of the DaemonSet; the runtime passes no arguments.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use adit_proto::cni::{self, ADD_WAIT_SECONDS_MAX};

use super::entry::Entry;
use super::patch::Chains;

pub(crate) const USAGE: &str = "\
adit-cni: the CNI plugin of Adit. Without arguments it is what the container runtime calls.

  adit-cni install [FLAGS]    put the plugin and its entry in place, and keep them there until SIGTERM
  adit-cni uninstall [FLAGS]  take the entry out, then the plugin; all else is left as it was before
  adit-cni --version
  adit-cni --help

Flags of both:
  --bin-dir DIR               where the runtime looks for plugins        [/opt/cni/bin]
  --net-dir DIR               where the runtime looks for networks       [/etc/cni/net.d]
  --socket PATH               where the agent listens; what two installers on a node agree by lies beside it
                                                                         [/run/adit/cni.sock]
Flags of install:
  --drop-in auto|always|never
                              add to the network by a file of our own in DIR/<network>/, and so edit nobody's file;
                              works where the runtime has libcni 1.3 or later. `auto` does so, and edits the network's
                              list after all if the runtime has not called the plugin within 60 s
                                                                         [auto]
  --exclude-namespaces A,B    namespaces that are never enrolled
                                            [adit-system,kube-system,kube-node-lease,kube-public]
  --unreachable refuse-enrolled|refuse-all
                              which pods do not start while the agent is away
                                                                         [refuse-enrolled]
  --timeout SECONDS           for how long a pod's start waits for an agent that is away, at most 180
                                                                         [30]
Flags of uninstall:
  --then exit|wait            `wait` waits for SIGTERM when all is out, as a DaemonSet's container must not end
                                                                         [exit]

At SIGTERM `install` asks the agent whether Adit leaves the node. Unless the agent says so, all stays in place.
Paths: k3s has /var/lib/rancher/k3s/agent/etc/cni/net.d and /var/lib/rancher/k3s/data/cni, GKE /home/kubernetes/bin,
OpenShift /etc/kubernetes/cni/net.d and /var/lib/cni/bin.

Exit codes: 0 done, 1 not done (standard error says why), 64 the command line is wrong.
";

/// What is asked on the command line.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Command {
    Install(Install),
    Uninstall(Dirs, Then),
    Version,
    Help,
}

/// What `adit-cni uninstall` does when all is out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Then {
    /// It ends.
    Exit,
    /// It waits for SIGTERM.
    Wait,
}

/// Where things are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Dirs {
    /// The runtime's folder of plugins.
    pub(crate) bin: PathBuf,
    /// Its folder of networks.
    pub(crate) net: PathBuf,
    /// The agent's socket.
    pub(crate) socket: PathBuf,
}

/// What `adit-cni install` was given.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Install {
    pub(crate) dirs: Dirs,
    pub(crate) chains: Chains,
    pub(crate) entry: Entry,
}

/// What is wrong with a command line.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum UsageError {
    /// Neither a command nor a flag of the command given.
    Unknown(String),
    /// A flag without its value.
    NoValue(&'static str),
    /// A value that the flag cannot have.
    Value { flag: &'static str, wanted: String, found: String },
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "{word:?} is no command or flag here; see adit-cni --help"),
            Self::NoValue(flag) => write!(f, "{flag} needs a value"),
            Self::Value { flag, wanted, found } => write!(f, "{flag} must be {wanted}, but is {found:?}"),
        }
    }
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    let first = args.next().unwrap_or_default();
    match first.as_str() {
        "install" => Ok(Command::Install(install(Flags(args))?)),
        "uninstall" => {
            let (dirs, then) = uninstall(Flags(args))?;
            Ok(Command::Uninstall(dirs, then))
        }
        "--version" => Ok(Command::Version),
        "--help" | "-h" => Ok(Command::Help),
        _ => Err(UsageError::Unknown(first)),
    }
}

/// `--flag value` and `--flag=value`.
struct Flags<I>(I);

impl<I: Iterator<Item = String>> Flags<I> {
    /// The next flag and its value; an error if it is none of `known`.
    fn next(&mut self, known: &[&'static str]) -> Result<Option<(&'static str, String)>, UsageError> {
        let Some(word) = self.0.next() else {
            return Ok(None);
        };
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let Some(flag) = known.iter().copied().find(|flag| *flag == name) else {
            return Err(UsageError::Unknown(word));
        };
        let value = value.or_else(|| self.0.next()).ok_or(UsageError::NoValue(flag))?;
        Ok(Some((flag, value)))
    }
}

const OF_BOTH: [&str; 3] = ["--bin-dir", "--net-dir", "--socket"];

impl Dirs {
    fn usual() -> Self {
        Self {
            bin: PathBuf::from("/opt/cni/bin"),
            net: PathBuf::from("/etc/cni/net.d"),
            socket: PathBuf::from(cni::SOCKET),
        }
    }

    /// Takes one of [`OF_BOTH`].
    fn set(&mut self, flag: &'static str, value: String) -> Result<(), UsageError> {
        // What the entry says must not depend on where the installer was started.
        if !value.starts_with('/') {
            return Err(UsageError::Value { flag, wanted: "an absolute path".into(), found: value });
        }
        let value = PathBuf::from(value);
        match flag {
            "--bin-dir" => self.bin = value,
            "--net-dir" => self.net = value,
            _ => self.socket = value,
        }
        Ok(())
    }
}

fn uninstall(mut flags: Flags<impl Iterator<Item = String>>) -> Result<(Dirs, Then), UsageError> {
    const KNOWN: [&str; 4] = ["--then", OF_BOTH[0], OF_BOTH[1], OF_BOTH[2]];
    let mut dirs = Dirs::usual();
    let mut then = Then::Exit;
    while let Some((flag, value)) = flags.next(&KNOWN)? {
        match (flag, value.as_str()) {
            ("--then", "exit") => then = Then::Exit,
            ("--then", "wait") => then = Then::Wait,
            ("--then", _) => {
                return Err(UsageError::Value { flag, wanted: "exit or wait".into(), found: value });
            }
            _ => dirs.set(flag, value)?,
        }
    }
    Ok((dirs, then))
}

fn install(mut flags: Flags<impl Iterator<Item = String>>) -> Result<Install, UsageError> {
    const KNOWN: [&str; 7] = [
        "--drop-in",
        "--exclude-namespaces",
        "--unreachable",
        "--timeout",
        OF_BOTH[0],
        OF_BOTH[1],
        OF_BOTH[2],
    ];
    let mut dirs = Dirs::usual();
    let mut chains = Chains::Perhaps;
    let mut entry = Entry::default();
    while let Some((flag, value)) = flags.next(&KNOWN)? {
        let wrong = |wanted: &str, found: String| UsageError::Value { flag, wanted: wanted.into(), found };
        match flag {
            "--drop-in" => {
                chains = match value.as_str() {
                    "auto" => Chains::Perhaps,
                    "always" => Chains::Yes,
                    "never" => Chains::No,
                    _ => return Err(wrong("auto, always or never", value)),
                }
            }
            "--exclude-namespaces" => {
                let names = value.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
                entry.exclude_namespaces = Some(names.collect());
            }
            "--unreachable" => match value.as_str() {
                "refuse-enrolled" | "refuse-all" => entry.unreachable = Some(value),
                _ => return Err(wrong("refuse-enrolled or refuse-all", value)),
            },
            "--timeout" => match value.parse() {
                Ok(seconds) if seconds <= ADD_WAIT_SECONDS_MAX => entry.timeout = Some(seconds),
                Ok(_) | Err(_) => {
                    let wanted = format!("a whole number of seconds, at most {ADD_WAIT_SECONDS_MAX}");
                    return Err(wrong(&wanted, value));
                }
            },
            _ => dirs.set(flag, value)?,
        }
    }
    entry.socket = dirs.socket.to_string_lossy().into_owned();
    Ok(Install { dirs, chains, entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, UsageError> {
        parse(line.split(' ').map(OsString::from))
    }

    fn installed(line: &str) -> Install {
        match parsed(line) {
            Ok(Command::Install(install)) => install,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_flags_the_usual_folders_are_meant() {
        let install = installed("install");
        assert_eq!(install.dirs, Dirs::usual());
        assert_eq!(install.chains, Chains::Perhaps);
        assert_eq!(install.entry, Entry { socket: cni::SOCKET.into(), ..Entry::default() });
        assert_eq!(parsed("uninstall"), Ok(Command::Uninstall(Dirs::usual(), Then::Exit)));
        assert_eq!(parsed("uninstall --then=wait"), Ok(Command::Uninstall(Dirs::usual(), Then::Wait)));
    }

    #[test]
    fn a_flag_has_its_value_behind_a_space_or_an_equals_sign() {
        let install = installed(
            "install --bin-dir /b --net-dir=/n --socket /r/s --drop-in=never --exclude-namespaces a,b \
             --unreachable refuse-all --timeout=0",
        );
        assert_eq!(install.dirs, Dirs { bin: "/b".into(), net: "/n".into(), socket: "/r/s".into() });
        assert_eq!(install.chains, Chains::No);
        let entry = Entry {
            socket: "/r/s".into(),
            exclude_namespaces: Some(vec!["a".into(), "b".into()]),
            unreachable: Some("refuse-all".into()),
            timeout: Some(0),
            mark_calls: None,
        };
        assert_eq!(install.entry, entry);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, told) in [
            ("remove", "\"remove\" is no command or flag here; see adit-cni --help"),
            ("uninstall --timeout 3", "\"--timeout\" is no command or flag here; see adit-cni --help"),
            ("uninstall --then go", "--then must be exit or wait, but is \"go\""),
            ("install --timeout", "--timeout needs a value"),
            (
                "install --timeout 181",
                "--timeout must be a whole number of seconds, at most 180, but is \"181\"",
            ),
            ("install --drop-in yes", "--drop-in must be auto, always or never, but is \"yes\""),
            ("install --unreachable x", "--unreachable must be refuse-enrolled or refuse-all, but is \"x\""),
            ("uninstall --net-dir etc", "--net-dir must be an absolute path, but is \"etc\""),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), told, "{line}");
        }
    }
}
