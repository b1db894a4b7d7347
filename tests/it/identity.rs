//! Identities over real handshakes: who is refused and what both sides say of it, rotation under load, revocation.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Load, LoadReport, Server, Shape, connect, read_exactly, run_load};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, TRUST_DOMAIN, with_mesh, with_mesh_alone};
use adit_tests::peers::{Authority, Credentials, Peer, Tunnel, play_agent, read_bundle, write_bundle};
use adit_tests::process::Run;
use adit_tests::topology::Host;
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::until::until;

/// What another trust domain is called.
const ELSEWHERE: &str = "elsewhere.test";

fn reason<'f>(flow: &'f Flow<'_>) -> &'f str {
    flow.reason.as_deref().unwrap_or_default()
}

/// Sends a few bytes there and back.
fn talk(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    assert_eq!(read_exactly(stream, 5)?, b"hello");
    Ok(())
}

fn call(client: &Pod, to: SocketAddr) -> Result<()> {
    talk(&mut connect(&client.host.netns, to)?)
}

/// A client on n1 and an echo server on n2, captured, by a CA with these settings.
fn pair(mesh: &mut Mesh, ca: &Value) -> Result<(Pod, Pod, Server)> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start_ca(ca)?;
    for node in ["n1", "n2"] {
        mesh.start_agent(node, &Value::Null)?;
    }
    let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
    let serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
    mesh.wait_captured(&client)?;
    mesh.wait_captured(&server)?;
    mesh.settle()?;
    Ok((client, server, serving))
}

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

#[test]
fn a_revoked_identity_is_cut_at_once_and_refused_from_then_on() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let bystander = mesh.add_pod(PodSpec::new("n1", "shop", "bystander"))?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        let mut other = connect(&bystander.host.netns, server.at(8080))?;
        talk(&mut live)?;
        talk(&mut other)?;
        let (first, first_server) =
            (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());

        mesh.ca()?.command("revoke", &["--identity", &client.identity()])?;
        let error = live.read(&mut [0]).expect_err("a revoked identity's connection is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let flow = mesh
            .agent("n2")?
            .wait_for_flow(first_server, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!(reason(&flow), "identity_revoked");
        assert_eq!(flow.source.identity.as_deref(), Some(client.identity().as_str()));
        let failed = |flow: &Flow<'_>| flow.direction == "outbound" && flow.state == "failed";
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert!(["identity_revoked", "tunnel_lost"].contains(&reason(&flow)), "{flow:?}");

        let (first, first_server) =
            (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());
        call(&client, server.at(8080)).expect_err("a new one is refused");
        let flow = mesh
            .agent("n2")?
            .wait_for_flow(first_server, "the server's report", |flow| flow.state == "failed")?;
        assert_eq!(reason(&flow), "peer_revoked");
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert_eq!((reason(&flow), flow.attempts), ("identity_revoked", 1), "{flow:?}");

        talk(&mut other)?;
        call(&bystander, server.at(8080))?;
        mesh.ca()?.command("revoke", &["--undo", "--identity", &client.identity()])?;
        until("that the identity is restored", || Ok(call(&client, server.at(8080)).ok()))
    })
}

#[test]
fn a_revoked_serial_is_cut_and_refused_and_a_new_certificate_is_not() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        let first = mesh.agent("n1")?.process().next_line();
        talk(&mut live)?;
        let serial = serial(mesh, "n2", &server.identity())?.context("the server's serial")?;

        mesh.ca()?.command("revoke", &["--serial", &serial])?;
        let error = live.read(&mut [0]).expect_err("a revoked server's connection is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let failed = |flow: &Flow<'_>| flow.direction == "outbound" && flow.state == "failed";
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert_eq!(reason(&flow), "identity_revoked");
        assert_eq!(flow.tls.context("a handshake")?.peer_serial, serial);
        let first = mesh.agent("n1")?.process().next_line();
        call(&client, server.at(8080)).expect_err("the revoked certificate is refused");
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        assert_eq!((reason(&flow), flow.attempts), ("peer_revoked", 1));

        until("that the server's next certificate is taken", || Ok(call(&client, server.at(8080)).ok()))?;
        let next = self::serial(mesh, "n2", &server.identity())?.context("the server's next serial")?;
        assert_ne!(next, serial, "it was replaced");
        Ok(())
    })
}

#[test]
fn a_revoked_intermediate_is_cut_from_under_live_connections_and_the_mesh_goes_on_with_the_next() -> Result<()>
{
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &Value::Null)?;
        let mut live = connect(&client.host.netns, server.at(8080))?;
        talk(&mut live)?;
        let issuing = |mesh: &Mesh| -> Result<String> {
            let status = ca_status(mesh)?;
            Ok(status["issuing"]["serial"].as_str().context("the intermediate's serial")?.to_owned())
        };
        let leaked = issuing(mesh)?;
        let first = mesh.agent("n2")?.process().next_line();

        mesh.ca()?.command("revoke", &["--serial", &leaked])?;
        let error = live.read(&mut [0]).expect_err("what rests on it is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let failed = |flow: &Flow<'_>| flow.state == "failed";
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the server's report", failed)?;
        assert!(["identity_revoked", "tunnel_lost"].contains(&reason(&flow)), "{flow:?}");

        until("that both have certificates of the next", || Ok(call(&client, server.at(8080)).ok()))?;
        assert_ne!(issuing(mesh)?, leaked);
        Ok(())
    })
}

