//! Peers that share no code with Adit: Go's HTTP/2, go-spiffe and grpc-go, on both ends of both wires.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;

use adit_proto::admin::Flow;
use adit_tests::apps::{Accepted, Behaviour, End, Pattern, Server, connect, expect_reset, read_exactly};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, TRUST_DOMAIN, with_mesh};
use adit_tests::peers::{
    Authority, Credentials, Peer, Tunnel, copy_bundle, play_agent, read_bundle, write_bundle,
};
use adit_tests::topology::Host;
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::until::until;

/// More than the mesh's own stream window (4 MiB), and than 80 of the Go side's (64 KiB).
const LEN: usize = 5 << 20;

/// The mesh's CA, to be asked as the agent of a node of this name.
fn authority(mesh: &Mesh, node: &str) -> Result<Authority> {
    let token = mesh.ca()?.add_node(node)?;
    let roots = mesh.folder().join("roots.pem");
    read_bundle(mesh, &roots)?;
    Ok(Authority { address: mesh.ca()?.address(), roots, token })
}

/// A CA, one agent, and a stranger: a host outside, with a certificate of the identity `go` and the roots to trust.
fn with_stranger(test: impl FnOnce(&mut Mesh, &Stranger) -> Result<()>) -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let host = mesh.topology.add_outside("stranger")?;
        let authority = authority(mesh, "go")?;
        let identity = format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/go");
        let credentials = authority.issue(&host.netns, &identity, 3600, &mesh.folder().join("go"))?;
        let stranger = Stranger { host, credentials, roots: authority.roots, identity };
        test(mesh, &stranger)
    })
}

struct Stranger {
    host: Host,
    credentials: Credentials,
    roots: PathBuf,
    identity: String,
}

impl Stranger {
    /// Tunnels to a pod.
    fn tunnel(&self, pod: &Pod, authority: SocketAddr, mode: &str, streams: usize) -> Result<Vec<Value>> {
        let tunnel = Tunnel {
            addr: pod.at(15008),
            expected: &pod.identity(),
            authority: &authority.to_string(),
            mode,
            bytes: LEN,
            streams,
        };
        tunnel.run(&self.host.netns, &self.credentials, &self.roots)
    }
}

#[test]
fn a_go_client_is_carried_with_small_windows_many_streams_half_closes_and_resets() -> Result<()> {
    with_stranger(|mesh, go| {
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "server"))?;
        let echo = Server::start(&pod.host.netns, 8080, Behaviour::Echo)?;
        let first = mesh.agent("n1")?.process().next_line();

        let answers = go.tunnel(&pod, pod.at(8080), "echo", 4)?;
        let right = json!({ "status": 200, "received": LEN, "same": true });
        assert_eq!(answers, vec![right; 4]);
        let flow =
            mesh.agent("n1")?.wait_for_flow(first, "a stream's report", |flow| flow.state == "closed")?;
        assert_eq!(flow.source.identity.as_deref(), Some(go.identity.as_str()));
        assert_eq!((flow.bytes_to_server, flow.bytes_to_client), (LEN as u64, LEN as u64));
        let seen: Vec<_> = echo.accepted().iter().map(|accepted| accepted.peer.ip()).collect();
        assert_eq!(
            seen,
            vec![go.host.ips()[0]; 4],
            "the app sees the tunnel's source, not what `forwarded` claims"
        );

        let says = b"said before anything was asked".to_vec();
        let half = Server::start(&pod.host.netns, 8081, Behaviour::HalfClose { says: says.clone() })?;
        let answers = go.tunnel(&pod, pod.at(8081), "half-close", 1)?;
        assert_eq!((&answers[0]["status"], &answers[0]["received"]), (&json!(200), &json!(says.len())));
        let accepted = half.wait_until("the client's end", has_ended)?;
        assert_eq!((accepted[0].end, accepted[0].received.len()), (Some(End::Closed), LEN));

        let hold = Server::start(&pod.host.netns, 8082, Behaviour::Hold)?;
        let answers = go.tunnel(&pod, pod.at(8082), "reset", 1)?;
        assert_eq!(answers, [json!({ "status": 200, "reset": true })]);
        let accepted = hold.wait_until("the reset", has_ended)?;
        assert_eq!(accepted[0].end, Some(End::Reset), "RST_STREAM is a reset for the app");
        let what = "the reset stream's report";
        mesh.agent("n1")?.wait_for_flow(first, what, |flow| reason(flow) == "reset_by_client")?;
        Ok(())
    })
}

