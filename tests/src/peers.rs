//! The peer that shares no code with Adit: the Go program tests/cluster/peers, as client and server of both wires.
//!
//! It is built beside the other programs, again whenever it is older than its sources.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::mesh::{Mesh, Pod, TRUST_DOMAIN};
use crate::netns::Netns;
use crate::process::{Output, Process, Run, program};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/peers");

/// Builds the program if it is missing or older than its sources; returns where it lies.
///
/// In a sandbox there is no network: modules must be in Go's cache by then, so `cargo xtask test` builds it before.
pub fn build() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = &*built {
        return Ok(program.clone());
    }
    let beside = program("inside")?;
    let file = beside.parent().context("a program lies in a folder")?.join("peers");
    if !is_newer(&file, Path::new(SOURCES))? {
        compile(&file)?;
    }
    Ok(built.insert(file).clone())
}

fn is_newer(file: &Path, sources: &Path) -> Result<bool> {
    let changed = |file: &Path| -> Result<SystemTime> {
        let metadata = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
        metadata.modified().context("a file has a time")
    };
    if !file.is_file() {
        return Ok(false);
    }
    let built = changed(file)?;
    for source in fs::read_dir(sources).with_context(|| format!("cannot list {}", sources.display()))? {
        if changed(&source.context("cannot list the sources")?.path())? > built {
            return Ok(false);
        }
    }
    Ok(true)
}

fn compile(file: &Path) -> Result<()> {
    // Built under another name and renamed: a build that is killed leaves nothing that looks done.
    let fresh = file.with_extension(format!("{}.fresh", std::process::id()));
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&fresh).arg(".").current_dir(SOURCES);
    // The sandbox has no user's home.
    if std::env::var_os("HOME").is_none() {
        go.env("HOME", "/root");
    }
    let output = match go.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "the peers in tests/cluster/peers need Go: https://go.dev/dl, version 1.26 or later, `go` on the PATH"
            )
        }
        Err(error) => return Err(error).context("cannot start go"),
    };
    if !output.status.success() {
        bail!("`go build` in {SOURCES} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    fs::rename(&fresh, file).with_context(|| format!("cannot write {}", file.display()))
}

/// `peers COMMAND`, to be run in `netns`.
pub fn command(netns: &Netns, command: &str) -> Result<Run> {
    Ok(netns.command(build()?).args([command]))
}

/// Files of one certificate.
#[derive(Clone, Debug)]
pub struct Credentials {
    prefix: PathBuf,
}

impl Credentials {
    /// Those that are, or will be, in `PREFIX.crt`, `PREFIX.key` and `PREFIX.root`.
    pub fn at(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.prefix.with_extension(suffix)
    }

    /// The root that came with the chain.
    pub fn root(&self) -> PathBuf {
        self.file("root")
    }

    /// Flags that name the certificate, its key, and `bundle`, whom to trust.
    pub fn flags(&self, bundle: &Path) -> [String; 6] {
        let text = |path: &Path| path.display().to_string();
        let [cert, key] = [self.file("crt"), self.file("key")].map(|file| text(&file));
        ["--cert".to_owned(), cert, "--key".to_owned(), key, "--bundle".to_owned(), text(bundle)]
    }

    /// What go-spiffe says of it: its fields, or an error. Before that, where `bundle` is a SPIFFE bundle (`.json`), what
    /// is in that.
    pub fn verify(&self, netns: &Netns, bundle: &Path, expected: &str) -> Result<Vec<Value>> {
        let said = command(netns, "verify")?.args(self.flags(bundle)).args(["--expect", expected]).ok()?;
        let lines = said.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().with_context(|| format!("`verify` says {said}"))
    }
}

/// A CA to ask over gRPC.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Where it listens.
    pub address: SocketAddr,
    /// PEM with the roots of its server certificate.
    pub roots: PathBuf,
    /// The bearer token to show.
    pub token: String,
}

impl Authority {
    /// Asks for a certificate of `identity` with this life; returns what was answered and where the files lie.
    pub fn ask(
        &self,
        netns: &Netns,
        identity: &str,
        seconds: i64,
        prefix: &Path,
    ) -> Result<(Value, Credentials)> {
        let (address, seconds) = (self.address.to_string(), seconds.to_string());
        let said = command(netns, "ca-client")?
            .args(["--addr", &address, "--token", &self.token, "--id", identity, "--seconds", &seconds])
            .args(["--bundle".as_ref(), self.roots.as_os_str(), "--out".as_ref(), prefix.as_os_str()])
            .ok()?;
        let answer = serde_json::from_str(&said).with_context(|| format!("`ca-client` says {said}"))?;
        Ok((answer, Credentials::at(prefix.to_owned())))
    }

    /// Gets a certificate; an error if it is refused.
    pub fn issue(&self, netns: &Netns, identity: &str, seconds: i64, prefix: &Path) -> Result<Credentials> {
        let (answer, credentials) = self.ask(netns, identity, seconds, prefix)?;
        if answer["code"] == "OK" {
            Ok(credentials)
        } else {
            bail!("no certificate for {identity}: {answer}")
        }
    }
}

/// A running `hbone-server` or `ca-server`.
#[derive(Debug)]
pub struct Peer {
    process: Process,
}

impl Peer {
    /// Starts it and waits until it listens.
    pub fn start(run: Run) -> Result<Self> {
        let process = run.spawn()?;
        process.wait_for_line("the peer's word that it listens", |line| line.contains("\"listening\""))?;
        Ok(Self { process })
    }

