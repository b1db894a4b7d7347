//! Capture stays: what somebody changes in a pod's namespace comes back and is counted; where it cannot, the pod is not
//! called captured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use adit_tests::apps::{Behaviour, Server, connect, read_all, read_exactly};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use adit_tests::{WAIT_MAX, has_real_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::state::{OWN_PORTS, SYSCTLS, assert_captured, own_listeners, routes, rules, rules_of, sysctls};
use crate::until::until;

/// What the issue promises.
const BACK_WITHIN: Duration = Duration::from_secs(30);

fn start(mesh: &mut Mesh) -> Result<()> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.namespace("plain", Enrolment::Unsaid)?;
    mesh.start()
}

/// The sum of a metric's series on an agent's page.
fn metric(mesh: &Mesh, node: &str, name: &str) -> Result<f64> {
    let page = mesh.agent(node)?.admin("/metrics")?;
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let values = page.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

/// Waits until `look` says yes, at most as long as the promise goes; returns how long it took.
fn back(what: &str, look: impl Fn() -> Result<bool>) -> Result<Duration> {
    let began = Instant::now();
    while !look()? {
        ensure!(began.elapsed() < BACK_WITHIN, "{what} did not come back within {BACK_WITHIN:?}");
        std::thread::yield_now();
    }
    Ok(began.elapsed())
}

/// Everything that stands in a pod, to be compared.
fn all(pod: &Pod) -> Result<String> {
    Ok(format!("{}{}{:?}{:?}", rules(pod)?, routes(pod)?, sysctls(pod)?, own_listeners(pod)?.keys()))
}

#[test]
fn what_is_deleted_by_hand_comes_back_and_is_counted() -> Result<()> {
    with_mesh_alone(&["n1"], |mesh| {
        start(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let stood = all(&pod)?;
        let netns = &pod.host.netns;
        let mut repairs = metric(mesh, "n1", "adit_capture_repairs_total")?;
        let mut broken: Vec<(String, Vec<Vec<String>>)> = Vec::new();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for program in ["iptables", "ip6tables"] {
            for table in ["raw", "mangle", "nat", "filter"] {
                broken.push((
                    format!("{program} {table}"),
                    vec![words(&format!("{program} -w 5 -t {table} -F"))],
                ));
            }
        }
        broken.push(("one rule".into(), vec![words("iptables -w 5 -t nat -D ADIT_OUTPUT -o lo -j RETURN")]));
        broken.push((
            "a rule before ours".into(),
            vec![words("iptables -w 5 -t nat -I OUTPUT 1 -p tcp --dport 9 -j ACCEPT")],
        ));
        for family in ["-4", "-6"] {
            broken.push((
                format!("ip {family} rule"),
                vec![words(&format!("ip {family} rule del lookup 100"))],
            ));
            broken.push((
                format!("ip {family} route"),
                vec![words(&format!("ip {family} route flush table 100"))],
            ));
        }
        for (what, commands) in broken {
            for command in &commands {
                let (program, args) = command.split_first().context("a program")?;
                netns.command(program).args(args).ok()?;
            }
            let took = if what == "a rule before ours" {
                let first = |text: &str| {
                    text.lines()
                        .find(|line| line.starts_with("iptables -A OUTPUT"))
                        .map(|line| line.contains("ADIT"))
                };
                let nat = || netns.command("iptables-save").args(["-t", "nat"]).ok();
                let took = back(&what, || {
                    let text: String = nat()?.lines().map(|line| format!("iptables {line}\n")).collect();
                    Ok(first(&text) == Some(true))
                })?;
                netns
                    .command("iptables")
                    .args(words("-w 5 -t nat -D OUTPUT -p tcp --dport 9 -j ACCEPT"))
                    .ok()?;
                took
            } else {
                back(&what, || Ok(all(&pod)? == stood))?
            };
            let now = back("the count", || Ok(metric(mesh, "n1", "adit_capture_repairs_total")? > repairs))
                .and_then(|_| metric(mesh, "n1", "adit_capture_repairs_total"))
                .with_context(|| what.clone())?;
            eprintln!("{what}: back after {took:?}, {now} repairs");
            repairs = now;
        }
        back("all of it", || Ok(all(&pod)? == stood))?;
        mesh.cni(&pod)?.check()?.ok()?;
        mesh.wait_captured(&pod)
    })
}

#[test]
fn a_sysctl_that_is_set_back_by_hand_comes_back() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let plain = mesh.add_pod(PodSpec::new("n1", "plain", "web"))?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let (before, stood) = (sysctls(&plain)?, sysctls(&pod)?);
        for (key, value) in &before {
            assert_ne!(value, &stood[key], "{key} is set by capture");
        }
        assert!(!stood.is_empty(), "none of {SYSCTLS:?} is here");
        let repairs = metric(mesh, "n1", "adit_capture_repairs_total")?;
        for (key, value) in &before {
            pod.host.netns.sysctl(key, value)?;
        }
        let took = back("the sysctls", || Ok(sysctls(&pod)? == stood))?;
        eprintln!("sysctls back after {took:?}");
        back("the count", || Ok(metric(mesh, "n1", "adit_capture_repairs_total")? > repairs))?;
        Ok(())
    })
}

