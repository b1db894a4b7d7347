//! The CNI specification (1.1.0 and back to 0.3.1), as far as a chained plugin needs it: environment, input, versions,
//! results and errors. Reads and prints; does not speak to the agent.

mod config;
mod result;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io;

use adit_proto::cni::{self, Add, Attachment, Check, Code, ContainerId, Del, Failure, Gc, IfName, PodRef};
use serde_json::{Map, Value, json};

use crate::call::CallError;
pub(crate) use crate::spec::config::{Config, Unreachable};
pub(crate) use crate::spec::result::PrevResult;

/// The versions that are answered, oldest first; the answer has the version of the question.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// In what an error is told where the question had no version that is supported.
const VERSION_NEWEST: &str = "1.1.0";

/// What the runtime wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    /// Since which version there is such a verb.
    fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.1",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        match word {
            "ADD" => Some(Self::Add),
            "DEL" => Some(Self::Del),
            "CHECK" => Some(Self::Check),
            "GC" => Some(Self::Gc),
            "STATUS" => Some(Self::Status),
            "VERSION" => Some(Self::Version),
            _ => None,
        }
    }
}

/// Why a call fails, as it is printed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    pub(crate) fn stdin(error: io::Error) -> Self {
        Self::new(Code::Io, "cannot read standard input", error.to_string())
    }

    /// The agent did not do what was asked of it. Shown to the user as the pod's FailedCreatePodSandBox Event.
    pub(crate) fn agent(error: &CallError) -> Self {
        Self::new(
            Code::TryAgainLater,
            format!("adit: {error}"),
            "the pod is enrolled, or not known not to be, and does not start outside the mesh; look at the adit-agent \
             pod of this node in adit-system; if Adit was removed while this node was down, apply manifests/uninstall",
        )
    }

    fn config(key: &str, wanted: &str, found: &Value) -> Self {
        Self::new(
            Code::InvalidConfig,
            "configuration is not valid",
            format!("{key} must be {wanted}, but is {found}"),
        )
    }

    pub(crate) fn environment(name: &str, what: &str) -> Self {
        Self::new(Code::BadEnvironment, format!("{name} {what}"), name)
    }

    /// The error object of the specification.
    pub(crate) fn print(&self, version: &str) -> String {
        line(&json!({
            "cniVersion": version,
            "code": self.code.number(),
            "msg": self.message,
            "details": self.details,
        }))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.code, failure.message, failure.details)
    }
}

/// The variables that the runtime sets.
#[derive(Debug)]
pub(crate) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    pub(crate) fn read() -> Self {
        let ours = env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with("CNI_").then_some((name, value))
        });
        Self(ours.collect())
    }

    pub(crate) fn verb(&self) -> Result<Verb, Error> {
        let word = self.required("CNI_COMMAND")?;
        Verb::parse(word)
            .ok_or_else(|| Error::environment("CNI_COMMAND", &format!("is {word:?}, no verb of CNI")))
    }

    /// What ADD asks of the agent; `None` if the container is no pod of Kubernetes.
    pub(crate) fn add(&self, asked: &Asked, result: &PrevResult) -> Result<Option<Add>, Error> {
        let container_id = self.container_id()?;
        let netns = self.required("CNI_NETNS")?.to_owned();
        let ifname = self.ifname()?;
        let Some(pod) = self.pod()? else {
            return Ok(None);
        };
        Ok(Some(Add {
            container_id,
            netns,
            ifname,
            pod,
            ips: result.ips()?,
            annotations: asked.annotations(),
            cgroup: asked.cgroup(),
        }))
    }

    /// What DEL asks of the agent. CNI_NETNS may be missing, and its namespace gone.
    pub(crate) fn del(&self) -> Result<Del, Error> {
        Ok(Del { container_id: self.container_id()?, ifname: self.ifname()? })
    }

    /// What CHECK asks of the agent, and the pod's namespace; `None` if the container is no pod of Kubernetes.
    pub(crate) fn check(&self) -> Result<(Option<String>, Check), Error> {
        let check = Check {
            container_id: self.container_id()?,
            netns: self.required("CNI_NETNS")?.to_owned(),
            ifname: self.ifname()?,
        };
        Ok((self.pod()?.map(|pod| pod.namespace), check))
    }

    fn container_id(&self) -> Result<ContainerId, Error> {
        ContainerId::try_from(self.required("CNI_CONTAINERID")?.to_owned())
            .map_err(|error| Error::environment("CNI_CONTAINERID", &format!("is not valid: {error}")))
    }

    fn ifname(&self) -> Result<IfName, Error> {
        IfName::try_from(self.required("CNI_IFNAME")?.to_owned())
            .map_err(|error| Error::environment("CNI_IFNAME", &format!("is not valid: {error}")))
    }

    /// The pod that CNI_ARGS names: all three of its names, or none of them.
    fn pod(&self) -> Result<Option<PodRef>, Error> {
        let mut named = BTreeMap::new();
        for pair in self.optional("CNI_ARGS")?.unwrap_or_default().split(';') {
            match pair.split_once('=') {
                Some((key, value)) => {
                    named.insert(key, value);
                }
                None if pair.is_empty() => {}
                None => {
                    return Err(Error::environment("CNI_ARGS", &format!("has {pair:?}, not KEY=VALUE")));
                }
            }
        }
        let name_of = |key: &str| named.get(key).copied().filter(|value| !value.is_empty());
        let keys = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"];
        match keys.map(name_of) {
            [None, None, None] => Ok(None),
            [Some(namespace), Some(name), Some(uid)] => Ok(Some(PodRef {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            })),
            [..] => Err(Error::environment("CNI_ARGS", &format!("does not name all of {}", keys.join(", ")))),
        }
    }

    fn required(&self, name: &str) -> Result<&str, Error> {
        self.optional(name)?.ok_or_else(|| Error::environment(name, "is missing"))
    }

    fn optional(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.0.get(name).map(|value| value.to_str()) {
            None | Some(Some("")) => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(Error::environment(name, "is not UTF-8")),
        }
    }
}

