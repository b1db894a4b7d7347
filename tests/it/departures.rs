//! Who leaves, and what goes with them: pods that vanish, pods that leave the mesh, and an agent that was away.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use adit_tests::apps::{Behaviour, Load, LoadReport, Server, Shape, run_load};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::state::assert_captured;
use crate::talk::{echo, talk};
use crate::until::{until, until_unenrolled};

/// The namespaces, CA, agents.
fn start(mesh: &mut Mesh) -> Result<()> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.namespace("plain", Enrolment::Unsaid)?;
    mesh.start()
}

/// From now on nobody hears of the pod, not even a reset.
fn vanish(pod: &Pod) -> Result<()> {
    pod.host.netns.ip("link set eth0 down")
}

#[test]
fn connections_of_a_pod_that_vanished_end_once_its_object_is_gone_at_either_end() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let leaver = mesh.add_pod(PodSpec::new("n1", "shop", "leaver"))?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        let _left = talk(&leaver, server.at(8080))?;
        let mut open = talk(&client, server.at(8080))?;

        let first = mesh.agent("n2")?.process().next_line();
        vanish(&leaver)?;
        echo(&mut open, b"another's goes on")?;
        mesh.remove_object(&leaver.spec.object_file())?;
        let flow =
            mesh.agent("n2")?.wait_for_flow(first, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!((flow.reason.as_deref(), &*flow.direction), (Some("pod_gone"), "inbound"), "{flow:?}");
        serving.wait_until("the app's end of it", |accepted| accepted[0].end.is_some())?;
        echo(&mut open, b"another's goes on")?;

        let server = mesh.change_pod(&server, |spec| spec.terminating = true)?;
        mesh.settle()?;
        echo(&mut open, b"to one that terminates, too")?;
        let first = mesh.agent("n1")?.process().next_line();
        vanish(&server)?;
        mesh.remove_object(&server.spec.object_file())?;
        let ended = open.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1)), "{ended:?}");
        let of_client = |reason: Option<&str>| reason == Some("pod_gone");
        mesh.agent("n1")?
            .wait_for_flow(first, "the client's report", |flow| of_client(flow.reason.as_deref()))
            .map(drop)
    })
}

/// Load until told to end, in slices of a second; what all of them said together.
fn load_until(client: &Pod, to: SocketAddr, end: &AtomicBool) -> Result<LoadReport> {
    let load = Load {
        to,
        shape: Shape::PerRequest,
        clients: 16,
        rate: Some(150),
        duration: Duration::from_secs(1),
        give_up: Duration::from_secs(10),
    };
    let mut all = LoadReport::default();
    while !end.load(Ordering::Relaxed) {
        let slice = client.host.netns.run(|| run_load(&load))??;
        all.ok += slice.ok;
        for (why, count) in slice.failed {
            *all.failed.entry(why).or_default() += count;
        }
    }
    Ok(all)
}

/// Talks over connections that were there before, again and again until told to end.
fn talk_until(mut open: Vec<TcpStream>, end: &AtomicBool) -> Result<u64> {
    let mut words = 0;
    while !end.load(Ordering::Relaxed) {
        for stream in &mut open {
            echo(stream, b"as before")?;
            words += 1;
        }
    }
    Ok(words)
}

#[test]
fn leaving_the_mesh_under_load_fails_no_connection_old_or_new() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let echoing = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        let http = Server::start(&server.host.netns, 8081, Behaviour::Http { body: b"yes".to_vec() })?;
        mesh.settle()?;
        let first = mesh.agent("n1")?.process().next_line();
        let open = (0..16).map(|_| talk(&client, server.at(8080))).collect::<Result<Vec<_>>>()?;
        let end = AtomicBool::new(false);
        let (words, report) = thread::scope(|scope| -> Result<_> {
            let old = scope.spawn(|| talk_until(open, &end));
            let new = scope.spawn(|| load_until(&client, server.at(8081), &end));
            let left = (|| {
                mesh.agent("n1")?
                    .wait_for_flow(first, "the load in tunnels", |flow| flow.transport == "mtls")?;
                let leave =
                    |spec: &mut PodSpec| drop(spec.labels.insert("adit.dev/mesh".into(), "disabled".into()));
                // The server's side first, then the client's: tunnels, clear from within the mesh, clear.
                for pod in [&server, &client] {
                    let seen = http.accepted().len();
                    let pod = mesh.change_pod(pod, leave)?;
                    mesh.wait_released(&pod)?;
                    mesh.settle()?;
                    http.wait_until("new ones after it has left", |accepted| accepted.len() > seen + 100)?;
                }
                Ok(())
            })();
            end.store(true, Ordering::Relaxed);
            let old = old.join().map_err(|_| anyhow!("the old connections' thread panicked"))?;
            let new = new.join().map_err(|_| anyhow!("the load panicked"))?;
            left.and_then(|()| Ok((old?, new?)))
        })?;
        println!(
            "{words} words over 16 old connections, {} new ones, {} failed",
            report.ok,
            report.failures()
        );
        assert_eq!(report.failed, [].into(), "of {} connections", report.ok);
        assert!(report.ok > 200 && words > 16, "{report:?}, {words} words");
        echoing.wait_until("the end of the old ones", |accepted| {
            accepted.iter().all(|accepted| accepted.end.is_some())
        })?;
        // Nothing is open any more: nothing of the mesh stays in either pod.
        for pod in [&server, &client] {
            until_untouched(pod)?;
        }
        Ok(())
    })
}

/// Waits until a pod that leaves is as if it had never been captured.
fn until_untouched(pod: &Pod) -> Result<()> {
    until("that no rule stays", || Ok((!crate::state::rules(pod)?.contains("ADIT")).then_some(())))
        .with_context(|| pod.spec.name.clone())
}

#[test]
fn a_pod_that_started_while_the_agent_was_away_can_join_when_it_is_back() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        mesh.add_pod(PodSpec::new("n1", "plain", "first"))?;
        until_unenrolled(mesh, "n1", "plain")?;
        mesh.take_agent("n1")?.kill()?;

        let late = mesh.add_pod(PodSpec::new("n1", "plain", "late"))?;
        let short = mesh.add_pod(PodSpec::new("n1", "plain", "short"))?;
        for pod in [&late, &short] {
            mesh.cni(pod)?.add()?.ok()?;
        }
        mesh.cni(&short)?.del()?.ok()?;
        let missed = mesh.folder().join("agents/n1/run/missed");
        let left = || std::fs::read_dir(&missed).map(Iterator::count);
        assert_eq!(left()?, 1, "a pod that is gone needs no looking at");

        let late = mesh
            .change_pod(&late, |spec| drop(spec.labels.insert("adit.dev/mesh".into(), "enabled".into())))?;
        mesh.start_agent("n1", &Value::Null)?;
        mesh.wait_captured(&late)?;
        assert_captured(&late)?;
        assert_eq!(left()?, 0);
        mesh.cni(&late)?.check()?.ok().map(drop)
    })
}
