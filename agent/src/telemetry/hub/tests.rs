use std::sync::mpsc::sync_channel;

use adit_core::report::End;
use adit_proto::Reason;

use super::super::tests::{Setup, setup};
use super::super::{Format, Reporter};
use super::*;

/// Telemetry with its thread, on the real clock: what is said ends in the access log.
fn running(access_log: AccessLog) -> (Setup, Flowing) {
    let config = Config { access_log, ..Config::default() };
    let (registry, active, clock) = (Registry::default(), Active::default(), Clock::real());
    let (hub, flowing) = start(&config, clock, "one".into(), registry.clone(), active.clone()).unwrap();
    let reporter = Reporter { registry, active, hub, interim_interval: config.interim_interval };
    (Setup { shard: reporter.shard(clock), said: sync_channel(1).1, clock, reporter }, flowing)
}

#[tokio::test]
async fn lost_reports_are_on_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = Some(folder.path().join("access.log"));
    let (setup, flowing) = running(AccessLog { path, ..AccessLog::default() });
    setup.reporter.hub.dropped().fetch_add(7, Ordering::Relaxed);
    flowing.written().await;
    assert_eq!(setup.reporter.registry.counter_value("adit_reports_dropped_total", &[]), 7);
}

#[tokio::test]
async fn what_ended_well_is_not_logged_where_none_of_it_is_wanted_and_a_denial_always_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (setup, flowing) = running(AccessLog { format: Format::Text, sample: 0.0, path: Some(path.clone()) });
    for end in [End::Closed, End::Failed(Reason::PolicyDenied, None), End::Closed] {
        let report = setup.shard.open(setup.report());
        report.carried();
        report.close(end);
    }
    flowing.written().await;
    let log = std::fs::read_to_string(path).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("reason=policy_denied"), "{log}");
}

#[tokio::test]
async fn lines_that_a_full_disk_does_not_take_are_counted() {
    // 64 KiB of them wait for a better time; a line has between 300 and 1,300 bytes.
    const LINES: u64 = 1000;
    let (setup, flowing) = running(AccessLog { path: Some("/dev/full".into()), ..AccessLog::default() });
    for _ in 0..LINES {
        setup.shard.open(setup.report()).close(End::Closed);
    }
    flowing.written().await;
    let lost = setup.reporter.registry.counter_value("adit_access_log_lost_total", &[]);
    assert!((LINES - 64 * 1024 / 300..LINES - 64 * 1024 / 1300).contains(&lost), "{lost}");
    // With the file, what waits is given up too.
    flowing.reopen_access_log();
    flowing.written().await;
    assert_eq!(setup.reporter.registry.counter_value("adit_access_log_lost_total", &[]), LINES);
}

#[tokio::test]
async fn a_renamed_access_log_is_written_on_until_its_name_is_asked_for_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let (setup, flowing) =
        running(AccessLog { format: Format::Text, path: Some(path.clone()), ..AccessLog::default() });
    let say = |reason| setup.shard.open(setup.report()).close(End::Failed(reason, None));
    say(Reason::Refused);
    flowing.written().await;
    std::fs::rename(&path, &old).unwrap();
    say(Reason::Unreachable);
    flowing.written().await;
    flowing.reopen_access_log();
    say(Reason::PolicyDenied);
    flowing.written().await;
    let reasons = |path| {
        let log = std::fs::read_to_string(path).unwrap();
        let reason = |line: &str| line.split("reason=").nth(1)?.split(' ').next().map(str::to_owned);
        log.lines().filter_map(reason).collect::<Vec<_>>()
    };
    assert_eq!(reasons(&old), ["refused", "unreachable"]);
    assert_eq!(reasons(&path), ["policy_denied"]);
}

/// A disk that takes so many bytes, and then is full.
struct Disk {
    room: usize,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= count;
        self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_was_written_is_not_lost_when_the_disk_fills_up_after_it() {
    const LINES: u64 = 1000;
    let setup = setup();
    setup.shard.open(setup.report()).close(End::Closed);
    let said = setup.said.try_recv().unwrap();
    // In one round the buffer empties itself several times; the last time ends in the middle of a line.
    for room in [0, 1, 100_000, 300_000] {
        let folder = tempfile::tempdir().unwrap();
        let (taken, lost) = (Arc::default(), Arc::<AtomicU64>::default());
        let config = AccessLog { path: Some(folder.path().join("access.log")), ..AccessLog::default() };
        let disk = Box::new(Disk { room, taken: Arc::clone(&taken) });
        let mut log = Log::to(disk, config, Arc::clone(&lost));
        (0..LINES).for_each(|_| log.write(&said));
        log.flush();
        log.reopen();
        let whole = taken.lock().unwrap().iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(whole + lost.load(Ordering::Relaxed), LINES, "{room} bytes, {whole} lines");
        assert_eq!(whole > 0, room > 1);
    }
}
