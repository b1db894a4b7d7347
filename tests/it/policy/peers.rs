//! PeerAuthentication: at which level it decides, what it refuses by name, and the kubelet's way through.

use adit_tests::netns::Netns;

use super::*;

const STRICT: &str = "{ mtls: { mode: STRICT } }";
const PERMISSIVE: &str = "{ mtls: { mode: PERMISSIVE } }";

fn selecting(rest: &str) -> String {
    format!("{{ selector: {{ matchLabels: {{ app: api }} }}, {rest} }}")
}

#[test]
fn the_nearest_peer_authentication_decides_and_is_named_and_tunnels_always_pass() -> Result<()> {
    with_stage(|mesh, stage| {
        let workload_strict = selecting("mtls: { mode: STRICT }");
        let port_open = selecting("mtls: { mode: STRICT }, portLevelMtls: { '8080': { mode: PERMISSIVE } }");
        let port_shut = selecting("mtls: { mode: PERMISSIVE }, portLevelMtls: { '8080': { mode: STRICT } }");
        let unset = selecting("mtls: { mode: UNSET }");
        // Each step replaces one level's object; what refuses plaintext at either port then.
        for (file, namespace, name, spec, refused_by) in [
            ("mesh", "adit-system", "mesh", STRICT, [Some("adit-system/mesh"); 2]),
            ("namespace", "shop", "namespace", PERMISSIVE, [None; 2]),
            ("workload", "shop", "workload", &*workload_strict, [Some("shop/workload"); 2]),
            ("workload", "shop", "workload", &*port_open, [None, Some("shop/workload")]),
            ("workload", "shop", "workload", &*port_shut, [Some("shop/workload"), None]),
            ("workload", "shop", "workload", &*unset, [None; 2]),
            ("namespace", "shop", "namespace", STRICT, [Some("shop/namespace"); 2]),
            ("mesh", "adit-system", "mesh", PERMISSIVE, [Some("shop/namespace"); 2]),
            ("namespace", "shop", "namespace", "{ mtls: {} }", [None; 2]),
            ("elsewhere", "other", "elsewhere", STRICT, [None; 2]),
        ] {
            mesh.apply(file, &object("PeerAuthentication", namespace, name, spec))?;
            mesh.settle()?;
            let ports = [stage.api.at(HTTP), stage.api.at_v6(ADMIN)];
            for (to, refused_by) in ports.into_iter().zip(refused_by) {
                plaintext(mesh, &stage.outsider.host.netns, to, refused_by)
                    .with_context(|| format!("{namespace}/{name} is {spec}"))?;
            }
            for way in [Way::Web, Way::WebAdminV6, Way::Cart] {
                assert!(stage.attempt(mesh, way)?.answered, "{way:?}: {namespace}/{name} is {spec}");
            }
        }
        Ok(())
    })
}

/// Connects in plaintext: refused by this PeerAuthentication, or answered.
fn plaintext(mesh: &Mesh, from: &Netns, to: SocketAddr, refused_by: Option<&str>) -> Result<Flow<'static>> {
    let agent = mesh.agent("n2")?;
    let first = agent.process().next_line();
    let answered = connect(from, to).is_ok_and(|mut stream| echoes(&mut stream));
    ensure!(answered == refused_by.is_none(), "{to} was answered: {answered}");
    let flow = agent.wait_for_flow(first, "the plaintext's report", |flow| {
        flow.direction == "inbound" && flow.destination.addr == to.to_string()
    })?;
    ensure!(flow.tls.is_none() && flow.source.identity.is_none(), "plaintext has no identity: {flow:?}");
    if let Some(name) = refused_by {
        ensure!(flow.reason.as_deref() == Some("plaintext_refused"), "{flow:?}");
        ensure!(flow.decision == Some(decision(false, Some(name), None)), "{flow:?}");
    }
    Ok(flow)
}

#[test]
fn of_two_at_one_level_the_older_decides_and_the_other_is_not_accepted() -> Result<()> {
    with_stage(|mesh, stage| {
        let dated = |name: &str, when: &str, spec: &str| {
            object("PeerAuthentication", "shop", name, spec)
                .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: '{when}'"))
        };
        mesh.apply("first", &dated("first", "2026-01-01T00:00:00Z", PERMISSIVE))?;
        mesh.apply("second", &dated("second", "2026-01-02T00:00:00Z", STRICT))?;
        mesh.settle()?;
        plaintext(mesh, &stage.outsider.host.netns, stage.api.at(HTTP), None)?;
        assert!(accepted(mesh, "PeerAuthentication", "first")?.accepted);
        let second = accepted(mesh, "PeerAuthentication", "second")?;
        assert!(
            !second.accepted && second.problems.iter().any(|said| said.contains("shop/first")),
            "{second:?}"
        );
        // Of the same age: the name.
        mesh.apply("first", &dated("third", "2026-01-02T00:00:00Z", PERMISSIVE))?;
        mesh.settle()?;
        plaintext(mesh, &stage.outsider.host.netns, stage.api.at(HTTP), Some("shop/second"))?;
        assert!(accepted(mesh, "PeerAuthentication", "second")?.accepted);
        assert!(!accepted(mesh, "PeerAuthentication", "third")?.accepted);
        Ok(())
    })
}

#[test]
fn the_node_itself_reaches_a_declared_probe_port_whatever_policy_says_and_nothing_else_does() -> Result<()> {
    with_stage(|mesh, stage| {
        mesh.apply("strict", &object("PeerAuthentication", "shop", "strict", STRICT))?;
        policy(mesh, "nobody", "{ action: DENY, rules: [{}] }")?;
        let node = mesh.topology.node("n2")?.netns.clone();
        for to in [stage.api.at(HTTP), stage.api.at_v6(HTTP)] {
            let probe = plaintext(mesh, &node, to, None)?;
            assert_eq!((&*probe.transport, probe.reason), ("probe", None));
        }
        let strict = Some("shop/strict");
        // Not declared; another node; another pod.
        plaintext(mesh, &node, stage.api.at(ADMIN), strict)?;
        plaintext(mesh, &mesh.topology.node("n1")?.netns.clone(), stage.api.at(HTTP), strict)?;
        plaintext(mesh, &stage.outsider.host.netns, stage.api.at(HTTP), strict)?;
        // A pod's probes are what its object declares now.
        mesh.change_pod(&stage.api, |spec| spec.container = serde_json::Value::Null)?;
        mesh.settle()?;
        plaintext(mesh, &node, stage.api.at(HTTP), strict)?;
        Ok(())
    })
}
