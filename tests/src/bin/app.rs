//! `app serve …` and `app load …`: the test applications as processes of their own.
#![expect(clippy::print_stdout, reason = "its report is its output")]

use std::net::SocketAddr;
use std::time::Duration;

use adit_tests::apps::{Load, Shape, run_load};
use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: app load ADDR keep-alive|per-request CLIENTS SECONDS [RATE]";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["load", to, shape, clients, seconds] => load(to, shape, clients, seconds, None),
        ["load", to, shape, clients, seconds, rate] => load(to, shape, clients, seconds, Some(rate)),
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
