//! Certificates that should not be accepted, shown by a client and by a server.

use std::net::SocketAddr;
use std::path::PathBuf;

use adit_tests::apps::{Behaviour, Server};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, TRUST_DOMAIN, with_mesh};
use adit_tests::peers::{Authority, Credentials, Peer, Tunnel, play_agent, write_bundle};
use adit_tests::process::Run;
use adit_tests::topology::Host;
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{call, pair, reason};

/// What another trust domain is called.
const ELSEWHERE: &str = "elsewhere.test";
/// A mesh whose CA is the Go one, which issues whatever is asked: agents of n1 by it, `foreign` by another root and
/// trust domain, and a host outside to dial from.
struct Loose {
    client: Pod,
    server: Pod,
    _echo: Server,
    own: Authority,
    foreign: Authority,
    outside: Host,
    _cas: [Peer; 2],
}

fn with_loose_ca(test: impl FnOnce(&mut Mesh, &Loose) -> Result<()>) -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let elsewhere = mesh.folder().join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("status"))?;
        mesh.start_ca(&json!({ "publish": elsewhere }))?;
        let token = "a-token-for-everybody";
        let mut authority = |name: &str, domain: &str| -> Result<(Authority, Peer)> {
            let host = mesh.topology.add_outside(name)?;
            let (address, prefix) = (SocketAddr::new(host.v4.into(), 15012), mesh.folder().join(name));
            let ca = Peer::ca(&host.netns, address, domain, token, &prefix)?;
            let roots = Credentials::at(prefix).root();
            Ok((Authority { address, roots, token: token.to_owned() }, ca))
        };
        let (own, own_ca) = authority("own-ca", TRUST_DOMAIN)?;
        let (foreign, foreign_ca) = authority("foreign-ca", ELSEWHERE)?;
        write_bundle(mesh, 1, &[(TRUST_DOMAIN, &own.roots)])?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        let token_file = mesh.folder().join("token");
        std::fs::write(&token_file, token)?;
        let settings = json!({ "identity": {
            "ca-address": own.address.to_string(), "ca-root-file": own.roots, "token-file": token_file,
        } });
        mesh.start_agent("n1", &settings)?;
        mesh.topology.add_node("played")?;
        let outside = mesh.topology.add_outside("outside")?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n1", "shop", "server"))?;
        let echo = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        let cas = [own_ca, foreign_ca];
        test(mesh, &Loose { client, server, _echo: echo, own, foreign, outside, _cas: cas })
    })
}

/// A certificate that somebody should not accept, and the words for it.
struct Bad {
    name: &'static str,
    from_foreign: bool,
    identity: String,
    seconds: i64,
    /// The reason in our agent's log when a client shows it.
    as_client: Option<&'static str>,
    /// The reason in our agent's log when a server shows it.
    as_server: &'static str,
}

fn bad_certificates() -> [Bad; 4] {
    let id = |domain: &str, account: &str| format!("spiffe://{domain}/ns/shop/sa/{account}");
    [
        Bad {
            name: "another",
            from_foreign: false,
            identity: id(TRUST_DOMAIN, "somebody-else"),
            seconds: 600,
            // As a client it is somebody else, and welcome.
            as_client: None,
            as_server: "peer_identity",
        },
        Bad {
            name: "expired",
            from_foreign: false,
            identity: id(TRUST_DOMAIN, "expired"),
            seconds: -60,
            as_client: Some("peer_expired"),
            as_server: "peer_expired",
        },
        Bad {
            name: "foreign-domain",
            from_foreign: true,
            identity: id(ELSEWHERE, "foreign-domain"),
            seconds: 600,
            as_client: Some("peer_untrusted"),
            as_server: "peer_untrusted",
        },
        Bad {
            // A foreign CA that claims an identity of ours: only the roots of that identity's own domain count.
            name: "forged",
            from_foreign: true,
            identity: id(TRUST_DOMAIN, "forged"),
            seconds: 600,
            as_client: Some("peer_untrusted"),
            as_server: "peer_untrusted",
        },
    ]
}

#[test]
fn a_client_with_a_bad_certificate_gets_no_tunnel_and_the_log_says_why() -> Result<()> {
    with_loose_ca(|mesh, loose| {
        for bad in bad_certificates() {
            let authority = if bad.from_foreign { &loose.foreign } else { &loose.own };
            let prefix = mesh.folder().join(bad.name);
            let credentials = authority.issue(&loose.outside.netns, &bad.identity, bad.seconds, &prefix)?;
            let first = mesh.agent("n1")?.process().next_line();
            let tunnel = Tunnel {
                addr: loose.server.at(15008),
                expected: &loose.server.identity(),
                authority: &loose.server.at(8080).to_string(),
                mode: "echo",
                bytes: 64,
                streams: 1,
            };
            // go-spiffe trusts, of the domain of its own certificate, the roots that it is told.
            let roots = if bad.from_foreign { both(mesh, loose)? } else { loose.own.roots.clone() };
            let output = tunnel.output(&loose.outside.netns, &credentials, &roots)?;
            let Some(word) = bad.as_client else {
                assert!(output.status.success(), "{}: {}", bad.name, output.stderr);
                continue;
            };
            assert!(!output.status.success(), "{}: {}", bad.name, output.stdout);
            if bad.identity.contains(ELSEWHERE) {
                // It stops at our certificate before it shows its own.
                assert!(output.stderr.contains("no X.509 bundle"), "{}", output.stderr);
                continue;
            }
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the refusal's report", |flow| {
                flow.direction == "inbound" && flow.state == "failed"
            })?;
            assert_eq!((reason(&flow), &*flow.state), (word, "failed"), "{}", bad.name);
            assert_eq!(flow.source.identity, None, "nothing was proven");
        }
        Ok(())
    })
}