    /// An HBONE server on port 15008 of `netns`, which echoes, or misbehaves as `mode` says.
    pub fn hbone(netns: &Netns, credentials: &Credentials, bundle: &Path, mode: &str) -> Result<Self> {
        let run = command(netns, "hbone-server")?.args(credentials.flags(bundle));
        Self::start(run.args(["--addr", "[::]:15008", "--mode", mode]))
    }

    /// A CA with a root of its own, which issues to whoever shows `token`, for at most `seconds`.
    pub fn ca(netns: &Netns, addr: SocketAddr, domain: &str, token: &str, prefix: &Path) -> Result<Self> {
        let (addr, domain) = (addr.to_string(), format!("spiffe://{domain}"));
        let run = command(netns, "ca-server")?.args(["--addr", &addr, "--id", &domain, "--token", token]);
        Self::start(run.args(["--out".as_ref(), prefix.as_os_str()]))
    }

    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// What it has said so far, one object a line.
    pub fn said(&self) -> Vec<Value> {
        self.process.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// What an HBONE client is to do.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<'t> {
    /// Where it dials.
    pub addr: SocketAddr,
    /// The identity that must answer.
    pub expected: &'t str,
    /// What each CONNECT names.
    pub authority: &'t str,
    /// `echo`, `half-close`, `reset` or `status`.
    pub mode: &'t str,
    /// How many bytes each stream sends.
    pub bytes: usize,
    /// How many streams at once.
    pub streams: usize,
}

impl Tunnel<'_> {
    /// Runs it to its end.
    pub fn output(&self, netns: &Netns, credentials: &Credentials, bundle: &Path) -> Result<Output> {
        let (addr, bytes, streams) =
            (self.addr.to_string(), self.bytes.to_string(), self.streams.to_string());
        command(netns, "hbone-client")?
            .args(credentials.flags(bundle))
            .args(["--addr", &addr, "--expect", self.expected, "--authority", self.authority])
            .args(["--mode", self.mode, "--bytes", &bytes, "--streams", &streams])
            .output()
    }

    /// Runs it to its end; what it says of each stream. An error if it could not do what was asked.
    pub fn run(&self, netns: &Netns, credentials: &Credentials, bundle: &Path) -> Result<Vec<Value>> {
        let output = self.output(netns, credentials, bundle)?;
        if !output.status.success() {
            bail!("the client failed: {}{}", output.stdout, output.stderr);
        }
        let lines = output.stdout.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().with_context(|| format!("the client says {}", output.stdout))
    }
}

/// Says in a node's status file, as its agent would, which pods it has captured.
pub fn play_agent(mesh: &Mesh, node: &str, captured: &[&Pod]) -> Result<()> {
    let uids: Vec<&str> = captured.iter().map(|pod| pod.uid.as_str()).collect();
    let status = serde_json::json!({ "node": node, "version": "played", "captured": uids });
    let yaml = serde_saphyr::to_string(&status).context("a status is no YAML")?;
    replace(mesh, &mesh.directory().join("status").join(format!("{node}.yaml")), &yaml)
}

/// Writes the roots of the mesh's own trust domain as they are published now, as PEM.
pub fn read_bundle(mesh: &Mesh, pem: &Path) -> Result<()> {
    let bundle = published(mesh)?;
    let keys = bundle["trust_domains"][TRUST_DOMAIN]["keys"].as_array().context("no keys")?;
    let roots: String = keys
        .iter()
        .filter_map(|key| key["x5c"][0].as_str())
        .map(|der| format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n"))
        .collect();
    fs::write(pem, roots).with_context(|| format!("cannot write {}", pem.display()))
}

/// Copies the mesh's own SPIFFE bundle out of what its CA has published, as it stands there.
pub fn copy_bundle(mesh: &Mesh, json: &Path) -> Result<()> {
    let bundle = published(mesh)?["trust_domains"][TRUST_DOMAIN].to_string();
    fs::write(json, bundle).with_context(|| format!("cannot write {}", json.display()))
}

fn published(mesh: &Mesh) -> Result<Value> {
    let file = mesh.directory().join("trust-bundle.yaml");
    let yaml = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let config: Value = serde_saphyr::from_str(&yaml).context("the bundle is no YAML")?;
    let bundle = config["data"]["bundle.json"].as_str().context("no bundle.json")?;
    serde_json::from_str(bundle).context("bundle.json")
}

/// Writes the mesh's trust bundle as its CA would, with these PEM roots, one trust domain each.
pub fn write_bundle(mesh: &Mesh, generation: u64, roots: &[(&str, &Path)]) -> Result<()> {
    let mut domains = serde_json::Map::new();
    for (domain, root) in roots {
        let pem = fs::read_to_string(root).with_context(|| format!("cannot read {}", root.display()))?;
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let key = serde_json::json!({ "use": "x509-svid", "kty": "EC", "crv": "P-256", "x5c": [der] });
        let bundle = serde_json::json!({ "keys": [key], "spiffe_sequence": generation });
        domains.insert((*domain).to_owned(), bundle);
    }
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "adit-trust-bundle", "namespace": "adit-system" },
        "data": {
            "bundle.json": serde_json::json!({ "trust_domains": domains }).to_string(),
            "revoked.json": "[]",
        },
    });
    let yaml = serde_saphyr::to_string(&config).context("the bundle is no YAML")?;
    replace(mesh, &mesh.directory().join("trust-bundle.yaml"), &yaml)
}

fn replace(mesh: &Mesh, file: &Path, text: &str) -> Result<()> {
    let fresh = mesh.folder().join("peers.fresh");
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, file).with_context(|| format!("cannot write {}", file.display()))
}
