//! What a report says, through the whole of telemetry but the thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime};

use adit_core::net::{NodeName, ObjectName, OriginalDst, PodUid, SourceAddr};
use adit_core::report::{
    ConnectionReport, Decision, Direction, End, Security, Stage, TraceId, Transport, Unmatched,
};
use adit_core::workload::{Enrolment, Owner, Pod, Skip, Workload};
use adit_proto::Reason;
use adit_proto::admin::Flow;

use super::access_log::{flow, words, write_line};
use super::active::Active;
use super::edges::{EdgeKey, Edges};
use super::registry::{IDLE, Registry};
use super::render::Page;
use super::said::{QUEUE_LEN_MAX, Said, Sender};
use super::shard::Verdict;
use super::{AccessLog, Config, Format, Reporter, Shard};
use crate::clock::Clock;

fn workload(name: &str, ip: &str) -> Arc<Workload> {
    let pod = Pod {
        uid: PodUid(format!("uid-{name}").into()),
        name: ObjectName::new("shop", format!("{name}-abc")),
        node: Some(NodeName("one".into())),
        ips: vec![ip.parse().unwrap()],
        service_account: name.into(),
        labels: Arc::default(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating: false,
        captured: true,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        skip: Skip::default(),
        owner: Owner { kind: "Deployment".into(), name: name.into() },
    };
    Arc::new(Workload {
        pod: Arc::new(pod),
        identity: format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap(),
        enrolment: Enrolment::ByNamespace,
        captured: true,
        zone: None,
        skip: Arc::default(),
    })
}

struct Setup {
    shard: Shard,
    said: Receiver<Said>,
    clock: Clock,
    reporter: Reporter,
}

fn setup() -> Setup {
    let (sink, said) = sync_channel(64);
    let clock = Clock::paused(SystemTime::UNIX_EPOCH);
    let reporter = Reporter::to(sink);
    Setup { shard: reporter.shard(clock), said, clock, reporter }
}

impl Setup {
    fn report(&self) -> ConnectionReport {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut report = ConnectionReport::open(
            self.clock.now(),
            Direction::Outbound,
            SourceAddr(addr("10.0.0.1:40000")),
            OriginalDst(addr("10.96.0.1:80")),
            workload("web", "10.0.0.1"),
            TraceId(0xabc),
        );
        report.remote = Some(workload("cart", "10.0.0.2"));
        report.service = Some((ObjectName::new("shop", "cart"), 80));
        report.target = Some(addr("10.0.0.2:8080"));
        report.transport = Transport::Mtls;
        report.attempts = 2;
        report.stages.set(Stage::Connect, Duration::from_micros(900));
        report.security = Some(Arc::new(Security {
            peer: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            peer_serial: "0a1b".into(),
            peer_not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400),
            version: "TLSv1.3",
            suite: "TLS13_AES_256_GCM_SHA384",
            group: "X25519MLKEM768",
        }));
        report
    }

    fn active(&self) -> HashMap<EdgeKey, u64> {
        self.reporter.active.read()
    }

    fn page(&self) -> String {
        Page::Prometheus.print(&self.reporter.registry.read())
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_is_closed_exactly_once() {
    let setup = setup();
    let report = setup.shard.open(setup.report());
    assert_eq!(setup.shard.live(), 1);
    report.carried();
    report.close(End::Closed);
    assert_eq!(setup.said.try_recv().unwrap().end, End::Closed);
    assert!(setup.said.try_recv().is_err());
    assert_eq!(setup.shard.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_report_says_aborted() {
    let setup = setup();
    drop(setup.shard.open(setup.report()));
    assert_eq!(setup.said.try_recv().unwrap().end, End::Failed(Reason::Aborted, None));
    assert!(setup.said.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connection_counts_as_opened_active_and_closed_on_its_edge() {
    let setup = setup();
    let report = setup.shard.open(setup.report());
    report.carried();
    report.meter().to_server(10);
    report.meter().to_client(20);
    let labels = "direction=\"outbound\",transport=\"mtls\",source_namespace=\"shop\",source_workload=\"Deployment/web\",\
                  source_identity=\"spiffe://cluster.local/ns/shop/sa/web\",destination_namespace=\"shop\",\
                  destination_workload=\"Deployment/cart\",destination_identity=\"spiffe://cluster.local/ns/shop/sa/cart\",\
                  destination_service=\"shop/cart:80\"";
    let shows = |line: &str| {
        let page = setup.page();
        let line = line.replace("{}", &format!("{{{labels}}}"));
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    };
    shows("adit_connections_opened_total{} 1");
    shows("adit_connections_active{} 1");
    shows("adit_connect_retries_total{} 1");
    report.close(End::Failed(Reason::ResetByServer, None));
    shows("adit_connections_active{} 0");
    shows("adit_connections_closed_total{} 1");
    shows("adit_bytes_to_server_total{} 10");
    shows("adit_bytes_to_client_total{} 20");
    let failed = format!("adit_connections_failed_total{{{labels},reason=\"reset_by_server\"}} 1");
    assert!(setup.page().contains(&failed), "{}", setup.page());
}

#[tokio::test(start_paused = true)]
async fn a_long_connection_is_reported_while_it_is_open_and_its_bytes_are_counted_once() {
    let setup = setup();
    let report = setup.shard.open(setup.report());
    report.carried();
    report.meter().to_server(5);
    setup.shard.tick();
    assert!(setup.said.try_recv().is_err(), "too early");
    tokio::time::advance(Duration::from_secs(61)).await;
    setup.shard.tick();
    let interim = setup.said.try_recv().unwrap();
    assert_eq!((interim.end.clone(), interim.new_bytes_to_server, interim.first), (End::Open, 5, true));
    report.meter().to_server(7);
    report.close(End::Closed);
    let last = setup.said.try_recv().unwrap();
    assert_eq!((last.new_bytes_to_server, last.report.bytes_to_server, last.first), (7, 12, false));

    let mut edges = Edges::new(8);
    edges.add(&interim);
    edges.add(&last);
    let (read, other) = edges.read(setup.clock.now().mono, Duration::from_secs(600), &setup.active());
    assert_eq!((read.len(), other), (1, 0));
    assert_eq!((read[0].opened, read[0].active, read[0].bytes_to_server, read[0].retries), (1, 0, 12, 1));
    assert_eq!(read[0].connect_p50_us, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn an_edge_is_shown_from_its_first_second_and_leaves_with_the_window() {
    let setup = setup();
    let mut edges = Edges::new(8);
    setup.shard.open(setup.report()).close(End::Failed(Reason::Refused, None));
    edges.add(&setup.said.try_recv().unwrap());
    let window = Duration::from_secs(600);
    assert_eq!(edges.read(setup.clock.now().mono, window, &setup.active()).0.len(), 1);
    tokio::time::advance(Duration::from_secs(595)).await;
    assert_eq!(edges.read(setup.clock.now().mono, window, &setup.active()).0.len(), 1);
    assert_eq!(edges.read(setup.clock.now().mono, Duration::from_secs(60), &setup.active()).0.len(), 0);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(edges.read(setup.clock.now().mono, window, &setup.active()).0.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn edges_beyond_the_bound_are_summed_up_as_other() {
    let setup = setup();
    let mut edges = Edges::new(1);
    for name in ["cart", "orders", "orders"] {
        let mut report = setup.report();
        report.remote = Some(workload(name, "10.0.0.3"));
        setup.shard.open(report).close(End::Closed);
        edges.add(&setup.said.try_recv().unwrap());
    }
    setup.shard.open(setup.report()).close(End::Failed(Reason::Refused, None));
    edges.add(&setup.said.try_recv().unwrap());
    let (read, other) = edges.read(setup.clock.now().mono, Duration::from_secs(60), &setup.active());
    assert_eq!((read.len(), other), (1, 2));
    assert_eq!(read[0].failed.get("refused"), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_policy_reason_and_hint_in_both_forms() {
    let setup = setup();
    let mut report = setup.report();
    report.decision = Some(Decision {
        allowed: false,
        policy: Some(ObjectName::new("shop", "no-bots")),
        rule: Some(1),
        unmatched: None,
    });
    setup.shard.open(report).close(End::Failed(Reason::PeerDenied, Some("403".into())));
    let said = setup.said.try_recv().unwrap();
    let mut line = Vec::new();
    write_line(&mut line, Format::Json, &flow(&said)).unwrap();
    let read: Flow<'_> = serde_json::from_slice(&line).unwrap();
    assert_eq!(read, flow(&said), "a line reads back as the flow that it says");
    assert_eq!(read.reason.as_deref(), Some("peer_denied"));
    assert_eq!(read.decision.unwrap().policy.as_deref(), Some("shop/no-bots"));
    assert!(read.hint.is_some());
    assert_eq!(read.source.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert_eq!(read.tls.unwrap().group, "X25519MLKEM768");
    assert_eq!(read.time, "1970-01-01T00:00:00Z");
    let words = words(&flow(&said));
    for part in
        ["reason=peer_denied", "policy=shop/no-bots", "rule=1", "shop/web-abc(10.0.0.1:40000)", "attempts=2"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_allow_policy_matched_names_those_that_were_asked_in_both_forms() {
    let setup = setup();
    let mut report = setup.report();
    let names = (0..11).map(|n| ObjectName::new("shop", format!("p{n}")));
    report.decision = Some(Decision {
        allowed: false,
        policy: None,
        rule: None,
        unmatched: Some(Box::new(Unmatched::of(names, 0))),
    });
    setup.shard.open(report).close(End::Failed(Reason::PolicyNoneMatched, None));
    let said = setup.said.try_recv().unwrap();
    let decision = flow(&said).decision.unwrap();
    assert_eq!((decision.unmatched.len(), decision.unmatched_more), (Unmatched::NAMED_MAX, 3));
    assert_eq!(decision.unmatched[0], "shop/p0");
    let mut line = Vec::new();
    write_line(&mut line, Format::Json, &flow(&said)).unwrap();
    assert_eq!(serde_json::from_slice::<Flow<'_>>(&line).unwrap(), flow(&said));
    assert!(words(&flow(&said)).contains(" unmatched=shop/p0,shop/p1,"), "{}", words(&flow(&said)));
    assert!(words(&flow(&said)).contains("shop/p7+3 "), "{}", words(&flow(&said)));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_counts_also_where_its_first_connection_is_refused() {
    let setup = setup();
    let mut report = setup.report();
    report.stages.set(Stage::Tls, Duration::from_micros(1500));
    setup.shard.open(report).close(End::Failed(Reason::PolicyDenied, None));
    let count = "adit_tls_handshake_duration_seconds_count{";
    assert!(setup.page().lines().any(|line| line.starts_with(count) && line.ends_with("} 1")));
    let mut edges = Edges::new(8);
    edges.add(&setup.said.try_recv().unwrap());
    setup.shard.open(setup.report()).close(End::Closed);
    edges.add(&setup.said.try_recv().unwrap());
    let (read, _) = edges.read(setup.clock.now().mono, Duration::from_secs(600), &setup.active());
    assert_eq!(read[0].tls_handshake_us, Some(1500), "later connections of the tunnel do not change it");
}

#[tokio::test(start_paused = true)]
async fn an_idle_edge_leaves_the_page_and_a_live_one_never_does() {
    let setup = setup();
    let live = setup.shard.open(setup.report());
    live.carried();
    let mut other = setup.report();
    other.remote = Some(workload("orders", "10.0.0.3"));
    setup.shard.open(other).close(End::Failed(Reason::Refused, None));
    setup.reporter.registry.expire(setup.clock.now().mono);
    tokio::time::advance(IDLE * 2).await;
    for _ in 0..2 {
        setup.shard.tick();
        setup.reporter.registry.expire(setup.clock.now().mono);
    }
    let page = setup.page();
    assert!(!page.contains("Deployment/orders"), "{page}");
    live.close(End::Closed);
    assert!(setup.page().contains("adit_connections_closed_total"), "{}", setup.page());
}

#[tokio::test(start_paused = true)]
async fn connections_are_active_on_their_edge_before_they_are_ever_reported() {
    let setup = setup();
    let mut edges = Edges::new(8);
    let open: Vec<_> = (0..3).map(|_| setup.shard.open(setup.report())).collect();
    open.iter().for_each(super::Report::carried);
    let second = setup.reporter.shard(setup.clock);
    let elsewhere = second.open(setup.report());
    elsewhere.carried();
    let window = Duration::from_secs(600);
    let shown = |edges: &mut Edges| {
        let (read, other) = edges.read(setup.clock.now().mono, window, &setup.active());
        assert_eq!(other, 0);
        read.iter().map(|edge| (edge.opened, edge.active)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&mut edges), [(0, 4)], "of both workers, and nothing was said");
    assert!(setup.said.try_recv().is_err());
    open.into_iter().for_each(|report| report.close(End::Closed));
    setup.said.try_iter().for_each(|said| edges.add(&said));
    assert_eq!(shown(&mut edges), [(3, 1)]);
    drop(elsewhere);
    setup.said.try_iter().for_each(|said| edges.add(&said));
    assert_eq!(shown(&mut edges), [(4, 0)]);
    // Nobody holds the edge any more: its cells go, and so does their place here.
    drop(second);
    tokio::time::advance(IDLE * 2).await;
    setup.shard.tick();
    setup.reporter.registry.expire(setup.clock.now().mono);
    setup.reporter.active.expire();
    assert_eq!(shown(&mut edges), []);
    assert_eq!(setup.reporter.active.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_report_leaves_no_phantom_and_hides_nobody() {
    let setup = setup();
    let mut edges = Edges::new(8);
    let window = Duration::from_secs(600);
    // Its first report is lost: its last one must not take away what was never added.
    let first = setup.shard.open(setup.report());
    first.carried();
    tokio::time::advance(Duration::from_secs(61)).await;
    setup.shard.tick();
    setup.said.try_recv().unwrap();
    first.close(End::Closed);
    edges.add(&setup.said.try_recv().unwrap());
    // This one's last report is lost: it must not stay.
    let last = setup.shard.open(setup.report());
    last.carried();
    tokio::time::advance(Duration::from_secs(61)).await;
    setup.shard.tick();
    edges.add(&setup.said.try_recv().unwrap());
    let open = setup.shard.open(setup.report());
    open.carried();
    last.close(End::Closed);
    setup.said.try_recv().unwrap();
    let (read, _) = edges.read(setup.clock.now().mono, window, &setup.active());
    assert_eq!(read[0].active, 1, "the one that is open");
    open.close(End::Closed);
    let (read, _) = edges.read(setup.clock.now().mono, window, &setup.active());
    assert_eq!(read[0].active, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_loses_reports_and_counts_them_and_no_counter_is_wrong() {
    const EXCESS: usize = 100;
    let clock = Clock::paused(SystemTime::UNIX_EPOCH);
    let (sender, said) = Sender::channel();
    let dropped = sender.dropped();
    let reporter = Reporter {
        registry: Registry::default(),
        active: Active::default(),
        hub: sender,
        interim_interval: Duration::from_secs(60),
    };
    let shard = reporter.shard(clock);
    let setup = Setup { shard, said, clock, reporter };
    // Nobody reads.
    for _ in 0..QUEUE_LEN_MAX + EXCESS {
        let report = setup.shard.open(setup.report());
        report.carried();
        report.close(End::Closed);
    }
    assert_eq!(dropped.load(Ordering::Relaxed), EXCESS as u64);
    let (page, all) = (setup.page(), format!(" {}", QUEUE_LEN_MAX + EXCESS));
    for name in ["adit_connections_opened_total{", "adit_connections_closed_total{"] {
        assert!(page.lines().any(|line| line.starts_with(name) && line.ends_with(&all)), "{name}\n{page}");
    }
    assert!(page.lines().any(|line| line.starts_with("adit_connections_active{") && line.ends_with(" 0")));
    assert_eq!(setup.said.try_iter().count(), QUEUE_LEN_MAX);
}

/// Telemetry with its thread, on the real clock: what is said ends in the access log.
fn running(access_log: AccessLog) -> (Setup, super::Flowing) {
    let config = Config { access_log, ..Config::default() };
    let (registry, active, clock) = (Registry::default(), Active::default(), Clock::real());
    let (hub, flowing) =
        super::hub::start(&config, clock, "one".into(), registry.clone(), active.clone()).unwrap();
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

#[tokio::test(start_paused = true)]
async fn a_verdict_names_the_action_of_the_policies_that_gave_it() {
    let setup = setup();
    let policy = ObjectName::new("shop", "p");
    let all = [
        (Verdict::Allowed, "ALLOW", "allowed"),
        (Verdict::Denied, "DENY", "denied"),
        (Verdict::Unmatched, "ALLOW", "unmatched"),
        (Verdict::Audited, "AUDIT", "audited"),
        (Verdict::WouldAllow, "ALLOW", "would_allow"),
        (Verdict::WouldDeny, "DENY", "would_deny"),
        (Verdict::WouldMatchNone, "ALLOW", "would_deny"),
    ];
    for (verdict, action, label) in all {
        setup.shard.verdict(Some(&policy), verdict);
        let labels = [("policy", "shop/p"), ("action", action), ("verdict", label)];
        assert_eq!(setup.reporter.registry.counter_value("adit_policy_verdicts_total", &labels), 1);
    }
    setup.shard.verdict(None, Verdict::NoneMatched);
    setup.shard.verdict(Some(&policy), Verdict::PlaintextRefused);
    let page = setup.page();
    for line in [
        "adit_policy_verdicts_total{action=\"ALLOW\",verdict=\"denied\"} 1",
        "adit_policy_verdicts_total{policy=\"shop/p\",verdict=\"denied\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
}
