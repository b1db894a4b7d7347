//! Handshakes that fail, on either side.

use std::net::SocketAddr;

use super::rogue::{Far, Ghosts, greet_without_certificate};
use super::*;

pub(super) static PEERS: Scenario = Scenario {
    shows: &[
        Reason::Alpn,
        Reason::PeerIdentity,
        Reason::PeerUntrusted,
        Reason::PeerExpired,
        Reason::PeerProtocol,
        Reason::NoClientCertificate,
    ],
    agents: usual,
    ca: usual_ca,
    play: peers,
};

fn peers(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    // A pod that is said to be captured, on a node without an agent: the test plays its peer.
    let host = Ghosts::default().add(mesh, "far", "far")?;
    mesh.settle()?;
    let own = "spiffe://cluster.local/ns/shop/sa/far";
    let foreign = Issuer::new("cluster.local")?;
    let far = Far::listen(&host.netns)?;
    for (manner, reason) in [
        (Far::tls(&stage.issuer.leaf(own)?, &[b"http/1.1"])?, Reason::Alpn),
        (Far::tls(&stage.issuer.leaf(own)?, &[])?, Reason::Alpn),
        (
            Far::tls(&stage.issuer.leaf("spiffe://cluster.local/ns/shop/sa/near")?, &[b"h2"])?,
            Reason::PeerIdentity,
        ),
        (
            Far::tls(&stage.issuer.leaf("spiffe://elsewhere/ns/shop/sa/far")?, &[b"h2"])?,
            Reason::PeerUntrusted,
        ),
        (Far::tls(&foreign.leaf(own)?, &[b"h2"])?, Reason::PeerUntrusted),
        (Far::tls(&stage.issuer.expired_leaf(own)?, &[b"h2"])?, Reason::PeerExpired),
        (Far::no_tls(), Reason::PeerProtocol),
    ] {
        let shown = format!("{manner:?} is {reason}");
        far.behave(manner);
        let mark = Mark::now(mesh)?;
        refused(&stage.web, SocketAddr::new(host.v4.into(), 80))?;
        stage.line(mesh, &mark, Side::Out, reason, None).context(shown)?;
    }

    let to = stage.api.at(15008);
    let mark = Mark::now(mesh)?;
    greet_without_certificate(&stage.outsider.host.netns, to)?;
    stage.line(mesh, &mark, Side::In, Reason::NoClientCertificate, None)?;
    // As server, too: who comes is judged in the same words.
    let api = "spiffe://cluster.local/ns/shop/sa/web";
    for (leaf, reason) in [
        (foreign.leaf(api)?, Reason::PeerUntrusted),
        (stage.issuer.leaf("spiffe://elsewhere/ns/shop/sa/web")?, Reason::PeerUntrusted),
        (stage.issuer.expired_leaf(api)?, Reason::PeerExpired),
    ] {
        let mark = Mark::now(mesh)?;
        let uri = stage.api.at(HTTP).to_string();
        let answer = rogue::ask(&stage.outsider.host.netns, to, &leaf, &http::Method::CONNECT, &uri);
        ensure!(answer.is_err(), "{reason}: {answer:?}");
        stage.line(mesh, &mark, Side::In, reason, None)?;
    }
    Ok(())
}

pub(super) static SILENCE: Scenario = Scenario {
    shows: &[Reason::HandshakeTimeout, Reason::HandshakeLimit],
    agents: usual,
    ca: usual_ca,
    play: silence,
};

fn silence(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    /// What one source may have under way.
    const AT_ONCE: usize = 64;
    let mark = Mark::now(mesh)?;
    let mut silent = Vec::new();
    for _ in 0..AT_ONCE {
        silent.push(connect(&stage.outsider.host.netns, stage.api.at(15008))?);
    }
    // It may be reset before it is known here.
    let _one_more = connect(&stage.outsider.host.netns, stage.api.at(15008));
    stage.line(mesh, &mark, Side::In, Reason::HandshakeLimit, None)?;
    // Another source is not in its way.
    held(&stage.web, stage.api.at(HTTP))?;
    let late = stage.line(mesh, &mark, Side::In, Reason::HandshakeTimeout, None)?;
    ensure!(late.duration_us >= 4_900_000, "{late:?}");
    drop(silent);
    Ok(())
}

pub(super) static EXPIRY: Scenario = Scenario {
    shows: &[Reason::OwnCertificateMissing],
    agents: usual,
    ca: || json!({ "leaf-life": "10s" }),
    play: expiry,
};

fn expiry(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let mut open = held(&stage.web, stage.api.at(HTTP))?;
    mesh.kill_ca()?;
    let agent = mesh.agent("n1")?;
    let identity = stage.web.identity();
    agent.process().wait_for_line("that the certificate has expired", |line| {
        line.contains("certificate has expired") && line.contains(&identity)
    })?;
    ensure!(echoes(&mut open), "what is open goes on");
    let mark = Mark::now(mesh)?;
    refused(&stage.web, stage.api.at(HTTP))?;
    stage.line(mesh, &mark, Side::Out, Reason::OwnCertificateMissing, None)?;
    Ok(())
}
