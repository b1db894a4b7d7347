//! Every reason, provoked for real, with its line of the access log.
//!
//! [`scenario`] says for each reason where it is shown; a new one does not compile without a scenario, and a scenario
//! fails where it has not shown all that it promises.

use std::cell::RefCell;
use std::collections::BTreeSet;

use adit_proto::Reason;
use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Server, connect};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

mod endings;
mod handshakes;
mod limits;
mod policies;
mod rogue;
mod routes;

use rogue::Issuer;

/// What is shown together, over one mesh.
struct Scenario {
    /// Every reason whose line it shows.
    shows: &'static [Reason],
    /// Configuration of the client's agent, and of the server's.
    agents: fn() -> [Value; 2],
    /// Configuration of the CA.
    ca: fn() -> Value,
    play: fn(&mut Mesh, &Stage) -> Result<()>,
}

/// Where a reason is shown.
fn scenario(reason: Reason) -> &'static Scenario {
    match reason {
        Reason::PolicyDenied
        | Reason::PeerDenied
        | Reason::PolicyNoneMatched
        | Reason::PlaintextRefused
        | Reason::ProbeViaHostPort
        | Reason::PolicyChanged
        | Reason::PolicyNotSynced => &policies::REFUSALS,
        Reason::PeerRevoked | Reason::IdentityRevoked => &policies::REVOCATION,
        Reason::Refused
        | Reason::Unreachable
        | Reason::ConnectTimeout
        | Reason::NoEndpoint
        | Reason::Deadline
        | Reason::RetryBudgetExhausted => &routes::OUTBOUND,
        Reason::AppRefused
        | Reason::PeerAppUnreachable
        | Reason::AppTimeout
        | Reason::SourcePortsExhausted => &routes::APP,
        Reason::BadConnect
        | Reason::NotThisPod
        | Reason::PeerNotThisPod
        | Reason::Loop
        | Reason::LinkLocal => &routes::CONNECTS,
        Reason::Alpn
        | Reason::PeerIdentity
        | Reason::PeerUntrusted
        | Reason::PeerExpired
        | Reason::PeerProtocol
        | Reason::NoClientCertificate => &handshakes::PEERS,
        Reason::HandshakeTimeout | Reason::HandshakeLimit => &handshakes::SILENCE,
        Reason::OwnCertificateMissing => &handshakes::EXPIRY,
        Reason::AcceptLimit | Reason::MemoryLimit => &limits::LIMITS,
        Reason::IdleTimeout | Reason::ResetByClient | Reason::ResetByServer => &endings::ENDS,
        Reason::PodGone | Reason::Drained | Reason::TunnelLost | Reason::Aborted => &endings::DEPARTURES,
    }
}

#[test]
fn every_reason_is_promised_by_the_scenario_that_shows_it() {
    for reason in Reason::ALL {
        assert!(scenario(reason).shows.contains(&reason), "{reason}");
    }
}

#[test]
fn what_policy_refuses_is_named() -> Result<()> {
    policies::REFUSALS.run()
}

#[test]
fn who_is_revoked_is_cut_and_refused() -> Result<()> {
    policies::REVOCATION.run()
}

#[test]
fn where_a_connection_cannot_go_is_told_apart() -> Result<()> {
    routes::OUTBOUND.run()
}

#[test]
fn an_app_that_does_not_answer_is_told_apart_from_its_agent() -> Result<()> {
    routes::APP.run()
}

#[test]
fn a_connect_that_is_not_for_the_pod_is_refused() -> Result<()> {
    routes::CONNECTS.run()
}

#[test]
fn a_peer_that_is_not_who_it_should_be_is_refused() -> Result<()> {
    handshakes::PEERS.run()
}

#[test]
fn silent_handshakes_are_bounded_in_time_and_number() -> Result<()> {
    handshakes::SILENCE.run()
}

#[test]
fn a_certificate_that_expired_without_a_new_one_opens_nothing() -> Result<()> {
    handshakes::EXPIRY.run()
}

#[test]
fn limits_refuse_what_is_beyond_them() -> Result<()> {
    limits::LIMITS.run()
}

#[test]
fn how_a_connection_ended_is_told() -> Result<()> {
    endings::ENDS.run()
}

#[test]
fn what_goes_away_under_a_connection_is_told() -> Result<()> {
    endings::DEPARTURES.run()
}

const HTTP: u16 = 8080;

/// The pods of a scenario: `web` on n1, `api` with an echo on n2, and a host that is not enrolled.
struct Stage {
    web: Pod,
    api: Pod,
    outsider: Pod,
    /// Signs as the mesh's CA does.
    issuer: Issuer,
    _echo: Server,
    shown: RefCell<BTreeSet<Reason>>,
}

/// Nothing but the defaults.
fn usual() -> [Value; 2] {
    [Value::Null, Value::Null]
}

fn usual_ca() -> Value {
    Value::Null
}

