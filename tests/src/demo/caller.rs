//! One curl process in a pod, which makes one call after the other, each on a connection of its own, from the first step
//! of the demo to its last: what "no restart" means for a client.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::mesh::Pod;
use crate::process::Process;

/// Calls a second. Few: its calls are there to be looked at.
const CALLS_PER_S: u32 = 5;

/// The process.
#[derive(Debug)]
pub(super) struct Caller {
    process: Process,
}

/// What has come of its calls so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Tally {
    pub(super) answered: usize,
    pub(super) failed: usize,
}

impl Caller {
    /// Starts it; each call's path holds `marker`.
    pub(super) fn start(pod: &Pod, to: SocketAddr, marker: &str) -> Result<Self> {
        let url = format!("http://{to}/pay?card={marker}&order=[1-1000000]");
        let each =
            "%{stderr}%{http_code} %header{x-served-by} from %{local_ip}:%{local_port} in %{time_total} s\\n";
        let run = pod.host.netns.command("curl").args(["-sS", "-o", "/dev/null", "-H", "Connection: close"]);
        let run = run.args(["--rate", &format!("{CALLS_PER_S}/s"), "--max-time", "10", "-w", each, &url]);
        Ok(Self { process: run.spawn()? })
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it has had `count` more answers, all of them 200, and returns the last one's line.
    pub(super) fn wait_for_answers(&self, count: usize) -> Result<String> {
        let mut next = self.process.next_line();
        let mut line = String::new();
        for _ in 0..count {
            let (number, answer) =
                self.process.wait_for_line_after(next, "an answer to curl", |line| !line.is_empty())?;
            if !answer.starts_with("200 ") {
                bail!("a call of curl's failed: {answer}");
            }
            (next, line) = (number + 1, answer);
        }
        Ok(line)
    }

    /// What has come of all its calls; an error if the process has ended.
    pub(super) fn tally(&mut self) -> Result<Tally> {
        if !self.process.is_running().context("curl")? {
            bail!("curl has ended: {:?}", self.process.log().last());
        }
        let log = self.process.log();
        let of_code = |code: &str| log.iter().filter(|line| line.starts_with(code)).count();
        let answered = of_code("200 ");
        // A call without an answer has the code 000.
        let failed = log.iter().filter(|line| line.contains(" from ")).count() - answered;
        Ok(Tally { answered, failed })
    }
}
