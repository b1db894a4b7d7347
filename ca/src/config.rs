//! The configuration: one YAML file, every mistake in it reported at once, with path and line.
//!
//! ```yaml
//! store: /var/lib/adit-ca            # keys and state; made if need be
//! tokens: /etc/adit-ca/tokens.yaml   # who may ask for what; see `caller`
//! publish: /srv/mesh                 # the mesh directory
//! ```
//! In a cluster, with the defaults of all the names there (see [`crate::cluster::Settings`]):
//! ```yaml
//! store: {kubernetes: {}}
//! metrics-address: 0.0.0.0:15020
//! ```

use std::fmt;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_proto::TrustDomain;
use tracing_subscriber::EnvFilter;

use crate::cluster;
use crate::issue::{Life, ServerNames};

mod entries;

use entries::Entries;

/// The name under which agents reach the CA in a cluster; always in its certificate.
pub const SERVER_NAME: &str = "adit-ca.adit-system.svc";

/// The most that `poll` may be in a cluster: a third of the time for which a replica may sign without having looked.
const POLL_MAX_CLUSTER: Duration = Duration::from_secs(5);

/// The longest configuration file that is read, in bytes.
const FILE_LEN_MAX: usize = 1024 * 1024;

/// How a CA runs. [`Config::standalone`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// `trust-domain`: whose identities are issued. Default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// `listen`: where to serve gRPC. Default `0.0.0.0:15012`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `store`, and what goes with it: where the CA is at home.
    pub place: Place,
    /// `leaf-life`: life of a leaf, `10s` to `24h`; a request can only shorten it. Default `24h`.
    pub leaf_life: Life,
    /// `server-names`: DNS names and addresses in the CA's own certificate, beside `adit-ca.adit-system.svc`.
    pub server_names: ServerNames,
    /// `acknowledge-within`: how long a change of root waits for agents that do not acknowledge the new bundle, from
    /// its publication. Default `24h`.
    pub acknowledge_within: Duration,
    /// `poll`: how often files are looked at, `10ms` to `1m`. Default `1s`. (A refused caller makes the token file
    /// be read again at once.) In a cluster: how often what other replicas and users write is looked at, `5s` at most
    /// and by default; each time the API server is asked for three objects.
    pub poll: Duration,
    /// `ready-file`: written, holding the address, once the CA serves. Default: none.
    pub ready_file: Option<PathBuf>,
    /// `metrics-address`: where Prometheus reads `/metrics`, and the kubelet `/healthz/ready` and `/healthz/live`, over
    /// plain HTTP. Default: none, and no such pages.
    pub metrics_address: Option<SocketAddr>,
    /// `log-level`: `tracing` filter. Default `info`.
    pub log_level: String,
    /// `log-format`: `text` or `json`. Default `text`.
    pub log_format: LogFormat,
}

/// Where a CA is at home.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// A directory; `store` is its path.
    Directory {
        /// `store`: directory of keys and state.
        store: PathBuf,
        /// `tokens`: the token file.
        tokens: PathBuf,
        /// `publish`: the mesh directory: `trust-bundle.yaml` is written there and `status/` read. Default: none; agents
        /// then get the bundle in another way, and a change of root waits for its time bound only.
        publish: Option<PathBuf>,
    },
    /// `store.kubernetes`: a cluster. Its ServiceAccounts are the callers, and its ConfigMap is what agents read.
    Kubernetes(cluster::Settings),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigErrors {
    path: PathBuf,
    /// What is wrong, in order of lines.
    pub errors: Vec<Mistake>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Line, from 1; 0 for the file as a whole.
    pub line: u64,
    /// Where in the structure, as `server-names[1]`; empty for the whole.
    pub at: String,
    /// What is wrong.
    pub what: String,
}

impl Config {
    /// A CA with every default.
    pub fn standalone(store: PathBuf, tokens: PathBuf, publish: Option<PathBuf>) -> Self {
        Self {
            trust_domain: "cluster.local".parse().expect("cluster.local is a trust domain"),
            listen: SocketAddr::from(([0, 0, 0, 0], 15012)),
            place: Place::Directory { store, tokens, publish },
            leaf_life: Life::DEFAULT,
            server_names: ServerNames { dns: Vec::new(), ips: Vec::new() },
            acknowledge_within: Duration::from_secs(24 * 3600),
            poll: Duration::from_secs(1),
            ready_file: None,
            metrics_address: None,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    /// Reads a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let one = |what: String| ConfigErrors {
            path: path.to_owned(),
            errors: vec![Mistake { line: 0, at: String::new(), what }],
        };
        let bound = u64::try_from(FILE_LEN_MAX).unwrap_or(u64::MAX).saturating_add(1);
        let mut text = String::new();
        fs::File::open(path)
            .and_then(|file| file.take(bound).read_to_string(&mut text))
            .map_err(|error| one(format!("cannot be read: {error}")))?;
        if text.len() > FILE_LEN_MAX {
            return Err(one(format!("is longer than {FILE_LEN_MAX} bytes")));
        }
        Self::parse(&text).map_err(|errors| ConfigErrors { path: path.to_owned(), errors })
    }

