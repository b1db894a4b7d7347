//! What outlives what: captured pods their agent, open connections a change of enrolment, and nothing its pod.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_proto::admin::PodStatus;
use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, Load, Server, Shape, connect, run_load};
use adit_tests::mesh::Agent;
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use adit_tests::process::Run;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::state::{assert_captured, assert_untouched, everything, routes, rules, sysctls};
use crate::talk::{echo, talk};
use crate::until::until;

/// Both namespaces, CA, agents.
fn start(mesh: &mut Mesh) -> Result<()> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.namespace("plain", Enrolment::Unsaid)?;
    mesh.start()
}

/// A client on n1 and a server on n2, which echoes at port 8080.
fn pair(mesh: &mut Mesh, namespace: &str) -> Result<(Pod, Pod, Server)> {
    let client = mesh.add_pod(PodSpec::new("n1", namespace, "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", namespace, "server"))?;
    let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    mesh.settle()?;
    Ok((client, server, serving))
}

/// What a pod's agent says of it.
fn shown(agent: &Agent, pod: &Pod) -> Result<Option<PodStatus>> {
    Ok(agent.status()?.pods.into_iter().find(|shown| shown.uid == pod.uid))
}

/// Asks an agent about a pod until the answer is as wanted.
fn wait_shown(
    agent: &Agent,
    pod: &Pod,
    what: &str,
    wanted: impl Fn(Option<&PodStatus>) -> bool,
) -> Result<Option<PodStatus>> {
    let mut last = None;
    let found = until(what, || {
        last = shown(agent, pod)?;
        Ok(wanted(last.as_ref()).then(|| last.clone()))
    });
    found.with_context(|| format!("the last answer: {last:?}"))
}

/// The transport of the next report that `agent` makes of a connection from `client` to `to`.
fn transport(mesh: &Mesh, node: &str, first: u64, to: SocketAddr) -> Result<String> {
    let flow = mesh.agent(node)?.wait_for_flow(first, "the report", |flow| {
        flow.destination.addr == to.to_string() && flow.state == "closed"
    })?;
    Ok(flow.transport.into_owned())
}

/// Cuts the CA off, or lets it back.
fn ca_link(mesh: &Mesh, state: &str) -> Result<()> {
    mesh.topology.host("ca")?.netns.ip(&format!("link set eth0 {state}"))
}

#[test]
fn a_killed_agent_adopts_its_pods_without_the_ca_and_under_load() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let (client, server, serving) = pair(mesh, "shop")?;
        let http = Server::start(&server.host.netns, 8081, Behaviour::Http { body: b"yes".to_vec() })?;
        let stood = [rules(&client)?, rules(&server)?, routes(&server)?];
        let mut open = talk(&client, server.at(8080))?;
        let load = Load {
            to: server.at(8081),
            shape: Shape::PerRequest,
            clients: 4,
            rate: Some(200),
            duration: Duration::from_secs(3),
            give_up: Duration::from_secs(10),
        };
        let report = std::thread::scope(|scope| {
            let loading = scope.spawn(|| client.host.netns.run(|| run_load(&load))?);
            http.wait_until("the load's first", |accepted| accepted.len() > 20)?;
            mesh.take_agent("n2")?.kill()?;

            // What was open ends, on both sides; nobody hangs.
            let ended = open.read(&mut [0; 1]);
            assert!(
                matches!(&ended, Ok(0))
                    || ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
                "{ended:?}"
            );
            serving.wait_until("the end of the open one", |accepted| accepted[0].end.is_some())?;
            // It fails closed: nobody comes in past the agent that is away.
            let outside = mesh.topology.host("ca")?.netns.clone();
            let error =
                connect(&outside, server.at(8080)).expect_err("nobody listens where it is redirected");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

            ca_link(mesh, "down")?;
            let started = Instant::now();
            mesh.start_agent("n2", &Value::Null)?;
            let ready = started.elapsed();
            talk(&client, server.at(8080)).context("a new connection")?;
            let serving_again = started.elapsed();
            eprintln!(
                "agent: ready {ready:?} after its start, a new connection through it at {serving_again:?}"
            );
            loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
        })?;
        eprintln!("load over the restart: {report:?}");
        assert!(report.ok > 0, "{report:?}");
        // The same rules once: nothing was added, nothing written twice.
        assert_eq!([rules(&client)?, rules(&server)?, routes(&server)?], stood);
        assert_captured(&server)?;
        let shown = shown(mesh.agent("n2")?, &server)?.context("the adopted pod")?;
        assert_eq!((&*shown.state, shown.captured, shown.identity), ("live", true, Some(server.identity())));

        // The certificate is the one from before: the CA was not there to be asked.
        for to in [server.at(8080), server.at_v6(8080)] {
            let first = mesh.agent("n2")?.process().next_line();
            drop(talk(&client, to)?);
            assert_eq!(transport(mesh, "n2", first, to)?, "mtls");
        }
        // The client's side, too.
        mesh.take_agent("n1")?.kill()?;
        mesh.start_agent("n1", &Value::Null)?;
        talk(&client, server.at(8080))?;
        assert_eq!(rules(&client)?, stood[0]);
        ca_link(mesh, "up")
    })
}

