//! A pod and an outside, joined by a veth pair; servers that echo; and a stand-in for the agent's data path.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up fails its test")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adit_agent::clock::Clock;
use adit_agent::netns::Netns;
use adit_agent::redirect::{Applied, Backend, Finding, Keeper};
use adit_agent::sockets::{self, Dial, Options, probe};
use adit_core::draw::Seed;
use adit_core::redirect::{Family, Mark, Sysctl, Wanted};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

pub(crate) const MARK: Mark = match Mark::new(0x1234_5678) {
    Some(mark) => mark,
    None => panic!("is a mark"),
};
/// Set in the copy of this program that runs in a user namespace.
const INSIDE: &str = "ADIT_TEST_INSIDE_USER_NAMESPACE";
/// No event of a test takes longer; nothing is asserted to be fast.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// For a probe that nobody shall answer: it cannot be waited for.
const UNANSWERED: Duration = Duration::from_millis(700);

/// A connection that reached the stand-in.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) port: u16,
    pub(crate) original: SocketAddr,
    pub(crate) client: IpAddr,
}

/// Runs `test` on a thread whose network and mount namespaces are its own; in a user namespace if we are not root.
pub(crate) fn in_namespaces(name: &str, test: impl AsyncFn() + Sync) {
    if !nix::unistd::geteuid().is_root() {
        return run_in_user_namespace(&[name, "--exact"]);
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
                .expect("these tests need root, or a user namespace to be root in");
            let none = None::<&Path>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, test());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// All tests once more, in a user namespace that maps nobody but ourselves.
pub(crate) fn again_in_a_user_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        run_in_user_namespace(&[]);
    }
}

fn run_in_user_namespace(filter: &[&str]) {
    assert!(
        std::env::var_os(INSIDE).is_none(),
        "not root inside a user namespace that maps us to root: these tests cannot run here"
    );
    let run = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(filter)
        .env(INSIDE, "1")
        .output()
        .expect("these tests need root, or unshare(1)");
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "in a user namespace (or it cannot be made):\n{text}");
    assert!(!text.contains("running 0 tests"), "nothing ran:\n{text}");
}

/// As in an unprivileged container; for this thread and those that it starts.
pub(crate) fn make_proc_sys_read_only() {
    let none = None::<&Path>;
    let sys = "/proc/sys";
    mount(Some(sys), sys, none, MsFlags::MS_BIND, none).unwrap();
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, sys, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept, none).unwrap();
}

pub(crate) fn one_id_is_mapped() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().count() == 1 && map.split_whitespace().nth(2) == Some("1")
}

pub(crate) fn every<T, V>(values: &[T], value: impl Fn(&T) -> V) -> Vec<V> {
    values.iter().map(value).collect()
}

pub(crate) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The rules and chains somebody made; iptables leaves its empty tables behind.
pub(crate) fn rules(save: &str) -> Vec<String> {
    let made = |line: &&str| line.starts_with("-A") || (line.starts_with(':') && line.contains(" - "));
    save.lines().filter(made).map(str::to_owned).collect()
}

pub(crate) struct Bench {
    pub(crate) pod: Netns,
    pub(crate) outside: Netns,
    seen: Mutex<mpsc::UnboundedReceiver<Seen>>,
    seen_by_agent: mpsc::UnboundedSender<Seen>,
    saw: Mutex<mpsc::UnboundedReceiver<(u16, SocketAddr)>>,
    agent: JoinSet<()>,
    _servers: JoinSet<()>,
}

impl Bench {
    /// Fresh namespaces; with a rule of the pod's own where iptables-legacy shall be found in use.
    pub(crate) async fn new(backend: Backend) -> Self {
        let (pod, outside) = (fresh(), fresh());
        let (seen_by_agent, seen) = mpsc::unbounded_channel();
        let (server_saw, saw) = mpsc::unbounded_channel();
        let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
        within(&outside, &format!("ip link add eth0 type veth peer name eth0 netns {path}"));
        for (netns, last, gateway) in [(&outside, 1, None), (&pod, 2, Some(1))] {
            within(netns, "ip link set lo up");
            within(netns, &format!("ip address add 10.9.0.{last}/24 dev eth0"));
            within(netns, &format!("ip address add fd09::{last}/64 dev eth0 nodad"));
            netns
                .run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0"))
                .unwrap()
                .expect("/proc/sys is writable here");
            within(netns, "ip link set eth0 up");
            if let Some(gateway) = gateway {
                within(netns, &format!("ip route add default via 10.9.0.{gateway}"));
                within(netns, &format!("ip -6 route add default via fd09::{gateway}"));
            }
        }
        let mut servers = JoinSet::new();
        for family in Family::BOTH {
            let any = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            for (netns, ip, port) in
                [(&outside, any, 7000), (&pod, any, 8080), (&pod, loopback(family), 8081)]
            {
                let listener = listener(netns, SocketAddr::new(ip, port));
                let saw = server_saw.clone();
                servers.spawn_local(async move {
                    loop {
                        let (stream, client) = listener.accept().await.unwrap();
                        saw.send((port, client)).unwrap();
                        tokio::task::spawn_local(echo(stream));
                    }
                });
            }
        }
        let seen = Mutex::new(seen);
        let agent = JoinSet::new();
        let mut bench =
            Self { pod, outside, seen, seen_by_agent, saw: Mutex::new(saw), agent, _servers: servers };
        bench.until_v6_is_up().await;
        bench.start_agent();
        if backend == Backend::Legacy {
            for family in Family::BOTH {
                bench.iptables(backend, family, "-t nat -A OUTPUT -p udp --dport 9 -j ACCEPT");
            }
        }
        bench
    }

