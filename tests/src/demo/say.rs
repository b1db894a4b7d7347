//! What the demo prints: numbered steps, indented lines. No control character unless standard output is a terminal.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Standard output.
#[derive(Debug)]
pub(super) struct Say {
    bold: bool,
    started: Instant,
    step: u32,
    title: String,
}

impl Say {
    pub(super) fn new() -> Self {
        let bold = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self { bold, started: Instant::now(), step: 0, title: String::new() }
    }

    /// Begins the next step.
    pub(super) fn step(&mut self, title: &str) -> Result<()> {
        self.step += 1;
        title.clone_into(&mut self.title);
        let (on, off) = if self.bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let step = self.step;
        print(format_args!("\n{on}{step}. {title}{off}   [{:.1} s]", self.started.elapsed().as_secs_f64()))
    }

    /// Which step this is, for an error.
    pub(super) fn current(&self) -> String {
        format!("step {} ({})", self.step, self.title)
    }

    /// One or more lines of a step.
    pub(super) fn line(&self, text: impl Display) -> Result<()> {
        text.to_string().lines().try_for_each(|line| print(format_args!("   {line}")))
    }

    /// One or more lines of what somebody else said, to be told from the demo's own.
    pub(super) fn quote(&self, text: impl Display) -> Result<()> {
        text.to_string().lines().try_for_each(|line| print(format_args!("     | {line}")))
    }

    /// How long it has taken so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Fails where standard output is closed, instead of panicking as `println!` does.
fn print(line: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Microseconds as people read them.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!(["999 us", "1.2 ms", "2.05 s"].map(str::to_owned), [999, 1_299, 2_059_000].map(micros));
    }
}