/// One attempt at the server's app, whose answer would be the end of the test.
fn is_refused(from: &Pod, to: SocketAddr) -> Result<()> {
    let Ok(mut stream) = connect(&from.host.netns, to) else {
        return Ok(());
    };
    // Longer than an answer takes, and no longer: one that waits for its verdict has none either.
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let answered = stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0]));
    ensure!(answered.is_err(), "{} was answered at {to}", from.spec.name);
    Ok(())
}

/// One attempt that n2's agent refuses, and reports so.
fn is_refused_as(mesh: &Mesh, reason: &str, from: &Pod, to: SocketAddr) -> Result<()> {
    let first = mesh.agent("n2")?.process().next_line();
    is_refused(from, to)?;
    let what = format!("{reason} of {}", from.spec.name);
    let is_his =
        |addr: &str| addr.parse::<SocketAddr>().is_ok_and(|source| from.host.ips().contains(&source.ip()));
    let flow = mesh.agent("n2")?.wait_for_flow(first, &what, |flow| {
        flow.direction == "inbound" && is_his(&flow.source.addr) && flow.reason.as_deref() == Some(reason)
    })?;
    assert_eq!((&*flow.destination.addr, &*flow.state), (&*to.to_string(), "failed"), "{flow:?}");
    Ok(())
}

#[test]
fn an_agent_that_knows_no_policies_yet_serves_nobody() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let (client, server, serving) = pair(mesh, "shop")?;
        let stranger = mesh.add_pod(PodSpec::new("n1", "plain", "stranger"))?;
        let policies = [
            (
                "deny",
                "AuthorizationPolicy",
                "{ action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}] }",
            ),
            ("strict", "PeerAuthentication", "{ mtls: { mode: STRICT } }"),
        ];
        for (name, kind, spec) in policies {
            let head = format!("apiVersion: policy.adit.dev/v1alpha1\nkind: {kind}\n");
            mesh.apply(
                name,
                &format!("{head}metadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"),
            )?;
        }
        mesh.settle()?;
        let to = server.at(8080);
        let in_force = |mesh: &Mesh| -> Result<()> {
            is_refused_as(mesh, "policy_denied", &client, to)?;
            is_refused_as(mesh, "plaintext_refused", &stranger, to)
        };
        in_force(mesh)?;

        // The policies are in its own copy alone: what it knew is in force from the first connection on.
        mesh.take_agent("n2")?.kill()?;
        let objects = mesh.directory().join("objects");
        let whole: Vec<_> = policies
            .iter()
            .map(|(name, _, _)| objects.join(format!("{name}.yaml")))
            .map(|file| Ok((std::fs::read_to_string(&file)?, file)))
            .collect::<Result<_>>()?;
        for (_, file) in &whole {
            std::fs::write(file, "spec: {")?;
        }
        mesh.start_agent("n2", &Value::Null)?;
        in_force(mesh)?;
        for (text, file) in &whole {
            std::fs::write(file, text)?;
        }

        // Neither objects nor copies: it serves nobody until they are there, and then as they say.
        mesh.take_agent("n2")?.kill()?;
        let away = mesh.directory().join("away");
        std::fs::rename(&objects, &away)?;
        std::fs::remove_dir_all(mesh.folder().join("agents/n2/run/objects"))?;
        mesh.launch_agent("n2", &Value::Null)?;
        let attempt = || [&client, &stranger].into_iter().try_for_each(|from| is_refused(from, to));
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            attempt()?;
            let unmet = mesh.agent("n2")?.status().map(|status| status.unmet).unwrap_or_default();
            // All that can be done without them is done.
            let lacks = |what: &str| unmet.iter().any(|said| said.contains(what));
            if lacks("not synced yet") && !lacks("workers") && !lacks("CNI socket") {
                break;
            }
            ensure!(Instant::now() < deadline, "the agent does not say what it waits for");
        }
        attempt()?;
        std::fs::rename(&away, &objects)?;
        let agent = mesh.agent("n2")?;
        while !agent.process().log().iter().any(|line| line.starts_with("adit-agent ready")) {
            attempt()?;
            ensure!(Instant::now() < deadline, "the agent is not ready though all is there");
        }
        // Without a trust bundle it could not use the certificate that it had kept; that is judged anew now.
        wait_shown(mesh.agent("n2")?, &server, "that it is captured again", |shown| {
            shown.is_some_and(|shown| shown.captured)
        })?;
        in_force(mesh)?;
        assert_eq!(serving.accepted(), [], "the app was reached");
        Ok(())
    })
}

