//! Two agents of one node, as in an upgrade; and the end of Adit on a node. Under load: what was open stays open, and what
//! is new gets through.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use adit_proto::cni::{self, Removal, Reply, Request};
use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, Load, LoadReport, Server, Shape, connect, run_load};
use adit_tests::mesh::{Agent, Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::state::{assert_captured, assert_untouched, everything, own_listeners, rules};
use crate::talk::{echo, talk};
use crate::until::{until, until_kept};

/// Between two lines of a long connection, each way.
const LINE_EVERY: Duration = Duration::from_millis(50);
/// Long connections of a test under load.
const LONG: usize = 20;
/// New connections a second beside them.
const NEW_A_SECOND: u32 = 100;

/// Connections that send a numbered line 20 times a second, and want each one back.
struct Long {
    stop: Arc<AtomicBool>,
    talking: Vec<JoinHandle<Result<u64>>>,
}

impl Long {
    /// Opens them, and returns once each has had an answer.
    fn open(from: &Pod, to: &[SocketAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let talking = to.iter().map(|to| {
            let mut stream = connect(&from.host.netns, *to)?;
            line(&mut stream, 0)?;
            let stop = Arc::clone(&stop);
            Ok(thread::spawn(move || talk_on(stream, &stop)))
        });
        Ok(Self { talking: talking.collect::<Result<_>>()?, stop })
    }

    /// Closes them; how many lines came back on each. An error if a connection was cut, or a line was wrong.
    fn close(self) -> Result<Vec<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.talking.into_iter().map(|one| match one.join() {
            Ok(lines) => lines,
            Err(_) => bail!("a long connection panicked"),
        });
        ended.collect()
    }
}

fn talk_on(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        line(&mut stream, number).with_context(|| format!("line {number}"))?;
        thread::park_timeout(LINE_EVERY);
    }
    Ok(number)
}

/// One numbered line there and back.
fn line(stream: &mut TcpStream, number: u64) -> Result<()> {
    let said = format!("line {number} of a long connection\n");
    stream.write_all(said.as_bytes())?;
    let mut came = String::new();
    BufReader::new(&mut *stream).read_line(&mut came)?;
    ensure!(came == said, "{came:?} came back of {said:?}");
    Ok(())
}

/// New connections from `client` to `to`, as long as it is not told to stop.
fn load(client: &Pod, to: SocketAddr, duration: Duration) -> JoinHandle<Result<LoadReport>> {
    let load = Load {
        to,
        shape: Shape::PerRequest,
        clients: 4,
        rate: Some(NEW_A_SECOND),
        duration,
        give_up: Duration::from_secs(10),
    };
    let netns = client.host.netns.clone();
    thread::spawn(move || netns.run(|| run_load(&load))?)
}

/// Settings of an agent that runs beside another in the same namespace.
fn beside(more: Value) -> Value {
    let mut settings = json!({
        "admin": { "address": "127.0.0.1:0", "metrics-address": "[::]:0" },
        "health": { "address": "[::]:0" },
    });
    if let (Some(all), Value::Object(more)) = (settings.as_object_mut(), more) {
        all.extend(more);
    }
    settings
}

/// The second agent of a node, ready; the first.
fn upgrade(mesh: &mut Mesh, node: &str, settings: Value) -> Result<Agent> {
    mesh.start_agent(node, &beside(settings))?.context("there was no agent before")
}

fn says(agent: &Agent, what: &str) -> Result<()> {
    agent.process().wait_for_line(what, |line| line.contains(what)).map(drop)
}

/// Asks an agent to end, and waits until it has let go of all that is new.
fn let_go(agent: &Agent) -> Result<()> {
    agent.process().signal(Signal::SIGTERM)?;
    says(agent, "another agent has taken over, nothing new is taken")
}

/// Waits for an agent's end.
fn wait_ended(agent: Agent) -> Result<()> {
    let status = agent.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn start(mesh: &mut Mesh, settings: &Value) -> Result<()> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start_ca(&Value::Null)?;
    mesh.start_agent("n1", settings)?;
    mesh.start_agent("n2", settings)?;
    Ok(())
}

