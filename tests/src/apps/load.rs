//! Load on an HTTP/1.1 server: keep-alive or a connection per request, as fast as it goes or at a fixed rate.
//!
//! One thread, so that its own CPU is the same with and without a mesh. A failure is counted by what it was and where:
//! a connection that was not carried at all is another thing than one that was cut.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

/// What to send, where, how long.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// How connections are used.
    pub shape: Shape,
    /// How many clients at once.
    pub clients: usize,
    /// Requests per second of all clients together; `None` is as fast as they are answered.
    pub rate: Option<u32>,
    /// How long.
    pub duration: Duration,
    /// When a request is given up.
    pub give_up: Duration,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One connection a client.
    KeepAlive,
    /// A new connection for each request.
    PerRequest,
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LoadReport {
    /// Requests that were answered.
    pub ok: u64,
    /// Requests that were not, by `stage: error`.
    pub failed: BTreeMap<String, u64>,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// Half of the answered requests took at most so many microseconds, from the instant at which they were due.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// All of them.
    pub max_us: u64,
    /// From when the first request that failed was due until the last of them had failed, in microseconds from the start.
    pub failing_us: Option<(u64, u64)>,
}

impl LoadReport {
    /// How many failed, whatever the way.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Answered requests per second.
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^53")]
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.seconds
    }
}

/// Durations are kept to be sorted; at 8 B each, 80 MB.
const SAMPLES_MAX: usize = 10_000_000;

#[derive(Default)]
struct Results {
    took_us: Vec<u64>,
    ok: u64,
    failed: BTreeMap<String, u64>,
    failing_us: Option<(u64, u64)>,
}

/// Runs it to its end on a current-thread runtime of its own.
pub fn run(load: &Load) -> Result<LoadReport> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    if load.clients == 0 {
        bail!("no clients");
    }
    let results = Rc::new(RefCell::new(Results::default()));
    let started = LocalSet::new().block_on(&runtime, drive(load, &results));
    let seconds = started.elapsed().as_secs_f64();
    let mut results = results.take();
    results.took_us.sort_unstable();
    let part = |part: usize| {
        let index = (results.took_us.len() * part / 1000).min(results.took_us.len().saturating_sub(1));
        results.took_us.get(index).copied().unwrap_or(0)
    };
    let (p50_us, p99_us, max_us) = (part(500), part(990), part(1000));
    let Results { ok, failed, failing_us, .. } = results;
    Ok(LoadReport { ok, failed, seconds, p50_us, p99_us, max_us, failing_us })
}

async fn drive(load: &Load, results: &Rc<RefCell<Results>>) -> Instant {
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..load.clients {
        clients.spawn_local(client(load.clone(), index, started, Rc::clone(results)));
    }
    while clients.join_next().await.is_some() {}
    started
}

async fn client(load: Load, index: usize, started: Instant, results: Rc<RefCell<Results>>) {
    let end = started + load.duration;
    let mut connection = None;
    for turn in 0u32.. {
        let due = match due(&load, index, turn) {
            // A fixed rate is kept whatever the answers take: a slow server does not slow its load down.
            Some(offset) => {
                let due = started + offset;
                sleep_until(due.min(end)).await;
                due
            }
            None => Instant::now(),
        };
        if Instant::now() >= end {
            return;
        }
        let answered = match timeout(load.give_up, request(&load, &mut connection)).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".to_owned()),
        };
        let mut results = results.borrow_mut();
        match answered {
            Ok(()) => {
                results.ok += 1;
                if results.took_us.len() < SAMPLES_MAX {
                    results.took_us.push(micros(due.elapsed()));
                }
            }
            Err(why) => {
                connection = None;
                *results.failed.entry(why).or_default() += 1;
                let (was_due, now) =
                    (micros(due.saturating_duration_since(started)), micros(started.elapsed()));
                let first = results.failing_us.map_or(was_due, |(first, _)| first.min(was_due));
                results.failing_us = Some((first, now));
            }
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// When client `index` shall send its request number `turn`, evenly spread over the clients.
fn due(load: &Load, index: usize, turn: u32) -> Option<Duration> {
    let rate = load.rate?;
    let number = u64::from(turn) * load.clients as u64 + index as u64;
    Some(Duration::from_nanos(number.saturating_mul(1_000_000_000) / u64::from(rate.max(1))))
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
/// An answer's head and body together; the servers of the tests answer with less than 1 KiB.
const ANSWER_LEN_MAX: usize = 64 << 10;

async fn request(load: &Load, connection: &mut Option<TcpStream>) -> Result<(), String> {
    let at = |stage: &'static str| move |error: std::io::Error| format!("{stage}: {}", error.kind());
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(load.to).await.map_err(at("connect"))?;
            stream.set_nodelay(true).map_err(at("connect"))?;
            stream
        }
    };
    stream.write_all(REQUEST).await.map_err(at("request"))?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        match answer_len(&answer) {
            Some(len) if answer.len() >= len => break,
            _ if answer.len() >= ANSWER_LEN_MAX => return Err("answer: too long".to_owned()),
            _ => {}
        }
        if stream.read_buf(&mut answer).await.map_err(at("answer"))? == 0 {
            return Err(if answer.is_empty() { "answer: closed before it" } else { "answer: cut" }.to_owned());
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err("answer: not 200".to_owned());
    }
    if load.shape == Shape::KeepAlive {
        *connection = Some(stream);
    }
    Ok(())
}

/// The length of head and body, as soon as the head is whole.
fn answer_len(answer: &[u8]) -> Option<usize> {
    let head_len = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..head_len]).ok()?;
    let body_len = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Some(head_len + body_len.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_length_is_known_once_its_head_is_whole() {
        assert_eq!(answer_len(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"), None);
        assert_eq!(answer_len(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe"), Some(43));
        assert_eq!(answer_len(b"HTTP/1.1 204 No\r\n\r\n"), Some(19));
    }

    #[test]
    fn a_fixed_rate_is_spread_over_the_clients() {
        let load = Load {
            to: "127.0.0.1:1".parse().unwrap(),
            shape: Shape::KeepAlive,
            clients: 4,
            rate: Some(1000),
            duration: Duration::from_secs(1),
            give_up: Duration::from_secs(1),
        };
        assert_eq!(due(&load, 3, 0), Some(Duration::from_millis(3)));
        assert_eq!(due(&load, 0, 2), Some(Duration::from_millis(8)));
    }
}
