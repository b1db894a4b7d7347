//! The client in a pod: one load on the server of the other, and what came of it as a line of JSON.
//!
//! One thread, whatever the load: its own CPU is the same with and without the mesh. A load of which
//! one request or byte is lost is no measurement, but an error.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::bulk::{self, Way};
use super::{ANSWER, BULK, REQUEST, REQUESTS};

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Load {
    /// So many streams, each sending to the server as fast as it goes.
    ToServer(usize),
    /// So many streams, each reading from it.
    ToClient(usize),
    /// So many connections, each asking again as soon as it is answered.
    KeepAlive(usize),
    /// So many connections that together ask so many times a second, whatever the answers take.
    Rate(usize, u32),
    /// So many at once, each on a connection of its own.
    PerRequest(usize),
    /// So many connections that are asked once and then held until the client is killed.
    Idle(usize),
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// Bytes carried (bulk) or requests answered.
    pub done: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// Half of the requests took at most so many microseconds, from the instant at which they were due.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
}

/// What the client prints once it holds its idle connections.
pub const HOLDING: &str = "holding";

/// How long one event is waited for before the load has failed.
pub(super) const STUCK: Duration = Duration::from_secs(10);

impl Load {
    /// As words of a command line.
    pub fn words(self) -> [String; 3] {
        let words = |kind: &str, count: usize, rate: u32| [kind.into(), count.to_string(), rate.to_string()];
        match self {
            Self::ToServer(count) => words("to-server", count, 0),
            Self::ToClient(count) => words("to-client", count, 0),
            Self::KeepAlive(count) => words("keep-alive", count, 0),
            Self::Rate(count, rate) => words("rate", count, rate),
            Self::PerRequest(count) => words("per-request", count, 0),
            Self::Idle(count) => words("idle", count, 0),
        }
    }

    /// The load that these words say.
    pub fn parse(kind: &str, count: usize, rate: u32) -> Result<Self> {
        Ok(match kind {
            "to-server" => Self::ToServer(count),
            "to-client" => Self::ToClient(count),
            "keep-alive" => Self::KeepAlive(count),
            "rate" => Self::Rate(count, rate),
            "per-request" => Self::PerRequest(count),
            "idle" => Self::Idle(count),
            _ => bail!("no load {kind}"),
        })
    }
}

/// Runs a load for this long.
pub fn run(load: Load, server: IpAddr, duration: Duration) -> Result<Report> {
    let requests = SocketAddr::new(server, REQUESTS);
    // The first connection opens the tunnel, if there is one, and is not measured.
    Requests::new(requests)?.keep_alive(1, Instant::now() + Duration::from_millis(50))?;
    match load {
        Load::ToServer(streams) => bulk::run(SocketAddr::new(server, BULK), Way::ToServer, streams, duration),
        Load::ToClient(streams) => bulk::run(SocketAddr::new(server, BULK), Way::ToClient, streams, duration),
        Load::KeepAlive(count) => measured(requests, |run, end| run.keep_alive(count, end), duration),
        Load::Rate(count, rate) => measured(requests, |run, end| run.at_rate(count, rate, end), duration),
        Load::PerRequest(count) => measured(requests, |run, end| run.per_request(count, end), duration),
        Load::Idle(count) => hold(requests, count),
    }
}

fn measured(
    server: SocketAddr,
    load: impl FnOnce(&mut Requests, Instant) -> Result<()>,
    duration: Duration,
) -> Result<Report> {
    let mut run = Requests::new(server)?;
    let started = Instant::now();
    load(&mut run, started + duration)?;
    let seconds = started.elapsed().as_secs_f64();
    let done = run.took_ns.len() as u64;
    run.took_ns.sort_unstable();
    let at = |thousandth: usize| {
        let at = (run.took_ns.len() * thousandth / 1000).min(run.took_ns.len().saturating_sub(1));
        run.took_ns.get(at).map_or(0.0, |ns| Duration::from_nanos(*ns).as_secs_f64() * 1e6)
    };
    Ok(Report { done, seconds, p50_us: at(500), p99_us: at(990) })
}

/// Opens connections, a few at a time, asks once on each, and holds them.
#[expect(clippy::print_stdout, reason = "its word that it holds them is its output")]
fn hold(server: SocketAddr, count: usize) -> Result<Report> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(server).context("cannot connect")?;
        stream.write_all(REQUEST)?;
        let mut answer = *ANSWER;
        stream.read_exact(&mut answer).context("not answered")?;
        held.push(stream);
    }
    println!("{HOLDING}");
    loop {
        thread::park();
    }
}

/// Small requests from one thread.
struct Requests {
    server: SocketAddr,
    epoll: Epoll,
    conns: Vec<Conn>,
    /// How long each answered request took.
    took_ns: Vec<u64>,
}

struct Conn {
    stream: TcpStream,
    /// When the request under way was due; none while it is idle.
    due: Option<Instant>,
    /// How much of the answer is there.
    got: usize,
    connecting: bool,
    /// When requests are due that wait for the one under way; only at a fixed rate.
    waiting: VecDeque<Instant>,
}

/// The timer among the events.
const TIMER: u64 = u64::MAX;

