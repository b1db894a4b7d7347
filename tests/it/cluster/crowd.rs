//! Many pods: 200 that are made under load, and 100 that are made and deleted one after the other.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use adit_tests::cluster::{Cluster, Node};
use adit_tests::sniffer::Sniffer;
use anyhow::{Context, Result, bail, ensure};

use super::agents::AGENT;
use super::bed::Bed;
use super::shop::{IMAGE, SHOP, Shop};

/// A node takes 110.
const PODS: usize = 200;
/// The port on which they serve pages.
const PORT: u16 = 8080;

/// A Deployment of pods that serve pages, behind a Service.
fn crowd(name: &str, replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {SHOP}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      serviceAccountName: server
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
        - name: pages
          image: \"{IMAGE}\"
          imagePullPolicy: Never
          command: [/usr/sbin/nginx]
          readinessProbe: {{httpGet: {{path: /, port: {PORT}}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {SHOP}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: {PORT}}}]}}
"
    )
}

/// The port and the address that a packet of IPv4 and TCP is for.
fn destination(packet: &[u8]) -> Option<(Ipv4Addr, u16)> {
    const ETHERNET: usize = 14;
    let ip = packet.get(ETHERNET..)?;
    if packet.get(12..14)? != [0x08, 0x00] || *ip.get(9)? != 6 {
        return None;
    }
    let to = Ipv4Addr::new(*ip.get(16)?, *ip.get(17)?, *ip.get(18)?, *ip.get(19)?);
    let tcp = ip.get(usize::from(ip[0] & 0xf) * 4..)?;
    Some((to, u16::from_be_bytes([*tcp.get(2)?, *tcp.get(3)?])))
}

/// How many packets for the pods' port went over the links between the nodes while something was done.
fn in_clear(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let is_to_pods = |packet: &[u8]| {
        destination(packet).is_some_and(|(to, port)| port == PORT && to.octets()[..2] == [10, 244])
    };
    let sniffer = Sniffer::start_where(cluster.network().control(), is_to_pods)?;
    work()?;
    Ok(sniffer.stop()?.whole()?.len())
}

#[test]
fn of_200_pods_made_under_load_no_packet_to_their_port_is_seen_in_clear() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    let seen = in_clear(cluster, || shop.call("").map(drop))?;
    ensure!(seen > 0, "without the mesh they are seen");
    shop.label(true)?;
    cluster.apply(&crowd("crowd", 0))?;
    let path = "jsonpath={.spec.clusterIP}";
    let service = cluster.kubectl(["get", "service", "-n", SHOP, "crowd", "-o", path])?;
    let seen = in_clear(cluster, || {
        let calls = format!("while :; do curl -s -m 5 http://{service}/ || echo no; done");
        let calling = shop.start(&["sh", "-c", &calls])?;
        // In two waves of 50 a node: more at once, on two cores in all, and pods wait longer for the processor than the
        // kubelet and the plugin wait for them.
        for replicas in [PODS / 2, PODS] {
            cluster.kubectl(["scale", "-n", SHOP, "deployment/crowd", &format!("--replicas={replicas}")])?;
            // More than a wait for one pod may be.
            let rollout = ["rollout", "status", "-n", SHOP, "deployment/crowd", "--timeout=400s"];
            cluster.kubectl_command(rollout).bound(std::time::Duration::from_secs(420)).ok()?;
        }
        let answers = calling.log();
        let who: std::collections::BTreeSet<&String> = answers.iter().filter(|said| *said != "no").collect();
        println!("{} calls answered by {} pods", answers.len(), who.len());
        ensure!(who.len() > 10, "many of them were called: {}", who.len());
        Ok(())
    })?;
    ensure!(seen == 0, "{seen} packets in clear");
    let path = "jsonpath={range .items[*]}{.metadata.annotations.adit\\.dev/capture}{\"\\n\"}{end}";
    let said = cluster.kubectl(["get", "pods", "-n", SHOP, "-l", "app=crowd", "-o", path])?;
    let captured = said.lines().filter(|said| *said == "enabled").count();
    ensure!(captured == PODS, "{captured} captured");
    Ok(())
}

