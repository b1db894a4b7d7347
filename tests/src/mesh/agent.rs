//! A node's agent: `adit-agent` in the node's namespace, with a folder of its own for sockets, state and configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use adit_proto::admin::{Edges, Flow, Flows, Status};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::cni::agent_folder;
use super::{admin, merge, replace, running};
use crate::netns::Netns;
use crate::process::{Process, program};
use crate::topology::Node;

/// A running agent; it is killed when dropped.
#[derive(Debug)]
pub struct Agent {
    node: String,
    process: Process,
    socket: PathBuf,
}

impl Agent {
    pub(super) fn start(
        node: &Node,
        mesh: &Path,
        token: &str,
        ca: SocketAddr,
        settings: &Value,
    ) -> Result<Self> {
        let folder = agent_folder(mesh, &node.name);
        let mut truth = json!({
            "cluster": { "directory": mesh.join("mesh") },
            "pods": running::settings(mesh, &node.name)?,
        });
        merge(&mut truth, settings);
        Self::start_in(&node.netns, &folder, &node.name, token, ca, &truth)
    }

    /// Starts one for the node called `node`, in a network namespace and with a folder of its own. `settings` has at least
    /// where the truth is.
    pub fn start_in(
        netns: &Netns,
        folder: &Path,
        node: &str,
        token: &str,
        ca: SocketAddr,
        settings: &Value,
    ) -> Result<Self> {
        let (run, state) = (folder.join("run"), folder.join("state"));
        for part in [&run, &state] {
            fs::create_dir_all(part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let token_file = folder.join("token");
        replace(&token_file, token)?;
        let mut config = json!({
            "node": node,
            "run-dir": run,
            "state-dir": state,
            "identity": {
                "ca-address": ca.to_string(),
                "token-file": token_file,
                "journal": run.join("identity"),
            },
            "telemetry": { "log-level": "adit_agent=debug,info" },
        });
        merge(&mut config, settings);
        let file = folder.join("config.yaml");
        replace(&file, &serde_saphyr::to_string(&config).context("the agent's configuration")?)?;
        // With as few descriptors as systemd leaves a service at first.
        let few = "ulimit -S -n 1024; exec \"$0\" \"$@\"";
        let command = netns.command("sh").args(["-c", few]).args([program("adit-agent")?]);
        let command = command.args(["--config"]).args([&file]);
        let process = command.env("PATH", path_of(folder)?).spawn()?;
        Ok(Self { node: node.to_owned(), process, socket: run.join("admin.sock") })
    }

    /// The node that it is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its process, with its log: the access log's JSON lines and the process log's text.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Waits for its own word that it is ready.
    pub fn wait_ready(&self) -> Result<()> {
        self.process.wait_for_line("the agent's word that it is ready", |line| {
            line.starts_with("adit-agent ready")
        })?;
        Ok(())
    }

    /// Any page of its admin API.
    pub fn admin(&self, path: &str) -> Result<String> {
        admin::text(&self.socket, path)
    }

    /// How it stands.
    pub fn status(&self) -> Result<Status> {
        admin::json(&self.socket, "/status")
    }

    /// The last connections.
    pub fn flows(&self) -> Result<Flows<'static>> {
        admin::json(&self.socket, "/flows")
    }

    /// Who talked with whom.
    pub fn edges(&self) -> Result<Edges> {
        admin::json(&self.socket, "/edges")
    }

    /// Waits for a line of the access log; `first` is where to begin ([`Process::next_line`]).
    pub fn wait_for_flow(
        &self,
        first: u64,
        what: &str,
        wanted: impl Fn(&Flow<'_>) -> bool,
    ) -> Result<Flow<'static>> {
        let read = |line: &str| serde_json::from_str::<Flow<'static>>(line).ok();
        let (_, line) = self
            .process
            .wait_for_line_after(first, what, |line| read(line).is_some_and(|flow| wanted(&flow)))?;
        read(&line).context("a line that was just read")
    }

    /// Ends it as the kernel's memory killer would.
    pub fn kill(self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait().map(drop)
    }

    /// Waits until it has ended.
    pub fn wait(self) -> Result<std::process::ExitStatus> {
        self.process.wait()
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(self) -> Result<std::process::ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait()
    }
}

/// PATH for an agent: programs in a folder of its own come before the system's.
fn path_of(folder: &Path) -> Result<std::ffi::OsString> {
    let system = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.join("bin")).chain(std::env::split_paths(&system));
    std::env::join_paths(folders).context("a PATH")
}
