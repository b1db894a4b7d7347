//! Peers whose agent misbehaves: what is tried again, and what never is.

use super::*;

/// What tests over real agents cannot bring about: a Go server behind the service, in this mode.
pub(super) fn go_server(mesh: &Mesh, pod: &Pod, identity: &str, mode: &str) -> Result<Peer> {
    let token = mesh.ca()?.add_node("go")?;
    let roots = mesh.folder().join("roots.pem");
    read_bundle(mesh, &roots)?;
    let authority = Authority { address: mesh.ca()?.address(), roots, token };
    let prefix = mesh.folder().join(format!("go-{}", pod.spec.name));
    let credentials = authority.issue(&pod.host.netns, identity, 600, &prefix)?;
    Peer::hbone(&pod.host.netns, &credentials, &authority.roots, mode)
}

#[test]
fn goaway_and_refused_streams_are_tried_again_without_any_budget() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let (client, pods) = played(mesh, 1)?;
        traffic_policy(mesh, NO_BUDGET)?;
        for mode in ["goaway", "rst"] {
            let server = go_server(mesh, &pods[0], &pods[0].identity(), mode)?;
            let (called, flow) = reported(mesh, &client, vip())?;
            called.with_context(|| format!("{mode}: {flow:?}"))?;
            assert_eq!(
                (flow.attempts, flow.last_failure.as_deref()),
                (2, Some("tunnel_lost")),
                "{mode}: {flow:?}"
            );
            drop(server);
        }
        // What needs a budget gets none.
        until("that nothing listens", || {
            let (called, flow) = reported(mesh, &client, vip())?;
            Ok((called.is_err() && flow.last_failure.as_deref() == Some("refused")).then_some(flow))
        })?;
        fails(mesh, &client, vip(), "retry_budget_exhausted", 1)?;
        Ok(())
    })
}

#[test]
fn a_pooled_tunnel_that_died_unseen_is_replaced_without_any_budget() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, servers) = shop(mesh, &["n2"])?;
        traffic_policy(mesh, NO_BUDGET)?;
        call(&client, vip())?;
        let (called, flow) = reported(mesh, &client, vip())?;
        called?;
        assert_eq!((flow.attempts, flow.tunnel_reused), (1, Some(true)), "the pool works: {flow:?}");
        // The agent dies and its farewells are lost: the tunnel looks well until it is used, and then is reset.
        let lost = format!(
            "-I FORWARD -s {} -p tcp --sport 15008 --tcp-flags FIN FIN -j DROP",
            servers[0].0.host.v4
        );
        mesh.topology.node("n2")?.netns.command("iptables").args(["-w", "5"]).args(lost.split(' ')).ok()?;
        mesh.take_agent("n2")?.kill()?;
        mesh.start_agent("n2", &Value::Null)?;
        let (called, flow) = reported(mesh, &client, vip())?;
        called.with_context(|| format!("{flow:?}"))?;
        assert_eq!((flow.attempts, flow.last_failure.as_deref()), (2, Some("tunnel_lost")), "{flow:?}");
        Ok(())
    })
}

#[test]
fn a_wrong_identity_and_a_refusal_by_policy_are_never_tried_again() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let (client, pods) = played(mesh, 2)?;
        let other = "spiffe://cluster.local/ns/shop/sa/other";
        let mut wrong = Vec::new();
        for pod in &pods {
            wrong.push(go_server(mesh, pod, other, "echo")?);
        }
        fails(mesh, &client, vip(), "peer_identity", 1)?;
        drop(wrong);
        let mut denying = Vec::new();
        for pod in &pods {
            let start = || go_server(mesh, pod, &pod.identity(), "403");
            denying.push(start()?);
        }
        let flow = fails(mesh, &client, vip(), "peer_denied", 1)?;
        let decision = flow.decision.context("whose policy")?;
        assert_eq!(decision.policy.as_deref(), Some("other/mesh"));
        Ok(())
    })
}

/// Calls the service and the pod by its address; each time the client is reset, and its last attempt failed so.
fn is_reset(mesh: &Mesh, client: &Pod, pod: &Pod, failure: &str) -> Result<()> {
    for to in [vip(), pod.at(8080), pod.at_v6(8080)] {
        let (called, flow) = reported(mesh, client, to)?;
        let error = called.err().with_context(|| format!("{to} was carried: {flow:?}"))?;
        assert!(format!("{error:#}").contains("reset"), "{to}: {error:#}");
        let said = [flow.reason.as_deref(), flow.last_failure.as_deref()];
        assert!(said.contains(&Some(failure)), "{to}: {flow:?}");
        assert_ne!(flow.transport, "plaintext", "{flow:?}");
    }
    Ok(())
}