/// What an agent and its node hold that could be left behind.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Namespaces, addresses and records of the plugins, entries of the journal.
    of_pods: [usize; 4],
    descriptors: usize,
    threads: usize,
    memory_kib: usize,
}

impl Held {
    fn now(node: &Node) -> Result<Self> {
        let [agent] = node.processes(AGENT)?[..] else { bail!("a node has one agent") };
        let entries = |folder: &Path| {
            fs::read_dir(folder).map(Iterator::count).with_context(|| folder.display().to_string())
        };
        let status = fs::read_to_string(format!("/proc/{agent}/status")).context("the agent's status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
            number.with_context(|| format!("no {name} in {status}"))
        };
        let folders =
            ["/run/netns", "/var/lib/cni/networks/bridge", "/var/lib/cni/results", "/run/adit/journal"];
        let mut of_pods = [0; 4];
        for (count, folder) in of_pods.iter_mut().zip(folders) {
            *count = entries(&node.file(folder)?)?;
        }
        Ok(Self {
            of_pods,
            descriptors: entries(Path::new(&format!("/proc/{agent}/fd")))?,
            threads: number("Threads:")?,
            memory_kib: number("VmRSS:")?,
        })
    }

    /// Waits until nothing of pods is held but what was `before`, and until `settled` of the rest.
    fn wait(cluster: &Cluster, node: &Node, before: &Self, settled: impl Fn(&Self) -> bool) -> Result<Self> {
        let waited = cluster.until("that nothing more is held than before", || {
            let now = Self::now(node)?;
            Ok((now.of_pods == before.of_pods && settled(&now)).then_some(now))
        });
        waited.with_context(|| format!("{before:?} became {:?}", Self::now(node)))
    }
}

#[test]
fn of_100_pods_that_come_and_go_nothing_is_left() -> Result<()> {
    const ROUNDS: usize = 10;
    const EACH: usize = 10;
    /// What the allocator may keep for the next ones.
    const MEMORY_KIB: usize = 4096;
    /// Connections of the agent's own that come and go. One left by each pod were 45 on a node.
    const DESCRIPTORS: usize = 10;
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    cluster.apply(&crowd("wave", 0))?;
    let all = || cluster.nodes().map(|(_, node)| Held::now(node)).collect::<Result<Vec<_>>>();
    let before = all()?;
    let mut first = Vec::new();
    for _ in 0..ROUNDS {
        let scale = |replicas: usize| {
            cluster.kubectl(["scale", "-n", SHOP, "deployment/wave", &format!("--replicas={replicas}")])
        };
        scale(EACH)?;
        cluster.kubectl(["rollout", "status", "-n", SHOP, "deployment/wave", "--timeout=60s"])?;
        scale(0)?;
        cluster.until("that they are gone", || {
            let left = cluster.kubectl(["get", "pods", "-n", SHOP, "-l", "app=wave", "-o", "name"])?;
            Ok(left.is_empty().then_some(()))
        })?;
        if first.is_empty() {
            let settled = cluster.nodes().zip(&before);
            first = settled
                .map(|((_, node), before)| Held::wait(cluster, node, before, |_| true))
                .collect::<Result<_>>()?;
        }
    }
    for (((name, node), before), first) in cluster.nodes().zip(&before).zip(&first) {
        let as_before = |now: &Held| {
            now.descriptors <= first.descriptors + DESCRIPTORS
                && now.threads <= first.threads + DESCRIPTORS
                && now.memory_kib <= first.memory_kib + MEMORY_KIB
        };
        let last = Held::wait(cluster, node, before, as_before).with_context(|| format!("{first:?}"))?;
        println!("{name}: {first:?} after the first {EACH}, {last:?} after {}", ROUNDS * EACH);
    }
    Ok(())
}
