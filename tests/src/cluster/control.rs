//! The control plane: etcd, API server, controller manager, scheduler and DNS, in one namespace.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::network::{CONTROL, Network};
use super::pki::Pki;
use super::programs::Programs;
use crate::WAIT_MAX;
use crate::process::{Process, Run};

/// The programs that run.
#[derive(Debug)]
pub(super) struct ControlPlane {
    // The API server first: the others are useless without it.
    api_server: Option<Process>,
    controllers: Process,
    scheduler: Process,
    dns: Process,
    etcd: Process,
}

impl ControlPlane {
    pub(super) fn start(programs: &Programs, network: &Network, pki: &Pki, folder: &Path) -> Result<Self> {
        let families = network.families();
        let etcd = etcd(programs, network, &folder.join("etcd")).spawn()?;
        let api_server = api_server(programs, network, pki).spawn()?;
        let mut starting = Some(api_server);
        wait_until_it_serves(programs, network, pki, &mut starting)?;
        let controllers = network
            .control()
            .command(programs.kubernetes("kube-controller-manager"))
            .args(["--use-service-account-credentials", "--leader-elect=false"])
            // A node that is gone is noticed while a test waits for it, not after 40 s.
            .args(["--node-monitor-grace-period=20s"])
            // Pods' ranges are the CNI plugin's here.
            .args(["--allocate-node-cidrs=false", "--cluster-cidr", families.pods()])
            .args([option("--kubeconfig", &pki.kubeconfig("controller-manager"))])
            .args([option("--service-account-private-key-file", &pki.file("tokens.key"))])
            .args([option("--root-ca-file", &pki.authority())])
            .spawn()?;
        let scheduler = network
            .control()
            .command(programs.kubernetes("kube-scheduler"))
            .args(["--leader-elect=false"])
            .args([option("--kubeconfig", &pki.kubeconfig("scheduler"))])
            .spawn()?;
        let dns = dns(programs, network, pki, folder)?.spawn()?;
        Ok(Self { api_server: starting, controllers, scheduler, dns, etcd })
    }

    /// What each said last.
    pub(super) fn last_words(&self) -> Vec<String> {
        let api_server = self.api_server.iter().map(|process| ("kube-apiserver", process));
        let others = [
            ("kube-controller-manager", &self.controllers),
            ("kube-scheduler", &self.scheduler),
            ("coredns", &self.dns),
            ("etcd", &self.etcd),
        ];
        api_server.chain(others).map(|(name, process)| last_words(name, process)).collect()
    }

    pub(super) fn kill_api_server(&mut self) -> Result<()> {
        self.api_server.take().map(drop).context("the API server does not run")
    }

    pub(super) fn signal_api_server(&self, signal: Signal) -> Result<()> {
        self.api_server.as_ref().context("the API server does not run")?.signal(signal)
    }

    pub(super) fn start_api_server(
        &mut self,
        programs: &Programs,
        network: &Network,
        pki: &Pki,
    ) -> Result<()> {
        if self.api_server.is_some() {
            bail!("the API server runs");
        }
        self.api_server = Some(api_server(programs, network, pki).spawn()?);
        wait_until_it_serves(programs, network, pki, &mut self.api_server)
    }
}

/// The last lines of a program of the cluster.
pub(super) fn last_words(name: &str, process: &Process) -> String {
    const LINES: usize = 15;
    let log = process.log();
    let lines = log.iter().skip(log.len().saturating_sub(LINES));
    let lines: String = lines.map(|line| format!("  {line}\n")).collect();
    format!("==== {name}\n{lines}")
}

/// `NAME=FILE`.
pub(super) fn option(name: &str, file: &Path) -> String {
    format!("{name}={}", file.display())
}

fn etcd(programs: &Programs, network: &Network, folder: &Path) -> Run {
    network
        .control()
        .command(programs.etcd())
        .args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"])
        .args(["--listen-peer-urls=http://127.0.0.1:2380"])
        // What it keeps is gone with the cluster in any case.
        .args(["--unsafe-no-fsync", "--log-level=warn"])
        .args([option("--data-dir", folder)])
}

fn api_server(programs: &Programs, network: &Network, pki: &Pki) -> Run {
    network
        .control()
        .command(programs.kubernetes("kube-apiserver"))
        .args(["--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443", "--bind-address=0.0.0.0"])
        .args([format!("--advertise-address={CONTROL}")])
        .args([format!("--service-cluster-ip-range={}", network.families().services())])
        .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
        .args(["--allow-privileged", "--profiling=false"])
        // `kubectl exec` and `logs` would look up the nodes' names in DNS.
        .args(["--kubelet-preferred-address-types=InternalIP"])
        // No kube-proxy runs here: webhooks are called at their endpoints.
        .args(["--enable-aggregator-routing"])
        .args(["--service-account-issuer=https://kubernetes.default.svc"])
        .args([option("--client-ca-file", &pki.authority())])
        .args([option("--tls-cert-file", &pki.certificate("api-server"))])
        .args([option("--tls-private-key-file", &pki.key("api-server"))])
        .args([option("--service-account-key-file", &pki.file("tokens.pub"))])
        .args([option("--service-account-signing-key-file", &pki.file("tokens.key"))])
        .args([option("--kubelet-client-certificate", &pki.certificate("admin"))])
        .args([option("--kubelet-client-key", &pki.key("admin"))])
}

fn dns(programs: &Programs, network: &Network, pki: &Pki, folder: &Path) -> Result<Run> {
    let file = folder.join("Corefile");
    let text = format!(
        ".:53 {{\n bind {CONTROL}\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n  kubeconfig {config}\n  \
         pods insecure\n  ttl 2\n }}\n}}\n",
        config = pki.kubeconfig("admin").display()
    );
    fs::write(&file, text).context("cannot write the DNS server's configuration")?;
    Ok(network.control().command(programs.coredns()).args(["-conf".as_ref(), file.as_os_str()]))
}

/// Waits until the API server says that it is ready; if it ends instead, what it said is the error.
fn wait_until_it_serves(
    programs: &Programs,
    network: &Network,
    pki: &Pki,
    process: &mut Option<Process>,
) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let asked = network
            .control()
            .command(programs.kubernetes("kubectl"))
            .env("KUBECONFIG", pki.kubeconfig("admin"))
            .args(["get", "--raw", "/readyz"])
            .output()?;
        if asked.status.success() && asked.stdout == "ok" {
            return Ok(());
        }
        let Some(running) = process else { bail!("the API server was not started") };
        if !running.is_running()? {
            bail!("kube-apiserver ended\n{}", last_words("kube-apiserver", running));
        }
        if Instant::now() >= deadline {
            bail!(
                "kube-apiserver is not ready within {WAIT_MAX:?}: {}\n{}",
                asked.stderr.trim(),
                last_words("kube-apiserver", running)
            );
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
