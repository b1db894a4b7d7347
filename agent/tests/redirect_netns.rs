//! Capture, seen by real packets: a pod and an outside in network namespaces of their own, iptables of both back ends,
//! and a stand-in for the agent that carries what reaches its listeners.
//!
//! Needs root, or a user namespace to be root in; where neither can be had, every test fails and says so.

#[path = "redirect_netns/bench.rs"]
mod bench;

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_agent::netns::Netns;
use adit_agent::node::{self, Direction, Node, Origin};
use adit_agent::redirect::{self, Backend, Condition, Finding};
use adit_agent::sockets::{self, Dial, Options, PortOwner, probe};
use adit_core::redirect::{Drift, Family, Part, Sysctl, Table, Wanted};
use adit_core::workload::Skip;
use bench::{Bench, MARK, Seen, every, in_namespaces};

/// Repairs that announcements ask for: 0.5 s was seen for each that follows another (their spacing). Half of a round.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Both back ends, both families, each in a fresh pod.
fn everywhere(name: &str, test: impl AsyncFn(&Bench, Backend, Family) + Copy + Sync) {
    in_namespaces(name, async || {
        for backend in [Backend::Nft, Backend::Legacy] {
            for family in Family::BOTH {
                let bench = Bench::new(backend).await;
                eprintln!("{backend} {family}");
                test(&bench, backend, family).await;
            }
        }
    });
}

fn wanted() -> Wanted {
    Wanted::new(MARK, Arc::new(Skip::default()))
}

#[test]
fn outbound_connections_reach_the_agent_and_leave_with_the_pods_own_address() {
    everywhere(
        "outbound_connections_reach_the_agent_and_leave_with_the_pods_own_address",
        async |bench, backend, family| {
            let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
            assert_eq!(applied.backend, backend);
            let server = bench.outside_ip(family);
            let mut app = bench.connect(&bench.pod, (server, 7000)).await.unwrap();
            assert_eq!(bench.echo(&mut app, "hello").await, "hello");
            let seen = bench.next_seen().await;
            assert_eq!(
                seen,
                Seen { port: 15001, original: (server, 7000).into(), client: bench.pod_ip(family) }
            );
            assert_eq!(bench.server_saw(7000).await.ip(), bench.pod_ip(family), "the source is unchanged");

            // To itself, by its own address and by loopback: not captured.
            for ip in [bench.pod_ip(family), bench::loopback(family)] {
                let mut app = bench.connect(&bench.pod, (ip, 8080)).await.unwrap();
                assert_eq!(bench.echo(&mut app, "self").await, "self");
                assert_eq!(bench.server_saw(8080).await.ip(), ip);
            }
            assert!(bench.nothing_seen());
        },
    );
}

#[test]
fn link_local_destinations_are_reached_without_the_agent() {
    in_namespaces("link_local_destinations_are_reached_without_the_agent", async || {
        let bench = Bench::new(Backend::Nft).await;
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        let addr = bench.outside_link_local(7000);
        let mut app = bench.connect_to(&bench.pod, addr).await.unwrap();
        assert_eq!(bench.echo(&mut app, "near").await, "near");
        assert!(bench.nothing_seen());
    });
}

#[test]
fn inbound_connections_reach_the_app_through_the_agent_with_their_true_address() {
    everywhere(
        "inbound_connections_reach_the_app_through_the_agent_with_their_true_address",
        async |bench, _, family| {
            redirect::apply(&bench.pod, &wanted()).await.unwrap();
            let server = bench.pod_ip(family);
            let mut client = bench.connect(&bench.outside, (server, 8080)).await.unwrap();
            assert_eq!(bench.echo(&mut client, "hello").await, "hello");
            let seen = bench.next_seen().await;
            assert_eq!(
                seen,
                Seen { port: 15006, original: (server, 8080).into(), client: bench.outside_ip(family) }
            );
            assert_eq!(
                bench.server_saw(8080).await.ip(),
                bench.outside_ip(family),
                "the app sees its client"
            );
            // HBONE is not redirected.
            let mut tunnel = bench.connect(&bench.outside, (server, 15008)).await.unwrap();
            assert_eq!(bench.echo(&mut tunnel, "x").await, "x");
            assert_eq!(bench.next_seen().await.port, 15008);
        },
    );
}

