//! A node: network, mount, PID, UTS and IPC namespaces held by a process 1 of its own, and in them containerd, kubelet and
//! kube-proxy. When process 1 dies, the node is gone, as in a power cut: its `/run` too, but not its disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::control::option;
use super::network::{CONTROL, Families, Network, pod_ranges};
use super::pki::{self, Pki};
use super::programs::Programs;
use super::{cgroups, control};
use crate::WAIT_MAX;
use crate::netns::Netns;
use crate::process::{Output, Process, Run};

/// What a node is made of.
pub(super) struct Plan<'a> {
    pub(super) number: u8,
    pub(super) programs: &'a Programs,
    pub(super) network: &'a Network,
    pub(super) pki: &'a Pki,
    pub(super) families: Families,
    /// Its disk, and below it what it sees as its own folders.
    pub(super) folder: PathBuf,
    /// Below which control group its pods are.
    pub(super) cgroup: String,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    // Ended in this order: a kubelet without a runtime would only complain.
    proxy: Daemon,
    kubelet: Daemon,
    containerd: Daemon,
    /// The client of containerd's.
    ctr: PathBuf,
    /// Holds the namespaces: the parent of process 1.
    _holder: Process,
    /// Process 1, as the sandbox counts.
    init: Pid,
    netns: Netns,
    name: String,
    folder: PathBuf,
    /// Below which control group its pods are.
    cgroup: String,
}

/// The folders that a node has of its own, and which of its disk's they are. `/run` is memory: it is emptied at every start.
const OWN: [(&str, &str); 7] = [
    ("/run", "run"),
    ("/etc/cni", "etc-cni"),
    ("/opt/cni", "opt-cni"),
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/cni", "lib-cni"),
    ("/var/log/pods", "log-pods"),
    ("/var/log/containers", "log-containers"),
];
/// Adit's own, as on a real node.
const OWN_OF_ADIT: (&str, &str) = ("/var/lib/adit", "lib-adit");
const SOCKET: &str = "/run/containerd/containerd.sock";

impl Node {
    pub(super) fn start(plan: &Plan<'_>) -> Result<Self> {
        let name = format!("node{}", plan.number);
        let netns = plan.network.add_node(plan.number)?;
        prepare(plan)?;
        cgroups::make(&plan.cgroup)?;
        let group = cgroups::make_system(&plan.cgroup)?;
        plan.pki.issue_node(plan.number)?;
        let holder = hold_namespaces(plan, &netns, &name)?;
        let init = process_1_of(&holder)?;
        let path = format!(
            "{}:{}",
            plan.programs.containerd_folder().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let start = |program: PathBuf, args: Vec<String>| {
            let (netns, path, group) = (netns.clone(), path.clone(), group.clone());
            Daemon::start(Command { netns, init, program, args, path, group })
        };
        let containerd = start(
            plan.programs.containerd("containerd"),
            vec![option("--config", &containerd_config(plan)?)],
        )?;
        let ctr = plan.programs.containerd("ctr");
        wait_for_containerd(&netns, init, &ctr, &containerd)?;
        let kubelet = vec![
            option("--config", &kubelet_config(plan)?),
            option("--kubeconfig", &plan.pki.kubeconfig(&name)),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", pki::node_ip(plan.number, plan.families)),
        ];
        let kubelet = start(plan.programs.kubernetes("kubelet"), kubelet)?;
        let proxy = vec![option("--config", &proxy_config(plan, &name)?)];
        let proxy = start(plan.programs.kubernetes("kube-proxy"), proxy)?;
        let (folder, cgroup) = (plan.folder.clone(), plan.cgroup.clone());
        Ok(Self { proxy, kubelet, containerd, ctr, _holder: holder, init, netns, name, folder, cgroup })
    }

    /// Its network namespace.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its process 1, as the sandbox counts.
    pub const fn init(&self) -> Pid {
        self.init
    }

    /// What it sees at `path`, one of the folders of its own, as the sandbox finds it.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let own =
            OWN.iter().chain([&OWN_OF_ADIT]).find_map(|(seen, own)| Some((path.strip_prefix(seen)?, own)));
        let (rest, own) = own.with_context(|| format!("{path} is in no folder of a node's own"))?;
        Ok(self.folder.join(own).join(rest.trim_start_matches('/')))
    }

    /// A command to be run in all its namespaces.
    pub fn command(&self, program: impl AsRef<Path>) -> Run {
        enter(&self.netns, self.init, program.as_ref())
    }

