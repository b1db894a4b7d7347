//! How long certificates live, what ends with them while the CA is away, and their rotation, with the root's, under load.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_proto::admin::Flow;
use adit_tests::apps::{Behaviour, Load, LoadReport, Server, Shape, connect, run_load};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use adit_tests::peers::{Authority, play_agent, read_bundle};
use adit_tests::process::Run;
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::{ca_status, call, pair, reason, serial, talk};
use crate::until::until;

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
