//! Pods that were running before anybody told the agent of them: found when a label wants them, and captured without a
//! restart and without cutting what is open.

use std::fs;
use std::time::{Duration, Instant};

use adit_proto::admin::PodStatus;
use adit_tests::apps::{Behaviour, Server};
use adit_tests::mesh::{Agent, Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use anyhow::{Context, Result};
use serde_json::Value;

use crate::state::{assert_captured, assert_untouched};
use crate::talk::{echo, talk};
use crate::until::until;

/// From a label to capture: what a user waits for, and a reserve for a machine that does much else.
const CAPTURED_WITHIN: Duration = Duration::from_secs(2);

/// A pod that the agent was not told of, in a namespace without a label.
fn unseen(mesh: &mut Mesh, node: &str, name: &str) -> Result<Pod> {
    mesh.add_unseen_pod(PodSpec::new(node, "shop", name))
}

fn shown(agent: &Agent, pod: &Pod) -> Result<Option<PodStatus>> {
    Ok(agent.status()?.pods.into_iter().find(|shown| shown.uid == pod.uid))
}

fn until_shown(
    agent: &Agent,
    pod: &Pod,
    what: &str,
    wanted: impl Fn(&PodStatus) -> bool,
) -> Result<PodStatus> {
    let mut last = None;
    let found = until(what, || {
        last = shown(agent, pod)?;
        Ok(last.clone().filter(|shown| wanted(shown)))
    });
    found.with_context(|| format!("the last answer: {last:?}"))
}

fn journal(mesh: &Mesh, node: &str) -> Result<Vec<String>> {
    let files = fs::read_dir(mesh.folder().join("agents").join(node).join("run/journal"))?;
    files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect()
}

/// Waits for the agent's word on a pod, as its Events have it.
fn wait_said(mesh: &Mesh, pod: &Pod, first: u64, reason: &str) -> Result<String> {
    let (name, reason) = (format!("shop/{}", pod.spec.name), format!("reason=\"{reason}\""));
    let said = mesh
        .agent_of(pod)?
        .process()
        .wait_for_line_after(first, &reason, |line| line.contains(&name) && line.contains(&reason))?;
    Ok(said.1)
}

#[test]
fn a_label_captures_running_pods_under_an_open_connection_and_lets_them_go_again() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        mesh.namespace("shop", Enrolment::Unsaid)?;
        mesh.start()?;
        let (client, server) = (unseen(mesh, "n1", "client")?, unseen(mesh, "n2", "server")?);
        let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        // One by its processes alone, one by the runtime's record too.
        mesh.show_process(&client, 100, "pause")?;
        mesh.show_process(&client, 101, "client")?;
        mesh.show_process(&server, 100, "pause")?;
        mesh.keep_record(&server)?;
        mesh.settle()?;
        let mut open = talk(&client, server.at(8080))?;
        let first = [mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line()];

        let labelled = Instant::now();
        mesh.namespace("shop", Enrolment::Enabled)?;
        for pod in [&client, &server] {
            mesh.wait_captured(pod)?;
        }
        let took = labelled.elapsed();
        println!("from the label to both captured: {took:?}");
        assert!(took < CAPTURED_WITHIN, "{took:?}");
        for (pod, first) in [(&client, first[0]), (&server, first[1])] {
            assert_captured(pod)?;
            let said = wait_said(mesh, pod, first, "Captured")?;
            assert!(said.contains("1 connection that was open before"), "{said}");
        }
        mesh.settle()?;
        echo(&mut open, b"as before")?;
        let first = mesh.agent("n1")?.process().next_line();
        drop(talk(&client, server.at(8080))?);
        let flow =
            mesh.agent("n1")?.wait_for_flow(first, "the new one's report", |flow| flow.state == "closed")?;
        assert_eq!(&*flow.transport, "mtls", "{flow:?}");

        // The next agent adopts what this one has found.
        mesh.take_agent("n1")?.kill()?;
        let agent = mesh.start_agent("n1", &Value::Null)?;
        assert!(agent.is_none());
        until_shown(mesh.agent("n1")?, &client, "that it is captured", |shown| shown.captured)?;
        echo(&mut open, b"over a restart")?;

        let first = mesh.agent("n1")?.process().next_line();
        mesh.namespace("shop", Enrolment::Unsaid)?;
        for pod in [&client, &server] {
            mesh.wait_released(pod)?;
            until("that nothing stays", || Ok((!crate::state::rules(pod)?.contains("ADIT")).then_some(())))?;
        }
        wait_said(mesh, &client, first, "Released")?;
        echo(&mut open, b"to the end")?;
        drop(open);
        serving.wait_until("the end", |accepted| accepted.iter().all(|accepted| accepted.end.is_some()))?;
        assert_untouched(&client)?;
        // By the same sandbox that the runtime takes down.
        assert_eq!(journal(mesh, "n1")?, [format!("{}.json", client.sandbox)]);
        mesh.cni(&client)?.del()?.ok()?;
        assert_eq!(journal(mesh, "n1")?, [""; 0]);
        Ok(())
    })
}

