//! Steps: the label, and what telemetry says of the first call after it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Stage;
use super::examples;
use super::say::micros;
use super::shop::{NAMESPACES, namespace_file};

/// The service that curl calls, as reports name it.
pub(super) const PAYMENTS: &str = "shop/payments:80";

/// Labels the namespaces, and waits until every pod in them is captured, while curl goes on calling.
pub(super) fn enrol(stage: &mut Stage<'_>) -> Result<()> {
    let Stage { say, shop, caller, .. } = stage;
    say.step("The label is set in the directory's Namespace files")?;
    let before: Vec<u32> = shop.pods.keys().filter_map(|name| shop.server_id(name).ok()).collect();
    let calls_before = caller.tally()?;
    let labelled = Instant::now();
    for namespace in NAMESPACES {
        let label = "  labels:\n    adit.dev/mesh: enabled\n";
        let text = examples::text(&format!("{namespace}/namespace.yaml"))? + label;
        let name = namespace_file(namespace);
        shop.mesh.apply(&name, &text)?;
        say.line(format!("{name}.yaml"))?;
        say.quote(label.lines().map(|line| format!("+ {line}\n")).collect::<String>())?;
    }
    for pod in shop.pods.values() {
        shop.mesh.wait_captured(pod)?;
    }
    let took = labelled.elapsed();
    shop.mesh.settle()?;
    shop.stop_kube_proxy()?;
    say.line(format!(
        "{} running pods captured within {} ms of the label: rules, listeners and certificates verified in place",
        shop.pods.len(),
        took.as_millis()
    ))?;
    say.line(
        "the DNAT rules that played kube-proxy are gone: only the agents know the services' addresses now",
    )?;
    caller.wait_for_answers(2)?;
    let calls = caller.tally()?;
    let after: Vec<u32> = shop.pods.keys().filter_map(|name| shop.server_id(name).ok()).collect();
    ensure!(before == after, "a server was restarted: {before:?} {after:?}");
    ensure!(calls.failed == 0, "{} calls failed while the pods were enrolled", calls.failed);
    say.line(format!(
        "nothing was restarted: curl is still pid {}, the servers still {}; {} calls answered meanwhile, 0 failed",
        caller.id(),
        before.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
        calls.answered - calls_before.answered
    ))
}

/// Both agents' reports of the first call by tunnel.
pub(super) fn telemetry(stage: &mut Stage<'_>) -> Result<()> {
    let Stage { say, shop, .. } = stage;
    say.step("Who talked, as both agents read it off the finished handshake")?;
    let (client, server) = (shop.mesh.agent("n1")?, shop.mesh.agent("n2")?);
    // The call that dialled the tunnel tells how long the handshake took.
    let sent = client.wait_for_flow(0, "the client's report", |flow| {
        flow.direction == "outbound"
            && flow.state == "closed"
            && flow.service.as_deref() == Some(PAYMENTS)
            && flow.stages_us.contains_key("tls")
    })?;
    let got = server.wait_for_flow(0, "the server's report", |flow| {
        flow.direction == "inbound" && flow.trace == sent.trace
    })?;
    let (frontend, payments) = (shop.pod("frontend")?.identity(), shop.pod("payments-1")?.identity());
    for (node, flow) in [("n1", &sent), ("n2", &got)] {
        let tls = flow.tls.as_ref().with_context(|| format!("{node} reports no handshake"))?;
        let (from, to) = (flow.source.identity.as_deref(), flow.destination.identity.as_deref());
        ensure!(
            from == Some(frontend.as_str()) && to == Some(payments.as_str()),
            "{node} reports other identities: {from:?} {to:?}"
        );
        ensure!(&*tls.version == "TLSv1.3", "{node}: {}", tls.version);
        say.line(format!("{node} ({}), trace {}", flow.direction, flow.trace))?;
        say.quote(format!(
            "{frontend}\n -> {payments}\n{} {} key exchange {}, peer certificate {} until {}",
            tls.version, tls.suite, tls.group, tls.peer_serial, tls.peer_not_after
        ))?;
    }
    let stage_of = |name: &str| sent.stages_us.get(name).copied().map_or_else(|| "-".into(), micros);
    say.line(format!(
        "TCP {}, TLS handshake {}, CONNECT {}, first byte {}; round trip of the tunnel {}",
        stage_of("tcp"),
        stage_of("tls"),
        stage_of("connect"),
        stage_of("first_byte"),
        sent.rtt_us.map_or_else(|| "-".into(), |us| micros(us.into()))
    ))
}
