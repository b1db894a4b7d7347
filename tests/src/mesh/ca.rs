//! The CA of a mesh: `adit-ca` on a host of its own beside the nodes.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::TRUST_DOMAIN;
use crate::netns::Netns;
use crate::process::{Process, program};
use crate::topology::Host;

/// The CA's host in the topology.
pub(super) const HOST: &str = "ca";
const PORT: u16 = 15012;

/// A running CA.
#[derive(Debug)]
pub struct Ca {
    process: Process,
    netns: Netns,
    address: SocketAddr,
    folder: PathBuf,
    /// Which node may ask for which identities.
    nodes: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Ca {
    pub(super) fn start(host: &Host, mesh: &Path, settings: &Value) -> Result<Self> {
        let folder = mesh.join("ca");
        fs::create_dir_all(&folder).context("cannot make the CA's folder")?;
        let address = SocketAddr::new(host.v4.into(), PORT);
        let mut config = json!({
            "store": folder.join("store"),
            "tokens": folder.join("tokens.yaml"),
            "publish": mesh.join("mesh"),
            "listen": address.to_string(),
            "server-names": [host.v4.to_string()],
            // Tests change files and wait for what comes of it.
            "poll": "50ms",
        });
        super::merge(&mut config, settings);
        let file = folder.join("config.yaml");
        super::replace(&file, &serde_saphyr::to_string(&config).context("the CA's configuration")?)?;
        let nodes = Mutex::new(known_nodes(&folder)?);
        write_tokens(&folder, &nodes.lock().unwrap_or_else(PoisonError::into_inner))?;
        let run = host.netns.command(program("adit-ca")?).args(["run", "--config"]).args([&file]);
        let process = run.spawn()?;
        process
            .wait_for_line("the CA's word that it is ready", |line| line.starts_with("adit-ca ready on "))?;
        Ok(Self { process, netns: host.netns.clone(), address, folder, nodes })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process, with its log.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Lets a node's agent ask for any identity of the mesh; returns its token.
    pub fn add_node(&self, node: &str) -> Result<String> {
        self.allow(node, &[&format!("spiffe://{TRUST_DOMAIN}/*")])
    }

    /// Lets a node's agent ask for these identities only (a `*` at the end is any); returns its token.
    pub fn allow(&self, node: &str, identities: &[&str]) -> Result<String> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.to_owned(), identities.iter().map(|&identity| identity.to_owned()).collect());
        write_tokens(&self.folder, &nodes)?;
        Ok(token(node))
    }

    /// Runs `adit-ca COMMAND --store …` with more arguments, as an operator would.
    pub fn command(&self, command: &str, args: &[&str]) -> Result<String> {
        let run = self.netns.command(program("adit-ca")?).args([command, "--store"]);
        run.args([self.folder.join("store")]).args(args).ok()
    }
}

fn token(node: &str) -> String {
    format!("token-of-the-agent-on-{node}")
}

/// The nodes of a CA that ran here before.
fn known_nodes(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let file = folder.join("nodes.json");
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_slice(&fs::read(&file).context("cannot read nodes.json")?).context("nodes.json")
}

fn write_tokens(folder: &Path, nodes: &BTreeMap<String, Vec<String>>) -> Result<()> {
    super::replace(&folder.join("nodes.json"), &serde_json::to_string(nodes)?)?;
    let entries: BTreeMap<&String, Value> = nodes
        .iter()
        .map(|(node, identities)| (node, json!({ "token": token(node), "identities": identities })))
        .collect();
    let text = serde_saphyr::to_string(&json!({ "nodes": entries })).context("the token file")?;
    let fresh = folder.join(".tokens.fresh");
    // The CA refuses a token file that others may read.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .context("cannot write tokens")?;
    file.write_all(text.as_bytes()).context("cannot write tokens")?;
    fs::rename(&fresh, folder.join("tokens.yaml")).context("cannot write tokens")
}
