use adit_core::report::ConnectionReport;

use super::super::Report;
use super::super::registry::IDLE;
use super::super::tests::{Setup, setup, workload};
use super::*;

#[test]
fn the_agents_first_ten_seconds_are_within_the_window_for_ten_minutes() {
    let at = |seconds| Mono(Duration::from_secs(seconds));
    assert_eq!(oldest_of(at(5), 60), slot_of(at(0)));
    assert_eq!(oldest_of(at(599), 60), slot_of(at(9)));
    assert_eq!(oldest_of(at(600), 60), slot_of(at(10)));
    assert_eq!(oldest_of(at(39), 1), slot_of(at(30)));
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

    let mut edges = setup.edges(8);
    edges.add(&interim);
    edges.add(&last);
    let (read, other) = edges.read(setup.clock.now().mono, Duration::from_secs(600));
    assert_eq!((read.len(), other), (1, 0));
    assert_eq!((read[0].opened, read[0].active, read[0].bytes_to_server, read[0].retries), (1, 0, 12, 1));
    assert_eq!(read[0].connect_p50_us, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn an_edge_is_shown_from_its_first_second_and_leaves_with_the_window() {
    let setup = setup();
    let mut edges = setup.edges(8);
    setup.shard.open(setup.report()).close(End::Failed(Reason::Refused, None));
    edges.add(&setup.said.try_recv().unwrap());
    let window = Duration::from_secs(600);
    assert_eq!(edges.read(setup.clock.now().mono, window).0.len(), 1);
    tokio::time::advance(Duration::from_secs(595)).await;
    assert_eq!(edges.read(setup.clock.now().mono, window).0.len(), 1);
    assert_eq!(edges.read(setup.clock.now().mono, Duration::from_secs(60)).0.len(), 0);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(edges.read(setup.clock.now().mono, window).0.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn edges_beyond_the_bound_are_summed_up_as_other() {
    let setup = setup();
    let mut edges = setup.edges(1);
    for name in ["cart", "orders", "orders"] {
        let mut report = setup.report();
        report.remote = Some(workload(name, "10.0.0.3"));
        setup.shard.open(report).close(End::Closed);
        edges.add(&setup.said.try_recv().unwrap());
    }
    setup.shard.open(setup.report()).close(End::Failed(Reason::Refused, None));
    edges.add(&setup.said.try_recv().unwrap());
    let (read, other) = edges.read(setup.clock.now().mono, Duration::from_secs(60));
    assert_eq!((read.len(), other), (1, 2));
    assert_eq!(read[0].failed.get("refused"), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_counts_also_where_its_first_connection_is_refused() {
    let setup = setup();
    let mut report = setup.report();
    report.stages.set(Stage::Tls, Duration::from_micros(1500));
    setup.shard.open(report).close(End::Failed(Reason::PolicyDenied, None));
    let count = "adit_tls_handshake_duration_seconds_count{";
    assert!(setup.page().lines().any(|line| line.starts_with(count) && line.ends_with("} 1")));
    let mut edges = setup.edges(8);
    edges.add(&setup.said.try_recv().unwrap());
    setup.shard.open(setup.report()).close(End::Closed);
    edges.add(&setup.said.try_recv().unwrap());
    let (read, _) = edges.read(setup.clock.now().mono, Duration::from_secs(600));
    assert_eq!(read[0].tls_handshake_us, Some(1500), "later connections of the tunnel do not change it");
}

#[tokio::test(start_paused = true)]
async fn connections_are_active_on_their_edge_before_they_are_ever_reported() {
    let setup = setup();
    let mut edges = setup.edges(8);
    let open: Vec<_> = (0..3).map(|_| setup.shard.open(setup.report())).collect();
    open.iter().for_each(Report::carried);
    let second = setup.reporter.shard(setup.clock);
    let elsewhere = second.open(setup.report());
    elsewhere.carried();
    let window = Duration::from_secs(600);
    let shown = |edges: &mut Edges| {
        let (read, other) = edges.read(setup.clock.now().mono, window);
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
    let mut edges = setup.edges(8);
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
    let (read, _) = edges.read(setup.clock.now().mono, window);
    assert_eq!(read[0].active, 1, "the one that is open");
    open.close(End::Closed);
    let (read, _) = edges.read(setup.clock.now().mono, window);
    assert_eq!(read[0].active, 0);
}

/// A report of a connection to the workload `name`.
fn towards(setup: &Setup, name: &str) -> ConnectionReport {
    ConnectionReport { remote: Some(workload(name, "10.0.0.3")), ..setup.report() }
}

fn destinations(edges: &[Edge]) -> Vec<String> {
    edges.iter().filter_map(|edge| edge.destination.workload.as_deref()).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn open_connections_beyond_the_bound_are_other_ones_and_each_counts_once() {
    let setup = setup();
    let mut edges = setup.edges(2);
    let open = ["d", "b", "c", "c", "a", "e"].map(|name| {
        let report = setup.shard.open(towards(&setup, name));
        report.carried();
        report
    });
    let window = Duration::from_secs(600);
    for _ in 0..4 {
        let (read, other) = edges.read(setup.clock.now().mono, window);
        assert_eq!(destinations(&read), ["Deployment/a", "Deployment/b"]);
        assert_eq!(other, 4, "two of c, one of d and e each");
    }
    // Those that are reported first are kept.
    tokio::time::advance(Duration::from_secs(61)).await;
    setup.shard.tick();
    setup.said.try_iter().for_each(|said| edges.add(&said));
    let all = |edges: &mut Edges| {
        let (read, other) = edges.read(setup.clock.now().mono, window);
        (
            read.iter().map(|edge| edge.active).sum::<u64>(),
            read.iter().map(|edge| edge.opened).sum::<u64>(),
            other,
        )
    };
    assert_eq!(all(&mut edges), (2, 2, 4), "open, and said to be");
    open.into_iter().for_each(|report| report.close(End::Closed));
    setup.said.try_iter().for_each(|said| edges.add(&said));
    assert_eq!(all(&mut edges), (0, 2, 4), "closed");
}

#[tokio::test(start_paused = true)]
async fn an_open_edge_that_is_seldom_reported_keeps_its_facts_also_where_the_table_is_full() {
    let setup = setup();
    let mut edges = setup.edges(1);
    let open = setup.shard.open(setup.report());
    open.carried();
    tokio::time::advance(Duration::from_secs(61)).await;
    setup.shard.tick();
    setup.said.try_iter().for_each(|said| edges.add(&said));
    // Longer than any window: nothing is said of it meanwhile.
    tokio::time::advance(Duration::from_secs(1200)).await;
    setup.shard.open(towards(&setup, "orders")).close(End::Closed);
    edges.add(&setup.said.try_recv().unwrap());
    let (read, other) = edges.read(setup.clock.now().mono, Duration::from_secs(600));
    assert_eq!((destinations(&read), other), (vec!["Deployment/cart".to_owned()], 1));
    assert_eq!(read[0].tls.as_deref(), Some("TLSv1.3 X25519MLKEM768"));
    // Once it has ended, its place is given to others.
    open.close(End::Closed);
    setup.said.try_iter().for_each(|said| edges.add(&said));
    tokio::time::advance(Duration::from_secs(1200)).await;
    setup.shard.open(towards(&setup, "orders")).close(End::Failed(Reason::Refused, None));
    edges.add(&setup.said.try_recv().unwrap());
    let (read, _) = edges.read(setup.clock.now().mono, Duration::from_secs(600));
    assert_eq!(destinations(&read), ["Deployment/orders"]);
}
