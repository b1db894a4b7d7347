//! More than one data-plane worker: what each does for its own connections holds for all of them.

use std::net::TcpStream;

use adit_tests::apps::{Behaviour, Server};
use adit_tests::mesh::{Enrolment, Mesh, PodSpec, with_mesh};
use anyhow::Result;
use serde_json::{Value, json};

use crate::state::{OWN_PORTS, assert_untouched, own_listeners};
use crate::talk::{echo, talk, wait_cut};
use crate::until::until;

/// Connections of each kind: that one of two workers gets none of them has a chance of 2^-23.
const CONNECTIONS: usize = 24;

/// How many workers of a node's agent have an open tunnel to another.
fn workers_with_tunnels(mesh: &Mesh, node: &str) -> Result<usize> {
    let page = mesh.agent(node)?.admin("/metrics")?;
    let tunnels = page.lines().filter(|line| line.starts_with("adit_tunnels_open{"));
    Ok(tunnels.filter(|line| !line.ends_with(" 0")).count())
}

#[test]
fn with_two_workers_a_policy_cuts_and_a_drain_spares_the_connections_of_both() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.start_ca(&Value::Null)?;
        for node in ["n1", "n2"] {
            mesh.start_agent(node, &json!({ "dataplane": { "workers": 2 } }))?;
        }
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let stranger = mesh.add_pod(PodSpec::new("n1", "plain", "stranger"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        let listeners = own_listeners(&server)?;
        assert_eq!(listeners.len(), 2 * OWN_PORTS.len());
        assert!(listeners.values().all(|count| *count == 2), "one of each worker: {listeners:?}");

        // Tunnels of both workers of n1; what comes in clear is spread over both of n2.
        let open = || -> Result<Vec<TcpStream>> {
            let of = [&client, &stranger];
            (0..CONNECTIONS).flat_map(|_| of).map(|pod| talk(pod, server.at(8080))).collect()
        };
        let mut held = open()?;
        until("tunnels of both workers", || Ok((workers_with_tunnels(mesh, "n1")? == 2).then_some(())))?;
        let connections = |mesh: &Mesh| -> Result<usize> {
            let shown = mesh.agent("n2")?.status()?.pods.into_iter().find(|shown| shown.uid == server.uid);
            Ok(shown.map_or(0, |shown| usize::try_from(shown.connections).unwrap_or(usize::MAX)))
        };
        assert_eq!(connections(mesh)?, held.len(), "counted over both");

        mesh.apply(
            "deny",
            "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: { name: nobody, namespace: shop }\nspec: { action: DENY, rules: [{}] }\n",
        )?;
        held.iter_mut().try_for_each(wait_cut)?;
        serving.wait_until("the end of all", |seen| seen.iter().all(|one| one.end.is_some()))?;
        mesh.remove_object("deny")?;
        mesh.settle()?;

        let mut held = open()?;
        let server = mesh.change_pod(&server, |spec| {
            drop(spec.labels.insert("adit.dev/mesh".into(), "disabled".into()))
        })?;
        mesh.wait_released(&server)?;
        held.iter_mut().try_for_each(|stream| echo(stream, b"spared"))?;
        assert_eq!(connections(mesh)?, held.len());
        drop(held);
        until("that it is let go", || {
            let shown = mesh.agent("n2")?.status()?.pods.into_iter().find(|shown| shown.uid == server.uid);
            let is_gone = shown.is_some_and(|shown| shown.state == "added" && shown.connections == 0);
            Ok(is_gone.then_some(()))
        })?;
        assert_untouched(&server)
    })
}
