//! Policies that a user applies: who may connect from then on, what is cut of what is open, and how soon.

use std::time::{Duration, SystemTime};

use adit_proto::admin::Flow;
use adit_tests::apps::lines::LinesReport;
use adit_tests::process::Process;
use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::shop::{SHOP, Shop, report};

/// The server's port for pages.
const PAGES: &str = ":8080";
/// As docs/operations.md says.
const ENFORCED_WITHIN: Duration = Duration::from_millis(300);

/// An AuthorizationPolicy.
pub(crate) fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Whether the client gets a page by the Service; else the connection was reset.
pub(crate) fn may(shop: &Shop<'_>) -> Result<bool> {
    let url = format!("http://{}/", shop.service);
    let asked = shop.client(&["curl", "-sS", "-o", "/dev/null", "-m", "10", &url])?;
    // 52: nothing came, 56: reset (curl(1)).
    ensure!(matches!(asked.status.code(), Some(0 | 52 | 56)), "{}: {}", asked.status, asked.stderr);
    Ok(asked.status.success())
}

/// Waits until the client may, or may not.
pub(crate) fn until_may(shop: &Shop<'_>, wanted: bool) -> Result<()> {
    shop.cluster.until("that the policy holds", || Ok((may(shop)? == wanted).then_some(())))
}

/// Waits until a policy's status says that it is accepted.
fn until_accepted(shop: &Shop<'_>, namespace: &str, name: &str) -> Result<()> {
    let path = r#"jsonpath={.status.conditions[?(@.type=="Accepted")].status}"#;
    shop.cluster.until(&format!("that {name} is accepted"), || {
        let said = shop.cluster.kubectl(["get", "adap", "-n", namespace, name, "-o", path])?;
        Ok((said == "True").then_some(()))
    })
}