#[test]
fn a_closed_port_answers_as_it_would_without_us() {
    everywhere("a_closed_port_answers_as_it_would_without_us", async |bench, _, family| {
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        let ip = bench.pod_ip(family);
        // 8081 listens on loopback only; 15001 and 15006 are the agent's, and nobody else's business.
        for port in [9999, 8081, 15001, 15006] {
            let refused = bench.connect(&bench.outside, (ip, port)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}");
        }
        assert!(bench.nothing_seen());
    });
}

#[test]
fn without_its_nat_rules_a_pod_refuses_rather_than_lets_in() {
    everywhere("without_its_nat_rules_a_pod_refuses_rather_than_lets_in", async |bench, backend, family| {
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        bench.iptables(backend, family, "-t nat -F ADIT_PREROUTING");
        let refused = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn connections_from_before_go_on_are_listed_and_can_be_closed() {
    everywhere("connections_from_before_go_on_are_listed_and_can_be_closed", async |bench, _, family| {
        let mut inward = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap();
        let mut outward = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
        bench.echo(&mut inward, "a").await;
        bench.echo(&mut outward, "a").await;
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        assert_eq!(bench.echo(&mut inward, "still here").await, "still here");
        assert_eq!(bench.echo(&mut outward, "still here").await, "still here");
        assert!(bench.nothing_seen());

        // Captured ones beside them are not listed.
        let mut captured = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap();
        let mut out = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
        bench.echo(&mut captured, "b").await;
        bench.echo(&mut out, "b").await;
        let older = node::older(&bench.pod, MARK.value(), &Skip::default()).unwrap();
        let directions: Vec<Direction> = every(&older, |older| older.direction);
        assert_eq!(directions, [Direction::Inbound, Direction::Outbound], "{older:?}");

        let inbound: Vec<_> =
            older.into_iter().filter(|older| older.direction == Direction::Inbound).collect();
        match node::close(&bench.pod, &inbound) {
            Ok(closed) => {
                assert_eq!(closed, 1);
                assert_eq!(bench.read_error(&mut inward).await, ErrorKind::ConnectionReset);
            }
            Err(error) => panic!("SOCK_DESTROY: {error:?}"),
        }
        assert_eq!(bench.echo(&mut outward, "untouched").await, "untouched");
        assert_eq!(bench.echo(&mut captured, "untouched").await, "untouched");
    });
}

#[test]
fn applying_twice_changes_nothing() {
    everywhere("applying_twice_changes_nothing", async |bench, backend, _| {
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        let first = bench.saves(backend);
        let again = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        assert_eq!(bench.saves(backend), first);
        assert_eq!(again.sysctls_before, [], "what stood before is told once");
        assert_eq!(redirect::verify(&bench.pod, &wanted()).await.unwrap(), []);
        for family in Family::BOTH {
            assert_eq!(bench.ip(family, "rule").matches("lookup 100").count(), 1);
        }
    });
}

#[test]
fn skipped_ports_and_addresses_go_past_the_agent() {
    everywhere("skipped_ports_and_addresses_go_past_the_agent", async |bench, _, family| {
        let skips = [
            Skip { outbound_ports: vec![6999..=7001], ..Skip::default() },
            Skip { outbound_cidrs: vec![bench.outside_ip(family).into()], ..Skip::default() },
        ];
        for skip in skips {
            redirect::apply(&bench.pod, &Wanted::new(MARK, Arc::new(skip))).await.unwrap();
            let mut app = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
            assert_eq!(bench.echo(&mut app, "past").await, "past");
            assert!(bench.nothing_seen());
        }
        let skip = Skip { inbound_ports: vec![8080..=8080], ..Skip::default() };
        redirect::apply(&bench.pod, &Wanted::new(MARK, Arc::new(skip))).await.unwrap();
        let mut client = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap();
        assert_eq!(bench.echo(&mut client, "past").await, "past");
        assert!(bench.nothing_seen());
        let mut app = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
        assert_eq!(bench.echo(&mut app, "x").await, "x");
        assert_eq!(bench.next_seen().await.port, 15001, "what is no longer skipped is captured");
    });
}

#[test]
fn removal_first_stops_capturing_and_then_lets_go() {
    everywhere("removal_first_stops_capturing_and_then_lets_go", async |bench, backend, family| {
        let before = bench.saves(backend);
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        let mut inward = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap();
        let mut outward = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
        bench.echo(&mut inward, "a").await;
        bench.echo(&mut outward, "a").await;
        bench.next_seen().await;
        bench.next_seen().await;

        redirect::remove(&bench.pod, Part::FilterAndNat).await.unwrap();
        assert_eq!(bench.echo(&mut inward, "live").await, "live", "carried connections go on");
        assert_eq!(bench.echo(&mut outward, "live").await, "live");
        let mut fresh = bench.connect(&bench.outside, (bench.pod_ip(family), 8080)).await.unwrap();
        assert_eq!(bench.echo(&mut fresh, "direct").await, "direct");
        let mut fresh = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
        assert_eq!(bench.echo(&mut fresh, "direct").await, "direct");
        assert!(bench.nothing_seen(), "new ones are not captured");
        drop((inward, outward));

        redirect::remove(&bench.pod, Part::Rest).await.unwrap();
        assert_eq!(bench::rules(&bench.saves(backend)), bench::rules(&before), "nothing of ours is left");
        for family in Family::BOTH {
            assert!(!bench.ip(family, "rule").contains("lookup 100"));
            assert_eq!(bench.ip(family, "route show table 100").trim(), "");
        }
        let refused = redirect::restore_sysctls(&bench.pod, &applied.sysctls_before).await.unwrap();
        assert_eq!(refused, []);
        for (sysctl, value) in &applied.sysctls_before {
            assert_eq!(bench.sysctl(*sysctl), *value);
        }
        for part in [Part::FilterAndNat, Part::Rest] {
            redirect::remove(&bench.pod, part).await.expect("removing nothing succeeds");
        }
    });
}

#[test]
fn sysctls_are_set_where_they_may_be_and_named_where_not() {
    everywhere("sysctls_are_set_where_they_may_be_and_named_where_not", async |bench, _, _| {
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        for sysctl in Sysctl::ALL {
            if !applied.conditions.contains(&Condition::SysctlRefused(sysctl)) {
                assert_eq!(bench.sysctl(sysctl), sysctl.wanted(), "{sysctl:?}");
            }
        }
        let refused =
            every(&applied.conditions, |condition| matches!(condition, Condition::SysctlRefused(_)));
        assert!(!refused.contains(&true), "this kernel lets root write them: {:?}", applied.conditions);
    });
}

#[test]
fn what_stood_is_told_before_it_is_changed() {
    everywhere("what_stood_is_told_before_it_is_changed", async |bench, _, _| {
        let ruled = redirect::apply_rules(&bench.pod, &wanted()).await.unwrap();
        assert!(!ruled.sysctls_before.is_empty(), "a fresh namespace is not as capture wants it");
        for (sysctl, value) in &ruled.sysctls_before {
            assert_eq!(bench.sysctl(*sysctl), *value, "still as it was");
        }
        let applied = redirect::apply_sysctls(&bench.pod, ruled.clone()).await;
        assert_eq!(applied.sysctls_before, ruled.sysctls_before, "nothing else is changed");
        for (sysctl, _) in &ruled.sysctls_before {
            assert_eq!(bench.sysctl(*sysctl), sysctl.wanted());
        }
    });
}

#[test]
fn a_read_only_proc_sys_is_got_round_by_a_proc_of_our_own() {
    in_namespaces("a_read_only_proc_sys_is_got_round_by_a_proc_of_our_own", async || {
        let bench = Bench::new(Backend::Nft).await;
        bench::make_proc_sys_read_only();
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        let refused =
            Sysctl::ALL.map(|sysctl| applied.conditions.contains(&Condition::SysctlRefused(sysctl)));
        if bench::one_id_is_mapped() {
            // A user namespace may not mount a proc that shows more than its own does: named, and nothing fails.
            assert_eq!(refused, Sysctl::ALL.map(|_| true));
        } else {
            assert_eq!(refused, Sysctl::ALL.map(|_| false));
            assert!(Sysctl::ALL.iter().all(|sysctl| bench.sysctl(*sysctl) == sysctl.wanted()));
        }
        let mut client = bench.connect(&bench.outside, (bench.pod_ip(Family::V4), 8080)).await.unwrap();
        assert_eq!(bench.echo(&mut client, "captured").await, "captured");
        assert_eq!(bench.next_seen().await.port, 15006);
        let mut keeper = bench.keeper(&wanted(), &applied);
        bench.iptables(Backend::Nft, Family::V4, "-t nat -F ADIT_OUTPUT");
        let Finding::Repaired { drift, .. } = bench.next(&mut keeper).await else { panic!("not repaired") };
        assert_eq!(drift.len(), 1, "what was refused is no drift: {drift:?}");
    });
}

#[test]
fn nobody_in_the_pod_can_bind_beside_the_agent() {
    in_namespaces("nobody_in_the_pod_can_bind_beside_the_agent", async || {
        let bench = Bench::new(Backend::Nft).await;
        for family in Family::BOTH {
            for port in [15001, 15006, 15008] {
                let second = sockets::listen(&bench.pod, family, port, &Options::default()).unwrap();
                let beside = bench.bind_with_reuse_port(family, port);
                match second.owner {
                    PortOwner::OwnUid => assert_eq!(beside.unwrap_err().kind(), ErrorKind::AddrInUse),
                    PortOwner::AnyOfOurUid => {
                        assert!(
                            bench::one_id_is_mapped(),
                            "only a user namespace of one id keeps us from our uid"
                        );
                        beside.unwrap();
                    }
                }
            }
        }
        // And an app that was there first is named.
        let _app = bench.bind_with_reuse_port(Family::V4, 15010).unwrap();
        let refused = sockets::listen(&bench.pod, Family::V4, 15010, &Options::default());
        assert!(bench::one_id_is_mapped() || matches!(refused, Err(sockets::ListenError::PortTaken(15010))));
    });
}

#[test]
fn rules_that_are_flushed_come_back_at_once_where_the_kernel_tells() {
    everywhere(
        "rules_that_are_flushed_come_back_at_once_where_the_kernel_tells",
        async |bench, backend, family| {
            let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
            let mut keeper = bench.keeper(&wanted(), &applied);
            bench.iptables(backend, family, "-t nat -F ADIT_OUTPUT");
            let Finding::Repaired { drift, .. } = bench.next(&mut keeper).await else {
                panic!("not repaired")
            };
            assert_eq!(drift, [Drift::Rules { family, table: Table::Nat, chain: "ADIT_OUTPUT" }]);
            assert_eq!(redirect::verify(&bench.pod, &wanted()).await.unwrap(), []);

            // It comes to rest: no repair of ours asks for another.
            let quiet = tokio::time::timeout(Duration::from_secs(3), keeper.next()).await;
            assert!(quiet.is_err(), "{quiet:?}");
            let begun = Instant::now();
            bench.iptables(backend, family, "-t nat -I OUTPUT 1 -p tcp -j ACCEPT");
            if backend == Backend::Legacy {
                // Nothing announces it: a new keeper's first round comes at once, the old one's next in 20 s.
                keeper = bench.keeper(&wanted(), &applied);
            }
            let Finding::Repaired { drift, .. } = bench.next(&mut keeper).await else {
                panic!("not repaired")
            };
            assert_eq!(drift, [Drift::Jump { family, table: Table::Nat, chain: "ADIT_OUTPUT" }]);
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());

            let begun = Instant::now();
            bench.ip(family, "rule del pref 100");
            let Finding::Repaired { drift, .. } = bench.next(&mut keeper).await else {
                panic!("not repaired")
            };
            assert_eq!(drift, [Drift::PolicyRule(family)]);

            bench.ip(family, "route flush table 100");
            let Finding::Repaired { drift, .. } = bench.next(&mut keeper).await else {
                panic!("not repaired")
            };
            assert_eq!(drift, [Drift::PolicyRoute(family)]);
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
            let mut app = bench.connect(&bench.pod, (bench.outside_ip(family), 7000)).await.unwrap();
            assert_eq!(bench.echo(&mut app, "hello").await, "hello");
            assert_eq!(bench.next_seen().await.port, 15001);
        },
    );
}

#[test]
fn capture_without_listeners_is_broken_and_mended_when_they_are_back() {
    in_namespaces("capture_without_listeners_is_broken_and_mended_when_they_are_back", async || {
        let mut bench = Bench::new(Backend::Nft).await;
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        bench.stop_agent().await;
        let mut keeper = bench.keeper(&wanted(), &applied);
        let Finding::Broken { drift, error: None } = bench.next(&mut keeper).await else {
            panic!("not broken")
        };
        assert!(
            drift.contains(&Drift::Probe(Family::V4)) && drift.contains(&Drift::Probe(Family::V6)),
            "{drift:?}"
        );
        assert!(drift.contains(&Drift::Listener { family: Family::V4, port: 15008 }), "{drift:?}");
        bench.start_agent();
        // An event of the kernel's is enough to look again.
        bench.ip(Family::V4, "address add 10.9.0.77/32 dev eth0");
        let mended = bench.next(&mut keeper).await;
        assert!(matches!(mended, Finding::Mended), "{mended:?}");
    });
}

#[test]
fn rules_of_the_other_back_end_that_divert_are_found_by_the_probe() {
    in_namespaces("rules_of_the_other_back_end_that_divert_are_found_by_the_probe", async || {
        let bench = Bench::new(Backend::Nft).await;
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        assert_eq!(applied.backend, Backend::Nft);
        bench.iptables(Backend::Legacy, Family::V4, "-t nat -A OUTPUT -p tcp --dport 1 -j ACCEPT");
        assert_eq!(redirect::verify(&bench.pod, &wanted()).await.unwrap(), [Drift::OtherBackend]);
        let mut keeper = bench.keeper(&wanted(), &applied);
        let found = bench.next(&mut keeper).await;
        assert!(matches!(found, Finding::OtherBackend), "{found:?}");
        assert_eq!(
            redirect::apply(&bench.pod, &wanted()).await.unwrap().backend,
            Backend::Nft,
            "ours stay where they are"
        );
    });
}

#[test]
fn a_probe_knows_capture_from_its_absence() {
    in_namespaces("a_probe_knows_capture_from_its_absence", async || {
        for backend in [Backend::Nft, Backend::Legacy] {
            let mut bench = Bench::new(backend).await;
            for family in Family::BOTH {
                assert!(bench.probe_goes_unanswered(family).await, "without rules the probe leaves the pod");
            }
            redirect::apply(&bench.pod, &wanted()).await.unwrap();
            for family in Family::BOTH {
                let answer = bench.probe(family).await;
                assert!(matches!(answer, probe::Probed::Captured), "{answer:?}");
            }
            assert!(bench.nothing_seen(), "a probe is no connection");
            bench.stop_agent().await;
            // A child that another test is just starting holds our sockets until its exec.
            while !matches!(bench.probe(Family::V4).await, probe::Probed::NotListening) {
                tokio::task::yield_now().await;
            }
            bench.ip(Family::V6, "route del default");
            let answer = bench.probe(Family::V6).await;
            assert!(matches!(answer, probe::Probed::NoRoute), "{answer:?}");
        }
    });
}

#[test]
fn a_pod_without_ipv6_is_captured_and_gets_its_route_when_it_is_switched_on() {
    in_namespaces("a_pod_without_ipv6_is_captured_and_gets_its_route_when_it_is_switched_on", async || {
        let bench = Bench::new(Backend::Nft).await;
        bench.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
        assert!(applied.conditions.contains(&Condition::NoIpv6Route), "{:?}", applied.conditions);
        let mut app = bench.connect(&bench.pod, (bench.outside_ip(Family::V4), 7000)).await.unwrap();
        assert_eq!(bench.echo(&mut app, "v4").await, "v4");
        let mut keeper = bench.keeper(&wanted(), &applied);
        bench.write_sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        bench.ip(Family::V6, "address add fd09::2/64 dev eth0 nodad");
        let Finding::Repaired { drift, applied } = bench.next(&mut keeper).await else {
            panic!("not repaired")
        };
        assert_eq!(drift, [Drift::PolicyRoute(Family::V6)]);
        assert!(!applied.conditions.contains(&Condition::NoIpv6Route));
    });
}

#[test]
fn a_failed_enrolment_is_undone_and_a_kernel_without_the_socket_match_is_served_without() {
    in_namespaces(
        "a_failed_enrolment_is_undone_and_a_kernel_without_the_socket_match_is_served_without",
        async || {
            let bench = Bench::new(Backend::Nft).await;
            let before = bench::rules(&bench.saves(Backend::Nft));
            bench.shadow("ip6tables-nft-restore", "echo no such kernel >&2; exit 2");
            let error = redirect::apply(&bench.pod, &wanted()).await.unwrap_err();
            assert!(error.to_string().contains("no such kernel"), "{error}");
            bench.unshadow();
            assert_eq!(bench::rules(&bench.saves(Backend::Nft)), before, "IPv4's rules were taken out again");
            assert!(!bench.ip(Family::V4, "rule").contains("lookup 100"));

            let no_socket = "rules=$(cat); case \"$rules\" in *'-m socket'*) exit 2;; esac; \
                             echo \"$rules\" | exec /usr/sbin/$(basename $0) \"$@\"";
            bench.shadow("iptables-nft-restore", no_socket);
            bench.shadow("ip6tables-nft-restore", no_socket);
            let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
            bench.unshadow();
            assert!(applied.conditions.contains(&Condition::NoSocketMatch), "{:?}", applied.conditions);
            assert_eq!(redirect::verify(&bench.pod, &wanted()).await.unwrap(), []);
            let mut client = bench.connect(&bench.outside, (bench.pod_ip(Family::V4), 9999)).await.unwrap();
            assert_eq!(bench.read_error(&mut client).await, ErrorKind::ConnectionReset);
        },
    );
}

#[test]
fn spoofed_dials_do_not_collide_with_their_clients_real_ports() {
    everywhere("spoofed_dials_do_not_collide_with_their_clients_real_ports", async |bench, _, family| {
        redirect::apply(&bench.pod, &wanted()).await.unwrap();
        // The agent may dial from very few ports, and the client uses just those.
        bench.write_sysctl("net/ipv4/ip_local_port_range", "40000 40009");
        let mut clients = Vec::new();
        for port in 40000..40005 {
            let mut client = bench.connect_from(&bench.outside, port, (bench.pod_ip(family), 8080)).await;
            assert_eq!(bench.echo(&mut client, "one").await, "one");
            clients.push(client);
        }
        for client in &mut clients {
            assert_eq!(bench.echo(client, "still").await, "still");
        }
        let to = SocketAddr::new(bench.pod_ip(family), 8080);
        let from = Some(bench.outside_ip(family));
        let dial = Dial { mark: MARK.value(), from, options: Options::default() };
        let mut taken = Vec::new();
        let exhausted = loop {
            match sockets::dial(&bench.pod, to, &dial).await {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
            assert!(taken.len() <= 10);
        };
        assert!(matches!(exhausted, sockets::DialError::PortsExhausted(_)), "{exhausted:?}");
        // Ports are counted per destination: another one has all of them.
        let elsewhere = SocketAddr::new(bench.pod_ip(family), 15008);
        sockets::dial(&bench.pod, elsewhere, &dial).await.unwrap();
    });
}

#[test]
fn the_node_knows_its_addresses_and_whose_a_connection_is() {
    in_namespaces("the_node_knows_its_addresses_and_whose_a_connection_is", async || {
        let bench = Bench::new(Backend::Nft).await;
        let node = Node::open(bench.outside.clone(), "/sys/fs/cgroup".as_ref()).unwrap();
        for family in Family::BOTH {
            assert!(node.owns(bench.outside_ip(family)) && !node.owns(bench.pod_ip(family)));
        }
        let following = node.clone();
        let following = tokio::task::spawn_local(async move { following.follow().await });
        let fresh: IpAddr = "10.9.0.88".parse().unwrap();
        bench.ip_outside("address add 10.9.0.88/32 dev eth0");
        bench.until(|| node.owns(fresh)).await;
        bench.ip_outside("address del 10.9.0.88/32 dev eth0");
        bench.until(|| !node.owns(fresh)).await;
        following.abort();

        let lookup = RefCell::new(node.lookup().unwrap());
        let origin = |client, server| lookup.borrow_mut().origin(client, server).unwrap();
        for family in Family::BOTH {
            let server = SocketAddr::new(bench.pod_ip(family), 8080);
            let mut client = bench.connect_to(&bench.outside, server).await.unwrap();
            bench.echo(&mut client, "x").await;
            let addr = client.local_addr().unwrap();
            assert_eq!(origin(addr, server), Origin::Node);
            let forged = SocketAddr::new(addr.ip(), addr.port() ^ 1);
            assert_eq!(origin(forged, server), Origin::Elsewhere);
            // The port on which the node itself listens is nobody's connection.
            let listening = SocketAddr::new(addr.ip(), 7000);
            assert_eq!(origin(listening, server), Origin::Elsewhere);
            drop(client);
            // In TIME_WAIT it is nobody's.
            bench.until(|| origin(addr, server) == Origin::Closed).await;
        }
        // A node with no cgroup tree to be seen takes every stranger's for a pod's, but the root's.
        let blind = Node::open(bench.outside.clone(), "/nonexistent".as_ref()).unwrap();
        let server = SocketAddr::new(bench.pod_ip(Family::V4), 8080);
        let client = bench.connect_to(&bench.outside, server).await.unwrap();
        let origin = blind.lookup().unwrap().origin(client.local_addr().unwrap(), server).unwrap();
        assert!(matches!(origin, Origin::HostNetworkPod | Origin::Node), "{origin:?}");
    });
}

#[test]
fn a_thread_comes_back_from_a_namespace_and_goes_into_no_second_one() {
    in_namespaces("a_thread_comes_back_from_a_namespace_and_goes_into_no_second_one", async || {
        let bench = Bench::new(Backend::Nft).await;
        let here = || Netns::open("/proc/thread-self/ns/net".as_ref()).unwrap().inode();
        let home = here();
        assert_eq!(bench.pod.run(here).unwrap(), bench.pod.inode());
        assert_eq!(here(), home);
        let nested = bench.pod.run(|| bench.outside.run(|| ()).is_err()).unwrap();
        assert!(nested);
        let panicked = std::panic::catch_unwind(|| bench.pod.run(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(here(), home, "after a panic too");
    });
}

#[test]
fn all_of_it_holds_in_a_user_namespace_that_maps_one_id() {
    bench::again_in_a_user_namespace();
}

#[test]
fn a_pod_with_its_own_rules_keeps_them_and_its_back_end() {
    in_namespaces("a_pod_with_its_own_rules_keeps_them_and_its_back_end", async || {
        for backend in [Backend::Nft, Backend::Legacy] {
            let bench = Bench::new(backend).await;
            bench.iptables(backend, Family::V4, "-t nat -N OWN");
            bench.iptables(backend, Family::V4, "-t nat -A OUTPUT -p tcp --dport 7000 -j ACCEPT");
            let before = bench::rules(&bench.saves(backend));
            let applied = redirect::apply(&bench.pod, &wanted()).await.unwrap();
            assert_eq!(applied.backend, backend);
            let mut app = bench.connect(&bench.pod, (bench.outside_ip(Family::V4), 7000)).await.unwrap();
            assert_eq!(bench.echo(&mut app, "ours first").await, "ours first");
            assert_eq!(bench.next_seen().await.port, 15001);
            for part in [Part::FilterAndNat, Part::Rest] {
                redirect::remove(&bench.pod, part).await.unwrap();
            }
            assert_eq!(bench::rules(&bench.saves(backend)), before);
        }
    });
}

#[test]
fn bytes_flow_both_ways_and_sockets_block() {
    // Guards the bench itself: a server that answers nothing would let every "not captured" test pass.
    in_namespaces("bytes_flow_both_ways_and_sockets_block", async || {
        let bench = Bench::new(Backend::Nft).await;
        let addr = SocketAddr::new(bench.pod_ip(Family::V4), 8080);
        let client = bench.connect_to(&bench.outside, addr).await.unwrap().into_std().unwrap();
        client.set_nonblocking(false).unwrap();
        let answered = tokio::task::spawn_blocking(move || {
            let mut client = client;
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            client.write_all(b"ping").unwrap();
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).unwrap();
            bytes
        });
        assert_eq!(&answered.await.unwrap(), b"ping");
    });
}
