//! What a process has used, read from /proc.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of a process so far, all its threads, in seconds. Resolution: one tick, 10 ms.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let ticks = ticks_of(&stat).context("/proc/PID/stat is not as proc(5) says")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(u32::try_from(ticks).map(f64::from)? / f64::from(i32::try_from(per_second)?))
}

/// utime + stime: fields 14 and 15, counted after the name, which may hold spaces.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Resident memory of a process, KiB.
pub(super) fn resident_kib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib = line.split_whitespace().next().context("no number in VmRSS")?;
    Ok(f64::from(kib.parse::<u32>()?))
}

/// How often a quantity is looked at that shall come to rest, and how long that may take.
const LOOK: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(20);

/// Waits until `read` has said the same value for so long, and returns it; after 20 s whatever it says.
pub(super) fn at_rest(for_long: Duration, read: impl Fn() -> Result<f64>) -> Result<f64> {
    let started = Instant::now();
    let (mut last, mut since) = (read()?, Instant::now());
    while since.elapsed() < for_long && started.elapsed() < REST_MAX {
        thread::sleep(LOOK);
        let now = read()?;
        if now.total_cmp(&last).is_ne() {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 30 0 0 20 0 3 0 100";
        assert_eq!(ticks_of(stat), Some(280));
        assert_eq!(ticks_of("7 (a) S"), None);
    }
}
