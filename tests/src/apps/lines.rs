//! Long connections that carry numbered lines, there and back: what is missing, doubled, out of order or cut is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// What to open, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lines {
    /// A server that sends back what it gets.
    pub to: SocketAddr,
    /// How many connections.
    pub connections: usize,
    /// Lines a second on each.
    pub rate: u32,
    /// How long lines are sent.
    pub duration: Duration,
    /// How long after that the last of them may take to come back.
    pub give_up: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LinesReport {
    /// Connections on which every line came back, in order, to the last.
    pub whole: u64,
    /// Connections that were not, by `stage: error`.
    pub failed: BTreeMap<String, u64>,
    /// Lines that came back.
    pub lines: u64,
}

/// Runs it to its end. Each connection is opened at once; `opened` is called when all of them are.
pub async fn run(lines: Lines, opened: impl FnOnce()) -> LinesReport {
    let mut report = LinesReport::default();
    let mut open = Vec::new();
    for _ in 0..lines.connections {
        match timeout(lines.give_up, TcpStream::connect(lines.to)).await {
            Ok(Ok(stream)) => open.push(stream),
            Ok(Err(error)) => report.fail(format!("connect: {}", error.kind())),
            Err(_) => report.fail("connect: no answer in time".to_owned()),
        }
    }
    opened();
    let end = Instant::now() + lines.duration;
    let mut running: JoinSet<_> = open.into_iter().map(|stream| carry(lines, stream, end)).collect();
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((came, Ok(()))) => {
                report.lines += came;
                report.whole += 1;
            }
            Ok((came, Err(why))) => {
                report.lines += came;
                report.fail(why);
            }
            Err(error) => report.fail(format!("the test itself: {error}")),
        }
    }
    report
}

impl LinesReport {
    fn fail(&mut self, why: String) {
        *self.failed.entry(why).or_default() += 1;
    }

    /// How many connections failed, whatever the way.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// One connection; how many lines came back, and what was wrong.
async fn carry(lines: Lines, stream: TcpStream, end: Instant) -> (u64, Result<(), String>) {
    if let Err(error) = stream.set_nodelay(true) {
        return (0, Err(format!("connect: {}", error.kind())));
    }
    let (reader, writer) = stream.into_split();
    let mut came = 0;
    let both = async {
        let sent =
            async { send(lines.rate, writer, end).await.map_err(|error| format!("send: {}", error.kind())) };
        // Both, so that a reset is told by whoever sees it first.
        tokio::try_join!(sent, receive(reader, &mut came)).map(|(sent, ())| sent)
    };
    let ended = match timeout(end.saturating_duration_since(Instant::now()) + lines.give_up, both).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("receive: not all in time".to_owned()),
    };
    // As many as were sent: the server answers our end of the stream with its own, after the last line.
    (came, ended)
}

/// Sends lines until `end`, then closes this direction; returns how many.
async fn send(rate: u32, mut writer: OwnedWriteHalf, end: Instant) -> std::io::Result<u64> {
    let mut due = interval(Duration::from_secs(1) / rate.max(1));
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0_u64;
    while Instant::now() < end {
        due.tick().await;
        writer.write_all(format!("{number}\n").as_bytes()).await?;
        number += 1;
    }
    // The number of lines, as the last one: what is lost at the very end is seen too.
    writer.write_all(format!("end {number}\n").as_bytes()).await?;
    writer.shutdown().await?;
    Ok(number)
}

async fn receive(reader: OwnedReadHalf, came: &mut u64) -> Result<(), String> {
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let mut end = None;
    loop {
        line.clear();
        match reader.read_line(&mut line).await {
            Err(error) => return Err(format!("receive: {}", error.kind())),
            Ok(0) if end == Some(*came) => return Ok(()),
            Ok(0) => return Err("receive: closed before the last line".to_owned()),
            Ok(_) if end.is_some() => return Err("receive: more than was sent".to_owned()),
            Ok(_) if line == format!("{came}\n") => *came += 1,
            Ok(_) if line == format!("end {came}\n") => end = Some(*came),
            Ok(_) => return Err("receive: another line than the next".to_owned()),
        }
    }
}

/// Sends back what each connection sends, for ever.
pub async fn echo(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            // What goes wrong here, the client sees.
            let _ = stream.set_nodelay(true);
            let (mut reader, mut writer) = stream.split();
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                let _ = writer.shutdown().await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(to: SocketAddr) -> Lines {
        Lines {
            to,
            connections: 3,
            rate: 200,
            duration: Duration::from_millis(100),
            give_up: Duration::from_secs(10),
        }
    }

    #[tokio::test]
    async fn every_line_that_comes_back_in_order_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = tokio::spawn(echo(listener));
        let mut opened = false;
        let lines = Lines { duration: Duration::from_secs(2), ..lines(to) };
        let report = run(lines, || opened = true).await;
        assert!(opened);
        assert_eq!((report.whole, report.failures()), (3, 0), "{report:?}");
        assert!(report.lines >= 3 * 10, "{report:?}");
        server.abort();
    }

    /// What is said of a server that answers every connection with this, and closes.
    async fn said_of(answer: &'static [u8]) -> LinesReport {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    writer.write_all(answer).await.unwrap();
                    writer.shutdown().await.unwrap();
                    // To the client's end: no reset that would hide the answer.
                    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
                });
            }
        });
        let report = run(lines(to), || {}).await;
        server.abort();
        assert_eq!(report.whole, 0, "{report:?}");
        report
    }

    #[tokio::test]
    async fn a_line_that_is_missing_doubled_or_wrong_and_a_cut_are_failures() {
        for (answer, why) in [
            (&b"0\n2\n"[..], "receive: another line than the next"),
            (b"0\n0\n", "receive: another line than the next"),
            (b"0\n1", "receive: another line than the next"),
            (b"0\n1\n", "receive: closed before the last line"),
            (b"0\nend 1\n2\n", "receive: more than was sent"),
        ] {
            assert_eq!(said_of(answer).await.failed, BTreeMap::from([(why.to_owned(), 3)]), "{answer:?}");
        }
        let nobody = run(lines("127.0.0.1:1".parse().unwrap()), || {}).await;
        assert_eq!(nobody.failed, BTreeMap::from([("connect: connection refused".to_owned(), 3)]));
    }
}