    /// The processes in pods of the node whose command line begins so, as the sandbox counts; not the children of these,
    /// which have it too until they run their own program.
    pub fn processes(&self, command: &str) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot list processes")? {
            let folder = entry.context("cannot list processes")?.path();
            let Some(id) = folder.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            // One that has ended meanwhile is none.
            let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
            let is_it = read("cmdline").replace('\0', " ").starts_with(command);
            if is_it && read("cgroup").contains(&format!("{}/", self.cgroup)) {
                found.push((Pid::from_raw(id), parent(&read("stat"))));
            }
        }
        let ids: Vec<Pid> = found.iter().map(|(id, _)| *id).collect();
        found.retain(|(_, parent)| !parent.is_some_and(|parent| ids.contains(&parent)));
        let mut found: Vec<Pid> = found.into_iter().map(|(id, _)| id).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The process that holds the sandbox of a process in a pod.
    pub fn sandbox_of(&self, process: Pid) -> Result<Pid> {
        let namespace = |process: Pid| fs::read_link(format!("/proc/{process}/ns/net"));
        let wanted = namespace(process).with_context(|| format!("no process {process}"))?;
        let is_its = |pause: &Pid| namespace(*pause).is_ok_and(|read| read == wanted);
        let pause = self.processes("/pause")?.into_iter().find(is_its);
        pause.with_context(|| format!("process {process} is in no sandbox of {}", self.name))
    }

    /// A command to be run in the container of a process: what its own programs would see, and without the API server.
    pub fn inside(&self, process: Pid, program: &str) -> Run {
        Run::here("nsenter").args(["-t", &process.to_string(), "-m", "-n", "-p", "--", program])
    }

    /// Kills a program of the node and starts it again, as an upgrade or a supervisor does: `kubelet`, `containerd` or
    /// `kube-proxy`. Containers go on meanwhile.
    pub fn restart(&mut self, program: &str) -> Result<()> {
        let daemon = match program {
            "kubelet" => &mut self.kubelet,
            "containerd" => &mut self.containerd,
            "kube-proxy" => &mut self.proxy,
            other => bail!("{other} is no program of a node"),
        };
        daemon.restart()?;
        wait_for_containerd(&self.netns, self.init, &self.ctr, &self.containerd)
    }

    pub(super) fn last_words(&self) -> Vec<String> {
        let all = [("kubelet", &self.kubelet), ("containerd", &self.containerd), ("kube-proxy", &self.proxy)];
        all.map(|(program, daemon)| control::last_words(&format!("{} {program}", self.name), &daemon.process))
            .to_vec()
    }

    pub(super) fn load_image(&self, archive: &Path) -> Result<()> {
        self.command(&self.ctr)
            .args(["--namespace=k8s.io", "images", "import", "--local"])
            .args([archive])
            .ok()
            .map(drop)
            .with_context(|| format!("{} does not load into {}", archive.display(), self.name))
    }

    pub(super) fn crash(self) -> Result<()> {
        kill(self.init, Signal::SIGKILL).with_context(|| format!("cannot end {}", self.name))?;
        // Dropped: the programs of it, all of them dead by now, are reaped.
        Ok(())
    }
}

/// How a program of a node is started.
#[derive(Debug)]
struct Command {
    netns: Netns,
    init: Pid,
    program: PathBuf,
    args: Vec<String>,
    /// Where it finds others.
    path: String,
    /// The files by which it joins the node's own control group.
    group: Vec<PathBuf>,
}

impl Command {
    fn spawn(&self) -> Result<Process> {
        let join: String = self.group.iter().map(|file| format!("echo 0 > {}\n", file.display())).collect();
        let run = enter(&self.netns, self.init, Path::new("sh")).env("PATH", &self.path);
        run.args(["-c", &format!("{join}exec \"$0\" \"$@\"")]).args([&self.program]).args(&self.args).spawn()
    }
}

/// A program that runs on a node until it is ended with its group.
#[derive(Debug)]
struct Daemon {
    process: Process,
    command: Command,
}

impl Daemon {
    fn start(command: Command) -> Result<Self> {
        Ok(Self { process: command.spawn()?, command })
    }

    fn restart(&mut self) -> Result<()> {
        // `nsenter` waits for it, and is of its group: whoever kills the group kills both.
        self.process.kill();
        self.process = self.command.spawn()?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Dead already where it crashed; with process 1 go all of the node, containers included.
        let _ = kill(self.init, Signal::SIGKILL);
    }
}

/// `nsenter`, not `ip netns exec`: that mounts `/sys` anew, and the kubelet finds no control groups.
fn enter(netns: &Netns, init: Pid, program: &Path) -> Run {
    netns.command("nsenter").args(["-t", &init.to_string(), "-m", "-p", "-u", "-i", "--"]).args([program])
}

/// Its folders, the plugins and their configuration. What was on its disk stays; what was in memory does not.
fn prepare(plan: &Plan<'_>) -> Result<()> {
    let run = plan.folder.join("run");
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("cannot empty {}", run.display()))?;
    }
    for (seen, own) in OWN.iter().chain([&OWN_OF_ADIT]) {
        fs::create_dir_all(plan.folder.join(own)).context("cannot make a folder of the node")?;
        // In the sandbox's own view of the disk, which is the machine's: what is missing is made, empty.
        fs::create_dir_all(seen).with_context(|| format!("cannot make {seen}"))?;
    }
    // `run/tmp`: where the runtime puts what it hands over, as TMPDIR says in a sandbox.
    for folder in
        ["run/netns", "run/lock", "run/tmp", "etc-cni/net.d", "opt-cni/bin", "containerd", "manifests"]
    {
        fs::create_dir_all(plan.folder.join(folder)).context("cannot make a folder of the node")?;
    }
    for plugin in ["bridge", "loopback", "portmap", "host-local"] {
        let to = plan.folder.join("opt-cni/bin").join(plugin);
        fs::copy(plan.programs.plugins().join(plugin), &to)
            .with_context(|| format!("cannot put {} in place", to.display()))?;
    }
    let list = plan.folder.join("etc-cni/net.d/10-bridge.conflist");
    // A node that comes back has the one that it had.
    if !list.exists() {
        fs::write(&list, format!("{:#}\n", network_list(plan))).context("cannot write the network's list")?;
    }
    Ok(())
}

