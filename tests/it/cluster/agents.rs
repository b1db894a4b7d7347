//! Agents that are replaced, killed, and lose what is around them: what the pods' connections see of it.

use std::time::{Duration, SystemTime};

use adit_tests::apps::LoadReport;
use adit_tests::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::bed::Bed;
use super::shop::{Shop, accepted, nothing_failed, report};

/// As docs/operations.md says.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// An agent's command line.
pub(crate) const AGENT: &str = "/usr/bin/adit-agent";

#[test]
fn a_rolling_upgrade_and_a_deleted_agent_cut_nothing_and_fail_nothing() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    let before = [cluster.agent_pod("node1")?, cluster.agent_pod("node2")?];

    let (lines, load) = (shop.start_lines(45)?, shop.start_load(45)?);
    cluster.kubectl(["-n", "adit-system", "rollout", "restart", "daemonset/adit-agent"])?;
    // Its status would wait for the old ones, which stay as long as what they carry.
    let mut after = Vec::new();
    for (node, before) in ["node1", "node2"].into_iter().zip(&before) {
        after.push(until_replaced(cluster, node, before)?);
    }
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");

    cluster.kubectl(["-n", "adit-system", "delete", "pod", &after[1], "--wait=false"])?;
    until_replaced(cluster, "node2", &after[1])?;
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    println!("{}", nothing_failed(&lines, &load)?);
    // What the old ones carried has ended: so do they.
    cluster.until("that only the new agents are left", || {
        let left = ["node1", "node2"].map(|node| cluster.node(node)?.processes(AGENT));
        Ok(left.into_iter().collect::<Result<Vec<_>>>()?.iter().all(|agents| agents.len() == 1).then_some(()))
    })
}

/// Waits until another agent's pod than this one is ready on a node; its name.
fn until_replaced(cluster: &Cluster, node: &str, before: &str) -> Result<String> {
    cluster.until(&format!("that another agent serves {node}"), || {
        // While two are there, or one has gone, there is no such pod.
        let Ok(another) = cluster.agent_pod(node) else { return Ok(None) };
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let ready = cluster.kubectl(["-n", "adit-system", "get", "pod", &another, "-o", path])?;
        Ok((another != before && ready == "True").then_some(another))
    })
}

#[test]
fn after_a_kill_of_the_agent_new_connections_work_again_within_2_s() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    for node in ["node1", "node2"] {
        let begun = SystemTime::now();
        let load = shop.start_load(15)?;
        cluster
            .until("that the load runs", || Ok((shop.flows_since(node, begun)?.len() > 50).then_some(())))?;
        let [agent] = cluster.node(node)?.processes(AGENT)?[..] else {
            anyhow::bail!("{node} has one agent")
        };
        kill(agent, Signal::SIGKILL).context("cannot kill the agent")?;
        let said: LoadReport = report(&load)?;
        let failing = said.failing_us.map_or(0, |(from, until)| until - from);
        let (failing, slowest) = (Duration::from_micros(failing), Duration::from_micros(said.max_us));
        println!(
            "{node}: {} answered, failing for {failing:?}, slowest {slowest:?}: {:?}",
            said.ok, said.failed
        );
        ensure!(failing <= BACK_WITHIN && slowest <= BACK_WITHIN, "{node}: {said:?}");
        let [again] = cluster.node(node)?.processes(AGENT)?[..] else {
            anyhow::bail!("{node} has one agent")
        };
        ensure!(again != agent, "it was killed");
        ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    }
    Ok(())
}

#[test]
fn restarts_of_runtime_and_kubelet_disturb_nothing_and_a_sandbox_made_anew_is_captured() -> Result<()> {
    let Some(mut bed) = Bed::make()? else { return Ok(()) };
    let shop = Shop::open(&bed.cluster)?;
    shop.label(true)?;
    let (lines, load) = (shop.start_lines(30)?, shop.start_load(30)?);
    let place = shop.place();
    for node in ["node1", "node2"] {
        for program in ["containerd", "kubelet"] {
            bed.cluster.node_mut(node)?.restart(program)?;
        }
    }
    let cluster = &bed.cluster;
    let shop = Shop::at(cluster, &place);
    println!("{}", nothing_failed(&lines, &load)?);
    cluster.wait_ready()?;

    // The sandbox of the server: its first process of all.
    let before = shop.containers()?;
    let [page, ..] = cluster.node("node2")?.processes("nginx: master")?[..] else {
        anyhow::bail!("node2 serves pages")
    };
    let sandbox = cluster.node("node2")?.sandbox_of(page)?;
    kill(sandbox, Signal::SIGKILL).context("cannot kill the sandbox")?;
    let killed = SystemTime::now();
    shop.until_again(&before)?;
    cluster.until("that it answers", || shop.call("").map(Some))?;
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    let server = "spiffe://cluster.local/ns/shop/sa/server";
    shop.until_flow("node2", "a call to its identity", |flow| {
        flow.direction == "inbound"
            && flow.tls.is_some()
            && accepted(flow).is_ok_and(|at| at > killed)
            && flow.destination.identity.as_deref() == Some(server)
    })
    .map(drop)
}

#[test]
fn a_node_that_comes_back_starts_its_pods_captured_and_shows_no_clear_byte() -> Result<()> {
    let Some(mut bed) = Bed::make()? else { return Ok(()) };
    let shop = Shop::open(&bed.cluster)?;
    shop.label(true)?;
    let before = shop.containers()?;
    let place = shop.place();
    let annotations = shop.annotations()?;
    annotations.wait_for_line("the server's annotation", |line| line == "server=enabled")?;
    bed.cluster.crash("node2")?;
    let marking = Shop::at(&bed.cluster, &place).start_marking()?;
    bed.cluster.bring_back("node2")?;
    let cluster = &bed.cluster;
    let shop = Shop::at(cluster, &place);
    cluster.wait_ready()?;
    shop.until_again(&before)?;
    cluster.wait_mesh_ready()?;
    cluster.until("an answer of the new sandbox's", || Ok((marking.answers() > 0).then_some(())))?;
    let (answered, seen) = marking.stop()?;
    println!("{answered} answers with the marker, readable in {seen} packets");
    if seen > 0 {
        for node in ["node1", "node2"] {
            shop.flows(node)?
                .iter()
                .filter(|flow| flow.transport == "plaintext")
                .for_each(|flow| println!("{node}: {flow:?}"));
        }
    }
    ensure!(answered > 0 && seen == 0, "{answered} answered, {seen} packets in clear");
    // Else peers would have sent in clear meanwhile, to the address of before.
    let said: Vec<_> = annotations.log().into_iter().filter(|line| line.starts_with("server=")).collect();
    ensure!(said.len() > 1 && said.iter().all(|line| line == "server=enabled"), "{said:?}");
    Ok(())
}