#[test]
fn what_changed_while_the_agent_was_away_is_done_when_it_is_back() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let stays = mesh.add_pod(PodSpec::new("n1", "shop", "stays"))?;
        let gone = mesh.add_pod(PodSpec::new("n1", "shop", "gone"))?;
        let out = mesh.add_pod(PodSpec::new("n1", "shop", "out"))?;
        let joins = mesh.add_pod(PodSpec::new("n1", "plain", "joins"))?;
        let before = sysctls(&joins)?;
        mesh.take_agent("n1")?.kill()?;

        mesh.remove_pod(&gone)?;
        Run::here("ip").args(["netns", "del", gone.host.netns.name()]).ok()?;
        let out = mesh
            .change_pod(&out, |spec| drop(spec.labels.insert("adit.dev/mesh".into(), "disabled".into())))?;
        let joins = mesh
            .change_pod(&joins, |spec| drop(spec.labels.insert("adit.dev/mesh".into(), "enabled".into())))?;
        assert!(rules(&out)?.contains("--to-ports 15001"), "nobody is there to let it go");
        mesh.start_agent("n1", &Value::Null)?;

        mesh.wait_captured(&joins)?;
        assert_captured(&joins)?;
        mesh.wait_released(&out)?;
        wait_shown(mesh.agent("n1")?, &out, "it is let go", |shown| {
            shown.is_some_and(|shown| shown.state == "added" && !shown.enrolled)
        })?;
        assert_untouched(&out)?;
        assert_eq!(sysctls(&out)?, before, "as in a pod that was never captured");
        mesh.wait_released(&gone)?;
        wait_shown(mesh.agent("n1")?, &gone, "it is forgotten", |shown| shown.is_none())?;
        let journal = mesh.folder().join("agents/n1/run/journal");
        assert!(!journal.join(format!("{}.json", gone.sandbox)).exists());
        assert_captured(&stays)?;
        mesh.cni(&stays)?.check()?.ok().map(drop)
    })
}

#[test]
fn a_namespace_that_vanishes_without_a_del_is_let_go() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        // As a runtime does that loses the DEL.
        Run::here("ip").args(["netns", "del", pod.host.netns.name()]).ok()?;
        wait_shown(mesh.agent("n1")?, &pod, "it is forgotten", |shown| shown.is_none())?;
        let journal = mesh.folder().join("agents/n1/run/journal");
        assert_eq!(std::fs::read_dir(journal)?.count(), 0);
        Ok(())
    })
}

#[test]
fn sigterm_lets_open_connections_go_on_for_stop_within_and_leaves_pods_captured() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &Value::Null)?;
        mesh.start_agent("n2", &json!({ "stop-within": "10s" }))?;
        let (client, server, _serving) = pair(mesh, "shop")?;
        let mut open = talk(&client, server.at(8080))?;
        let agent = mesh.take_agent("n2")?;
        let asked = Instant::now();
        agent.process().signal(nix::sys::signal::Signal::SIGTERM)?;
        agent.process().wait_for_line("its word that it drains", |line| line.contains("drain"))?;
        assert_eq!(agent.status()?.unmet, ["the agent is draining"]);
        echo(&mut open, b"still here")?;
        talk(&client, server.at(8080)).context("a new one, as there is no other agent yet")?;
        let ended = open.read(&mut [0; 1]);
        let took = asked.elapsed();
        assert!(!matches!(ended, Ok(1)), "{ended:?}");
        assert!(took >= Duration::from_secs(10), "cut after {took:?}");
        assert_eq!(agent.terminate()?.code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        assert_eq!(crate::state::own_listeners(&server)?.len(), 0);
        assert!(rules(&server)?.contains("--to-ports 15006"), "it stays captured");
        mesh.wait_captured(&server)?;

        mesh.start_agent("n2", &json!({ "stop-within": "60s" }))?;
        drop(talk(&client, server.at(8080))?);
        wait_shown(mesh.agent("n2")?, &server, "no connection is open", |shown| {
            shown.is_some_and(|shown| shown.connections == 0)
        })?;
        let asked = Instant::now();
        assert_eq!(mesh.take_agent("n2")?.terminate()?.code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(30), "with nothing open it does not wait");
        Ok(())
    })
}