#[test]
fn a_listener_that_is_destroyed_comes_back() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let _serving = Server::start(&server.host.netns, 8080, Behaviour::WhoAmI)?;
        mesh.settle()?;
        let stood = own_listeners(&server)?;
        for port in OWN_PORTS {
            let kill = server.host.netns.command("ss").args(["-KlntH", &format!("sport = :{port}")]);
            kill.ok()?;
            let took = back(&format!("the listener of {port}"), || Ok(own_listeners(&server)? == stood))?;
            eprintln!("listener of {port}: back after {took:?}");
        }
        mesh.wait_captured(&server)?;
        for to in [server.at(8080), server.at_v6(8080)] {
            read_all(&mut connect(&client.host.netns, to)?)?;
        }
        Ok(())
    })
}

#[test]
fn root_in_the_pod_cannot_listen_beside_the_agent() -> Result<()> {
    if !has_real_root("the listeners need a uid of their own") {
        return Ok(());
    }
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let listen = |addr: SocketAddr| {
            pod.host.netns.run(|| -> std::io::Result<()> {
                let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
                if addr.is_ipv6() {
                    socket.set_only_v6(true)?;
                }
                socket.set_reuse_address(true)?;
                socket.set_reuse_port(true)?;
                socket.bind(&addr.into())?;
                socket.listen(1)
            })
        };
        for port in OWN_PORTS {
            let own = SocketAddr::new(pod.host.v4.into(), port);
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            for addr in
                [own, any, SocketAddr::new(pod.host.v6.into(), port), SocketAddr::new("::".parse()?, port)]
            {
                let error = listen(addr)?.expect_err("the port is the agent's");
                assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{addr}");
            }
        }
        listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15009)))??;
        Ok(())
    })
}

/// Every program that the agent changes rules with.
const PROGRAMS: [&str; 8] = [
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];

#[test]
fn a_pod_whose_rules_cannot_be_repaired_is_not_called_captured() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        let stood = rules(&server)?;
        mesh.shadow_programs("n2", &PROGRAMS)?;
        server.host.netns.command("iptables").args(["-w", "5", "-t", "nat", "-F"]).ok()?;
        mesh.wait_released(&server)?;
        let status = mesh.agent("n2")?.status()?;
        let shown = status.pods.first().context("the pod")?;
        assert!(shown.enrolled && !shown.captured, "{shown:?}");
        assert!(shown.conditions.join(" ").contains("not as it should be"), "{shown:?}");
        let answer = mesh.cni(&server)?.check()?;
        assert_eq!(answer.printed["code"], 11, "{answer:?}");
        // Without its redirect it fails closed.
        let _serving = Server::start(&server.host.netns, 8080, Behaviour::Echo)?;
        let node = mesh.topology.node("n2")?;
        let error = connect(&node.netns, server.at(8080)).expect_err("the filter lets no SYN past the agent");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

        mesh.unshadow_programs("n2", &PROGRAMS)?;
        mesh.wait_captured(&server)?;
        assert_eq!(rules(&server)?, stood);
        connect(&client.host.netns, server.at(8080))?;
        Ok(())
    })
}

#[test]
fn a_pod_without_usable_iptables_does_not_start_and_nothing_is_left_of_the_attempt() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &serde_json::json!({ "pods": { "add-deadline": "3s" } }))?;
        mesh.shadow_programs("n1", &PROGRAMS)?;
        let agent = mesh.take_agent("n1")?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let answer = mesh.cni(&pod)?.add()?;
        assert_eq!(answer.printed["code"], 11, "{answer:?}");
        assert!(answer.printed.to_string().contains("iptables"), "{answer:?}");
        assert!(!rules(&pod)?.contains("ADIT"));
        mesh.unshadow_programs("n1", &PROGRAMS)?;
        // As the kubelet does.
        until("that it starts, as iptables is back", || {
            Ok((mesh.cni(&pod)?.add()?.code == Some(0)).then_some(()))
        })?;
        assert_captured(&pod)?;
        agent.status().map(drop)
    })
}