fn reason<'f>(flow: &'f Flow<'_>) -> &'f str {
    flow.reason.as_deref().unwrap_or_default()
}

#[test]
fn a_go_client_is_told_why_it_is_refused() -> Result<()> {
    with_stranger(|mesh, go| {
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "server"))?;
        let _echo = Server::start(&pod.host.netns, 8080, Behaviour::Echo)?;
        mesh.apply(
            "deny",
            "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: { name: no-go, namespace: shop }\n\
             spec: { action: DENY, rules: [{ to: [{ operation: { ports: ['1'] } }] },\
             { from: [{ source: { serviceAccounts: ['go'] } }], to: [{ operation: { ports: ['9'] } }] }] }\n",
        )?;
        mesh.settle()?;
        let elsewhere = SocketAddr::new(go.host.v4.into(), 8080);
        for (authority, status, said, logged) in [
            (pod.at(9), 403, r#"policy_denied; policy="shop/no-go"; rule=1"#, "policy_denied"),
            (pod.at(7), 503, "app_refused", "app_refused"),
            (elsewhere, 400, "not_this_pod", "not_this_pod"),
            (pod.at(15006), 400, "loop", "loop"),
        ] {
            let first = mesh.agent("n1")?.process().next_line();
            let answers = go.tunnel(&pod, authority, "status", 1)?;
            assert_eq!(answers, [json!({ "status": status, "reason": said })], "{authority}");
            let flow = mesh
                .agent("n1")?
                .wait_for_flow(first, "the refusal's report", |flow| reason(flow) == logged)?;
            assert_eq!(flow.source.identity.as_deref(), Some(go.identity.as_str()));
        }
        Ok(())
    })
}

/// A captured client pod on a real node, and pods on a node whose agent is played, each with a Go server in each mode.
struct Played {
    client: Pod,
    servers: Vec<(Pod, Peer)>,
}

fn with_played(modes: &[&str], test: impl FnOnce(&mut Mesh, &Played) -> Result<()>) -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        mesh.topology.add_node("played")?;
        let authority = authority(mesh, "go")?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let mut servers = Vec::new();
        for mode in modes {
            let pod = mesh.add_pod(PodSpec::new("played", "shop", &format!("go-{mode}")).account("go"))?;
            let prefix = mesh.folder().join("go");
            let credentials = authority.issue(&pod.host.netns, &pod.identity(), 3600, &prefix)?;
            let peer = Peer::hbone(&pod.host.netns, &credentials, &authority.roots, mode)?;
            servers.push((pod, peer));
        }
        let pods: Vec<&Pod> = servers.iter().map(|(pod, _)| pod).collect();
        play_agent(mesh, "played", &pods)?;
        mesh.wait_captured(&client)?;
        mesh.settle()?;
        test(mesh, &Played { client, servers })
    })
}

/// Sends a pattern and checks that it comes back, then half-closes and sees the end.
fn echo(mut stream: TcpStream, len: u64) -> Result<()> {
    let pattern = Pattern { seed: 11 };
    let mut sending = stream.try_clone()?;
    let sender = thread::spawn(move || -> Result<()> {
        pattern.write(&mut sending, len)?;
        Ok(sending.shutdown(Shutdown::Write)?)
    });
    let tally = pattern.check(&mut stream)?;
    sender.join().map_err(|_| anyhow!("the sender panicked"))??;
    assert_eq!(tally.bytes, len);
    Ok(())
}