/// The plugin's own configuration with what the runtime put into it: one JSON object, in a supported version.
#[derive(Debug)]
pub(crate) struct Asked {
    version: &'static str,
    object: Map<String, Value>,
}

impl Asked {
    /// Reads standard input. Errors: 6 no JSON object, 1 version not supported or without this verb, 7 no `name`.
    pub(crate) fn parse(verb: Verb, input: &[u8]) -> Result<Self, Error> {
        let object = object(input)?;
        let version = match object.get("cniVersion") {
            Some(Value::String(version)) => supported(version).ok_or_else(|| incompatible(version))?,
            Some(other) => {
                return Err(Error::new(Code::Decode, "cniVersion is not a string", other.to_string()));
            }
            // The specification's default where the key is missing, and older than all that is supported.
            None => return Err(incompatible("0.1.0")),
        };
        // The versions that are supported sort as text.
        if version < verb.since() {
            return Err(Error::new(
                Code::IncompatibleVersion,
                format!("cniVersion {version} has no such verb"),
                format!("it came with {}", verb.since()),
            ));
        }
        match object.get("name") {
            Some(Value::String(name)) if !name.is_empty() => Ok(Self { version, object }),
            other => Err(Error::config("name", "the network's name", other.unwrap_or(&Value::Null))),
        }
    }

    pub(crate) fn config(&self) -> Result<Config, Error> {
        Config::read(&self.object)
    }

    /// The result of the plugins before this one. Error 7 if there is none: then this plugin is not chained.
    pub(crate) fn result(&self) -> Result<PrevResult, Error> {
        match self.object.get("prevResult") {
            Some(Value::Object(result)) => Ok(PrevResult::new(self.version, result.clone())),
            other => Err(Error::config(
                "prevResult",
                "the result of the plugin before (adit-cni is a chained plugin)",
                other.unwrap_or(&Value::Null),
            )),
        }
    }

    pub(crate) fn valid_attachments(&self) -> Result<Gc, Error> {
        const KEY: &str = "cni.dev/valid-attachments";
        // Without the list nothing is collected: read as empty, it would release every pod.
        let list = self.object.get(KEY).unwrap_or(&Value::Null);
        let Value::Array(items) = list else {
            return Err(Error::config(KEY, "a list of attachments", list));
        };
        let attachment = |item: &Value| {
            let text = |key: &str| item.get(key)?.as_str().map(str::to_owned);
            Some(Attachment {
                container_id: ContainerId::try_from(text("containerID")?).ok()?,
                ifname: IfName::try_from(text("ifname")?).ok()?,
            })
        };
        let valid = items
            .iter()
            .map(|item| {
                attachment(item).ok_or_else(|| Error::config(KEY, "a list of {containerID, ifname}", item))
            })
            .collect::<Result<_, _>>()?;
        Ok(Gc { valid })
    }

    /// The capability `io.kubernetes.cri.pod-annotations`, without what the agent never reads.
    fn annotations(&self) -> Option<BTreeMap<String, String>> {
        let all = self.runtime_config("io.kubernetes.cri.pod-annotations")?.as_object()?;
        let wanted = |key: &str| cni::ANNOTATION_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        let pairs = all
            .iter()
            .filter(|(key, _)| wanted(key))
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        Some(pairs.collect())
    }

    /// The capability `cgroupPath`.
    fn cgroup(&self) -> Option<String> {
        self.runtime_config("cgroupPath")?.as_str().map(str::to_owned)
    }

    fn runtime_config(&self, capability: &str) -> Option<&Value> {
        self.object.get("runtimeConfig")?.get(capability)
    }
}

/// The version in which an error is told: the one asked, if it is supported.
pub(crate) fn version_asked(input: &[u8]) -> &'static str {
    let asked = object(input).ok();
    let version = asked.as_ref().and_then(|object| object.get("cniVersion")?.as_str());
    version.and_then(supported).unwrap_or(VERSION_NEWEST)
}

/// The answer to VERSION: the version asked, echoed, and those supported. No input asks in the newest.
pub(crate) fn print_version(input: &[u8]) -> Result<String, Error> {
    let asked = if input.trim_ascii().is_empty() { None } else { object(input)?.remove("cniVersion") };
    let version = match asked {
        Some(Value::String(version)) => version,
        Some(other) => {
            return Err(Error::new(Code::Decode, "cniVersion is not a string", other.to_string()));
        }
        None => VERSION_NEWEST.to_owned(),
    };
    Ok(line(&json!({ "cniVersion": version, "supportedVersions": VERSIONS })))
}

fn object(input: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(input) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            Err(Error::new(
                Code::Decode,
                "standard input is not a network configuration",
                "it is JSON, but no object",
            ))
        }
        Err(error) => {
            Err(Error::new(Code::Decode, "standard input is not a network configuration", error.to_string()))
        }
    }
}

/// Whether the plugin can be called in this version.
pub(crate) fn supports(version: &str) -> bool {
    supported(version).is_some()
}

fn supported(version: &str) -> Option<&'static str> {
    VERSIONS.into_iter().find(|known| *known == version)
}

fn incompatible(version: &str) -> Error {
    Error::new(
        Code::IncompatibleVersion,
        format!("cniVersion {version:?} is not supported"),
        format!("supported: {}", VERSIONS.join(", ")),
    )
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

#[cfg(test)]
mod tests;
