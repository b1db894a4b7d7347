//! What a report says, through the whole of telemetry but the thread.

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

use super::access_log::{flow, rfc3339, words, write_line};
use super::active::Active;
use super::edges::Edges;
use super::registry::{IDLE, Registry};
use super::render::Page;
use super::said::{QUEUE_LEN_MAX, Said, Sender};
use super::shard::{Budget, Role, Verdict};
use super::{Format, Reporter, Shard};
use crate::clock::Clock;

pub(super) fn workload(name: &str, ip: &str) -> Arc<Workload> {
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

pub(super) struct Setup {
    pub(super) shard: Shard,
    pub(super) said: Receiver<Said>,
    pub(super) clock: Clock,
    pub(super) reporter: Reporter,
}

pub(super) fn setup() -> Setup {
    let (sink, said) = sync_channel(64);
    let clock = Clock::paused(SystemTime::UNIX_EPOCH);
    let reporter = Reporter::to(sink);
    Setup { shard: reporter.shard(clock), said, clock, reporter }
}

impl Setup {
    pub(super) fn report(&self) -> ConnectionReport {
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

    pub(super) fn edges(&self, kept_max: usize) -> Edges {
        Edges::new(kept_max, self.reporter.active.clone())
    }

    pub(super) fn page(&self) -> String {
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
    assert_eq!(read.time, "1970-01-01T00:00:00.000Z");
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

#[test]
fn a_worker_counts_on_while_all_metrics_are_being_read() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let reporter = Reporter::to(sync_channel(1).0);
    let registry = reporter.registry().clone();
    let ((go, going), (counted, counts)) = (sync_channel::<()>(1), sync_channel(2));
    let worker = std::thread::spawn(move || {
        let (shard, name) = (reporter.shard(Clock::real()), ObjectName::new("shop", "cart"));
        for _ in 0..2 {
            shard.handshake(Role::Client, Some(Reason::PeerUntrusted));
            shard.asked_budget(Budget::Denied);
            shard.verdict(Some(&name), Verdict::Allowed);
            shard.ejected(&name);
            counted.send(()).unwrap();
            going.recv().unwrap();
        }
    });
    counts.recv_timeout(PATIENCE).unwrap();
    registry.while_read(|| {
        go.send(()).unwrap();
        counts.recv_timeout(PATIENCE).expect("the worker does not wait for the reader");
    });
    go.send(()).unwrap();
    worker.join().unwrap();
    let failed = [("side", "client"), ("result", "peer_untrusted")];
    assert_eq!(registry.counter_value("adit_tls_handshakes_total", &failed), 2);
    assert_eq!(registry.counter_value("adit_retry_budget_total", &[("result", "denied")]), 2);
}

#[test]
fn times_are_in_order_as_words_too() {
    let at = |millis| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    assert_eq!(at(1_120), "1970-01-01T00:00:01.120Z");
    assert!(at(1_000) < at(1_120) && at(1_120) < at(1_123));
}