#[test]
fn a_go_server_is_reached_with_small_windows_and_many_streams() -> Result<()> {
    with_played(&["echo"], |mesh, played| {
        let (pod, peer) = &played.servers[0];
        let first = mesh.agent("n1")?.process().next_line();
        thread::scope(|scope| -> Result<()> {
            let streams: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| echo(connect(&played.client.host.netns, pod.at(8080))?, LEN as u64)))
                .collect();
            streams
                .into_iter()
                .try_for_each(|stream| stream.join().map_err(|_| anyhow!("a stream panicked")).flatten())
        })?;
        for _ in 0..4 {
            let flow =
                mesh.agent("n1")?.wait_for_flow(first, "a stream's report", |flow| flow.state == "closed")?;
            assert_eq!(flow.destination.identity.as_deref(), Some(pod.identity().as_str()));
            let tls = flow.tls.context("a tunnel has a handshake")?;
            assert_eq!((&*tls.version, &*tls.group), ("TLSv1.3", "X25519MLKEM768"));
        }
        let connects: Vec<Value> =
            peer.said().into_iter().filter(|line| line["method"] == "CONNECT").collect();
        assert_eq!(connects.len(), 4);
        for said in connects {
            assert_eq!(said["authority"], pod.at(8080).to_string());
            assert_eq!((&said["scheme"], &said["path"]), (&json!(""), &json!("")), "RFC 9113, 8.5");
            let client = format!("for=\"{}:", played.client.host.v4);
            assert!(said["forwarded"].as_str().is_some_and(|value| value.starts_with(&client)), "{said}");
            assert!(said["traceparent"].as_str().is_some_and(|value| value.len() == 55), "{said}");
        }
        Ok(())
    })
}

#[test]
fn a_go_servers_refusals_reset_the_app_and_say_who_refused() -> Result<()> {
    with_played(&["400", "401", "403", "503", "reset"], |mesh, played| {
        let expected = [
            ("peer_not_this_pod", None, 2),
            ("peer_denied", Some("other/mesh"), 1),
            ("peer_denied", Some("other/mesh"), 1),
            ("peer_app_unreachable", None, 1),
            ("reset_by_server", None, 1),
        ];
        for ((pod, peer), (word, policy, attempts)) in played.servers.iter().zip(expected) {
            let first = mesh.agent("n1")?.process().next_line();
            expect_reset(&played.client.host.netns, pod.at(8080))
                .with_context(|| format!("{word} is a reset"))?;
            let flow = mesh
                .agent("n1")?
                .wait_for_flow(first, "the refusal's report", |flow| flow.state == "failed")?;
            assert_eq!((reason(&flow), flow.attempts), (word, attempts), "{}", pod.spec.name);
            let by = flow.decision.and_then(|decision| decision.policy.map(|policy| policy.into_owned()));
            assert_eq!(by.as_deref(), policy, "{}", pod.spec.name);
            // What it says comes by another way than the report.
            let connects = || peer.said().iter().filter(|line| line["listening"].is_null()).count();
            until("that the peer has told of each CONNECT", || {
                Ok((connects() >= usize::from(attempts)).then_some(()))
            })?;
            assert_eq!(connects(), usize::from(attempts), "{}: {:?}", pod.spec.name, peer.said());
        }
        Ok(())
    })
}

#[test]
fn goaway_and_refused_streams_of_a_go_server_are_not_seen_by_the_app() -> Result<()> {
    with_played(&["goaway", "rst"], |mesh, played| {
        for (pod, _) in &played.servers {
            let first = mesh.agent("n1")?.process().next_line();
            let mut stream = connect(&played.client.host.netns, pod.at(8080))?;
            stream.write_all(b"carried")?;
            assert_eq!(read_exactly(&mut stream, 7)?, b"carried");
            drop(stream);
            let flow =
                mesh.agent("n1")?.wait_for_flow(first, "the report", |flow| flow.direction == "outbound")?;
            assert_eq!((flow.attempts, flow.last_failure.as_deref()), (2, Some("tunnel_lost")), "{flow:?}");
        }
        Ok(())
    })
}

