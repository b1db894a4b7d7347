//! Real servers and clients, addressed by a service, by both families: HTTP, Redis, PostgreSQL, gRPC, and an
//! application that does TLS of its own.

use std::net::{IpAddr, SocketAddr};

use adit_tests::has_real_root;
use adit_tests::mesh::{Mesh, ServiceSpec};
use adit_tests::process::Process;
use adit_tests::servers::{nginx, nginx_with, postgres, redis};
use adit_tests::topology::Host;
use anyhow::{Context, Result};

use super::{Places, with_lanes};

mod grpc;

/// Puts a service in front of the server pod: the same port at the service and at the pod.
fn expose(mesh: &mut Mesh, number: u8, port: u16) -> Result<[IpAddr; 2]> {
    let mut service = ServiceSpec::new("shop", "server", number, port, port);
    service.name = format!("server-{port}");
    let vips = [service.ips[0], service.ips[1]];
    mesh.service(service)?;
    mesh.settle()?;
    Ok(vips)
}

/// Checks that the server's agent saw the last connection come by tunnel from the client.
fn came_by_tunnel(mesh: &Mesh, places: &Places, first: u64) -> Result<()> {
    let flow = mesh.agent("n2")?.wait_for_flow(first, "the server's report", |flow| {
        flow.direction == "inbound" && flow.state == "closed"
    })?;
    assert_eq!(flow.transport, "mtls", "{flow:?}");
    assert_eq!(flow.source.identity.as_deref(), Some(places.client.identity().as_str()));
    Ok(())
}

/// Runs `check` against the server pod behind a service, once by each family, and sees that it went by tunnel.
fn by_both_families(
    mesh: &mut Mesh,
    places: &Places,
    port: u16,
    check: impl Fn(&Host, IpAddr) -> Result<()>,
) -> Result<()> {
    for vip in expose(mesh, 1, port)? {
        let first = mesh.agent("n2")?.process().next_line();
        check(&places.client.host, vip).with_context(|| format!("at {vip}"))?;
        came_by_tunnel(mesh, places, first)?;
    }
    Ok(())
}

#[test]
fn nginx_answers_curl() -> Result<()> {
    with_lanes(|mesh, places| {
        let _serving = nginx(&places.server.host, 80, "hello from nginx")?;
        by_both_families(mesh, places, 80, |client, vip| {
            let url = format!("http://{}/", SocketAddr::new(vip, 80));
            // Twice in one run: curl keeps the connection.
            let said = client.netns.command("curl").args(["-sS", "-f", &url, &url]).ok()?;
            assert_eq!(said, "hello from nginx\nhello from nginx\n");
            Ok(())
        })
    })
}

#[test]
fn redis_answers_redis_cli() -> Result<()> {
    with_lanes(|mesh, places| {
        let _serving = redis(&places.server.host, 6379)?;
        by_both_families(mesh, places, 6379, |client, vip| {
            let vip = vip.to_string();
            let cli = |args: &[&str]| client.netns.command("redis-cli").args(["-h", &vip]).args(args);
            assert_eq!(cli(&["SET", "cart", "7"]).ok()?, "OK\n");
            assert_eq!(cli(&["APPEND", "cart", &"x".repeat(10_000)]).ok()?, "10001\n");
            assert_eq!(cli(&["--raw", "GETRANGE", "cart", "0", "2"]).ok()?, "7xx\n");
            Ok(())
        })
    })
}

#[test]
fn postgres_answers_psql() -> Result<()> {
    if !has_real_root("PostgreSQL refuses to run as root, and a user namespace has no other user") {
        return Ok(());
    }
    with_lanes(|mesh, places| {
        let _serving = postgres(&places.server.host, 5432)?;
        by_both_families(mesh, places, 5432, |client, vip| {
            let select = "select sum(i), inet_client_addr() from generate_series(1, 100000) i";
            let args = ["-h", &vip.to_string(), "-U", "test", "-d", "postgres", "-Atc", select];
            let own = client.ip_like(vip);
            assert_eq!(client.netns.command("psql").args(args).ok()?, format!("5000050000|{own}\n"));
            Ok(())
        })
    })
}

/// An openssl server with a certificate of its own, that the mesh knows nothing of.
fn tls_server(mesh: &Mesh, host: &Host, port: u16) -> Result<(Process, String)> {
    let folder = mesh.folder();
    let file = |name: &str| folder.join(name).display().to_string();
    let (key, certificate) = (file("app.key"), file("app.crt"));
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let run = host.netns.command("openssl").args(request).args(["-subj", "/CN=app.test", "-days", "1"]);
    run.args(["-addext", "subjectAltName=DNS:app.test", "-keyout", &key, "-out", &certificate]).ok()?;
    let server = format!(
        "listen {port} ssl; listen [::]:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key}; \
         location / {{ default_type text/plain; return 200 \"$ssl_protocol $ssl_server_name\\n\"; }}"
    );
    Ok((nginx_with(host, &server)?, certificate))
}

#[test]
fn an_application_that_does_its_own_tls_is_carried_as_it_is() -> Result<()> {
    with_lanes(|mesh, places| {
        let (_serving, certificate) = tls_server(mesh, &places.server.host, 443)?;
        by_both_families(mesh, places, 443, |client, vip| {
            let connect_to = format!("app.test:443:{}:443", bracketed(vip));
            let args = ["-sS", "-f", "--cacert", &certificate, "--connect-to", &connect_to];
            let curl = client.netns.command("curl").args(args).args(["https://app.test/"]);
            assert_eq!(curl.ok()?, "TLSv1.3 app.test\n", "the app's own handshake is what curl verified");
            Ok(())
        })
    })
}

#[test]
fn openssl_talks_to_openssl_through_the_mesh_with_the_apps_own_certificate() -> Result<()> {
    with_lanes(|mesh, places| {
        let (_serving, certificate) = tls_server(mesh, &places.server.host, 443)?;
        by_both_families(mesh, places, 443, |client, vip| {
            let to = format!("{}:443", bracketed(vip));
            let args = ["s_client", "-brief", "-connect", &to, "-servername", "app.test"];
            let run = client.netns.command("openssl").args(args).args(["-verify_return_error", "-CAfile"]);
            let said = run.args([&certificate]).output()?;
            assert!(said.stderr.contains("Verification: OK"), "{said:?}");
            assert!(said.stderr.contains("CN = app.test") || said.stderr.contains("CN=app.test"), "{said:?}");
            Ok(())
        })
    })
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}