#[test]
fn a_running_pod_that_cannot_be_found_is_explained_and_captured_once_it_can() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let (hidden, other) = (unseen(mesh, "n1", "hidden")?, unseen(mesh, "n1", "other")?);
        let agent = mesh.agent("n1")?;
        let found = |pod, why| {
            until_shown(agent, pod, "the reason", move |shown: &PodStatus| {
                shown.conditions.iter().any(|said| said.contains(why))
            })
        };
        let sought = found(&hidden, "no process of the pod")?;
        assert_eq!((sought.state.as_str(), sought.enrolled, sought.captured), ("sought", true, false));
        // A record and a process of another's namespace do not deceive it.
        let deceived = Pod { host: other.host.clone(), ..hidden.clone() };
        mesh.show_process(&deceived, 100, "pause")?;
        // Who is wanted anew is looked for at once.
        mesh.namespace("shop", Enrolment::Unsaid)?;
        until("that nobody is looked for", || Ok(agent.status()?.pods.is_empty().then_some(())))?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        found(&hidden, "does not have the addresses")?;
        let said = wait_said(mesh, &hidden, 0, "CaptureFailed")?;
        assert!(said.contains("is not captured"), "{said}");
        assert_untouched(&other)?;

        mesh.end_process(&hidden, 100)?;
        mesh.show_process(&hidden, 101, "pause")?;
        mesh.wait_captured(&hidden)?;
        assert_captured(&hidden)?;
        wait_said(mesh, &hidden, 0, "Captured")?;
        assert_untouched(&other)
    })
}

#[test]
fn a_found_pod_outlives_the_process_by_which_it_was_found() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let pod = unseen(mesh, "n1", "web")?;
        mesh.show_process(&pod, 100, "web")?;
        mesh.wait_captured(&pod)?;
        // Its container was started anew while no agent looked.
        mesh.take_agent("n1")?.kill()?;
        mesh.end_process(&pod, 100)?;
        mesh.show_process(&pod, 200, "web")?;
        let rules = crate::state::rules(&pod)?;
        mesh.start_agent("n1", &Value::Null)?;
        until_shown(mesh.agent("n1")?, &pod, "that it is captured", |shown| shown.captured)?;
        assert_eq!(crate::state::rules(&pod)?, rules, "with the mark of before");
        // And once more while one does, which it notices at its next look around.
        mesh.show_process(&pod, 300, "web")?;
        mesh.end_process(&pod, 200)?;
        let file = mesh.folder().join("agents/n1/run/journal").join(format!("{}.json", pod.sandbox));
        until("the other process in the journal", || {
            Ok(fs::read_to_string(&file)?.contains("proc/300/").then_some(()))
        })?;
        assert_captured(&pod)
    })
}

#[test]
fn a_sandbox_that_is_re_made_is_captured_again_and_a_finished_pod_leaves_nothing() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let before = unseen(mesh, "n1", "web")?;
        mesh.show_process(&before, 100, "pause")?;
        mesh.wait_captured(&before)?;
        let after = mesh.remake_sandbox(&before)?;
        mesh.show_process(&after, 200, "pause")?;
        let captured = |shown: &PodStatus| shown.captured && shown.sandbox == after.sandbox;
        until("that the new one is captured", || {
            let pods = mesh.agent("n1")?.status()?.pods;
            Ok(pods.iter().any(captured).then_some(()))
        })?;
        assert_captured(&after)?;
        mesh.cni(&before)?.del()?.ok()?;
        let sandboxes: Vec<String> =
            mesh.agent("n1")?.status()?.pods.into_iter().map(|shown| shown.sandbox).collect();
        assert_eq!(sandboxes, std::slice::from_ref(&after.sandbox));

        let file = format!("{}.json", after.sandbox);
        assert_eq!(journal(mesh, "n1")?, [file]);
        drop(before);
        mesh.end_process(&after, 100)?;
        mesh.end_process(&after, 200)?;
        mesh.finish_pod(after)?;
        until("that nothing is known of it", || {
            let status = mesh.agent("n1")?.status()?;
            Ok((status.pods.is_empty() && status.certificates.is_empty()).then_some(()))
        })?;
        assert_eq!(journal(mesh, "n1")?, [""; 0]);
        Ok(())
    })
}
