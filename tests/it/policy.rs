//! Policy over real traffic: four kinds of client, one server, and every policy driven through the same mesh.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use adit_proto::admin::{Decision, Flow};
use adit_proto::status::{NodeStatus, PolicyStatus};
use adit_tests::apps::{Behaviour, Server, connect};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh};
use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;
use time::macros::format_description;

mod fields;
mod live;
mod misread;
mod peers;

const HTTP: u16 = 8080;
const ADMIN: u16 = 9090;

/// The pods of a policy test: clients on n1, the server `shop/api` on n2.
struct Stage {
    /// `shop/web`.
    web: Pod,
    /// `other/cart`.
    cart: Pod,
    /// A client that is not enrolled, and so comes in plaintext.
    outsider: Pod,
    /// The server.
    api: Pod,
    _apps: [Server; 2],
}

/// One client's way to the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// `shop/web` to the first port by IPv4.
    Web,
    /// `shop/web` to the second port by IPv6.
    WebAdminV6,
    /// `other/cart` to the first port.
    Cart,
    /// The outsider, in plaintext, to the first port.
    Plain,
}

const WAYS: [Way; 4] = [Way::Web, Way::WebAdminV6, Way::Cart, Way::Plain];

/// Both sides of one attempt.
struct Seen {
    /// Whether the server's bytes came back.
    answered: bool,
    /// The server's side.
    inbound: Flow<'static>,
    /// The client's side, where it is enrolled.
    outbound: Option<Flow<'static>>,
}

/// Runs `test` over a mesh with these pods, all that are enrolled captured.
fn with_stage(test: impl FnOnce(&mut Mesh, &Stage) -> Result<()>) -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        for namespace in ["shop", "other"] {
            mesh.namespace(namespace, Enrolment::Enabled)?;
        }
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.start()?;
        let web = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let cart = mesh.add_pod(PodSpec::new("n1", "other", "cart"))?;
        let outsider = mesh.add_pod(PodSpec::new("n1", "plain", "outsider"))?;
        let mut server = PodSpec::new("n2", "shop", "api");
        // The kubelet probes the first port only.
        server.container = serde_json::json!({ "readinessProbe": { "tcpSocket": { "port": HTTP } } });
        let api = mesh.add_pod(server)?;
        let netns = &api.host.netns;
        let apps =
            [Server::start(netns, HTTP, Behaviour::Echo)?, Server::start(netns, ADMIN, Behaviour::Echo)?];
        for pod in [&web, &cart, &api] {
            mesh.wait_captured(pod)?;
        }
        mesh.settle()?;
        let stage = Stage { web, cart, outsider, api, _apps: apps };
        test(mesh, &stage)
    })
}

impl Stage {
    fn client(&self, way: Way) -> &Pod {
        match way {
            Way::Web | Way::WebAdminV6 => &self.web,
            Way::Cart => &self.cart,
            Way::Plain => &self.outsider,
        }
    }

    fn server(&self, way: Way) -> SocketAddr {
        match way {
            Way::Web | Way::Cart | Way::Plain => self.api.at(HTTP),
            Way::WebAdminV6 => self.api.at_v6(ADMIN),
        }
    }

    /// Connects once, and reads what both agents say of it.
    fn attempt(&self, mesh: &Mesh, way: Way) -> Result<Seen> {
        let (client, to) = (self.client(way), self.server(way));
        let (near, far) = (mesh.agent("n1")?, mesh.agent("n2")?);
        let (near_first, far_first) = (near.process().next_line(), far.process().next_line());
        // An earlier connection of the same pods may be reported only now.
        let begun = now_ms()?;
        let is_this = |flow: &Flow<'_>| is_between(flow, client, to) && *flow.time >= *begun;
        let answered = answers(client, to);
        let inbound = far.wait_for_flow(far_first, "the server's report", |flow| {
            flow.direction == "inbound" && is_this(flow)
        })?;
        let outbound = if way == Way::Plain {
            None
        } else {
            Some(near.wait_for_flow(near_first, "the client's report", |flow| {
                flow.direction == "outbound" && is_this(flow)
            })?)
        };
        if let Some(outbound) = &outbound {
            ensure!(outbound.trace == inbound.trace, "{way:?}: both sides of one connection");
        }
        Ok(Seen { answered, inbound, outbound })
    }

    /// Connects in each way; which were answered. Both sides must tell the same.
    fn open_ways(&self, mesh: &Mesh) -> Result<[bool; 4]> {
        let mut open = [false; 4];
        for (open, way) in open.iter_mut().zip(WAYS) {
            let seen = self.attempt(mesh, way)?;
            *open = seen.answered;
            let decision = seen.inbound.decision.context("the server's side has a verdict")?;
            ensure!(decision.allowed == seen.answered, "{way:?} was answered: {}", seen.answered);
        }
        Ok(open)
    }
}

/// The time as reports write it, so that it compares as text.
fn now_ms() -> Result<String> {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::now_utc().format(form).context("the time")
}

fn is_between(flow: &Flow<'_>, client: &Pod, to: SocketAddr) -> bool {
    let source = flow.source.addr.parse::<SocketAddr>();
    source.is_ok_and(|source| client.host.ips().contains(&source.ip()))
        && flow.destination.addr == to.to_string()
}

/// Whether a connection from this pod carries a byte there and back; where it does not, it was reset.
fn answers(client: &Pod, to: SocketAddr) -> bool {
    connect(&client.host.netns, to).is_ok_and(|mut stream| echoes(&mut stream))
}

fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0])).is_ok()
}

/// Writes one AuthorizationPolicy and waits until both agents have it.
fn policy(mesh: &mut Mesh, name: &str, spec: &str) -> Result<()> {
    mesh.apply(&format!("policy-{name}"), &object("AuthorizationPolicy", "shop", name, spec))?;
    mesh.settle()
}

/// Takes it out again.
fn unpolicy(mesh: &mut Mesh, name: &str) -> Result<()> {
    mesh.remove_object(&format!("policy-{name}"))?;
    mesh.settle()
}

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: {kind}\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n"
    )
}

/// What the server's agent says of a policy in its status file.
fn accepted(mesh: &Mesh, kind: &str, name: &str) -> Result<PolicyStatus> {
    let named = format!("name: {name}\n");
    let text = mesh.wait_for_status("n2", "a word on the policy", |text| text.contains(&named))?;
    let status: NodeStatus = serde_saphyr::from_str(&text).context("the status file")?;
    let found = status.policies.into_iter().find(|policy| policy.kind == kind && policy.name == name);
    found.with_context(|| format!("no word on {kind} {name}"))
}

fn decision(allowed: bool, policy: Option<&str>, rule: Option<u32>) -> Decision<'static> {
    Decision { allowed, policy: policy.map(|name| name.to_owned().into()), rule, ..Decision::default() }
}

/// Refused as none of the ALLOW policies matched: these.
fn none_of(policies: &[&str]) -> Decision<'static> {
    let unmatched = policies.iter().map(|name| (*name).to_owned().into()).collect();
    Decision { unmatched, ..decision(false, None, None) }
}

/// `WEB`, `API` in a template become the pods' addresses.
fn filled(template: &str, stage: &Stage) -> String {
    let v4 = |pod: &Pod| IpAddr::from(pod.host.v4).to_string();
    template.replace("WEB", &v4(&stage.web)).replace("API", &v4(&stage.api))
}