    /// A link-local address is tentative for a moment, and the link is not running at once.
    async fn until_v6_is_up(&self) {
        for netns in [&self.pod, &self.outside] {
            self.until(|| !within(netns, "ip -6 address show dev eth0").contains("tentative")).await;
            self.until(|| within(netns, "ip -6 address show dev eth0").contains("fe80::")).await;
            self.until(|| within(netns, "ip link show dev eth0").contains("state UP")).await;
        }
    }

    pub(crate) fn start_agent(&mut self) {
        for family in Family::BOTH {
            for port in [15001, 15006, 15008] {
                let listener = sockets::listen(&self.pod, family, port, &Options::default()).unwrap();
                let listener = TcpListener::from_std(listener.socket).unwrap();
                let (pod, seen) = (self.pod.clone(), self.seen_by_agent.clone());
                self.agent.spawn_local(async move {
                    loop {
                        let (stream, client) = listener.accept().await.unwrap();
                        tokio::task::spawn_local(carry(pod.clone(), port, stream, client, seen.clone()));
                    }
                });
            }
        }
    }

    pub(crate) async fn stop_agent(&mut self) {
        self.agent.shutdown().await;
    }

    pub(crate) fn pod_ip(&self, family: Family) -> IpAddr {
        address(family, 2)
    }

    pub(crate) fn outside_ip(&self, family: Family) -> IpAddr {
        address(family, 1)
    }

    pub(crate) fn outside_link_local(&self, port: u16) -> SocketAddr {
        let text = within(&self.outside, "ip -6 address show dev eth0 scope link");
        let ip = text.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap();
        let index = self.pod.run(|| nix::net::if_::if_nametoindex("eth0").unwrap()).unwrap();
        format!("[{}%{index}]:{port}", ip.split('/').next().unwrap()).parse().unwrap()
    }

    pub(crate) async fn connect(&self, from: &Netns, to: (IpAddr, u16)) -> io::Result<TcpStream> {
        self.connect_to(from, to.into()).await
    }

    pub(crate) async fn connect_to(&self, from: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = from.run(|| socket(to)).unwrap();
        tokio::time::timeout(WAIT_MAX, socket.connect(to)).await.expect("connect ends")
    }

    pub(crate) async fn connect_from(&self, from: &Netns, port: u16, to: (IpAddr, u16)) -> TcpStream {
        let socket = from.run(|| socket(to.into())).unwrap();
        let any =
            if to.0.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(SocketAddr::new(any, port)).unwrap();
        tokio::time::timeout(WAIT_MAX, socket.connect(to.into())).await.expect("connect ends").unwrap()
    }

    pub(crate) async fn echo(&self, stream: &mut TcpStream, text: &str) -> String {
        let answered = async {
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut bytes = vec![0; text.len()];
            stream.read_exact(&mut bytes).await.unwrap();
            String::from_utf8(bytes).unwrap()
        };
        tokio::time::timeout(WAIT_MAX, answered).await.expect("an echo comes back")
    }

    pub(crate) async fn read_error(&self, stream: &mut TcpStream) -> io::ErrorKind {
        let read = tokio::time::timeout(WAIT_MAX, stream.read(&mut [0; 1])).await.expect("a reset comes");
        read.expect_err("a reset comes").kind()
    }

    pub(crate) async fn next_seen(&self) -> Seen {
        let mut seen = self.seen.lock().await;
        tokio::time::timeout(WAIT_MAX, seen.recv()).await.expect("the agent sees it").unwrap()
    }

    /// Called after an echo came back: whatever was captured has been reported by then.
    pub(crate) fn nothing_seen(&self) -> bool {
        self.seen.try_lock().unwrap().try_recv().is_err()
    }

    pub(crate) async fn server_saw(&self, port: u16) -> SocketAddr {
        let mut saw = self.saw.lock().await;
        loop {
            let (at, client) =
                tokio::time::timeout(WAIT_MAX, saw.recv()).await.expect("a server sees it").unwrap();
            if at == port {
                return client;
            }
        }
    }

    pub(crate) fn keeper(&self, wanted: &Wanted, applied: &Applied) -> Keeper {
        // A seed with an early first round: legacy sends no events.
        let early = (0..).map(Seed).find(|seed| seed.clone().below(20_000) < 300).unwrap();
        Keeper::new(self.pod.clone(), wanted.clone(), applied, Clock::real(), early).unwrap()
    }