#[test]
fn a_pod_that_leaves_the_mesh_keeps_its_connections_until_they_end() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let (client, server, serving) = pair(mesh, "plain")?;
        server.host.netns.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "77")?;
        let before = everything(&server)?;
        let enrol = |spec: &mut PodSpec| drop(spec.labels.insert("adit.dev/mesh".into(), "enabled".into()));
        let leave = |spec: &mut PodSpec| drop(spec.labels.remove("adit.dev/mesh"));
        let client = mesh.change_pod(&client, enrol)?;
        let server = mesh.change_pod(&server, enrol)?;
        mesh.wait_captured(&client)?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;
        assert_captured(&server)?;
        let mut open = talk(&client, server.at(8080))?;

        // Out: the open one goes on, a new one is in clear.
        let server = mesh.change_pod(&server, leave)?;
        mesh.wait_released(&server)?;
        mesh.settle()?;
        let drains = |shown: Option<&PodStatus>| {
            shown.is_some_and(|shown| shown.state == "draining" && shown.connections == 1)
        };
        wait_shown(mesh.agent("n2")?, &server, "it drains", drains)?;
        echo(&mut open, b"drained, not cut")?;
        let first = mesh.agent("n1")?.process().next_line();
        drop(talk(&client, server.at(8080))?);
        assert_eq!(transport(mesh, "n1", first, server.at(8080))?, "plaintext");

        // In again while it drains: the open one goes on, a new one is in a tunnel.
        let server = mesh.change_pod(&server, enrol)?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;
        assert_captured(&server)?;
        echo(&mut open, b"still the same")?;
        let first = mesh.agent("n1")?.process().next_line();
        drop(talk(&client, server.at(8080))?);
        assert_eq!(transport(mesh, "n1", first, server.at(8080))?, "mtls");

        // Out for good: once the last has ended, nothing is left.
        let server = mesh.change_pod(&server, leave)?;
        mesh.wait_released(&server)?;
        wait_shown(mesh.agent("n2")?, &server, "it drains", drains)?;
        echo(&mut open, b"to the end")?;
        assert_eq!(serving.accepted()[0].end, None);
        drop(open);
        let added = |shown: Option<&PodStatus>| shown.is_some_and(|shown| shown.state == "added");
        wait_shown(mesh.agent("n2")?, &server, "it is let go", added)?;
        assert_untouched(&server)?;
        assert_eq!(everything(&server)?, before);
        Ok(())
    })
}

#[test]
fn a_drain_ends_at_its_deadline() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &Value::Null)?;
        mesh.start_agent("n2", &json!({ "pods": { "drain-deadline": "1s" } }))?;
        let client = mesh.add_pod(PodSpec::new("n1", "plain", "client").label("adit.dev/mesh", "enabled"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "plain", "server").label("adit.dev/mesh", "enabled"))?;
        let _serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        let mut open = talk(&client, server.at(8080))?;
        let first = mesh.agent("n2")?.process().next_line();
        let server = mesh.change_pod(&server, |spec| drop(spec.labels.remove("adit.dev/mesh")))?;
        let ended = open.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1)), "{ended:?}");
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the cut one", |flow| flow.reason.is_some())?;
        assert_eq!(flow.reason.as_deref(), Some("drained"));
        wait_shown(mesh.agent("n2")?, &server, "it is let go", |shown| {
            shown.is_some_and(|shown| shown.state == "added")
        })?;
        assert_untouched(&server)
    })
}

#[test]
fn a_running_pod_that_is_enrolled_keeps_its_connections_and_they_are_shown_as_clear() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let (client, server, _serving) = pair(mesh, "plain")?;
        let mut open = talk(&client, server.at(8080))?;
        mesh.namespace("plain", Enrolment::Enabled)?;
        for pod in [&client, &server] {
            mesh.wait_captured(pod)?;
            assert_captured(pod)?;
        }
        mesh.settle()?;
        echo(&mut open, b"older than the mesh")?;
        for to in [server.at(8080), server.at_v6(8080)] {
            let first = mesh.agent("n2")?.process().next_line();
            drop(talk(&client, to)?);
            assert_eq!(transport(mesh, "n2", first, to)?, "mtls");
        }
        echo(&mut open, b"and still in clear")?;
        let says = |wanted: bool| {
            move |shown: Option<&PodStatus>| {
                shown.is_some_and(|shown| {
                    shown.conditions.iter().any(|condition| condition.contains("older than its capture"))
                        == wanted
                })
            }
        };
        for (pod, node) in [(&client, "n1"), (&server, "n2")] {
            wait_shown(mesh.agent(node)?, pod, "the older connection is shown", says(true))?;
            let metrics = mesh.agent(node)?.admin("/metrics")?;
            assert!(metrics.contains("adit_older_connections 1"), "{metrics}");
        }
        drop(open);
        wait_shown(mesh.agent("n2")?, &server, "it has ended", says(false)).map(drop)
    })
}