    /// Reads a configuration's text.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut entries = Entries::parse(text)?;
        let mut config = Self::standalone(PathBuf::new(), PathBuf::new(), None);
        config.place = place(&mut entries);
        entries.optional("trust-domain", parsed, |domain| config.trust_domain = domain);
        entries.optional("listen", parsed, |listen| config.listen = listen);
        entries.optional("leaf-life", leaf_life, |life| config.leaf_life = life);
        entries.optional("acknowledge-within", duration, |within| config.acknowledge_within = within);
        let poll_max = match config.place {
            Place::Directory { .. } => Duration::from_secs(60),
            Place::Kubernetes(_) => {
                config.poll = POLL_MAX_CLUSTER;
                POLL_MAX_CLUSTER
            }
        };
        entries.optional("poll", |text| poll(text, poll_max), |poll| config.poll = poll);
        entries.optional("ready-file", path, |file| config.ready_file = Some(file));
        entries.optional("metrics-address", parsed, |address| config.metrics_address = Some(address));
        entries.optional("log-level", log_level, |level| config.log_level = level);
        entries.optional("log-format", log_format, |format| config.log_format = format);
        entries.each("server-names", server_name, |name| match name {
            ServerName::Dns(name) => config.server_names.dns.push(name),
            ServerName::Ip(ip) => config.server_names.ips.push(ip),
        });
        entries.finish()?;
        Ok(config)
    }
}

enum ServerName {
    Dns(String),
    Ip(IpAddr),
}

fn parsed<T: std::str::FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.into()) }
}

fn leaf_life(text: &str) -> Result<Life, String> {
    Life::new(duration(text)?).map_err(|error| error.to_string())
}

fn poll(text: &str, most: Duration) -> Result<Duration, String> {
    let poll = duration(text)?;
    if (Duration::from_millis(10)..=most).contains(&poll) {
        return Ok(poll);
    }
    let most = if most == POLL_MAX_CLUSTER { "5s with store.kubernetes" } else { "1m" };
    Err(format!("{text:?} is not between 10ms and {most}"))
}

/// `store`, and the keys that go with it; those that contradict it are named.
fn place(entries: &mut Entries) -> Place {
    if entries.is_map("store") {
        let mut settings = cluster::Settings::default();
        entries.inside("store", |store| {
            store.needed_map("kubernetes");
            store.inside("kubernetes", |found| kubernetes(found, &mut settings));
        });
        entries.never("tokens", "not with store.kubernetes: there the ServiceAccounts' tokens say who calls");
        entries.never("publish", "not with store.kubernetes: there the bundle is a ConfigMap");
        return Place::Kubernetes(settings);
    }
    let (mut store, mut tokens, mut publish) = (PathBuf::new(), PathBuf::new(), None);
    entries.needed("store", path, |found| store = found);
    entries.needed("tokens", path, |found| tokens = found);
    entries.optional("publish", path, |found| publish = Some(found));
    Place::Directory { store, tokens, publish }
}

fn kubernetes(entries: &mut Entries, settings: &mut cluster::Settings) {
    entries.optional("kubeconfig", path, |found| settings.kubeconfig = Some(found));
    entries.optional("namespace", label, |found| settings.namespace = found);
    entries.optional("secret", name, |found| settings.secret = found);
    entries.optional("given-secret", name, |found| settings.given_secret = found);
    entries.optional("agent", account, |found| settings.agent = found);
    entries.optional("audience", text, |found| settings.audience = found);
    entries.optional("replica", name, |found| settings.replica = Some(found));
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// A name as objects have (RFC 1123, subdomain): it becomes part of a URL.
fn name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let good = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        good && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name of an object"))
}

/// A name as namespaces have (RFC 1123, label).
fn label(text: &str) -> Result<String, String> {
    name(text)
        .ok()
        .filter(|name| name.len() <= 63 && !name.contains('.'))
        .ok_or_else(|| format!("{text:?} is no name of a namespace"))
}

fn account(text: &str) -> Result<cluster::Account, String> {
    let wrong = || format!("{text:?} is no ServiceAccount, NAMESPACE/NAME");
    let (namespace, account) = text.split_once('/').ok_or_else(wrong)?;
    let namespace = label(namespace).map_err(|_| wrong())?;
    Ok(cluster::Account { namespace, name: name(account).map_err(|_| wrong())? })
}

fn log_level(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))?;
    Ok(text.to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{other:?} is neither text nor json")),
    }
}

fn server_name(text: &str) -> Result<ServerName, String> {
    if let Ok(ip) = text.parse() {
        return Ok(ServerName::Ip(ip));
    }
    match rustls_pki_types::DnsName::try_from(text) {
        Ok(name) => Ok(ServerName::Dns(name.as_ref().to_owned())),
        Err(_) => Err(format!("{text:?} is neither a DNS name nor an address")),
    }
}

/// A number and a unit: `500ms`, `10s`, `5m`, `24h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 500ms, 10s, 5m, 24h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(wrong)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { store, .. } => write!(f, "{}", store.display()),
            Self::Kubernetes(settings) => write!(f, "Secret {}/{}", settings.namespace, settings.secret),
        }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (index, Mistake { line, at, what }) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match (line, at.as_str()) {
                (0, "") => write!(f, "{path}: {what}")?,
                (0, at) => write!(f, "{path}: {at}: {what}")?,
                (line, "") => write!(f, "{path}:{line}: {what}")?,
                (line, at) => write!(f, "{path}:{line}: {at}: {what}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests;