    pub(crate) async fn next(&self, keeper: &mut Keeper) -> Finding {
        tokio::time::timeout(WAIT_MAX, keeper.next()).await.expect("something is found")
    }

    pub(crate) async fn probe(&self, family: Family) -> probe::Probed {
        self.probe_within(family, WAIT_MAX).await.expect("a probe ends")
    }

    pub(crate) async fn probe_goes_unanswered(&self, family: Family) -> bool {
        self.probe_within(family, UNANSWERED).await.is_none()
    }

    async fn probe_within(&self, family: Family, wait: Duration) -> Option<probe::Probed> {
        tokio::time::timeout(wait, probe::probe(&self.pod, family, 4711)).await.ok().map(Result::unwrap)
    }

    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        let held = async {
            let mut again = tokio::time::interval(Duration::from_millis(5));
            while !holds() {
                again.tick().await;
            }
        };
        tokio::time::timeout(WAIT_MAX, held).await.expect("it comes to hold");
    }

    pub(crate) fn bind_with_reuse_port(&self, family: Family, port: u16) -> io::Result<Socket> {
        let addr = SocketAddr::new(self.pod_ip(family), port);
        self.pod
            .run(|| {
                let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_reuse_port(true)?;
                socket.bind(&addr.into())?;
                socket.listen(1)?;
                Ok(socket)
            })
            .unwrap()
    }

    pub(crate) fn iptables(&self, backend: Backend, family: Family, args: &str) {
        let program = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let lock = std::env::temp_dir().join("adit-test-xtables.lock");
        within(
            &self.pod,
            &format!("env XTABLES_LOCKFILE={} {program}-{backend} -w 5 {args}", lock.display()),
        );
    }

    pub(crate) fn saves(&self, backend: Backend) -> String {
        let text = format!(
            "{}{}",
            within(&self.pod, &format!("iptables-{backend}-save")),
            within(&self.pod, &format!("ip6tables-{backend}-save"))
        );
        // Without dates and counters.
        let lines =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('[').next().unwrap());
        lines.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn ip(&self, family: Family, args: &str) -> String {
        let family = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        within(&self.pod, &format!("ip {family} {args}"))
    }

    pub(crate) fn ip_outside(&self, args: &str) {
        within(&self.outside, &format!("ip {args}"));
    }

    pub(crate) fn sysctl(&self, sysctl: Sysctl) -> String {
        let read = || std::fs::read_to_string(Path::new("/proc/sys").join(sysctl.path()));
        self.pod.run(read).unwrap().unwrap().trim().to_owned()
    }

    pub(crate) fn write_sysctl(&self, path: &str, value: &str) {
        self.pod.run(|| std::fs::write(Path::new("/proc/sys").join(path), value)).unwrap().unwrap();
    }

    /// Puts a script before a program of this name, for this thread's children only.
    pub(crate) fn shadow(&self, program: &str, script: &str) {
        let dir = Path::new("/usr/local/sbin");
        if !dir.join(".shadows").exists() {
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&Path>).unwrap();
            std::fs::write(dir.join(".shadows"), "").unwrap();
        }
        std::fs::write(dir.join(program), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(dir.join(program), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }

    pub(crate) fn unshadow(&self) {
        umount2("/usr/local/sbin", MntFlags::MNT_DETACH).unwrap();
    }
}

fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

/// What the data plane does, without a tunnel.
async fn carry(
    pod: Netns,
    port: u16,
    mut stream: TcpStream,
    client: SocketAddr,
    seen: mpsc::UnboundedSender<Seen>,
) {
    let original = sockets::original_dst(&stream, client).unwrap();
    if port == 15001 && probe::is_capture_probe(&original) {
        return probe::answer(&stream, &original);
    }
    let client = sockets::canonical(client).ip();
    // The bench may be gone.
    let _gone = seen.send(Seen { port, original: original.0, client });
    if port == 15008 {
        return echo(stream).await;
    }
    let from = (port == 15006).then_some(client);
    let dial = Dial { mark: MARK.value(), from, options: Options::default() };
    match sockets::dial(&pod, original.0, &dial).await {
        Ok(mut onward) => {
            let _ended = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
        }
        Err(_) => sockets::reset_on_close(&stream).unwrap(),
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ended = tokio::io::copy(&mut read, &mut write).await;
}

fn fresh() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap()
    })
    .join()
    .unwrap()
}

fn socket(to: SocketAddr) -> tokio::net::TcpSocket {
    let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    socket.unwrap()
}

fn listener(netns: &Netns, addr: SocketAddr) -> TcpListener {
    netns
        .run(|| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), None).unwrap();
            if addr.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            socket.bind(&addr.into()).unwrap();
            socket.listen(128).unwrap();
            TcpListener::from_std(socket.into()).unwrap()
        })
        .unwrap()
}

/// Runs a command inside a namespace; it must succeed.
fn within(netns: &Netns, command: &str) -> String {
    let mut words = command.split_whitespace();
    let mut program = Command::new(words.next().unwrap());
    program.args(words);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = netns.run(|| program.env("PATH", path).output()).unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
