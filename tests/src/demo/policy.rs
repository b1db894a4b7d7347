//! Step: policies are written, and refuse by identity; both sides' logs name them.

use adit_proto::admin::Flow;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Stage;
use super::examples;
use super::shop::Shop;

/// One policy, and who is refused by it.
struct Refusal {
    policy: &'static str,
    caller: &'static str,
}

/// In this order: the first leaves the second's caller alone.
const REFUSALS: [Refusal; 2] = [
    Refusal { policy: "no-outsiders", caller: "outsider" },
    Refusal { policy: "payments-callers", caller: "cart" },
];

pub(super) fn refuse(stage: &mut Stage<'_>) -> Result<()> {
    stage.say.step(
        "An AuthorizationPolicy is written: the outsider, then the wrong service account are refused",
    )?;
    for Refusal { policy, caller } in REFUSALS {
        let answer = call(stage.shop, caller)?;
        ensure!(answer.0 == Some(0), "{caller} was refused before the policy was written: {}", answer.1);
        let text = examples::text(&format!("policies/{policy}.yaml"))?;
        stage.shop.mesh.apply(policy, &text)?;
        stage.shop.mesh.settle()?;
        let spec = text.split_once("\nspec:\n").map_or("", |(_, spec)| spec);
        stage.say.line(format!("{policy}.yaml written; before it, {caller} was answered {}", answer.1))?;
        stage.say.quote(spec)?;
        refused(stage, policy, caller)?;
    }
    let answer = stage.caller.wait_for_answers(2)?;
    stage.say.line(format!("the frontend goes on: {answer}"))
}

/// curl's exit code, and what it said.
fn call(shop: &Shop, caller: &str) -> Result<(Option<i32>, String)> {
    let url = format!("http://{}/pay", shop.vip("payments")?);
    let args = ["-sS", "-o", "/dev/null", "--max-time", "10", "-w", "%{http_code}", &url];
    let output = shop.call(caller, "curl", &args)?;
    Ok((output.status.code(), format!("{} {}", output.stdout.trim(), output.stderr.trim()).trim().to_owned()))
}

fn refused(stage: &Stage<'_>, policy: &str, caller: &str) -> Result<()> {
    let Stage { say, shop, .. } = stage;
    let (client, server) = (shop.mesh.agent("n1")?, shop.mesh.agent("n2")?);
    let (from_client, from_server) = (client.process().next_line(), server.process().next_line());
    let (code, said) = call(shop, caller)?;
    if code == Some(0) {
        bail!("{caller} was answered {said} in spite of {policy}");
    }
    say.line(format!("{caller} (account {}): curl says {said}", shop.pod(caller)?.identity()))?;
    let sent = client.wait_for_flow(from_client, "the client's report", |flow| {
        flow.direction == "outbound" && flow.state == "failed" && flow.source.pod.as_deref() == Some(caller)
    })?;
    let got = server.wait_for_flow(from_server, "the server's report", |flow| {
        flow.direction == "inbound" && flow.trace == sent.trace
    })?;
    for (node, flow) in [("n1", &sent), ("n2", &got)] {
        let named = flow.decision.as_ref().and_then(|decision| decision.policy.as_deref());
        ensure!(
            named == Some(format!("shop/{policy}").as_str()),
            "{node}'s {} log names {named:?}, not shop/{policy}",
            flow.direction
        );
        say.quote(format!("{node} {}", excerpt(flow).context("a log line")?))?;
    }
    Ok(())
}

/// The part of an access-log line that tells who was refused by what.
fn excerpt(flow: &Flow<'_>) -> Result<String> {
    let line = json!({
        "direction": flow.direction,
        "state": flow.state,
        "reason": flow.reason,
        "decision": flow.decision,
        "source": { "pod": flow.source.pod, "identity": flow.source.identity },
        "destination": { "pod": flow.destination.pod },
    });
    Ok(serde_json::to_string(&line)?)
}
