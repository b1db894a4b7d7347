//! What is wrong with values that can be read: with one alone, or with one beside another.

use std::path::Path;
use std::time::Duration;

use adit_proto::cni;

use super::Config;
use crate::telemetry::log;

/// The most worker threads: at 128 cores the default is 32, and each costs every pod three listeners.
const WORKERS_MAX: u32 = 64;
/// The longest keepalive time that the kernel takes, in seconds (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL).
const KEEPALIVE_S_MAX: u64 = 32_767;
/// The shortest life of a certificate that a CA gives.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(10);

/// A field, and what is wrong with it.
pub(super) type Contradiction = (&'static [&'static str], String);

impl Config {
    /// What each value alone does not show, by field.
    pub(super) fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = self.of_the_top();
        found.extend(self.of_identity());
        found.extend(self.of_dataplane_and_pods());
        found.extend(self.of_telemetry());
        found.extend(self.of_folders());
        found
    }

    fn of_the_top(&self) -> Vec<Contradiction> {
        let has_directory = !self.cluster.directory.as_os_str().is_empty();
        let kube = self.cluster.kube.as_ref();
        so([
            (self.node.is_empty(), &["node"], "is not set, and neither is the environment's NODE_NAME"),
            (!self.node.is_empty() && !is_node_name(&self.node), &["node"], NO_NODE_NAME),
            (
                !has_directory && kube.is_none(),
                &["cluster", "directory"],
                "is not set, and neither is cluster.kube: say where the mesh's directory is, or kube: {}",
            ),
            (
                has_directory && kube.is_some(),
                &["cluster", "kube"],
                "is set beside cluster.directory: there is one source of truth",
            ),
            (
                !kube.is_none_or(|kube| kube.has_api_server()),
                &["cluster", "kube", "api-server"],
                "is no https://HOST:PORT",
            ),
            (
                !kube.is_none_or(|kube| is_node_name(&kube.daemon_set)),
                &["cluster", "kube", "daemon-set"],
                "is no DaemonSet's name",
            ),
            (
                !self.admin.address.ip().is_loopback(),
                &["admin", "address"],
                "is no loopback address: the admin API is for the node itself",
            ),
        ])
    }

    fn of_identity(&self) -> Vec<Contradiction> {
        so([
            (
                self.identity.trust_domain != self.trust_domain,
                &["identity", "trust-domain"],
                "is not the mesh's trust-domain",
            ),
            (!self.identity.has_ca_address(), &["identity", "ca-address"], "is no host:port"),
            (
                !self.identity.has_ca_server_name(),
                &["identity", "ca-server-name"],
                "is neither a DNS name nor an address",
            ),
            (
                self.identity.leaf_life < LEAF_LIFE_MIN,
                &["identity", "leaf-life"],
                &format!("is less than the {LEAF_LIFE_MIN:?} that a CA gives at least"),
            ),
        ])
    }

    fn of_dataplane_and_pods(&self) -> Vec<Contradiction> {
        let add_max = Duration::from_secs(cni::ADD_WAIT_SECONDS_MAX);
        let no_keepalive = format!("is no whole number of seconds from 1s to {KEEPALIVE_S_MAX}s");
        let workers = self.dataplane.workers.map_or(1, std::num::NonZeroU32::get);
        so([
            (workers > WORKERS_MAX, &["dataplane", "workers"], &format!("is more than {WORKERS_MAX}")),
            (!is_keepalive(self.dataplane.keepalive_idle), &["dataplane", "keepalive-idle"], &no_keepalive),
            (
                !is_keepalive(self.dataplane.keepalive_interval),
                &["dataplane", "keepalive-interval"],
                &no_keepalive,
            ),
            (
                self.pods.add_deadline.is_zero() || self.pods.add_deadline >= add_max,
                &["pods", "add-deadline"],
                &format!("is not between 1ms and the {add_max:?} that the plugin waits at most"),
            ),
        ])
    }

    fn of_telemetry(&self) -> Vec<Contradiction> {
        let mut found = so([
            (
                !(0.0..=1.0).contains(&self.telemetry.access_log.sample),
                &["telemetry", "access-log", "sample"],
                "is not between 0 and 1",
            ),
            (
                self.telemetry.interim_interval.is_zero(),
                &["telemetry", "interim-interval"],
                "is no time: every connection would be reported without end",
            ),
        ]);
        if let Err(error) = log::check(&self.telemetry.log_level) {
            found.push((&["telemetry", "log-level"], error));
        }
        found
    }

    /// A journal reads and tidies the whole of its folder, so that is one of its own.
    fn of_folders(&self) -> Vec<Contradiction> {
        let pods = self.pods.journal.as_path();
        let identity = self.identity.journal.as_deref();
        let is_used = |journal: &Path| {
            [&self.run_dir, &self.state_dir, &self.pods.state_dir].into_iter().any(|used| used == journal)
        };
        so([
            (is_used(pods), &["pods", "journal"], NO_FOLDER_OF_ITS_OWN),
            (identity.is_some_and(is_used), &["identity", "journal"], NO_FOLDER_OF_ITS_OWN),
            (identity == Some(pods), &["identity", "journal"], "is the journal of pods as well"),
        ])
    }
}

const NO_FOLDER_OF_ITS_OWN: &str = "is run-dir or a state-dir: a journal has a folder of its own";

const NO_NODE_NAME: &str = "is no node's name: 1 to 253 lower-case letters, digits, '-' and '.', the first and the \
                            last a letter or digit";

/// Those of `rules` that are so.
fn so<const N: usize>(rules: [(bool, &'static [&'static str], &str); N]) -> Vec<Contradiction> {
    let found = rules.into_iter().filter(|(is_so, _, _)| *is_so);
    found.map(|(_, field, what)| (field, what.to_owned())).collect()
}

/// Whether the kernel takes it as the time before, or between, keepalive probes.
fn is_keepalive(span: Duration) -> bool {
    span.subsec_nanos() == 0 && (1..=KEEPALIVE_S_MAX).contains(&span.as_secs())
}

/// Whether this names a node, and with it the agent's status file.
fn is_node_name(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.starts_with(is_word)
        && name.ends_with(is_word)
        && name.chars().all(|c| is_word(c) || matches!(c, '-' | '.'))
}
