//! The plugin's own keys in its network configuration. Others are the runtime's and are left alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_proto::cni;
use serde_json::{Map, Value};

use super::Error;

/// What the installer wrote into the entry, or the defaults.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Config {
    /// `socket`: where the agent listens. Default `/run/adit/cni.sock`.
    pub(crate) socket: PathBuf,
    /// `timeout`: for how long an agent that is away is dialled, in seconds. Default 30.
    pub(crate) timeout: Duration,
    /// `stateDir`: where `namespaces.json` is. Default `/var/lib/adit`.
    pub(crate) state_dir: PathBuf,
    /// `unreachable`: what happens to pods meanwhile. Default `refuse-enrolled`.
    pub(crate) unreachable: Unreachable,
    /// `excludeNamespaces`: never enrolled, never asked about. Default as in the agent.
    excluded: Vec<String>,
    /// `markCalls`: a file that any call makes, so that the installer learns of it. Default none.
    pub(crate) mark_calls: Option<PathBuf>,
}

/// Which pods do not start while the agent cannot be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unreachable {
    /// Those of namespaces in which something is enrolled, or that are not known.
    RefuseEnrolled,
    /// All but those of excluded namespaces.
    RefuseAll,
}

impl Config {
    /// Error 7 names the key that is not as it should be.
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, Error> {
        Ok(Self {
            socket: path(object, "socket", Path::new(cni::SOCKET))?,
            timeout: timeout(object)?,
            state_dir: path(object, "stateDir", Path::new(cni::STATE_DIR))?,
            unreachable: unreachable(object)?,
            excluded: excluded(object)?,
            mark_calls: match object.get("markCalls") {
                None => None,
                Some(_) => Some(path(object, "markCalls", Path::new(""))?),
            },
        })
    }

    /// Whether pods of this namespace are none of the agent's business. Adit's own never are: the agent's pod would
    /// wait for itself.
    pub(crate) fn excludes(&self, namespace: &str) -> bool {
        let [own, ..] = cni::NAMESPACES_EXCLUDED;
        namespace == own || self.excluded.iter().any(|excluded| excluded == namespace)
    }
}

fn path(object: &Map<String, Value>, key: &str, default: &Path) -> Result<PathBuf, Error> {
    match object.get(key) {
        None => Ok(default.to_owned()),
        Some(Value::String(text)) if text.starts_with('/') => Ok(PathBuf::from(text)),
        Some(other) => Err(Error::config(key, "an absolute path", other)),
    }
}

fn timeout(object: &Map<String, Value>) -> Result<Duration, Error> {
    let Some(value) = object.get("timeout") else {
        return Ok(Duration::from_secs(cni::ADD_WAIT_SECONDS));
    };
    match value.as_u64() {
        Some(seconds) if seconds <= cni::ADD_WAIT_SECONDS_MAX => Ok(Duration::from_secs(seconds)),
        Some(_) | None => {
            let wanted = format!("a whole number of seconds, at most {}", cni::ADD_WAIT_SECONDS_MAX);
            Err(Error::config("timeout", &wanted, value))
        }
    }
}

fn unreachable(object: &Map<String, Value>) -> Result<Unreachable, Error> {
    let Some(value) = object.get("unreachable") else {
        return Ok(Unreachable::RefuseEnrolled);
    };
    match value.as_str() {
        Some("refuse-enrolled") => Ok(Unreachable::RefuseEnrolled),
        Some("refuse-all") => Ok(Unreachable::RefuseAll),
        Some(_) | None => Err(Error::config("unreachable", "refuse-enrolled or refuse-all", value)),
    }
}

fn excluded(object: &Map<String, Value>) -> Result<Vec<String>, Error> {
    const KEY: &str = "excludeNamespaces";
    let Some(value) = object.get(KEY) else {
        return Ok(cni::NAMESPACES_EXCLUDED.map(str::to_owned).to_vec());
    };
    let names = value
        .as_array()
        .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    names.ok_or_else(|| Error::config(KEY, "a list of names", value))
}
