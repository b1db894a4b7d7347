//! The test applications as processes of their own: HTTP load, long connections and the server of the latter, a gRPC health service.
#![expect(clippy::print_stdout, reason = "its report is its output")]

use std::net::SocketAddr;
use std::time::Duration;

use adit_tests::apps::lines::{self, Lines};
use adit_tests::apps::{Load, Shape, health, run_load};
use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;

const USAGE: &str = "usage: app load ADDR keep-alive|per-request CLIENTS SECONDS [RATE]
       app lines ADDR CONNECTIONS SECONDS RATE    (numbered lines; RATE is of each connection)
       app echo ADDR                              (what they are sent to)
       app health ADDR                            (a gRPC health service)";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["load", to, shape, clients, seconds] => load(to, shape, clients, seconds, None),
        ["load", to, shape, clients, seconds, rate] => load(to, shape, clients, seconds, Some(rate)),
        ["lines", to, connections, seconds, rate] => carry_lines(to, connections, seconds, rate),
        ["echo", at] => serve(at, lines::echo),
        ["health", at] => serve(at, health::serve),
        _ => bail!(USAGE),
    }
}

/// When a request is given up: above the connect phase's own deadline, so that what the agent says is seen.
const GIVE_UP: Duration = Duration::from_secs(10);

fn load(to: &str, shape: &str, clients: &str, seconds: &str, rate: Option<&str>) -> Result<()> {
    let load = Load {
        to: to.parse::<SocketAddr>().context(USAGE)?,
        shape: match shape {
            "keep-alive" => Shape::KeepAlive,
            "per-request" => Shape::PerRequest,
            _ => bail!(USAGE),
        },
        clients: clients.parse().context(USAGE)?,
        rate: rate.map(str::parse).transpose().context(USAGE)?,
        duration: Duration::from_secs_f64(seconds.parse().context(USAGE)?),
        give_up: GIVE_UP,
    };
    println!("{}", serde_json::to_string(&run_load(&load)?)?);
    Ok(())
}

/// Says `open` when every connection is, and in the end what came of them.
fn carry_lines(to: &str, connections: &str, seconds: &str, rate: &str) -> Result<()> {
    let lines = Lines {
        to: to.parse().context(USAGE)?,
        connections: connections.parse().context(USAGE)?,
        rate: rate.parse().context(USAGE)?,
        duration: Duration::from_secs_f64(seconds.parse().context(USAGE)?),
        give_up: GIVE_UP,
    };
    let report = runtime()?.block_on(lines::run(lines, || println!("open")));
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn serve<F: Future<Output = Result<()>>>(at: &str, service: impl FnOnce(TcpListener) -> F) -> Result<()> {
    let at: SocketAddr = at.parse().context(USAGE)?;
    runtime()?.block_on(async {
        let listener = TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
        println!("listening on {at}");
        service(listener).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot make a runtime")
}