impl Scenario {
    fn run(&self) -> Result<()> {
        with_mesh(&["n1", "n2"], |mesh| {
            mesh.namespace("shop", Enrolment::Enabled)?;
            mesh.namespace("plain", Enrolment::Unsaid)?;
            let issuer = Issuer::new("cluster.local")?;
            issuer.give(&mesh.folder().join("ca/store"))?;
            mesh.start_ca(&(self.ca)())?;
            for (node, settings) in ["n1", "n2"].into_iter().zip((self.agents)()) {
                mesh.start_agent(node, &settings)?;
            }
            let web = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
            let mut server = PodSpec::new("n2", "shop", "api");
            server.container = json!({ "readinessProbe": { "tcpSocket": { "port": HTTP } } });
            let api = mesh.add_pod(server)?;
            let outsider = mesh.add_pod(PodSpec::new("n1", "plain", "outsider"))?;
            let echo = Server::start(&api.host.netns, HTTP, Behaviour::Echo)?;
            for pod in [&web, &api] {
                mesh.wait_captured(pod)?;
            }
            mesh.settle()?;
            let stage = Stage { web, api, outsider, issuer, _echo: echo, shown: RefCell::default() };
            (self.play)(mesh, &stage)?;
            let shown = stage.shown.into_inner();
            let promised = BTreeSet::from_iter(self.shows.iter().copied());
            ensure!(shown.is_superset(&promised), "shown are only {shown:?}");
            Ok(())
        })
    }
}

/// Which side tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    /// The agent on n1, of the client.
    Out,
    /// The agent on n2, of the server.
    In,
}

impl Side {
    const fn node(self) -> &'static str {
        match self {
            Self::Out => "n1",
            Self::In => "n2",
        }
    }

    const fn direction(self) -> &'static str {
        match self {
            Self::Out => "outbound",
            Self::In => "inbound",
        }
    }
}

/// Where each agent's log stands: lines are looked for from here.
struct Mark([u64; 2]);

impl Mark {
    fn now(mesh: &Mesh) -> Result<Self> {
        Ok(Self([mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line()]))
    }
}

impl Stage {
    /// The line that tells this reason. The reporting side knows its own pod and identity; of the other it knows only
    /// what a handshake proved, which is `other`.
    fn line(
        &self,
        mesh: &Mesh,
        mark: &Mark,
        side: Side,
        reason: Reason,
        other: Option<&str>,
    ) -> Result<Flow<'static>> {
        let first = mark.0[usize::from(side == Side::In)];
        let what = format!("the {} line that says {reason}", side.direction());
        let flow = mesh.agent(side.node())?.wait_for_flow(first, &what, |flow| {
            flow.reason.as_deref() == Some(reason.label()) && flow.direction == side.direction()
        })?;
        self.check(side, reason, other, &flow).with_context(|| format!("{what}: {flow:?}"))?;
        Ok(flow)
    }

    fn check(&self, side: Side, reason: Reason, other: Option<&str>, flow: &Flow<'_>) -> Result<()> {
        ensure!(flow.state == "failed", "its state");
        ensure!(flow.hint.as_deref() == Some(reason.hint()), "its hint");
        let (own, far) = match side {
            Side::Out => (&flow.source, &flow.destination),
            Side::In => (&flow.destination, &flow.source),
        };
        ensure!(own.pod.is_some() && own.namespace.as_deref() == Some("shop"), "its own pod");
        ensure!(
            own.identity.as_deref().is_some_and(|id| id.starts_with("spiffe://cluster.local/ns/shop/sa/")),
            "its own identity"
        );
        ensure!(far.identity.as_deref() == other, "the other side's identity");
        ensure!(flow.tls.is_some() == other.is_some(), "the handshake's facts");
        self.shown.borrow_mut().insert(reason);
        Ok(())
    }

    /// Both sides' lines of one connection.
    fn lines(&self, mesh: &Mesh, mark: &Mark, out: Reason, into: Reason) -> Result<[Flow<'static>; 2]> {
        let inbound = self.line(mesh, mark, Side::In, into, Some(&self.web.identity()))?;
        // A peer that refuses is known all the same.
        let outbound = self.line(mesh, mark, Side::Out, out, Some(&self.api.identity()))?;
        ensure!(inbound.trace == outbound.trace, "both sides of one connection: {inbound:?} {outbound:?}");
        Ok([outbound, inbound])
    }
}

/// Whether a connection carries a byte there and back.
fn echoes(stream: &mut std::net::TcpStream) -> bool {
    use std::io::{Read, Write};
    stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0])).is_ok()
}

/// Opens a connection that carries.
fn held(from: &Pod, to: std::net::SocketAddr) -> Result<std::net::TcpStream> {
    let mut stream = connect(&from.host.netns, to)?;
    ensure!(echoes(&mut stream), "{to} does not answer {}", from.spec.name);
    Ok(stream)
}

/// Connects, and expects to be refused: whether by a reset at once or after a byte is chance.
fn refused(from: &Pod, to: std::net::SocketAddr) -> Result<()> {
    let answered = connect(&from.host.netns, to).is_ok_and(|mut stream| echoes(&mut stream));
    ensure!(!answered, "{to} answers {}", from.spec.name);
    Ok(())
}