/// A client on n1 and a server on n2, which echoes at port 8080 and answers HTTP at 8081.
fn pair(mesh: &mut Mesh, namespace: &str) -> Result<(Pod, Pod, [Server; 2])> {
    let client = mesh.add_pod(PodSpec::new("n1", namespace, "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", namespace, "server"))?;
    let echo = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    let http = Server::start(&server.host.netns, 8081, Behaviour::Http { body: b"yes".to_vec() })?;
    mesh.settle()?;
    Ok((client, server, [echo, http]))
}

/// Half of them by each family.
fn long(client: &Pod, server: &Pod) -> Result<Long> {
    let to = [server.at(8080), server.at_v6(8080)];
    Long::open(client, &to.repeat(LONG / 2))
}

#[test]
fn an_upgrade_of_both_nodes_under_load_cuts_nothing_and_fails_nothing() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        start(mesh, &Value::Null)?;
        let (client, server, [_echo, http]) = pair(mesh, "shop")?;
        let stood = [rules(&client)?, rules(&server)?];
        let open = long(&client, &server)?;
        let loading = load(&client, server.at(8081), Duration::from_secs(20));
        http.wait_until("the load's first", |accepted| accepted.len() > 20)?;

        // The server's node first, then the client's: a tunnel's end and its beginning.
        let mut before = Vec::new();
        for (node, pod) in [("n2", &server), ("n1", &client)] {
            let first = mesh.agent(node)?.process().next_line();
            let old = upgrade(mesh, node, Value::Null)?;
            says(&old, "another agent takes over")?;
            ensure!(own_listeners(pod)?.values().all(|count| *count == 2), "both listen on {node}");
            let served = http.accepted().len();
            let_go(&old)?;
            until("the old one's listeners are closed", || {
                Ok(own_listeners(pod)?.values().all(|count| *count == 1).then_some(()))
            })?;
            // New ones come by the new agent, and what is open stays with the old one.
            http.wait_until("new ones after it", |accepted| accepted.len() > served + 50)?;
            mesh.agent(node)?.wait_for_flow(0, "one by the new agent", |flow| flow.state == "closed")?;
            let cut = old.process().lines_from(first);
            let cut: Vec<_> = cut.iter().filter(|line| line.contains("\"state\":\"failed\"")).collect();
            ensure!(cut.is_empty(), "{cut:#?}");
            before.push(old);
        }
        // A pod that comes now is the new one's.
        let late = mesh.add_pod(PodSpec::new("n2", "shop", "late"))?;
        assert_captured(&late)?;
        assert_eq!(own_listeners(&late)?.values().copied().max(), Some(1));

        let report = loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        let lines = open.close().context("a long connection")?;
        eprintln!("upgrade: {LONG} long connections, lines on each {lines:?}; new ones: {report:?}");
        ensure!(report.failures() == 0 && report.ok > 500, "{report:?}");
        ensure!(lines.len() == LONG && lines.iter().all(|count| *count > 20), "{lines:?}");
        assert_eq!([rules(&client)?, rules(&server)?], stood, "the same rules once");
        // With nothing open they end, long before their deadline.
        for old in before {
            wait_ended(old)?;
        }
        for pod in [&client, &server] {
            assert_captured(pod)?;
            mesh.wait_captured(pod)?;
            mesh.cni(pod)?.check()?.ok()?;
        }
        talk(&client, server.at(8080)).map(drop)
    })
}

#[test]
fn an_add_that_waits_when_another_agent_takes_over_is_answered_by_that_one() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        // Without the CA there is no certificate: the ADD waits, with listeners open and no rules.
        mesh.topology.host("ca")?.netns.ip("link set eth0 down")?;
        let (waits, answered) = std::sync::mpsc::channel();
        let pod = mesh.prepare_pod(PodSpec::new("n1", "shop", "web").account("new"))?;
        let cni = mesh.cni(&pod)?;
        let adding = thread::spawn(move || {
            let _ = waits.send(());
            cni.add()?.ok().map(drop)
        });
        answered.recv()?;
        until("the old agent has opened its listeners", || {
            Ok((!own_listeners(&pod)?.is_empty()).then_some(()))
        })?;
        let old = upgrade(mesh, "n1", Value::Null)?;
        ensure!(!adding.is_finished(), "it was answered without a certificate");
        mesh.topology.host("ca")?.netns.ip("link set eth0 up")?;
        adding.join().map_err(|_| anyhow::anyhow!("the ADD panicked"))?.context("the ADD")?;
        assert_captured(&pod)?;
        mesh.wait_captured(&pod)?;
        let_go(&old)?;
        wait_ended(old)?;
        assert_eq!(own_listeners(&pod)?.values().copied().max(), Some(1));
        let journal = mesh.folder().join("agents/n1/run/journal");
        ensure!(journal.join(format!("{}.json", pod.sandbox)).exists(), "a crash would lose it");
        mesh.cni(&pod)?.check()?.ok().map(drop)
    })
}

