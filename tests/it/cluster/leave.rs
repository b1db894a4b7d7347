//! `kubectl delete -k manifests/` under load, and an agent that is told to end while nobody can say why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use adit_tests::apps::LoadReport;
use adit_tests::apps::lines::LinesReport;
use adit_tests::cluster::{Cluster, Families, Node};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::agents::AGENT;
use super::bed::Bed;
use super::shop::{SHOP, Shop, report};

/// The node of each pod of the pair, and its first process.
const PODS: [(&str, &str); 2] = [("node1", "/usr/bin/sleep"), ("node2", "nginx: master")];

/// The files below a folder, by path; a socket or a lock as its name alone.
pub(crate) fn files_below(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry.context("an entry")?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap_or_default());
            }
        }
    }
    Ok(found)
}

/// What a pod's network namespace is made of: rules, routes, sockets that listen, and settings.
fn state_of(node: &Node, process: Pid) -> Result<BTreeMap<String, String>> {
    let mut state = BTreeMap::new();
    let namespace = format!("/proc/{process}/ns/net");
    for command in [
        // Without counters and comments. An empty table that somebody once looked at is none.
        "for table in raw mangle nat filter; do for save in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do \
         $save -t $table -S 2>/dev/null | grep -v -e '^-P' -e '^#'; done; done; true",
        "ip rule; ip -6 rule",
        "ip route show table all; ip -6 route show table all",
        "ss -lntuH | awk '{print $1, $4, $5}' | sort",
        "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/ip_nonlocal_bind 2>/dev/null; true",
    ] {
        let said = adit_tests::process::Run::here("nsenter")
            .args([&format!("--net={namespace}"), "sh", "-c", command])
            .ok()?;
        state.insert(command.to_owned(), said);
    }
    // Only to say whose it is where it fails.
    state.insert("node".to_owned(), node.netns().name().to_owned());
    Ok(state)
}

/// Waits until no address of the pods is being checked for duplicates any more (RFC 4862 section 5.4): the routes of
/// those come after that.
fn until_settled(cluster: &Cluster) -> Result<()> {
    cluster.until("that no address is tentative", || {
        let mut tentative = String::new();
        for (node, command) in PODS {
            let [process] = cluster.node(node)?.processes(command)?[..] else { return Ok(None) };
            let namespace = format!("--net=/proc/{process}/ns/net");
            let ip = ["ip", "-6", "address", "show", "tentative"];
            tentative +=
                &adit_tests::process::Run::here("nsenter").args([namespace.as_str()]).args(ip).ok()?;
        }
        Ok(tentative.trim().is_empty().then_some(()))
    })
}

/// What both pods are made of, and what the nodes keep of the plugin.
fn state(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let mut state = BTreeMap::new();
    for (node, command) in PODS {
        let node = cluster.node(node)?;
        let [process] = node.processes(command)?[..] else { bail!("one {command}") };
        for (what, said) in state_of(node, process)? {
            state.insert(format!("{command}: {what}"), said);
        }
    }
    for (name, node) in cluster.nodes() {
        for folder in ["/etc/cni/net.d", "/opt/cni/bin"] {
            for (path, bytes) in files_below(&node.file(folder)?)? {
                state.insert(format!("{name}: {}", path.display()), format!("{bytes:?}"));
            }
        }
    }
    Ok(state)
}

/// What is in one of them alone, or differs.
fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let short = |said: Option<&String>| said.map(|said| said.chars().take(4000).collect::<String>());
    differs
        .map(|key| {
            format!("{key}\nbefore: {:#?}\nafter: {:#?}", short(before.get(key)), short(after.get(key)))
        })
        .collect()
}

#[test]
fn a_delete_under_load_fails_nothing_cuts_what_outlives_the_drain_and_leaves_nothing() -> Result<()> {
    let Some(bed) = Bed::bare(Families::V4)? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    until_settled(cluster)?;
    let before = state(cluster)?;
    cluster.install_mesh()?;
    shop.label(true)?;
    ensure!(
        !difference(&before, &state(cluster)?).is_empty(),
        "captured pods are seen to be other than before"
    );

    let logs = ["node1", "node2"].map(|node| cluster.follow_agent(node));
    let logs = logs.into_iter().collect::<Result<Vec<_>>>()?;
    let (short, long) = (shop.start_lines(15)?, shop.start_lines(120)?);
    let load = shop.start_load(60)?;
    cluster.remove_mesh()?;
    let short: LinesReport = report(&short)?;
    ensure!(short.whole == 20, "what ends within the drain ends by itself: {short:?}");
    let long: LinesReport = report(&long)?;
    ensure!(long.whole == 0 && long.failures() == 20, "what outlives it is cut: {long:?}");
    let load: LoadReport = report(&load)?;
    println!("{} new connections answered, {} failed", load.ok, load.failures());
    ensure!(load.ok > 0 && load.failures() == 0, "{load:?}");
    let drained =
        |log: &adit_tests::process::Process| log.log().iter().filter(|line| line.contains("drained")).count();
    let drained: usize = logs.iter().map(drained).sum();
    ensure!(drained >= 20, "each is told as drained: {drained}");

    let after = cluster.until("that nothing differs from before", || {
        let after = state(cluster)?;
        Ok(difference(&before, &after).is_empty().then_some(after))
    });
    if after.is_err() {
        bail!("left: {:#?}", difference(&before, &state(cluster)?));
    }
    for (name, node) in cluster.nodes() {
        for (folder, word) in [("/run/adit", Some("installer")), ("/var/lib/adit", None)] {
            let folder = node.file(folder)?;
            let left = files_below(&folder)?;
            // Until the node starts again: no installer of an older agent puts the plugin back.
            let is_word = |path: &PathBuf| word.is_some_and(|word| *path == folder.join(word));
            ensure!(left.keys().all(is_word), "{name} still has {:?}", left.keys());
        }
    }
    // Nobody may write them any more; an Adit that comes later does.
    cluster.kubectl(["label", "namespace", SHOP, "adit.dev/mesh-"])?;
    cluster.install_mesh()?;
    let path = "jsonpath={.items[*].metadata.annotations.adit\\.dev/capture}";
    cluster.until("that no pod says that it is captured", || {
        let annotated = cluster.kubectl(["get", "pods", "-n", SHOP, "-o", path])?;
        Ok(annotated.trim().is_empty().then_some(()))
    })
}

#[test]
fn an_agent_that_ends_while_the_api_server_is_away_leaves_its_pods_as_they_are() -> Result<()> {
    let Some(mut bed) = Bed::make()? else { return Ok(()) };
    let place = {
        let shop = Shop::open(&bed.cluster)?;
        shop.label(true)?;
        shop.place()
    };
    until_settled(&bed.cluster)?;
    let captured = state(&bed.cluster)?;
    bed.cluster.kill_api_server()?;
    let cluster = &bed.cluster;
    let [agent] = cluster.node("node2")?.processes(AGENT)?[..] else { bail!("node2 has one agent") };
    kill(agent, Signal::SIGTERM).context("cannot tell the agent")?;
    cluster.until("that another one runs", || {
        let now = cluster.node("node2")?.processes(AGENT)?;
        if now.contains(&agent) {
            // It waits for its successor, of which nobody can tell it; being told again means at once.
            let _ = kill(agent, Signal::SIGTERM);
        }
        Ok(now.first().is_some_and(|now| *now != agent).then_some(()))
    })?;
    let shop = Shop::at(cluster, &place);
    cluster.until("that calls are answered again", || Ok(super::policies::may(&shop)?.then_some(())))?;
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    let left = difference(&captured, &state(cluster)?);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
