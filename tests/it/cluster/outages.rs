//! What the mesh asks of others, the API server and the CA, goes away: what goes on, what waits, and that it catches up.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};

use super::agents::AGENT;
use super::bed::Bed;
use super::callers::Caller;
use super::policies::{may, policy, until_may};
use super::shop::{SHOP, Shop, accepted, nothing_failed};

/// Longer than any time-out of a watch that is asked anew.
const AWAY: Duration = Duration::from_secs(60);

const STRANGER: Caller = Caller { name: "stranger", node: "node2", sleeps: 2_000_000 };
const LATE: [Caller; 3] = [
    Caller { name: "late-a", node: "node1", sleeps: 3_000_001 },
    Caller { name: "late-b", node: "node2", sleeps: 3_000_002 },
    Caller { name: "late-c", node: "node2", sleeps: 3_000_003 },
];

#[test]
fn without_the_api_server_traffic_and_policy_go_on_with_an_agent_and_a_sandbox_made_anew() -> Result<()> {
    let Some(mut bed) = Bed::make()? else { return Ok(()) };
    let place = {
        let shop = Shop::open(&bed.cluster)?;
        bed.cluster.apply(&STRANGER.objects())?;
        STRANGER.wait(&bed.cluster, None)?;
        shop.label(true)?;
        let rules = "{rules: [{from: [{source: {serviceAccounts: [client]}}]}]}";
        bed.cluster.apply(&policy(SHOP, "client-only", rules))?;
        let stranger = STRANGER.wait(&bed.cluster, None)?;
        let url = format!("http://{}/", shop.service);
        bed.cluster.until("that the policy holds", || {
            let asked = STRANGER.ask(&bed.cluster, stranger, &url)?;
            Ok((!asked.status.success() && may(&shop)?).then_some(()))
        })?;
        shop.place()
    };

    bed.cluster.kill_api_server()?;
    let away = Instant::now();
    let cluster = &bed.cluster;
    let shop = Shop::at(cluster, &place);
    let url = format!("http://{}/", place.service());
    let [agent] = cluster.node("node1")?.processes(AGENT)?[..] else { bail!("node1 has one agent") };
    kill(agent, Signal::SIGKILL).context("cannot kill the agent")?;
    cluster.until("that the agent serves again", || {
        let agents = cluster.node("node1")?.processes(AGENT)?;
        Ok((agents.first() != Some(&agent) && may(&shop)?).then_some(()))
    })?;

    let (lines, load) = (shop.start_lines(50)?, shop.start_load(50)?);
    let before = STRANGER.process(cluster)?.context("the stranger runs")?;
    let sandbox = cluster.node("node2")?.sandbox_of(before)?;
    kill(sandbox, Signal::SIGKILL).context("cannot kill the sandbox")?;
    let again = STRANGER.wait(cluster, Some(before))?;
    let since = SystemTime::now();
    let asked = STRANGER.ask(cluster, again, &url)?;
    ensure!(!asked.status.success(), "whom the policy refuses is refused in the new sandbox too: {asked:?}");
    let identity = "spiffe://cluster.local/ns/shop/sa/stranger";
    shop.until_flow("node2", "its refusal, by its identity", |flow| {
        flow.direction == "inbound"
            && flow.source.identity.as_deref() == Some(identity)
            && flow.reason.as_deref() == Some("policy_none_matched")
            && accepted(flow).is_ok_and(|at| at > since)
    })?;
    println!("{}", nothing_failed(&lines, &load)?);
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    std::thread::park_timeout(AWAY.saturating_sub(away.elapsed()));
    ensure!(may(&shop)?, "still");

    bed.cluster.start_api_server()?;
    let cluster = &bed.cluster;
    let shop = Shop::at(cluster, &place);
    let deny = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}";
    cluster.until("that a policy is taken", || cluster.apply(&policy(SHOP, "nobody", deny)).map(Some))?;
    until_may(&shop, false)
}

#[test]
fn without_the_ca_running_pods_go_on_and_new_ones_wait_and_then_come() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    let bundle = ["get", "configmap", "-n", "adit-system", "adit-trust-bundle", "-o", "jsonpath={.data}"];
    let root = cluster.kubectl(bundle)?;
    let scale =
        |replicas: &str| cluster.kubectl(["-n", "adit-system", "scale", "deployment/adit-ca", replicas]);
    scale("--replicas=0")?;
    let selector = "app.kubernetes.io/name=adit-ca";
    cluster.until("that no CA is left", || {
        let left = cluster.kubectl(["get", "pod", "-n", "adit-system", "-l", selector, "-o", "name"])?;
        Ok(left.is_empty().then_some(()))
    })?;
    let (lines, load) = (shop.start_lines(15)?, shop.start_load(15)?);
    let late = &LATE[1];
    cluster.apply(&late.objects())?;
    let said = cluster.until("an Event that says what it waits for", || {
        let said = shop.events(late.name)?;
        Ok(said.contains("FailedCreatePodSandBox").then_some(said))
    })?;
    ensure!(said.contains("adit-ca"), "it names who is missing: {said}");
    ensure!(late.process(cluster)?.is_none(), "nothing of it runs without an identity");
    println!("{}", nothing_failed(&lines, &load)?);

    scale("--replicas=2")?;
    cluster.wait_mesh_ready()?;
    let process = late.wait(cluster, None)?;
    let asked = late.ask(cluster, process, &format!("http://{}/", shop.service))?;
    ensure!(asked.status.success(), "it calls: {asked:?}");
    ensure!(cluster.kubectl(bundle)? == root, "the root is the same");
    Ok(())
}

#[test]
fn a_ca_that_is_rolled_under_load_fails_no_connection_and_no_new_pod() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    let (lines, load) = (shop.start_lines(30)?, shop.start_load(30)?);
    cluster.kubectl(["-n", "adit-system", "rollout", "restart", "deployment/adit-ca"])?;
    for late in &LATE {
        cluster.apply(&late.objects())?;
        let process = late.wait(cluster, None)?;
        let asked = late.ask(cluster, process, &format!("http://{}/", shop.service))?;
        ensure!(asked.status.success(), "{} calls: {asked:?}", late.name);
        let captured = late.field(cluster, r".metadata.annotations.adit\.dev/capture")?;
        ensure!(captured == "enabled", "{}: {captured:?}", late.name);
    }
    cluster.wait_mesh_ready()?;
    println!("{}", nothing_failed(&lines, &load)?);
    let of = ["get", "events", "-n", SHOP, "--field-selector", "reason=FailedCreatePodSandBox", "-o", "name"];
    let failed = cluster.kubectl(of)?;
    ensure!(failed.is_empty(), "no new pod was refused: {failed}");
    Ok(())
}