/// The newest call for a page, as the server's agent reports it.
fn newest(shop: &Shop<'_>) -> Result<Flow<'static>> {
    let flows = shop.flows("node2")?;
    let to_pages = |flow: &&Flow<'_>| flow.direction == "inbound" && flow.destination.addr.ends_with(PAGES);
    // By when they were accepted; the list is by when they were told of.
    let newest = flows.iter().filter(to_pages).max_by(|one, other| one.time.cmp(&other.time));
    newest.cloned().with_context(|| format!("no call is known: {flows:?}"))
}

/// Waits until the newest call is reported as refused for a reason, and by a policy: reports follow a moment later.
fn until_refused(shop: &Shop<'_>, reason: &str, by: Option<&str>) -> Result<()> {
    let refused = shop.cluster.until(&format!("that a call is refused for {reason}"), || {
        let flow = newest(shop)?;
        let policy = flow.decision.as_ref().and_then(|decision| decision.policy.as_deref());
        Ok((flow.reason.as_deref() == Some(reason) && policy == by).then_some(()))
    });
    refused.with_context(|| format!("{:?}", newest(shop)))
}

/// Changes something under 100 new connections a second; returns how long after `kubectl` had returned the last
/// connection came that was decided as before: zero where there was none.
fn enforced_after(
    shop: &Shop<'_>,
    was_refused: bool,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let load = shop.start_load(60)?;
    let begun = SystemTime::now();
    shop.cluster.until("that the load runs", || Ok((calls_since(shop, begun)?.len() > 20).then_some(())))?;
    let before = calls_since(shop, begun)?;
    ensure!(before.iter().all(|(_, refused)| *refused == was_refused), "decided as said: {before:?}");
    change()?;
    let changed = SystemTime::now();
    let calls = shop.cluster.until("that calls are decided in the new way", || {
        let calls = calls_since(shop, changed)?;
        let anew = calls.iter().filter(|(_, refused)| *refused != was_refused).count();
        Ok((anew > 100).then_some(calls))
    })?;
    drop(load);
    let as_before = calls.iter().filter(|(_, refused)| *refused == was_refused).map(|(at, _)| *at).max();
    Ok(as_before.map_or(Duration::ZERO, |at| at.duration_since(changed).unwrap_or_default()))
}

/// When each call for a page since an instant was accepted by the server's agent, and whether it was refused.
fn calls_since(shop: &Shop<'_>, since: SystemTime) -> Result<Vec<(SystemTime, bool)>> {
    let flows = shop.flows_since("node2", since)?.into_iter();
    let calls =
        flows.filter(|(_, flow)| flow.direction == "inbound" && flow.destination.addr.ends_with(PAGES));
    Ok(calls.map(|(at, flow)| (at, flow.state == "failed")).collect())
}

/// One long connection from the client to the server's echo.
fn hold(shop: &Shop<'_>) -> Result<Process> {
    let lines = shop.start(&["app", "lines", &shop.echo(), "1", "50", "20"])?;
    lines.wait_for_line("that the long connection is open", |line| line == "open")?;
    Ok(lines)
}

/// Waits until a long connection was cut. One that is not ends by itself after 50 s, whole.
fn until_cut(held: &Process) -> Result<()> {
    let said: LinesReport = report(held)?;
    ensure!(said.whole == 0 && said.lines > 0, "it was open and was cut: {said:?}");
    Ok(())
}

#[test]
fn policies_decide_by_identity_cut_what_is_open_and_hold_within_300_ms() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    ensure!(may(&shop)?, "without a policy everybody may");

    // DENY in the namespace: new connections to that port, and none that is open to another.
    let mut held = hold(&shop)?;
    let deny = policy(
        SHOP,
        "no-pages",
        "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {ports: [8080]}}]}]}",
    );
    let took = enforced_after(&shop, false, || cluster.apply(&deny).map(drop))?;
    println!("DENY applied to the last connection that it would refuse: {took:?}");
    ensure!(took <= ENFORCED_WITHIN, "{took:?}");
    until_accepted(&shop, SHOP, "no-pages")?;
    until_refused(&shop, "policy_denied", Some("shop/no-pages"))?;
    ensure!(held.is_running()?, "another port's connection is left alone: {:?}", held.log());
    let took = enforced_after(&shop, true, || {
        cluster.kubectl(["delete", "adap", "-n", SHOP, "no-pages"]).map(drop)
    })?;
    println!("DENY deleted to the last connection that it refused: {took:?}");
    ensure!(took <= ENFORCED_WITHIN, "{took:?}");

    // ALLOW for a selector: all else to those pods is cut and refused.
    ensure!(held.is_running()?, "still open: {:?}", held.log());
    cluster.apply(&policy(
        SHOP,
        "pages-only",
        "{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {ports: [8080]}}]}]}",
    ))?;
    until_cut(&held)?;
    ensure!(may(&shop)?, "what it allows goes on");
    cluster.apply(&policy(
        SHOP,
        "pages-only",
        "{selector: {matchLabels: {app: server}}, rules: [{from: [{source: {serviceAccounts: [server]}}]}]}",
    ))?;
    until_may(&shop, false)?;
    // One more: the first may have been under way as the policy came, let in and then cut.
    ensure!(!may(&shop)?, "nobody is allowed");
    until_refused(&shop, "policy_none_matched", None)?;
    cluster.kubectl(["delete", "adap", "-n", SHOP, "pages-only"])?;
    until_may(&shop, true)?;

    // What only watches refuses nothing and is told.
    cluster.apply(&policy(
        SHOP,
        "watch",
        "{action: AUDIT, rules: [{from: [{source: {namespaces: [shop]}}]}]}",
    ))?;
    cluster.apply(&policy(
        SHOP,
        "maybe",
        "{action: DENY, dryRun: true, rules: [{to: [{operation: {ports: [8080]}}]}]}",
    ))?;
    ensure!(may(&shop)?, "it refuses nothing");
    cluster.until("that the dry run is told of a call that passes", || {
        ensure!(may(&shop)?, "it refuses nothing");
        let would = newest(&shop)?.dry_run;
        Ok(would.iter().any(|decision| decision.policy.as_deref() == Some("shop/maybe")).then_some(()))
    })?;
    until_accepted(&shop, SHOP, "watch")?;
    let audited = shop.metrics("node2")?;
    let is_counted =
        |line: &str| line.contains(r#"policy="shop/watch""#) && line.contains(r#"verdict="audited""#);
    let counted =
        audited.lines().find(|line| line.starts_with("adit_policy_verdicts_total") && is_counted(line));
    ensure!(counted.is_some_and(|line| !line.ends_with(" 0")), "it is counted: {counted:?}");

    // The whole mesh's, for a label that a pod gets while it runs.
    let mut held = hold(&shop)?;
    cluster.apply(&policy(
        "adit-system",
        "vault",
        "{selector: {matchLabels: {tier: vault}}, action: DENY, rules: [{}]}",
    ))?;
    until_accepted(&shop, "adit-system", "vault")?;
    ensure!(may(&shop)? && held.is_running()?, "it selects nobody: {:?}", held.log());
    cluster.kubectl(["label", "pod", "-n", SHOP, "server", "tier=vault"])?;
    until_cut(&held)?;
    until_may(&shop, false)?;
    cluster.kubectl(["label", "pod", "-n", SHOP, "server", "tier-"])?;
    until_may(&shop, true)?;

    // STRICT for the namespace: who has no identity does not come in.
    let mode = "apiVersion: policy.adit.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let outside = || shop.page_from_node("node1");
    ensure!(outside()?, "a process of another node comes in in clear");
    cluster.apply(mode)?;
    cluster.until("that clear text is refused", || Ok((!outside()?).then_some(())))?;
    ensure!(!outside()?, "the next one too");
    until_refused(&shop, "plaintext_refused", Some("shop/strict"))?;
    ensure!(may(&shop)?, "the mesh's own come in");
    Ok(())
}