impl Requests {
    fn new(server: SocketAddr) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { server, epoll, conns: Vec::new(), took_ns: Vec::new() })
    }

    fn keep_alive(&mut self, count: usize, end: Instant) -> Result<()> {
        self.open(count)?;
        for conn in &mut self.conns {
            conn.ask(Instant::now())?;
        }
        let mut running = count;
        while running > 0 {
            for at in self.wait()? {
                if self.answered(at)? {
                    let now = Instant::now();
                    if now < end { self.conns[at].ask(now)? } else { running -= 1 }
                }
            }
        }
        Ok(())
    }

    fn per_request(&mut self, count: usize, end: Instant) -> Result<()> {
        for at in 0..count {
            let conn = self.connect(at)?;
            self.conns.push(conn);
        }
        let mut running = count;
        while running > 0 {
            for at in self.wait()? {
                if self.conns[at].connecting {
                    self.connected(at)?;
                } else if self.answered(at)? {
                    if Instant::now() < end {
                        // The old one is closed when it is replaced; the server sees it and closes its side.
                        self.conns[at] = self.connect(at)?;
                    } else {
                        running -= 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn at_rate(&mut self, count: usize, rate: u32, end: Instant) -> Result<()> {
        self.open(count)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        self.epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let started = Instant::now();
        let due = |number: u32| started + Duration::from_secs(1) * number / rate;
        let (mut next, mut open) = (0u32, 0usize);
        loop {
            let now = Instant::now();
            while due(next) <= now && due(next) < end {
                let at = next as usize % count;
                self.conns[at].ask_in_turn(due(next))?;
                (next, open) = (next + 1, open + 1);
            }
            if due(next) < end {
                let left = due(next).saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
            } else if open == 0 {
                return Ok(());
            } else {
                timer.unset()?;
            }
            for at in self.wait()? {
                if self.answered(at)? {
                    open -= 1;
                    self.conns[at].ask_waiting()?;
                }
            }
        }
    }

    fn open(&mut self, count: usize) -> Result<()> {
        for at in 0..count {
            let stream = TcpStream::connect(self.server).context("cannot connect")?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
            self.conns.push(Conn::new(stream, false));
        }
        Ok(())
    }

    /// Begins a connection; its request is due now.
    fn connect(&self, at: usize) -> Result<Conn> {
        let socket = Socket::new(Domain::for_address(self.server), Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        let due = Instant::now();
        match socket.connect(&self.server.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        let mut conn = Conn::new(socket.into(), true);
        conn.due = Some(due);
        self.epoll.add(&conn.stream, EpollEvent::new(EpollFlags::EPOLLOUT, at as u64))?;
        Ok(conn)
    }

    fn connected(&mut self, at: usize) -> Result<()> {
        let conn = &mut self.conns[at];
        if let Some(error) = conn.stream.take_error()? {
            return Err(error).context("cannot connect");
        }
        conn.connecting = false;
        self.epoll.modify(conn.stream.as_fd(), &mut EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        conn.send()
    }

    /// Waits for events; which connections they are of.
    fn wait(&self) -> Result<Vec<usize>> {
        let mut events = [EpollEvent::empty(); 256];
        let timeout = EpollTimeout::try_from(STUCK).context("a time that an epoll can wait")?;
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        ensure!(count > 0, "nothing was answered for {STUCK:?}");
        let tokens = events[..count].iter().map(EpollEvent::data);
        tokens.filter(|token| *token != TIMER).map(|token| Ok(usize::try_from(token)?)).collect()
    }

    /// Reads what is there; whether the answer is whole.
    fn answered(&mut self, at: usize) -> Result<bool> {
        let conn = &mut self.conns[at];
        let mut scratch = [0; 1024];
        match conn.stream.read(&mut scratch) {
            Ok(0) => bail!("closed instead of answered"),
            Ok(len) => conn.got += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("cannot read an answer"),
        }
        if conn.got < ANSWER.len() {
            return Ok(false);
        }
        ensure!(conn.got == ANSWER.len(), "answered more than was asked");
        let due = conn.due.take().context("answered unasked")?;
        self.took_ns.push(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
        Ok(true)
    }
}

impl Conn {
    fn new(stream: TcpStream, connecting: bool) -> Self {
        Self { stream, due: None, got: 0, connecting, waiting: VecDeque::new() }
    }

    fn ask(&mut self, due: Instant) -> Result<()> {
        self.due = Some(due);
        self.send()
    }

    /// Asks now, or when the request under way is answered.
    fn ask_in_turn(&mut self, due: Instant) -> Result<()> {
        if self.due.is_none() {
            return self.ask(due);
        }
        self.waiting.push_back(due);
        Ok(())
    }

    fn ask_waiting(&mut self) -> Result<()> {
        self.waiting.pop_front().map_or(Ok(()), |due| self.ask(due))
    }

    fn send(&mut self) -> Result<()> {
        self.got = 0;
        self.stream.write_all(REQUEST).context("cannot ask")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_what_its_words_say() {
        for load in [
            Load::ToServer(8),
            Load::ToClient(1),
            Load::KeepAlive(64),
            Load::Rate(32, 2000),
            Load::PerRequest(16),
            Load::Idle(5),
        ] {
            let [kind, count, rate] = load.words();
            assert_eq!(Load::parse(&kind, count.parse().unwrap(), rate.parse().unwrap()).unwrap(), load);
        }
        assert!(Load::parse("none", 1, 1).is_err());
    }
}
