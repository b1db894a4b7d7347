//! The real servers and clients that other tests use, without a mesh: what they do in clear is what must stay so.

use adit_tests::has_real_root;
use adit_tests::servers::{nginx, postgres, redis};
use adit_tests::topology::Topology;
use anyhow::Result;

fn pair() -> Result<Topology> {
    let mut topology = Topology::new()?;
    topology.add_node("n1")?;
    topology.add_node("n2")?;
    topology.add_pod("n1", "client")?;
    topology.add_pod("n2", "server")?;
    Ok(topology)
}

#[test]
fn nginx_answers_curl_by_both_families() -> Result<()> {
    let topology = pair()?;
    let (client, server) = (topology.host("client")?, topology.host("server")?);
    let _serving = nginx(server, 80, "hello from nginx")?;
    for url in [format!("http://{}/", server.v4), format!("http://[{}]/", server.v6)] {
        assert_eq!(client.netns.command("curl").args(["-sS", "-f", &url]).ok()?, "hello from nginx\n");
    }
    Ok(())
}

#[test]
fn redis_answers_redis_cli() -> Result<()> {
    let topology = pair()?;
    let (client, server) = (topology.host("client")?, topology.host("server")?);
    let _serving = redis(server, 6379)?;
    let cli = |args: &[&str]| {
        client.netns.command("redis-cli").args(["-h", &server.v4.to_string()]).args(args).ok()
    };
    assert_eq!(cli(&["SET", "cart", "7"])?, "OK\n");
    assert_eq!(cli(&["GET", "cart"])?, "7\n");
    Ok(())
}

#[test]
fn postgres_answers_psql() -> Result<()> {
    if !has_real_root("PostgreSQL refuses to run as root, and a user namespace has no other user") {
        return Ok(());
    }
    let topology = pair()?;
    let (client, server) = (topology.host("client")?, topology.host("server")?);
    let _serving = postgres(server, 5432)?;
    let args = ["-h", &server.v6.to_string(), "-U", "test", "-d", "postgres", "-Atc", "select 6 * 7"];
    assert_eq!(client.netns.command("psql").args(args).ok()?, "42\n");
    Ok(())
}