#[test]
fn a_go_client_gets_certificates_that_go_spiffe_verifies_and_typed_refusals() -> Result<()> {
    with_mesh(&[], |mesh| {
        let ca = mesh.start_ca(&Value::Null)?;
        ca.allow("narrow", &["spiffe://cluster.local/ns/shop/sa/web"])?;
        let host = mesh.topology.add_outside("stranger")?;
        let authority = authority(mesh, "go")?;
        let prefix = mesh.folder().join("go");
        let identity = "spiffe://cluster.local/ns/shop/sa/web";
        let credentials = authority.issue(&host.netns, identity, 600, &prefix)?;
        let bundle = mesh.folder().join("bundle.json");
        copy_bundle(mesh, &bundle)?;
        let said = credentials.verify(&host.netns, &bundle, identity)?;
        assert_eq!(said[0], json!({ "roots": 1, "sequence": 1, "refresh_hint_s": 300 }));
        assert_eq!((&said[1]["id"], &said[1]["chains"]), (&json!(identity), &json!(1)), "{said:?}");

        let with = |token: &str| Authority { token: token.to_owned(), ..authority.clone() };
        let refused = |authority: &Authority, identity: &str, seconds: i64| -> Result<Value> {
            Ok(authority.ask(&host.netns, identity, seconds, &prefix)?.0)
        };
        let answer = refused(&with("a token that nobody has"), identity, 600)?;
        assert_eq!(answer["code"], "Unauthenticated", "{answer}");
        let narrow = with("token-of-the-agent-on-narrow");
        assert_eq!(refused(&narrow, identity, 600)?["code"], "OK");
        let answer = refused(&narrow, "spiffe://cluster.local/ns/shop/sa/db", 600)?;
        assert_eq!(answer["code"], "PermissionDenied", "{answer}");
        let answer = refused(&authority, "spiffe://elsewhere.test/ns/shop/sa/web", 600)?;
        assert_eq!(answer["code"], "PermissionDenied", "{answer}");
        let answer = refused(&authority, identity, 9)?;
        assert_eq!(answer["code"], "InvalidArgument", "{answer}");
        Ok(())
    })
}

#[test]
fn agents_get_their_certificates_from_a_go_ca_and_traffic_flows() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        // The mesh's own CA runs for the harness's sake and publishes elsewhere: nobody trusts it.
        let elsewhere = mesh.folder().join("elsewhere");
        std::fs::create_dir_all(elsewhere.join("status"))?;
        mesh.start_ca(&json!({ "publish": elsewhere }))?;
        let host = mesh.topology.add_outside("go-ca")?;
        let address = SocketAddr::new(host.v4.into(), 15012);
        let prefix = mesh.folder().join("go-ca");
        let ca = Peer::ca(&host.netns, address, TRUST_DOMAIN, "token-of-the-agent-on-n1", &prefix)?;
        let root = Credentials::at(prefix).root();
        write_bundle(mesh, 1, &[(TRUST_DOMAIN, &root)])?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        let token = mesh.folder().join("go-token");
        std::fs::write(&token, "token-of-the-agent-on-n1")?;
        let settings = json!({ "identity": {
            "ca-address": address.to_string(), "ca-root-file": root, "token-file": token,
        } });
        for node in ["n1", "n2"] {
            mesh.start_agent(node, &settings)?;
        }
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let _echo = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;
        let first = mesh.agent("n2")?.process().next_line();
        echo(connect(&client.host.netns, server.at(8080))?, 100_000)?;
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the report", |flow| flow.state == "closed")?;
        assert_eq!(flow.source.identity.as_deref(), Some(client.identity().as_str()));
        for pod in [&client, &server] {
            assert!(ca.said().iter().any(|line| line["issued"] == pod.identity()), "{:?}", ca.said());
        }
        Ok(())
    })
}

/// Whether the first connection was accepted and has ended.
fn has_ended(seen: &[Accepted]) -> bool {
    seen.first().is_some_and(|first| first.end.is_some())
}