#[test]
fn a_pod_with_legacy_rules_of_its_own_is_captured_beside_them() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "plain", "server"))?;
        let _serving = Server::start(&server.host.netns, 8080, Behaviour::WhoAmI)?;
        let legacy = |args: &str| {
            server
                .host
                .netns
                .command("iptables-legacy")
                .args(["-w", "5"])
                .args(args.split(' '))
                .ok()
                .map(drop)
        };
        legacy("-t nat -A OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 5353")?;
        legacy("-A INPUT -i lo -j ACCEPT")?;
        let own = |text: &str| {
            text.lines().filter(|line| !line.contains("ADIT")).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = rules_of(&server, "legacy")?;
        let server = mesh
            .change_pod(&server, |spec| drop(spec.labels.insert("adit.dev/mesh".into(), "enabled".into())))?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;
        let status = mesh.agent("n2")?.status()?;
        assert_eq!(status.pods[0].backend.as_deref(), Some("legacy"));
        let stood = rules_of(&server, "legacy")?;
        for rule in ["--to-ports 15001", "--to-ports 15006", "--reject-with", "--dport 53"] {
            assert!(stood.contains(rule), "{rule}:\n{stood}");
        }
        assert!(!rules_of(&server, "nft")?.contains("ADIT"));
        let first = mesh.agent("n2")?.process().next_line();
        for to in [server.at(8080), server.at_v6(8080)] {
            read_all(&mut connect(&client.host.netns, to)?)?;
            let flow = mesh
                .agent("n2")?
                .wait_for_flow(first, "its report", |flow| flow.destination.addr == to.to_string())?;
            assert_eq!(flow.transport, "mtls");
        }
        // Legacy announces nothing: a round finds it.
        legacy("-t nat -F ADIT_PREROUTING")?;
        let took = back("the legacy rules", || Ok(rules_of(&server, "legacy")? == stood))?;
        eprintln!("legacy rules back after {took:?}");
        // Rules of the other back end are said, and nothing of the pod's is taken away.
        server
            .host
            .netns
            .command("iptables-nft")
            .args("-w 5 -t nat -A OUTPUT -p tcp --dport 54 -j ACCEPT".split(' '))
            .ok()?;
        back("the word on the other back end", || {
            Ok(mesh.agent("n2")?.status()?.pods[0]
                .conditions
                .iter()
                .any(|said| said.contains("other iptables back end")))
        })?;
        let server = mesh.change_pod(&server, |spec| drop(spec.labels.remove("adit.dev/mesh")))?;
        mesh.wait_released(&server)?;
        back("the pod's own rules alone", || Ok(!rules_of(&server, "legacy")?.contains("ADIT")))?;
        let left = rules_of(&server, "legacy")?;
        for line in own(&before) {
            assert!(left.contains(&line), "{line} is gone:\n{left}");
        }
        Ok(())
    })
}

#[test]
fn a_captured_pods_own_nft_rules_stay_as_they_are() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "plain", "web"))?;
        for rule in [
            "-t nat -A OUTPUT -p tcp --dport 53 -m comment --comment ADIT_OUTPUT -j REDIRECT --to-ports 5353",
            "-t filter -A INPUT -p tcp --dport 22 -j DROP",
        ] {
            pod.host.netns.command("iptables").args(["-w", "5"]).args(rule.split(' ')).ok()?;
        }
        let own = rules(&pod)?;
        let pod =
            mesh.change_pod(&pod, |spec| drop(spec.labels.insert("adit.dev/mesh".into(), "enabled".into())))?;
        mesh.wait_captured(&pod)?;
        assert_captured(&pod)?;
        let with = rules(&pod)?;
        for line in own.lines() {
            assert!(with.contains(line), "{line} is gone:\n{with}");
        }
        Ok(())
    })
}