#[test]
fn an_agent_that_is_told_to_end_goes_on_as_before_until_another_is_ready() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh, &json!({ "await-successor": "5m" }))?;
        let (client, server, _serving) = pair(mesh, "shop")?;
        mesh.agent("n2")?.process().signal(Signal::SIGTERM)?;
        says(mesh.agent("n2")?, "going on as before until another agent is ready")?;
        let unmet = mesh.agent("n2")?.status()?.unmet;
        assert_eq!(unmet, ["the agent was told to end, and goes on as before until another is ready"]);
        let mut open = talk(&client, server.at(8080)).context("a new connection")?;
        let late = mesh.add_pod(PodSpec::new("n2", "shop", "late")).context("a new pod")?;
        assert_captured(&late)?;
        let old = upgrade(mesh, "n2", Value::Null)?;
        says(&old, "another agent has taken over, nothing new is taken")?;
        echo(&mut open, b"by the old one")?;
        drop(talk(&client, server.at(8080)).context("by the new one")?);
        drop(open);
        wait_ended(old)?;
        assert_captured(&late)?;
        assert_captured(&server)
    })
}

#[test]
fn what_outlives_the_drain_is_cut_as_drained_and_counted() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh, &json!({ "drain-within": "2s" }))?;
        let (client, server, _serving) = pair(mesh, "shop")?;
        let mut open = talk(&client, server.at(8080))?;
        let old = upgrade(mesh, "n2", Value::Null)?;
        let first = old.process().next_line();
        let asked = Instant::now();
        let_go(&old)?;
        let ended = open.read(&mut [0]);
        ensure!(!matches!(ended, Ok(1)), "{ended:?}");
        ensure!(asked.elapsed() >= Duration::from_secs(2), "cut after {:?}", asked.elapsed());
        let flow = old.wait_for_flow(first, "the cut one", |flow| flow.reason.is_some())?;
        assert_eq!(flow.reason.as_deref(), Some("drained"));
        says(&old, "connections=1")?;
        wait_ended(old)?;
        talk(&client, server.at(8080)).map(drop)
    })
}

#[test]
fn an_agent_whose_successor_ends_before_it_has_let_go_has_the_pods_again() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh, &Value::Null)?;
        let (client, server, _serving) = pair(mesh, "shop")?;
        let mut open = talk(&client, server.at(8080))?;
        let stood = rules(&server)?;

        // One that cannot start: it has asked for the pods, and ends before it listens.
        let old = mesh.launch_agent("n2", &Value::Null)?.context("there was no agent before")?;
        let failed = mesh.take_agent("n2")?;
        ensure!(failed.wait()?.code() == Some(1), "two agents have the same ports");
        says(&old, "the agent that took over has ended")?;
        mesh.put_agent(old);
        let early = mesh.add_pod(PodSpec::new("n2", "shop", "early")).context("a new pod")?;

        // One that is killed while both serve, with a pod that only it has seen come.
        let old = upgrade(mesh, "n2", Value::Null)?;
        let late = mesh.add_pod(PodSpec::new("n2", "shop", "late"))?;
        let first = old.process().next_line();
        mesh.take_agent("n2")?.kill()?;
        let again = |line: &str| line.contains("the agent that took over has ended");
        old.process().wait_for_line_after(first, "that it has the pods again", again)?;
        mesh.put_agent(old);
        for pod in [&late, &early, &server] {
            until("it is served", || {
                let served = mesh.agent("n2")?.status().is_ok_and(|status| {
                    status.pods.iter().any(|shown| shown.uid == pod.uid && shown.state == "live")
                });
                Ok(served.then_some(()))
            })?;
            assert_captured(pod)?;
            mesh.cni(pod)?.check()?.ok()?;
        }
        assert_eq!(rules(&server)?, stood);
        echo(&mut open, b"nobody noticed")?;
        mesh.add_pod(PodSpec::new("n2", "shop", "later")).context("a new pod")?;

        // And one to which it can let go.
        let old = upgrade(mesh, "n2", Value::Null)?;
        let_go(&old)?;
        echo(&mut open, b"still by the old one")?;
        drop(open);
        wait_ended(old)?;
        talk(&client, server.at(8080)).map(drop)
    })
}

