//! The agent's configuration: one YAML file, composed of its parts' own, and the facts that Kubernetes injects.
//!
//! Unknown keys are mistakes; all mistakes are reported at once, with field and line. Each part's keys are described
//! beside the part.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_core::life::Spans;
use adit_core::net::NodeName;
use adit_core::world::Settings;
use adit_objects::problem::FieldPath;
use adit_objects::yaml::Position;
use adit_proto::TrustDomain;
use serde::Deserialize;

use crate::{admin, cluster, dataplane, health, identity, pods, telemetry, units};

mod contradictions;
pub mod strict;

use strict::Mistake;

/// Adit's own namespace.
const SYSTEM_NAMESPACE: &str = "adit-system";
/// Namespaces that are never enrolled (beside Adit's own).
const EXCLUDED_NAMESPACES: [&str; 3] = ["kube-system", "kube-node-lease", "kube-public"];

/// Everything that the agent is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The node's name. Default: the environment's `NODE_NAME`, as Kubernetes injects it.
    pub node: String,
    /// Sockets and what a restarted agent must know; on tmpfs. Default `/run/adit`. Moves every path of a part below
    /// it that is not set.
    pub run_dir: PathBuf,
    /// What must outlive a boot. Default `/var/lib/adit`.
    pub state_dir: PathBuf,
    /// The node's network namespace. Default `/proc/self/ns/net`: the agent runs in it. In a pod: `/proc/1/ns/net`.
    pub node_netns: PathBuf,
    /// Where the node's cgroups are seen. Default `/sys/fs/cgroup`. In a pod: `/proc/1/root/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// The trust domain of the mesh. Default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// Adit's own namespace, never enrolled; its policies are the mesh's. Default `adit-system`.
    pub system_namespace: Arc<str>,
    /// Further namespaces that are never enrolled. Default `kube-system`, `kube-node-lease`, `kube-public`.
    pub excluded_namespaces: BTreeSet<Arc<str>>,
    /// At SIGTERM: how long to go on exactly as before until another agent of this node is ready, as after its pod was
    /// deleted. Default `0s` with `cluster.directory`, where nobody starts another one; else as `drain-within`. What
    /// bounds the process (terminationGracePeriodSeconds) must be longer than both together.
    #[serde(deserialize_with = "units::some_duration")]
    pub await_successor: Option<Duration>,
    /// Where none came: how long open connections may then go on before the process ends. Default `5s`. Captured pods
    /// stay captured; the next agent takes them over.
    #[serde(deserialize_with = "units::duration")]
    pub stop_within: Duration,
    /// At SIGTERM, once another agent is ready: how long open connections may go on; nothing new is taken. Then they are
    /// cut (`drained`). Default `1h`.
    #[serde(deserialize_with = "units::duration")]
    pub drain_within: Duration,
    /// The same where Adit is taken off the node. Default `30s`.
    #[serde(deserialize_with = "units::duration")]
    pub uninstall_drain: Duration,
    /// The source of truth.
    pub cluster: cluster::Config,
    /// Certificates.
    pub identity: identity::Config,
    /// Connections.
    pub dataplane: dataplane::Config,
    /// Pods.
    pub pods: pods::Config,
    /// Logs, metrics, flows.
    pub telemetry: telemetry::Config,
    /// The admin API.
    pub admin: admin::Config,
    /// The kubelet's probes.
    pub health: health::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            run_dir: "/run/adit".into(),
            state_dir: "/var/lib/adit".into(),
            node_netns: "/proc/self/ns/net".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            trust_domain: "cluster.local".parse().expect("cluster.local is a trust domain"),
            system_namespace: SYSTEM_NAMESPACE.into(),
            excluded_namespaces: EXCLUDED_NAMESPACES.into_iter().map(Into::into).collect(),
            await_successor: None,
            stop_within: Duration::from_secs(5),
            drain_within: Duration::from_secs(3600),
            uninstall_drain: Duration::from_secs(30),
            cluster: cluster::Config::default(),
            identity: identity::Config::default(),
            dataplane: dataplane::Config::default(),
            pods: pods::Config::default(),
            telemetry: telemetry::Config::default(),
            admin: admin::Config::default(),
            health: health::Config::default(),
        }
    }
}

/// What Kubernetes injects into the pod's environment: the only environment that is read.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// `NODE_NAME`.
    pub node: Option<String>,
}

impl NodeFacts {
    /// Reads the environment.
    pub fn from_env() -> Self {
        Self { node: std::env::var("NODE_NAME").ok() }
    }
}

