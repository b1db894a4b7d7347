//! Refused by policy, and by the kill list.

use std::net::IpAddr;

use adit_tests::topology::Node;

use super::*;

pub(super) static REFUSALS: Scenario = Scenario {
    shows: &[
        Reason::PolicyDenied,
        Reason::PeerDenied,
        Reason::PolicyNoneMatched,
        Reason::PlaintextRefused,
        Reason::ProbeViaHostPort,
        Reason::PolicyChanged,
        Reason::PolicyNotSynced,
    ],
    agents: usual,
    ca: usual_ca,
    play: refusals,
};

fn refusals(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let to = stage.api.at(HTTP);
    let mut open = held(&stage.web, to)?;
    let mark = Mark::now(mesh)?;
    apply(mesh, "AuthorizationPolicy", "nobody", "{ action: DENY, rules: [{}] }")?;
    ensure!(!echoes(&mut open), "it was cut");
    stage.lines(mesh, &mark, Reason::PeerDenied, Reason::PolicyChanged)?;

    let mark = Mark::now(mesh)?;
    refused(&stage.web, to)?;
    let [out, into] = stage.lines(mesh, &mark, Reason::PeerDenied, Reason::PolicyDenied)?;
    for flow in [out, into] {
        let decision = flow.decision.context("a verdict")?;
        ensure!(
            (decision.policy.as_deref(), decision.rule) == (Some("shop/nobody"), Some(0)),
            "{decision:?}"
        );
    }

    apply(mesh, "AuthorizationPolicy", "nobody", "{ action: ALLOW }")?;
    let mark = Mark::now(mesh)?;
    refused(&stage.web, to)?;
    stage.lines(mesh, &mark, Reason::PeerDenied, Reason::PolicyNoneMatched)?;

    mesh.remove_object("nobody")?;
    apply(mesh, "PeerAuthentication", "strict", "{ mtls: { mode: STRICT } }")?;
    let mark = Mark::now(mesh)?;
    refused(&stage.outsider, to)?;
    let flow = stage.line(mesh, &mark, Side::In, Reason::PlaintextRefused, None)?;
    ensure!(flow.decision.and_then(|said| said.policy).as_deref() == Some("shop/strict"), "it is named");

    // As through a host port: the node's address, a declared port, but not the node's own socket.
    masquerade(mesh.topology.node("n2")?, stage.outsider.host.v4.into())?;
    let mark = Mark::now(mesh)?;
    refused(&stage.outsider, to)?;
    stage.line(mesh, &mark, Side::In, Reason::ProbeViaHostPort, None)?;

    // Its object goes while its sandbox is there: nobody knows which policies are its own.
    mesh.remove_object("strict")?;
    mesh.remove_object(&stage.api.spec.object_file())?;
    mesh.settle()?;
    let mark = Mark::now(mesh)?;
    refused(&stage.outsider, to)?;
    stage.line(mesh, &mark, Side::In, Reason::PolicyNotSynced, None)?;
    Ok(())
}

fn apply(mesh: &mut Mesh, kind: &str, name: &str, spec: &str) -> Result<()> {
    let yaml = format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
    );
    mesh.apply(name, &yaml)?;
    mesh.settle()
}

fn masquerade(node: &Node, from: IpAddr) -> Result<()> {
    let rule = ["-w", "5", "-t", "nat", "-A", "POSTROUTING", "-o", "cni0", "-j", "MASQUERADE", "-s"];
    node.netns.command("iptables").args(rule).args([from.to_string()]).ok().map(drop)
}

pub(super) static REVOCATION: Scenario = Scenario {
    shows: &[Reason::IdentityRevoked, Reason::PeerRevoked],
    agents: usual,
    ca: usual_ca,
    play: revocation,
};

fn revocation(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let to = stage.api.at(HTTP);
    let mut open = held(&stage.web, to)?;
    let mark = Mark::now(mesh)?;
    mesh.ca()?.command("revoke", &["--identity", &stage.web.identity()])?;
    stage.line(mesh, &mark, Side::In, Reason::IdentityRevoked, Some(&stage.web.identity()))?;
    ensure!(!echoes(&mut open), "it was cut");
    let mark = Mark::now(mesh)?;
    refused(&stage.web, to)?;
    stage.line(mesh, &mark, Side::In, Reason::PeerRevoked, None)?;
    Ok(())
}