#[test]
fn a_pod_that_leaves_the_mesh_during_an_upgrade_keeps_what_the_old_agent_carries() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        mesh.namespace("plain", Enrolment::Unsaid)?;
        start(mesh, &Value::Null)?;
        let enrolled = |node, name| PodSpec::new(node, "plain", name).label("adit.dev/mesh", "enabled");
        let client = mesh.add_pod(enrolled("n1", "client"))?;
        let server = mesh.add_pod(enrolled("n2", "server"))?;
        let _echo = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        let mut open = talk(&client, server.at(8080))?;
        let old = upgrade(mesh, "n2", Value::Null)?;
        let_go(&old)?;
        let server = mesh.change_pod(&server, |spec| drop(spec.labels.remove("adit.dev/mesh")))?;
        mesh.wait_released(&server)?;
        mesh.settle()?;
        let state = |mesh: &Mesh, wanted: &str, connections: u64| {
            until(&format!("it is {wanted}"), || {
                let pods = mesh.agent("n2")?.status()?.pods;
                let is = |shown: &adit_proto::admin::PodStatus| {
                    shown.uid == server.uid && shown.state == wanted && shown.connections == connections
                };
                Ok(pods.iter().any(is).then_some(()))
            })
        };
        state(mesh, "draining", 1)?;
        echo(&mut open, b"the rules that it needs stand")?;
        drop(talk(&client, server.at(8080)).context("a new one, in clear")?);
        drop(open);
        wait_ended(old)?;
        state(mesh, "added", 0)?;
        assert_untouched(&server)
    })
}

/// What an agent answers an installer of the CNI plugin.
fn removal(mesh: &Mesh, node: &str) -> Result<Removal> {
    let mut socket = UnixStream::connect(mesh.folder().join("agents").join(node).join("run/cni.sock"))?;
    socket.set_read_timeout(Some(WAIT_MAX))?;
    socket.write_all(&cni::encode(&Request::Removal)?)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    match cni::decode(&answer)? {
        Some((Reply::Removal { adit }, _)) => Ok(adit),
        other => bail!("{other:?}"),
    }
}