fn serial(mesh: &Mesh, node: &str, identity: &str) -> Result<Option<String>> {
    let status = mesh.agent(node)?.status()?;
    Ok(status.certificates.into_iter().find(|held| held.identity == identity).and_then(|held| held.serial))
}

#[test]
fn a_default_ca_gives_a_certificate_for_24_hours() -> Result<()> {
    const DAY_S: i64 = 24 * 3600;
    with_mesh(&[], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let host = mesh.topology.add_outside("reader")?;
        let roots = mesh.folder().join("roots.pem");
        read_bundle(mesh, &roots)?;
        let token = mesh.ca()?.add_node("reader")?;
        let authority = Authority { address: mesh.ca()?.address(), roots, token };
        let prefix = mesh.folder().join("day");
        // Asked for nothing in particular, and for more than it gives.
        for seconds in [0, 30 * DAY_S] {
            let before = unix_now()?;
            authority.issue(&host.netns, "spiffe://cluster.local/ns/shop/sa/web", seconds, &prefix)?;
            let after = unix_now()?;
            let read = host
                .netns
                .command("openssl")
                .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in"]);
            let said = read.args([prefix.with_extension("crt")]).ok()?;
            let end = said.trim().strip_prefix("notAfter=").context("an end date")?;
            let end = Run::here("date").args(["-u", "-d", end, "+%s"]).ok()?.trim().parse::<i64>()?;
            assert!((before + DAY_S - 1..=after + DAY_S + 1).contains(&end), "{before} {end} {after}");
        }
        Ok(())
    })
}

fn unix_now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

#[test]
fn without_the_ca_identities_go_on_to_their_expiry_and_come_back_with_it() -> Result<()> {
    let ca = json!({ "leaf-life": "10s" });
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &ca)?;
        call(&client, server.at(8080))?;
        let own = client.identity();
        mesh.kill_ca()?;
        // The first that is due; the other, which is due later or about now, is good for as long at least.
        until("that a renewal fails", || {
            let failed = |node: &str, identity: &str| -> Result<bool> {
                let held = mesh.agent(node)?.status()?.certificates;
                Ok(held.iter().any(|held| held.identity == identity && held.last_error.is_some()))
            };
            Ok((failed("n1", &own)? || failed("n2", &server.identity())?).then_some(()))
        })?;
        call(&client, server.at(8080)).context("the CA is away and the certificate is good")?;
        let (first, first_server) =
            (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());
        until("that the certificate expires", || Ok(call(&client, server.at(8080)).err()))?;
        let failed = |flow: &Flow<'_>| flow.state == "failed";
        let flow = mesh.agent("n1")?.wait_for_flow(first, "the client's report", failed)?;
        // Whichever of the two expired first: a server without one cannot say so in a handshake, and says it at home.
        if !["own_certificate_missing", "peer_expired"].contains(&reason(&flow)) {
            assert_eq!(
                flow.last_failure.as_deref().unwrap_or_else(|| reason(&flow)),
                "tunnel_lost",
                "{flow:?}"
            );
            let flow = mesh.agent("n2")?.wait_for_flow(first_server, "the server's report", failed)?;
            assert_eq!(reason(&flow), "own_certificate_missing", "{flow:?}");
        }
        mesh.start_ca(&ca)?;
        until("that the certificate is back", || Ok(call(&client, server.at(8080)).ok()))
    })
}

#[test]
fn a_new_pod_waits_for_a_certificate_if_that_of_its_identity_has_expired() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let ca = json!({ "leaf-life": "10s" });
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&ca)?;
        mesh.start_agent("n1", &json!({ "pods": { "add-deadline": "3s" } }))?;
        let first = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        mesh.wait_captured(&first)?;
        mesh.kill_ca()?;
        until("that the certificate expires", || {
            Ok(serial(mesh, "n1", &first.identity())?.is_none().then_some(()))
        })?;
        let _agent = mesh.take_agent("n1")?;
        let mut twin = PodSpec::new("n1", "shop", "web-2");
        "web".clone_into(&mut twin.account);
        let twin = mesh.add_pod(twin)?;
        assert_eq!(twin.identity(), first.identity());
        let answer = mesh.cni(&twin)?.add()?;
        assert_eq!(answer.printed["code"], 11, "{answer:?}");
        assert!(answer.printed.to_string().contains("no certificate"), "{answer:?}");
        mesh.start_ca(&ca)?;
        // As the kubelet does.
        until("that the pod starts", || Ok((mesh.cni(&twin)?.add()?.code == Some(0)).then_some(())))
    })
}