fn network_list(plan: &Plan<'_>) -> Value {
    let ranges: Vec<Value> = pod_ranges(plan.number, plan.families)
        .into_iter()
        .map(|range| json!([{ "subnet": range }]))
        .collect();
    let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
    if plan.families == Families::Dual {
        routes.push(json!({ "dst": "::/0" }));
    }
    json!({ "cniVersion": "1.0.0", "name": "bridge", "plugins": [
        { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
          "ipam": { "type": "host-local", "ranges": ranges, "routes": routes } },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]})
}

/// Makes the namespaces: the shell mounts, and becomes process 1.
fn hold_namespaces(plan: &Plan<'_>, netns: &Netns, name: &str) -> Result<Process> {
    let binds: String = OWN
        .iter()
        .chain([&OWN_OF_ADIT])
        .map(|(seen, own)| format!("mount --bind {} {seen}\n", plan.folder.join(own).display()))
        .collect();
    // Private first, so that nothing gets out; shared at last, so that what a container mounts is seen by the node.
    let script = format!(
        "set -e\nmount --make-rprivate /\nmount -t proc proc /proc\n{binds}mount --make-rshared /\nhostname {name}\nexec {}\n",
        plan.programs.pause().display()
    );
    netns
        .command("unshare")
        .args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c", &script])
        .spawn()
}

/// The child of the process that holds the namespaces, once it is what it shall be.
fn process_1_of(holder: &Process) -> Result<Pid> {
    let deadline = Instant::now() + WAIT_MAX;
    let children = format!("/proc/{id}/task/{id}/children", id = holder.id());
    loop {
        let child = fs::read_to_string(&children).unwrap_or_default();
        let child = child.split_whitespace().next().and_then(|id| id.parse().ok());
        if let Some(id) = child {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            if name.trim() == "pause" {
                return Ok(Pid::from_raw(id));
            }
        }
        ensure!(Instant::now() < deadline, "the node's namespaces are not made: {:?}", holder.log());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn wait_for_containerd(netns: &Netns, init: Pid, ctr: &Path, containerd: &Daemon) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let Output { status, stderr, .. } = enter(netns, init, ctr).args(["version"]).output()?;
        if status.success() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{}\n{}", stderr.trim(), control::last_words("containerd", &containerd.process));
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn containerd_config(plan: &Plan<'_>) -> Result<PathBuf> {
    let text = format!(
        r#"version = 3
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{SOCKET}"
[ttrpc]
  address = "{SOCKET}.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:1"
# Where CAP_SYS_RESOURCE is missing, runc fails on oom_score_adj otherwise.
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    BinaryName = "{runc}"
    SystemdCgroup = false
"#,
        root = plan.folder.join("containerd").display(),
        runc = plan.programs.runc().display()
    );
    write(plan, "containerd.toml", &text)
}

fn kubelet_config(plan: &Plan<'_>) -> Result<PathBuf> {
    let name = format!("node{}", plan.number);
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        // Both versions and both drivers exist in the field; this is a machine without systemd.
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", plan.cgroup),
        "cgroupsPerQOS": true, "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "authentication": {
            "x509": { "clientCAFile": plan.pki.authority() },
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": plan.pki.certificate(&name), "tlsPrivateKeyFile": plan.pki.key(&name),
        "staticPodPath": plan.folder.join("manifests"),
        "clusterDomain": "cluster.local", "clusterDNS": [CONTROL.to_string()], "resolvConf": "",
        "failSwapOn": false, "localStorageCapacityIsolation": false, "protectKernelDefaults": false,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi" },
        // Images come from no registry: one that was removed would be gone.
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
    });
    write(plan, "kubelet.yaml", &config.to_string())
}

fn proxy_config(plan: &Plan<'_>, name: &str) -> Result<PathBuf> {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables",
        "clusterCIDR": plan.families.pods(), "hostnameOverride": name,
        "clientConnection": { "kubeconfig": plan.pki.kubeconfig("proxy") },
        // These sysctls are the machine's, not the node's.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s" },
    });
    write(plan, "kube-proxy.yaml", &config.to_string())
}

fn write(plan: &Plan<'_>, name: &str, text: &str) -> Result<PathBuf> {
    let file = plan.folder.join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Whose child a process is, by its `/proc/PID/stat` (proc_pid_stat(5)): the second field after the name's parenthesis.
fn parent(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}
