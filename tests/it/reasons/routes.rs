//! Nowhere to go, nobody there, and CONNECTs that are for somebody else.

use std::net::{SocketAddr, TcpListener};

use adit_tests::mesh::ServiceSpec;
use http::{Method, StatusCode};
use socket2::{Domain, Socket, Type};

use super::rogue::{Ghosts, ask};
use super::*;

pub(super) static OUTBOUND: Scenario = Scenario {
    shows: &[
        Reason::Refused,
        Reason::Unreachable,
        Reason::ConnectTimeout,
        Reason::NoEndpoint,
        Reason::Deadline,
        Reason::RetryBudgetExhausted,
    ],
    agents: usual,
    ca: usual_ca,
    play: outbound,
};

fn outbound(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    mesh.service(ServiceSpec::new("shop", "nobody", 1, 80, HTTP))?;
    let twin = mesh.add_pod(PodSpec::new("n2", "shop", "twin").account("api").label("app", "api"))?;
    mesh.wait_captured(&twin)?;
    mesh.service(ServiceSpec::new("shop", "api", 2, 80, 9))?;
    let policy = "apiVersion: policy.adit.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: once, namespace: shop }\n\
                  spec: { targetRefs: [{ group: '', kind: Service, name: api }], \
                  retryConstraint: { budget: { percent: 0 }, minRetryRate: { count: 0 } } }\n";
    mesh.apply("once", policy)?;
    let lost = Ghosts::default().add(mesh, "lost", "lost")?;
    let drop_tunnels = ["-w", "5", "-A", "INPUT", "-p", "tcp", "--dport", "15008", "-j", "DROP"];
    lost.netns.command("iptables").args(drop_tunnels).ok()?;
    mesh.topology
        .node("n1")?
        .netns
        .ip("route add unreachable 203.0.113.1/32\nroute add blackhole 203.0.113.2/32")?;
    stage.web.host.netns.sysctl("net/ipv4/tcp_syn_retries", "1")?;
    mesh.settle()?;

    let closed = SocketAddr::new(mesh.ca()?.address().ip(), 9);
    for (to, reason, other) in [
        (closed, Reason::Refused, None),
        ("203.0.113.1:80".parse()?, Reason::Unreachable, None),
        ("203.0.113.2:80".parse()?, Reason::ConnectTimeout, None),
        ("10.96.0.1:80".parse()?, Reason::NoEndpoint, None),
        (SocketAddr::new(lost.v4.into(), 80), Reason::Deadline, None),
        ("10.96.0.2:80".parse()?, Reason::RetryBudgetExhausted, Some(stage.api.identity())),
    ] {
        let mark = Mark::now(mesh)?;
        refused(&stage.web, to).with_context(|| reason.to_string())?;
        let flow = stage.line(mesh, &mark, Side::Out, reason, other.as_deref())?;
        ensure!(flow.destination.addr == to.to_string(), "{flow:?}");
    }
    Ok(())
}

pub(super) static APP: Scenario = Scenario {
    shows: &[
        Reason::AppRefused,
        Reason::PeerAppUnreachable,
        Reason::AppTimeout,
        Reason::SourcePortsExhausted,
    ],
    agents: usual,
    ca: usual_ca,
    play: app,
};

fn app(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let mark = Mark::now(mesh)?;
    refused(&stage.web, stage.api.at(9))?;
    stage.lines(mesh, &mark, Reason::PeerAppUnreachable, Reason::AppRefused)?;

    // By a Service whose clients have the patience to hear the answer: the server's agent gives its app 2.5 s of the
    // 3 s that they have by default.
    let mut patient = ServiceSpec::new("shop", "patient", 7, 7070, 7070);
    patient.selector = [("app".to_owned(), "api".to_owned())].into();
    mesh.service(patient)?;
    mesh.apply(
        "patience",
        "{apiVersion: policy.adit.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: patience, namespace: shop}, spec: \
         {targetRefs: [{kind: Service, name: patient}], connectTimeout: 30s, attemptTimeout: 30s}}",
    )?;
    mesh.settle()?;
    // A queue of one, and one in it.
    let full = stage.api.host.netns.run(|| -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 7070)).into())?;
        socket.listen(0)?;
        Ok(socket.into())
    })??;
    let _waits = connect(&stage.api.host.netns, "127.0.0.1:7070".parse()?)?;
    let mark = Mark::now(mesh)?;
    refused(&stage.web, "10.96.0.7:7070".parse()?)?;
    stage.lines(mesh, &mark, Reason::PeerAppUnreachable, Reason::AppTimeout)?;
    drop(full);

    stage.api.host.netns.sysctl("net/ipv4/ip_local_port_range", "61000 61001")?;
    let mark = Mark::now(mesh)?;
    let open: Vec<_> = (0..3).map(|_| held(&stage.web, stage.api.at(HTTP))).collect();
    ensure!(open.iter().any(Result::is_err), "two ports are enough for three connections");
    stage.lines(mesh, &mark, Reason::PeerAppUnreachable, Reason::SourcePortsExhausted)?;
    Ok(())
}

pub(super) static CONNECTS: Scenario = Scenario {
    shows: &[Reason::BadConnect, Reason::NotThisPod, Reason::PeerNotThisPod, Reason::Loop, Reason::LinkLocal],
    agents: usual,
    ca: usual_ca,
    play: connects,
};

fn connects(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    // A client that speaks HBONE under an identity of the mesh, but not as an agent does.
    let rogue = "spiffe://cluster.local/ns/shop/sa/rogue";
    let leaf = stage.issuer.leaf(rogue)?;
    let api = stage.api.host.v4;
    for (method, uri, reason) in [
        (Method::GET, format!("https://{api}:80/"), Reason::BadConnect),
        (Method::CONNECT, "api.shop:80".to_owned(), Reason::BadConnect),
        (Method::CONNECT, "10.9.9.9:80".to_owned(), Reason::NotThisPod),
        (Method::CONNECT, format!("{api}:15008"), Reason::Loop),
        (Method::CONNECT, format!("{api}:15001"), Reason::Loop),
        (Method::CONNECT, "[fe80::1]:80".to_owned(), Reason::LinkLocal),
    ] {
        let mark = Mark::now(mesh)?;
        let answer = ask(&stage.outsider.host.netns, stage.api.at(15008), &leaf, &method, &uri)?;
        ensure!(answer.status == StatusCode::BAD_REQUEST, "{uri}: {answer:?}");
        ensure!(answer.said == reason.label(), "{uri}: {answer:?}");
        stage.line(mesh, &mark, Side::In, reason, Some(rogue))?;
    }
    // An address that World gives to another pod of the same identity, but that leads to this one.
    let alias = "10.71.2.200";
    stage.api.host.netns.ip(&format!("addr add {alias}/24 dev eth0"))?;
    Ghosts::default().write(mesh, "alias", "api", &[alias.parse()?])?;
    mesh.settle()?;
    let mark = Mark::now(mesh)?;
    refused(&stage.web, format!("{alias}:{HTTP}").parse()?)?;
    stage.line(mesh, &mark, Side::In, Reason::NotThisPod, Some(&stage.web.identity()))?;
    stage.line(mesh, &mark, Side::Out, Reason::PeerNotThisPod, Some(&stage.api.identity()))?;
    Ok(())
}