#[test]
fn where_a_tunnel_fails_nothing_is_sent_in_clear_though_the_app_listens() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let (client, pods) = played(mesh, 1)?;
        traffic_policy(mesh, "retry: { attempts: 0 }")?;
        let pod = &pods[0];
        let in_clear = Server::start(&pod.host.netns, 8080, Behaviour::Echo)?;
        let outside = mesh.topology.add_outside("outside")?;
        // Nobody captures the pod: whoever dials the app in clear reaches it.
        for to in [pod.at(8080), pod.at_v6(8080)] {
            exchange(connect(&outside.netns, to)?)?;
        }
        let by_hand = in_clear.accepted().len();
        assert_eq!(by_hand, 2);

        is_reset(mesh, &client, pod, "refused").context("15008 refuses")?;
        let swallow = |verb: &str| -> Result<()> {
            ["iptables", "ip6tables"].into_iter().try_for_each(|program| {
                let rule = [verb, "INPUT", "-p", "tcp", "--dport", "15008", "-j", "DROP"];
                pod.host.netns.command(program).args(["-w", "5"]).args(rule).ok().map(drop)
            })
        };
        swallow("-I")?;
        is_reset(mesh, &client, pod, "connect_timeout").context("15008 swallows")?;
        swallow("-D")?;
        let wrong = go_server(mesh, pod, "spiffe://cluster.local/ns/shop/sa/other", "echo")?;
        is_reset(mesh, &client, pod, "peer_identity").context("another identity answers")?;
        drop(wrong);
        let denying = go_server(mesh, pod, &pod.identity(), "403")?;
        is_reset(mesh, &client, pod, "peer_denied").context("the peer denies")?;
        drop(denying);
        // It says GOAWAY on every other connection; on the next it answers, in the tunnel.
        let going = go_server(mesh, pod, &pod.identity(), "goaway")?;
        let (called, flow) = reported(mesh, &client, vip())?;
        let (went, last) = (called.is_ok(), flow.last_failure.as_deref());
        assert_eq!((went, last), (flow.attempts == 2, Some("tunnel_lost")), "{flow:?}");
        drop(going);
        assert_eq!(in_clear.accepted().len(), by_hand, "the app was dialled in clear");
        Ok(())
    })
}

#[test]
fn a_handshake_that_is_cut_is_tried_again() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let (client, pods) = played(mesh, 2)?;
        let _cutting = Server::start(&pods[0].host.netns, 15008, Behaviour::Reset)?;
        let _serving = go_server(mesh, &pods[1], &pods[1].identity(), "echo")?;
        carried_after(mesh, &client, "tunnel_lost")?;
        Ok(())
    })
}

#[test]
fn a_pod_that_goes_while_it_is_dialled_is_replaced_at_once_without_any_budget() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let (client, pods) = played(mesh, 2)?;
        // No attempt ends by itself before the pod goes, however busy the machine is.
        traffic_policy(mesh, &format!("{NO_BUDGET}, connectTimeout: 30s, attemptTimeout: 30s"))?;
        let _serving = go_server(mesh, &pods[1], &pods[1].identity(), "echo")?;
        let swallow = "-I INPUT -p tcp --dport 15008 -j DROP";
        pods[0].host.netns.command("iptables").args(["-w", "5"]).args(swallow.split(' ')).ok()?;
        // Connections begin until one of them is on its way to the silent pod.
        let first = mesh.agent("n1")?.process().next_line();
        thread::scope(|scope| -> Result<()> {
            let (client, mut calls) = (&client, Vec::new());
            until("a dial to the silent pod", || {
                calls.push(scope.spawn(|| call(client, vip())));
                let dials = client.host.netns.command("ss").args(["-tnH", "state", "syn-sent"]).ok()?;
                Ok(dials.contains(&format!("{}:15008", pods[0].host.v4)).then_some(()))
            })?;
            mesh.remove_pod(&pods[0])?;
            calls.into_iter().try_for_each(|call| call.join().map_err(|_| anyhow!("a call panicked"))?)
        })?;
        let flow = mesh.agent("n1")?.wait_for_flow(first, "a second attempt", |flow| flow.attempts == 2)?;
        assert_eq!(flow.reason, None, "{flow:?}");
        Ok(())
    })
}
