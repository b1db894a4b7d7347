//! `adit-cni`, called as a container runtime calls a chained plugin.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Pod;
use crate::netns::Netns;
use crate::process::program;
use crate::topology::Node;

/// One pod's calls. Every field may be changed before a call, to call wrongly.
#[derive(Clone, Debug)]
pub struct Cni {
    node: Netns,
    /// The environment, without `CNI_COMMAND`.
    pub environment: Vec<(String, String)>,
    /// The network configuration on standard input.
    pub config: Value,
}

/// What the plugin answered.
#[derive(Clone, Debug)]
pub struct CniAnswer {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed; `null` for nothing.
    pub printed: Value,
    /// What it said on standard error.
    pub said: String,
}

impl Cni {
    pub(super) fn new(node: &Node, mesh: &Path, pod: &Pod) -> Result<Self> {
        let spec = &pod.spec;
        let environment = [
            ("CNI_CONTAINERID", pod.sandbox.clone()),
            ("CNI_NETNS", pod.host.netns.path().display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            (
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                    spec.namespace, spec.name, pod.sandbox, pod.uid
                ),
            ),
        ];
        let folder = agent_folder(mesh, &node.name);
        let (v4, v6) = (pod.host.v4, pod.host.v6);
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "test",
            "type": "adit-cni",
            "socket": folder.join("run/cni.sock"),
            "stateDir": folder.join("state"),
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": spec.annotations },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "eth0", "sandbox": pod.host.netns.path() }],
                "ips": [
                    { "address": format!("{v4}/24"), "interface": 0 },
                    { "address": format!("{v6}/64"), "interface": 0 },
                ],
            },
        });
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Ok(Self { node: node.netns.clone(), environment, config })
    }

    /// ADD.
    pub fn add(&self) -> Result<CniAnswer> {
        self.call("ADD")
    }

    /// DEL.
    pub fn del(&self) -> Result<CniAnswer> {
        self.call("DEL")
    }

    /// CHECK.
    pub fn check(&self) -> Result<CniAnswer> {
        self.call("CHECK")
    }

    /// Any verb, with the configuration as it is.
    pub fn call(&self, verb: &str) -> Result<CniAnswer> {
        self.call_with(verb, self.config.to_string().as_bytes())
    }

    /// Any verb with any input.
    pub fn call_with(&self, verb: &str, input: &[u8]) -> Result<CniAnswer> {
        let mut run =
            self.node.command(program("adit-cni")?).env_clear().env("CNI_COMMAND", verb).stdin(input);
        for (name, value) in &self.environment {
            run = run.env(name, value);
        }
        let output = run.output()?;
        let printed = if output.stdout.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&output.stdout).unwrap_or(Value::String(output.stdout))
        };
        Ok(CniAnswer { code: output.status.code(), printed, said: output.stderr })
    }
}

impl CniAnswer {
    /// An error unless the plugin succeeded.
    pub fn ok(self) -> Result<Value> {
        if self.code == Some(0) {
            Ok(self.printed)
        } else {
            bail!("adit-cni failed ({:?}): {} {}", self.code, self.printed, self.said)
        }
    }
}

/// Where a node's agent has its sockets, state and configuration.
pub(super) fn agent_folder(mesh: &Path, node: &str) -> PathBuf {
    mesh.join("agents").join(node)
}