/// Everything that is wrong with a configuration file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in order of lines.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        write!(f, "{}: {count} mistake{}", self.path.display(), if count == 1 { "" } else { "s" })?;
        for mistake in &self.mistakes {
            let space = if mistake.at == Position::default() { " " } else { "" };
            write!(f, "\n  {}:{space}{mistake}", self.path.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the file, or takes the defaults where none is given.
    pub fn load(path: &Path, facts: &NodeFacts) -> Result<Self, ConfigErrors> {
        let errors = |mistakes| ConfigErrors { path: path.to_owned(), mistakes };
        let whole = |what| Mistake { at: Position::default(), field: FieldPath::ROOT, what };
        let text = fs::read_to_string(path)
            .map_err(|error| errors(vec![whole(format!("cannot be read: {error}"))]))?;
        let mut reading = strict::read::<Self>(&text);
        if let Some(config) = &mut reading.config {
            if config.node.is_empty() {
                config.node = facts.node.clone().unwrap_or_default();
            }
            config.move_paths();
            for (field, what) in config.contradictions() {
                reading.blame(FieldPath::of(field.iter().copied()), what);
            }
        }
        reading.finish().map_err(errors)
    }

    /// What the World is made with.
    pub fn settings(&self) -> Settings {
        Settings {
            trust_domain: self.trust_domain.clone(),
            system_namespace: Arc::clone(&self.system_namespace),
            excluded_namespaces: self.excluded_namespaces.clone(),
            node: NodeName(self.node.as_str().into()),
        }
    }

    /// How long each part of the agent's end may take.
    pub fn spans(&self) -> Spans {
        let in_directory = !self.cluster.directory.as_os_str().is_empty();
        let unsaid = if in_directory { Duration::ZERO } else { self.drain_within };
        Spans {
            await_successor: self.await_successor.unwrap_or(unsaid),
            stop: self.stop_within,
            drain: self.drain_within,
            uninstall: self.uninstall_drain,
        }
    }

    /// The parts in which `other` differs and that a running agent cannot take.
    pub fn differing_parts(&self, other: &Self) -> Vec<&'static str> {
        let own = |config: &Self| {
            let Self { node, run_dir, state_dir, node_netns, cgroup_root, .. } = config.clone();
            (node, run_dir, state_dir, node_netns, cgroup_root, config.settings(), config.spans())
        };
        let log_level_apart =
            |config: &Self| telemetry::Config { log_level: String::new(), ..config.telemetry.clone() };
        [
            ("the top level", own(self) != own(other)),
            ("cluster", self.cluster != other.cluster),
            ("identity", self.identity != other.identity),
            ("dataplane", self.dataplane != other.dataplane),
            ("pods", self.pods != other.pods),
            ("telemetry", log_level_apart(self) != log_level_apart(other)),
            ("admin", self.admin != other.admin),
            ("health", self.health != other.health),
        ]
        .into_iter()
        .filter_map(|(part, differs)| differs.then_some(part))
        .collect()
    }

    /// Paths of the parts that are not set go below `run-dir` and `state-dir`.
    fn move_paths(&mut self) {
        let defaults = Self::default();
        let unset = |path: &mut PathBuf, default: &Path, to: PathBuf| {
            if path == default {
                *path = to;
            }
        };
        unset(&mut self.pods.socket, &defaults.pods.socket, self.run_dir.join("cni.sock"));
        unset(&mut self.pods.journal, &defaults.pods.journal, self.run_dir.join("journal"));
        unset(&mut self.pods.state_dir, &defaults.pods.state_dir, self.state_dir.clone());
        unset(&mut self.admin.socket, &defaults.admin.socket, self.run_dir.join("admin.sock"));
        if self.identity.journal == defaults.identity.journal {
            self.identity.journal = Some(self.run_dir.join("identity"));
        }
        if self.identity.trust_domain == defaults.identity.trust_domain {
            self.identity.trust_domain = self.trust_domain.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        fs::write(&path, text).unwrap();
        Config::load(&path, &NodeFacts::default()).map_err(|errors| errors.to_string())
    }

    #[test]
    fn paths_that_are_not_set_move_with_the_run_and_state_directories() {
        let config = load("node: one\nrun-dir: /tmp/r\nstate-dir: /tmp/s\ncluster: {directory: /tmp/m}\npods: {journal: /j}\n").unwrap();
        assert_eq!(config.pods.socket, Path::new("/tmp/r/cni.sock"));
        assert_eq!(config.admin.socket, Path::new("/tmp/r/admin.sock"));
        assert_eq!(config.identity.journal.as_deref(), Some(Path::new("/tmp/r/identity")));
        assert_eq!(config.pods.state_dir, Path::new("/tmp/s"));
        assert_eq!(config.pods.journal, Path::new("/j"));
    }

    #[test]
    fn without_a_cluster_nobody_starts_another_agent_unless_it_is_said() {
        let await_successor = |more: &str| {
            let text = format!("node: one\ncluster: {{directory: /m}}\n{more}");
            load(&text).unwrap().spans().await_successor
        };
        assert_eq!(await_successor(""), Duration::ZERO);
        assert_eq!(await_successor("await-successor: 7m\n"), Duration::from_secs(420));
        assert_eq!(Config::default().spans().await_successor, Duration::from_secs(3600));
    }

    #[test]
    fn every_mistake_of_every_part_is_in_one_report_with_its_line() {
        let said =
            load("node: one\ncluster:\n  dir: /x\npods:\n  add-deadline: 5\ntelemetry:\n  flows-kept: x\n")
                .unwrap_err();
        assert!(said.contains("4 mistakes"), "{said}");
        for part in [
            "3:",
            "cluster.directory: is not set",
            "cluster.dir: unknown field `dir`",
            "5:",
            "pods.add-deadline",
            "7:",
            "telemetry.flows-kept",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn what_is_missing_or_contradicts_is_said_by_field() {
        let said = load("admin: {address: '0.0.0.0:1'}\ntrust-domain: a.b\nidentity: {trust-domain: c.d}\n")
            .unwrap_err();
        for part in
            ["node: is not set", "cluster.directory: is not set", "admin.address", "identity.trust-domain"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    /// Everything that is right, but for one line of one part.
    fn with(part: &str, line: &str) -> Result<Config, String> {
        load(&format!("node: one\ncluster: {{directory: /m}}\n{part}:\n  {line}\n"))
    }

    #[test]
    fn a_value_that_cannot_work_is_said_with_its_field_and_line_before_anything_is_started() {
        for (part, line) in [
            ("telemetry", "log-level: '=='"),
            ("telemetry", "interim-interval: 0s"),
            ("identity", "ca-address: adit-ca"),
            ("identity", "ca-address: 'https://adit-ca:15012'"),
            ("identity", "ca-address: 'a b:1'"),
            ("identity", "ca-server-name: 'a b'"),
            ("identity", "leaf-life: 9s"),
            ("identity", "journal: /run/adit"),
            ("identity", "journal: /run/adit/journal/"),
            ("dataplane", "workers: 65"),
            ("dataplane", "workers: 0"),
            ("dataplane", "keepalive-idle: 500ms"),
            ("dataplane", "keepalive-idle: 0s"),
            ("dataplane", "keepalive-idle: 1500ms"),
            ("dataplane", "keepalive-interval: 10h"),
            ("pods", "add-deadline: 180s"),
            ("pods", "add-deadline: 0s"),
            ("pods", "journal: /run/adit/"),
            ("pods", "journal: /var/lib/adit"),
        ] {
            let said = with(part, line).expect_err(line);
            let field = line.split(':').next().unwrap();
            assert!(said.contains("1 mistake\n"), "{line}: {said}");
            assert!(
                said.contains("agent.yaml:4:") && said.contains(&format!(": {part}.{field}: ")),
                "{said}"
            );
        }
        for (part, line) in [
            ("telemetry", "log-level: adit_agent=debug,info"),
            ("identity", "ca-address: '[::1]:15012'"),
            ("identity", "ca-server-name: 10.0.0.1"),
            ("identity", "journal: null"),
            ("identity", "journal: /run/keys"),
            ("dataplane", "workers: 64"),
            ("dataplane", "keepalive-idle: 32767s"),
            ("pods", "add-deadline: 179s"),
            ("pods", "journal: /run/adit/pods"),
        ] {
            with(part, line).expect(line);
        }
    }

    #[test]
    fn there_is_exactly_one_source_of_truth() {
        let kube = |text: &str| load(&format!("node: one\ncluster:\n  {text}\n"));
        let config = kube("kube: {}").unwrap();
        assert_eq!(config.cluster.kube, Some(cluster::kube::Config::default()));
        let config =
            kube("kube: {kubeconfig: /k, api-server: 'https://[::1]:6443', daemon-set: other}").unwrap();
        assert_eq!(config.cluster.kube.unwrap().kubeconfig.as_deref(), Some(Path::new("/k")));
        for (text, field) in [
            ("directory: /m\n  kube: {}", "agent.yaml:4:9: cluster.kube: is set beside"),
            ("kube:", "cluster.directory: is not set"),
            ("kube: {api-server: 'adit:6443'}", "agent.yaml:3:22: cluster.kube.api-server: is no"),
            ("kube: {api-server: ''}", "cluster.kube.api-server: is no"),
            ("kube: {daemon-set: 'A b'}", "cluster.kube.daemon-set: is no"),
            ("kube: {token: x}", "cluster.kube.token: unknown field"),
        ] {
            let said = kube(text).expect_err(text);
            assert!(said.contains("1 mistake\n") && said.contains(field), "{text}: {said}");
        }
    }

    #[test]
    fn contradictions_stand_in_the_report_of_all_other_mistakes_with_their_lines() {
        let said =
            load("node: ../other\ntelemetry:\n  flows-kept: x\n  access-log: {sample: 3}\n").unwrap_err();
        assert!(said.contains("4 mistakes"), "{said}");
        for part in
            ["agent.yaml:1:7: node: is no node's name", "agent.yaml:3:", "agent.yaml:4:24: telemetry."]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
