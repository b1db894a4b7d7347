//! Endpoints that are known before their pods: the connect phase waits for these, within its deadline.

use std::io::{Read, Write};
use std::time::Duration;

use adit_tests::apps::{Behaviour, Server, connect, read_exactly};
use adit_tests::mesh::{Mesh, Pod, PodSpec};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{PORT, at, web, with_shop};
use crate::until::until;

/// A captured pod behind the service `web` that echoes, and whose object has gone from the mesh directory.
fn unknown_endpoint(mesh: &mut Mesh, connect_timeout: &str) -> Result<(Pod, Server)> {
    let pod = mesh.add_pod(PodSpec::new("n2", "shop", "web-2").label("app", "web"))?;
    let serving = Server::start(&pod.host.netns, PORT, Behaviour::Echo)?;
    mesh.wait_captured(&pod)?;
    mesh.service(web(json!({})))?;
    mesh.apply(
        "traffic",
        &format!(
            "apiVersion: policy.adit.dev/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{ name: web, namespace: shop }}\n\
             spec: {{ targetRefs: [{{ group: '', kind: Service, name: web }}], connectTimeout: {connect_timeout} }}\n"
        ),
    )?;
    mesh.remove_object(&pod.spec.object_file())?;
    mesh.settle()?;
    Ok((pod, serving))
}

#[test]
fn a_connection_to_a_pod_that_is_not_known_yet_waits_for_it_and_goes_by_tunnel() -> Result<()> {
    with_shop(|mesh, shop| {
        let (pod, _serving) = unknown_endpoint(mesh, "60s")?;
        let first = mesh.agent("n1")?.process().next_line();
        let mut waiting = Vec::new();
        for vip in at(1, 80) {
            let mut stream = connect(&shop.client().netns, vip)?;
            stream.write_all(b"hello")?;
            waiting.push(stream);
        }
        // What all agents know by now holds no such pod.
        mesh.settle()?;
        // Its own node's agent knows it first, as where that one says that it is captured.
        let enrolled = |mesh: &Mesh| -> Result<Option<u64>> {
            Ok(mesh.agent("n2")?.status()?.counts.get("enrolled").copied())
        };
        let before = enrolled(mesh)?.context("enrolled pods are counted")?;
        mesh.agent("n1")?.process().signal(Signal::SIGSTOP)?;
        mesh.change_pod(&pod, |_| {})?;
        until(
            "that its own agent knows the pod",
            || Ok((enrolled(mesh)? == Some(before + 1)).then_some(())),
        )?;
        mesh.agent("n1")?.process().signal(Signal::SIGCONT)?;
        for stream in &mut waiting {
            assert_eq!(read_exactly(stream, 5)?, b"hello");
        }
        drop(waiting);
        for vip in at(1, 80) {
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                flow.destination.addr == vip.to_string() && flow.state == "closed"
            })?;
            assert_eq!(flow.transport, "mtls", "{flow:?}");
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_never_becomes_known_is_never_dialled_in_clear() -> Result<()> {
    with_shop(|mesh, shop| {
        let (_pod, serving) = unknown_endpoint(mesh, "300ms")?;
        for vip in at(1, 80) {
            let first = mesh.agent("n1")?.process().next_line();
            let mut stream = connect(&shop.client().netns, vip)?;
            let error = stream.read(&mut [0]).expect_err("the app is reset");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
                flow.destination.addr == vip.to_string()
            })?;
            assert_eq!((&*flow.state, flow.reason.as_deref()), ("failed", Some("deadline")), "{flow:?}");
            assert!(Duration::from_micros(flow.duration_us) >= Duration::from_millis(300), "{flow:?}");
        }
        assert!(serving.accepted().is_empty(), "nothing came to the app, by whatever way");
        Ok(())
    })
}