#[test]
fn no_core_file_of_an_agent_is_written_as_keys_would_be_in_it() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start()?;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", mesh.agent("n1")?.process().id()))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<_> = core.context("the limit")?.split_whitespace().skip(4).collect();
        assert_eq!(core, ["0", "0", "bytes"], "{limits}");
        Ok(())
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
        all.seconds += slice.seconds;
        for (why, count) in slice.failed {
            *all.failed.entry(why).or_default() += count;
        }
    }
    Ok(all)
}

fn ca_status(mesh: &Mesh) -> Result<Value> {
    let said = mesh.ca()?.command("status", &["--json"])?;
    serde_json::from_str(&said).with_context(|| format!("the CA says {said}"))
}

#[test]
fn certificates_and_then_the_root_are_rotated_under_load_and_no_connection_fails() -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        let (client, server, _echo) = pair(mesh, &json!({ "leaf-life": "10s", "poll": "50ms" }))?;
        let mut held = Vec::new();
        for to in [server.at(8080), server.at_v6(8080)] {
            for _ in 0..HELD {
                held.push(connect(&client.host.netns, to)?);
            }
        }
        let _http = Server::start(&server.host.netns, 8081, Behaviour::Http { body: b"ok".to_vec() })?;
        let first = mesh.agent("n1")?.process().next_line();
        let end = AtomicBool::new(false);
        let mut serials = BTreeSet::new();
        let old = ca_status(mesh)?["root"]["serial"].clone();
        let report = thread::scope(|scope| -> Result<LoadReport> {
            let load = scope.spawn(|| load_until(&client, server.at(8081), &end));
            let done = rotate(mesh, &server, &mut serials, &mut held);
            end.store(true, Ordering::Relaxed);
            let report = load.join().map_err(|_| anyhow!("the load panicked"))?;
            done?;
            report
        })?;
        println!(
            "{} connections in {:.1} s ({:.0}/s), {} certificates",
            report.ok,
            report.seconds,
            report.rate(),
            serials.len()
        );
        assert_eq!(report.failed, [].into(), "of {} connections", report.ok);
        assert!(report.rate() >= 100.0, "{report:?}");
        assert!(serials.len() > 3, "at least three rotations: {serials:?}");

        let status = ca_status(mesh)?;
        assert_ne!(status["root"]["serial"], old);
        let pem = mesh.folder().join("roots.pem");
        read_bundle(mesh, &pem)?;
        assert_eq!(std::fs::read_to_string(&pem)?.matches("BEGIN").count(), 1, "the old root is gone");
        // The handshakes that carried it were of the rotated certificates, not of one old tunnel.
        let mut shown = BTreeSet::new();
        mesh.agent("n1")?.wait_for_flow(first, "three peer certificates in reports", |flow| {
            shown_serial(flow).is_some_and(|serial| serials.contains(&serial))
        })?;
        for line in mesh.agent("n1")?.process().log() {
            if let Ok(flow) = serde_json::from_str::<Flow<'_>>(&line) {
                shown.extend(shown_serial(&flow));
            }
        }
        assert!(shown.len() > 3, "{shown:?}");
        Ok(())
    })
}

fn shown_serial(flow: &Flow<'_>) -> Option<String> {
    Some(flow.tls.as_ref()?.peer_serial.clone().into_owned())
}

/// Connections of each family that stay open over all rotations.
const HELD: usize = 16;

/// Watches the server's certificate rotate three times, then asks for a new root and follows it to its end by what the
/// CA says of its progress. After each step, what is held open still carries.
fn rotate(mesh: &Mesh, server: &Pod, serials: &mut BTreeSet<String>, held: &mut [TcpStream]) -> Result<()> {
    let mut all_carry = |when: &str| {
        held.iter_mut().try_for_each(|stream| talk(stream).with_context(|| format!("held open, {when}")))
    };
    all_carry("at first")?;
    until("three rotations", || {
        serials.extend(serial(mesh, "n2", &server.identity())?);
        Ok((serials.len() > 3).then_some(()))
    })?;
    all_carry("after three rotations")?;
    // An agent that has not acknowledged the new root: nothing is signed with it until then.
    play_agent(mesh, "deaf", &[])?;
    mesh.ca()?.command("rotate", &[])?;
    for step in ["announced", "overlap", "steady"] {
        until(&format!("the step {step}"), || {
            serials.extend(serial(mesh, "n2", &server.identity())?);
            Ok((ca_status(mesh)?["rotation"]["step"] == step).then_some(()))
        })?;
        all_carry(step)?;
        if step == "announced" {
            std::fs::remove_file(mesh.directory().join("status/deaf.yaml")).context("the deaf agent")?;
        }
    }
    Ok(())
}