#[test]
fn an_address_that_a_captured_pod_gets_later_is_served_by_whichever_interface() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        start(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let _serving = Server::start(&pod.host.netns, 8080, Behaviour::WhoAmI)?;
        let node = mesh.topology.node("n1")?.netns.clone();
        // A second address, a second interface as a meta CNI plugin adds it, and an address on lo as a load balancer wants.
        node.ip(&format!(
            "link add vnet1 type veth peer name net1 netns {}
             addr add 10.72.0.1/24 dev vnet1
             addr add fd72::1/64 dev vnet1 nodad
             link set vnet1 up",
            pod.host.netns.name()
        ))?;
        pod.host.netns.ip("addr add 10.71.1.200/24 dev eth0
             addr add fd71:1::200/64 dev eth0 nodad
             addr add 10.72.0.2/24 dev net1
             addr add fd72::2/64 dev net1 nodad
             link set net1 up
             addr add 10.73.0.1/32 dev lo
             addr add fd73::1/128 dev lo")?;
        node.ip("route add 10.73.0.1/32 via 10.72.0.2\nroute add fd73::1/128 via fd72::2")?;
        let added =
            ["10.71.1.200", "fd71:1::200", "10.72.0.2", "fd72::2", "10.73.0.1", "fd73::1"].map(str::parse);
        for ip in added {
            let to = SocketAddr::new(ip?, 8080);
            let first = mesh.agent("n1")?.process().next_line();
            let said =
                String::from_utf8(read_all(&mut connect(&node, to)?).with_context(|| to.to_string())?)?;
            let flow = mesh
                .agent("n1")?
                .wait_for_flow(first, "its report", |flow| flow.destination.addr == to.to_string())?;
            assert_eq!((&*flow.direction, &*flow.transport), ("inbound", "plaintext"), "{flow:?}");
            assert_eq!((&*flow.state, flow.reason.as_deref()), ("closed", None), "{flow:?}");
            let (seen, source) =
                (said.trim().parse::<SocketAddr>()?, flow.source.addr.parse::<SocketAddr>()?);
            assert_eq!(seen.ip(), source.ip(), "the app sees its client");
        }
        // What was taken away is the pod's no more.
        pod.host.netns.ip("addr del 10.73.0.1/32 dev lo")?;
        assert!(
            connect(&node, "10.73.0.1:8080".parse()?).and_then(|mut stream| stream.read(&mut [0])).is_err()
        );
        Ok(())
    })
}

/// The connection mark, as the rules have it.
const CONN_MARK: u32 = 0x0ad1_7ac2;

/// The agent's random mark in a pod, read from its rules.
fn agents_mark(pod: &Pod) -> Result<u32> {
    let rules = rules(pod)?;
    let zoned = rules.lines().find(|line| line.contains("-j CT --zone")).context("the zone's rule")?;
    let mark = zoned.split("--mark 0x").nth(1).context("it matches a mark")?;
    Ok(u32::from_str_radix(mark.split(' ').next().unwrap_or_default(), 16)?)
}

#[test]
fn an_apps_accepted_socket_has_the_connection_mark_or_its_listeners_and_never_the_agents() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        start(mesh)?;
        let client = mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
        let stranger = mesh.add_pod(PodSpec::new("n1", "plain", "stranger"))?;
        let server = mesh.add_pod(PodSpec::new("n2", "shop", "server"))?;
        mesh.wait_captured(&client)?;
        mesh.wait_captured(&server)?;
        mesh.settle()?;
        let secret = agents_mark(&server)?;
        assert!(![0, CONN_MARK].contains(&secret));
        for (port, own, expected) in [(8080, 0, CONN_MARK), (8081, 0x77, 0x77)] {
            for any in ["0.0.0.0", "::"] {
                let at = SocketAddr::new(any.parse()?, port);
                let listener = server.host.netns.run(|| -> std::io::Result<TcpListener> {
                    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
                    if at.is_ipv6() {
                        socket.set_only_v6(true)?;
                    }
                    socket.set_mark(own)?;
                    socket.bind(&at.into())?;
                    socket.listen(8)?;
                    // Bounds accept, too.
                    socket.set_read_timeout(Some(WAIT_MAX))?;
                    Ok(socket.into())
                })??;
                for from in [&client, &stranger] {
                    let to = if at.is_ipv4() { server.at(port) } else { server.at_v6(port) };
                    let mut near = connect(&from.host.netns, to)?;
                    let (mut far, _) =
                        listener.accept().with_context(|| format!("{at} from {}", from.spec.name))?;
                    let mark = SockRef::from(&far).mark()?;
                    assert_eq!(mark, expected, "{at} from {}: {mark:#x}", from.spec.name);
                    assert_ne!(mark, secret);
                    // And its replies find their way.
                    near.write_all(b"?")?;
                    assert_eq!(read_exactly(&mut far, 1)?, b"?");
                    far.write_all(b"!")?;
                    assert_eq!(read_exactly(&mut near, 1)?, b"!");
                }
            }
        }
        Ok(())
    })
}