/// The roots of both CAs in one file.
fn both(mesh: &Mesh, loose: &Loose) -> Result<PathBuf> {
    let file = mesh.folder().join("both.pem");
    let roots = [&loose.own.roots, &loose.foreign.roots].map(std::fs::read_to_string);
    let [own, foreign] = roots;
    std::fs::write(&file, own? + &foreign?)?;
    Ok(file)
}

#[test]
fn a_client_of_another_trust_domain_is_refused_by_the_server() -> Result<()> {
    with_loose_ca(|mesh, loose| {
        let identity = format!("spiffe://{ELSEWHERE}/ns/shop/sa/web");
        let prefix = mesh.folder().join("elsewhere-web");
        loose.foreign.issue(&loose.outside.netns, &identity, 600, &prefix)?;
        let first = mesh.agent("n1")?.process().next_line();
        // openssl looks at nothing of ours, so that the refusal is the server's alone.
        let hello = openssl(&loose.outside, loose.server.at(15008), &prefix)?;
        assert!(hello.contains("alert"), "{hello}");
        let flow = mesh
            .agent("n1")?
            .wait_for_flow(first, "the refusal's report", |flow| flow.direction == "inbound")?;
        assert_eq!(reason(&flow), "peer_untrusted");
        let detail = flow.detail.context("what exactly happened")?;
        assert!(detail.contains(ELSEWHERE), "{detail}");
        Ok(())
    })
}

/// What openssl says of a handshake with this certificate (`PREFIX.crt`, `PREFIX.key`), or with none.
fn openssl(host: &Host, to: SocketAddr, prefix: &std::path::Path) -> Result<String> {
    let run: Run = host.netns.command("openssl").args(["s_client", "-alpn", "h2", "-ign_eof", "-connect"]);
    let mut run = run.args([to.to_string()]);
    if prefix.file_name().is_some() {
        run = run.args(["-cert".as_ref(), prefix.with_extension("crt").as_os_str()]);
        run = run.args(["-key".as_ref(), prefix.with_extension("key").as_os_str()]);
    }
    let output = run.output()?;
    Ok(output.stdout + &output.stderr)
}

#[test]
fn a_client_without_a_certificate_is_refused() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (_client, server, _echo) = pair(mesh, &Value::Null)?;
        let outside = mesh.topology.add_outside("outside")?;
        let first = mesh.agent("n2")?.process().next_line();
        let hello = openssl(&outside, server.at(15008), "/".as_ref())?;
        assert!(hello.contains("alert"), "{hello}");
        let flow = mesh
            .agent("n2")?
            .wait_for_flow(first, "the refusal's report", |flow| flow.direction == "inbound")?;
        assert_eq!(reason(&flow), "no_client_certificate");
        Ok(())
    })
}

#[test]
fn a_server_with_a_bad_certificate_is_refused_once_and_both_sides_say_why() -> Result<()> {
    with_loose_ca(|mesh, loose| {
        let mut servers = Vec::new();
        for bad in bad_certificates() {
            let pod = mesh.add_pod(PodSpec::new("played", "shop", bad.name))?;
            let authority = if bad.from_foreign { &loose.foreign } else { &loose.own };
            let prefix = mesh.folder().join(format!("server-{}", bad.name));
            let credentials = authority.issue(&pod.host.netns, &bad.identity, bad.seconds, &prefix)?;
            let peer = Peer::hbone(&pod.host.netns, &credentials, &both(mesh, loose)?, "echo")?;
            servers.push((bad, pod, peer));
        }
        play_agent(mesh, "played", &servers.iter().map(|(_, pod, _)| pod).collect::<Vec<_>>())?;
        mesh.settle()?;
        for (bad, pod, peer) in &servers {
            let first = mesh.agent("n1")?.process().next_line();
            let error = call(&loose.client, pod.at(8080)).expect_err("nobody may be reached");
            assert!(format!("{error:#}").contains("reset"), "{}: {error:#}", bad.name);
            let flow = mesh.agent("n1")?.wait_for_flow(first, "the report", |flow| flow.state == "failed")?;
            assert_eq!((reason(&flow), flow.attempts), (bad.as_server, 1), "{}: never tried again", bad.name);
            assert_eq!(flow.destination.identity, None, "nothing was proven");
            peer.process().wait_for_line("the server's own word", |line| {
                line.contains("\"handshake\"") && line.contains("tls: ")
            })?;
        }
        Ok(())
    })
}

#[test]
fn between_two_agents_both_logs_name_a_peer_that_is_not_whom_the_route_leads_to() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        call(&client, server.at(8080))?;
        // The cluster says that the pod runs as somebody else; its agent goes on with the certificate that it has.
        let played = mesh.take_agent("n2")?;
        played.process().signal(nix::sys::signal::Signal::SIGSTOP)?;
        mesh.change_pod(&server, |spec| "another".clone_into(&mut spec.account))?;
        mesh.settle()?;
        let (first, first_server) = (mesh.agent("n1")?.process().next_line(), played.process().next_line());
        played.process().signal(nix::sys::signal::Signal::SIGCONT)?;
        let error = call(&client, server.at(8080)).expect_err("it is not whom the route leads to");
        assert!(format!("{error:#}").contains("reset"), "{error:#}");
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", |flow| {
            flow.direction == "outbound" && flow.state == "failed"
        })?;
        assert_eq!((reason(&flow), flow.attempts), ("peer_identity", 1));
        let detail = flow.detail.context("what exactly happened")?;
        assert!(detail.contains(&server.identity()), "{detail}");
        let flow =
            played.wait_for_flow(first_server, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!((reason(&flow), &*flow.direction), ("peer_untrusted", "inbound"), "{flow:?}");
        Ok(())
    })
}
