//! Where a connection to a service goes: each field of a Service and of its endpoints that decides it, over real
//! traffic from captured pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Instant;

use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, Server, connect, expect_reset, read_all};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, ServiceSpec, with_mesh};
use adit_tests::topology::Host;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

mod doors;
mod endpoints;
mod late;
mod skip;
mod vips;

/// The port of every server here but those that have another on purpose.
const PORT: u16 = 8080;
/// Connections after which a server that may be chosen has been, but with a chance of 2^-39 for one of two, where both
/// are equally good.
const MANY: usize = 40;

/// A mesh with clients on two nodes and servers that say their name.
struct Shop {
    servers: Vec<(Pod, Server)>,
    clients: Vec<Pod>,
}

impl Shop {
    /// A client on n1 and one on n2, `clients[0]` and `clients[1]`; no server yet.
    fn open(mesh: &mut Mesh) -> Result<Self> {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let clients = [("n1", "client-1"), ("n2", "client-2")]
            .into_iter()
            .map(|(node, name)| mesh.add_pod(PodSpec::new(node, "shop", name)))
            .collect::<Result<Vec<_>>>()?;
        for client in &clients {
            mesh.wait_captured(client)?;
        }
        Ok(Self { servers: Vec::new(), clients })
    }

    /// Adds a pod whose server says the pod's name on `port`.
    fn serve(&mut self, mesh: &mut Mesh, spec: PodSpec, port: u16) -> Result<Pod> {
        let pod = mesh.add_pod(spec)?;
        mesh.wait_captured(&pod)?;
        self.servers.push((pod.clone(), says(&pod.host, port, &pod.spec.name)?));
        Ok(pod)
    }

    /// Adds `web-1` on n1 and `web-2` on n2, both labelled `app: web`.
    fn serve_web(&mut self, mesh: &mut Mesh) -> Result<[Pod; 2]> {
        Ok([
            self.serve(mesh, PodSpec::new("n1", "shop", "web-1").label("app", "web"), PORT)?,
            self.serve(mesh, PodSpec::new("n2", "shop", "web-2").label("app", "web"), PORT)?,
        ])
    }

    fn client(&self) -> &Host {
        &self.clients[0].host
    }
}

/// A server that says `name` and closes when its client does.
fn says(host: &Host, port: u16, name: &str) -> Result<Server> {
    Server::start(&host.netns, port, Behaviour::ServerFirst { greeting: name.as_bytes().to_vec() })
}

/// Who answers there.
fn ask(client: &Host, to: SocketAddr) -> Result<String> {
    let mut stream = connect(&client.netns, to).with_context(|| format!("{to}"))?;
    stream.shutdown(Shutdown::Write)?;
    Ok(String::from_utf8(read_all(&mut stream).with_context(|| format!("{to} does not answer"))?)?)
}

/// How often each server answers in so many connections.
fn ask_often(client: &Host, to: SocketAddr, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(ask(client, to)?).or_default() += 1;
    }
    Ok(counts)
}

/// Checks that these servers answer there, each of them, and in [`MANY`] connections nobody else.
///
/// It goes on until each has: one whose connect took 10 ms once, as it does on a busy machine, is left alone for a while.
fn only_answer<const N: usize>(client: &Host, to: SocketAddr, wanted: [&str; N]) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    let mut silent = BTreeSet::from(wanted);
    for asked in 1.. {
        let answer = ask(client, to)?;
        ensure!(wanted.contains(&&*answer), "{to} is answered by {answer}, not by one of {wanted:?}");
        silent.remove(&*answer);
        if silent.is_empty() && asked >= MANY {
            break;
        }
        ensure!(Instant::now() < deadline, "{to} is not answered by {silent:?} in {asked} connections");
    }
    Ok(())
}

/// A service's address of each family, with its port.
fn at(number: u16, port: u16) -> [SocketAddr; 2] {
    let [_, low] = number.to_be_bytes();
    [
        SocketAddr::new(IpAddr::from([10, 96, 0, low]), port),
        SocketAddr::new(IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, number]), port),
    ]
}

/// Checks that the client is reset there, and that its agent says so with this reason.
fn is_refused(mesh: &Mesh, client: &Pod, to: SocketAddr, reason: &str) -> Result<()> {
    let agent = mesh.agent_of(client)?;
    let first = agent.process().next_line();
    expect_reset(&client.host.netns, to)?;
    let flow = agent.wait_for_flow(first, "the refusal", |flow| {
        flow.destination.addr == to.to_string() && flow.direction == "outbound"
    })?;
    assert_eq!((&*flow.state, flow.reason.as_deref()), ("failed", Some(reason)), "{flow:?}");
    Ok(())
}

/// Writes an object as it is.
fn apply(mesh: &Mesh, name: &str, object: &Value) -> Result<()> {
    // JSON is YAML.
    mesh.apply(name, &object.to_string())
}

/// From now on plaintext may not enter the namespace.
fn strict(mesh: &Mesh) -> Result<()> {
    let strict = json!({
        "apiVersion": "policy.adit.dev/v1alpha1", "kind": "PeerAuthentication",
        "metadata": { "name": "strict", "namespace": "shop" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    apply(mesh, "strict", &strict)
}

/// An EndpointSlice as somebody else's controller would write it.
fn slice(service: &str, name: &str, ips: &[IpAddr], ports: &Value) -> Value {
    let kind = if ips.iter().any(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> =
        ips.iter().map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": kind,
        "endpoints": endpoints,
        "ports": ports,
    })
}

/// The service `web`, of the pods labelled so, with these fields of its own.
fn web(spec: Value) -> ServiceSpec {
    ServiceSpec { spec, ..ServiceSpec::new("shop", "web", 1, 80, PORT) }
}

fn with_shop(test: impl FnOnce(&mut Mesh, &mut Shop) -> Result<()>) -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let mut shop = Shop::open(mesh)?;
        test(mesh, &mut shop)
    })
}