/// Everything that an agent keeps on its node.
fn kept(mesh: &Mesh, node: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for part in ["run", "state"] {
        let folder = mesh.folder().join("agents").join(node).join(part);
        match std::fs::read_dir(&folder) {
            Ok(files) => {
                for file in files {
                    found.push(format!("{part}/{}", file?.file_name().display()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("the agent's folder"),
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[test]
fn an_uninstall_under_load_leaves_nothing_on_the_node() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        mesh.namespace("plain", Enrolment::Unsaid)?;
        start(mesh, &json!({ "uninstall-drain": "4s" }))?;
        let (client, server, [echoes, http]) = pair(mesh, "plain")?;
        let other = mesh.add_pod(PodSpec::new("n2", "plain", "other"))?;
        let pods = [&client, &server, &other];
        let before = pods.iter().map(|pod| everything(pod)).collect::<Result<Vec<_>>>()?;
        mesh.namespace("plain", Enrolment::Enabled)?;
        for pod in pods {
            mesh.wait_captured(pod)?;
        }
        mesh.settle()?;
        let mut stays = talk(&client, server.at(8080))?;
        let open = long(&client, &server)?;
        let loading = load(&client, server.at(8081), Duration::from_secs(12));
        http.wait_until("the load's first", |accepted| accepted.len() > 20)?;

        // Said, but nobody told the agent to end: nothing happens, and an installer is told to ask again.
        assert_eq!(removal(mesh, "n2")?, Removal::Stays);
        std::fs::write(mesh.directory().join("uninstall"), "")?;
        until("the agent has seen it", || Ok((removal(mesh, "n2")? == Removal::Undecided).then_some(())))?;
        assert_captured(&server)?;

        let late = mesh.prepare_pod(PodSpec::new("n2", "plain", "late"))?;
        let agent = mesh.take_agent("n2")?;
        let asked = agent.process().next_line();
        agent.process().signal(Signal::SIGTERM)?;
        says(&agent, "Adit leaves this node")?;
        assert_eq!(removal(mesh, "n2")?, Removal::Leaves);
        mesh.wait_released(&server)?;
        // What ends by itself within the drain is not cut.
        let lines = open.close().context("a long connection")?;
        // A pod that starts meanwhile is let through, as the plugin may still be there.
        mesh.cni(&late)?.add()?.ok()?;
        assert_untouched(&late)?;
        ensure!(lines.len() == LONG, "{lines:?}");
        let cut = stays.read(&mut [0]);
        ensure!(!matches!(cut, Ok(1)), "{cut:?}");
        let flow = agent.wait_for_flow(asked, "the cut one", |flow| flow.reason.is_some())?;
        assert_eq!(flow.reason.as_deref(), Some("drained"));
        wait_ended(agent)?;
        assert_eq!(kept(mesh, "n2")?, [""; 0]);
        for pod in [&server, &other] {
            assert_untouched(pod)?;
        }
        assert_eq!(everything(&server)?, before[1]);
        assert_eq!(everything(&other)?, before[2]);
        assert_captured(&client)?;
        let report = loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        eprintln!("uninstall: {LONG} long connections, lines on each {lines:?}; new ones: {report:?}");
        ensure!(report.failures() == 0 && report.ok > 300, "{report:?}");
        drop(echoes);

        // The other node, with nothing open.
        let agent = mesh.take_agent("n1")?;
        let asked = Instant::now();
        ensure!(agent.terminate()?.code() == Some(0), "it leaves, too");
        ensure!(asked.elapsed() < WAIT_MAX, "{:?}", asked.elapsed());
        assert_eq!(kept(mesh, "n1")?, [""; 0]);
        assert_untouched(&client)?;
        assert_eq!(everything(&client)?, before[0]);
        Ok(())
    })
}

#[test]
fn a_signal_without_an_uninstall_leaves_everything_in_place() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let stood = everything(&pod)?;
        // It comes a moment after the first World.
        until_kept(mesh, "n1", "shop", "enrolled")?;
        let files = kept(mesh, "n1")?;
        ensure!(mesh.take_agent("n1")?.terminate()?.code() == Some(0), "it ends well");
        assert_eq!(everything(&pod)?, stood);
        assert_eq!(kept(mesh, "n1")?, files);
        Ok(())
    })
}

#[test]
fn a_frozen_agent_keeps_its_successor_from_nothing_and_rests_when_it_wakes() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh, &Value::Null)?;
        let (client, server, _serving) = pair(mesh, "shop")?;
        // Another, whose tunnels do not lead to the frozen one.
        let other = mesh.add_pod(PodSpec::new("n1", "shop", "other"))?;
        let mut open = talk(&client, server.at(8080))?;
        mesh.agent("n2")?.process().signal(Signal::SIGSTOP)?;
        let old = upgrade(mesh, "n2", Value::Null)?;
        says(mesh.agent("n2")?, "the agent before this one does not answer")?;
        says(mesh.agent("n2")?, "closed what it listened with")?;
        until("only the new one listens", || {
            Ok(own_listeners(&server)?.values().all(|count| *count == 1).then_some(()))
        })?;
        // Half of them would have been the frozen one's.
        for _ in 0..20 {
            drop(talk(&other, server.at(8080))?);
        }
        let stood = everything(&server)?;
        old.process().signal(Signal::SIGCONT)?;
        says(&old, "another agent has taken over")?;
        echo(&mut open, b"woken")?;
        let_go(&old)?;
        drop(open);
        wait_ended(old)?;
        assert_eq!(everything(&server)?, stood);
        talk(&client, server.at(8080)).map(drop)
    })
}
