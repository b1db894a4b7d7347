//! In-process servers in a pod's namespace, one thread a connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::stream::Pattern;
use crate::WAIT_MAX;
use crate::netns::Netns;

/// What a server does with a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Behaviour {
    /// Sends back what it gets; closes when the client does.
    Echo,
    /// Says `greeting` before it reads anything, then as [`Behaviour::Echo`].
    ServerFirst {
        /// What it says.
        greeting: Vec<u8>,
    },
    /// Reads a pattern to the client's end, and then answers with one line: how many bytes were right, or what was
    /// wrong.
    Sink(Pattern),
    /// Sends so much of a pattern, and closes.
    Source(Pattern, u64),
    /// Says its part and closes its own direction at once, then reads to the client's end; what it read is in
    /// [`Accepted::received`].
    HalfClose {
        /// What it says.
        says: Vec<u8>,
    },
    /// Resets the connection as soon as the first byte arrives.
    Reset,
    /// Keeps the connection, silent, until the client closes it.
    Hold,
    /// Says one line, the peer's address as the server sees it, and closes.
    WhoAmI,
    /// Answers each HTTP/1.1 request with 200 and this body.
    Http {
        /// The body.
        body: Vec<u8>,
    },
}

/// A connection as the server saw it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Accepted {
    /// The client's address, IPv4-mapped ones as IPv4.
    pub peer: SocketAddr,
    /// The address that it reached.
    pub local: SocketAddr,
    /// What it sent, for the behaviours that keep it ([`Behaviour::HalfClose`]).
    pub received: Vec<u8>,
    /// How it ended; `None` while it is open.
    pub end: Option<End>,
}

/// How a connection ended on the server's side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// All was said and the client closed.
    Closed,
    /// It was reset.
    Reset,
    /// Another error.
    Broken(io::ErrorKind),
}

/// A listening server; it stops listening when dropped. Connections that it has go on until they end.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    accepted: Mutex<Vec<Accepted>>,
    changed: Condvar,
}

impl Server {
    /// Listens on `port` of both families in `netns`; port 0 is one that is free.
    pub fn start(netns: &Netns, port: u16, behaviour: Behaviour) -> Result<Self> {
        Self::start_at(netns, SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port), behaviour)
    }

    /// Listens on `addr` in `netns`.
    pub fn start_at(netns: &Netns, addr: SocketAddr, behaviour: Behaviour) -> Result<Self> {
        let listener = netns
            .run(|| listen(addr))?
            .with_context(|| format!("cannot listen on {addr} in {}", netns.name()))?;
        let addr = listener.local_addr().context("a listener without an address")?;
        let (listener, seen) = (Arc::new(listener), Arc::new(Seen::default()));
        let (accepting, into) = (Arc::clone(&listener), Arc::clone(&seen));
        thread::spawn(move || accept(&accepting, &behaviour, &into));
        Ok(Self { addr, listener, seen })
    }

    /// The port that it listens on.
    pub const fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Every connection so far, in the order of their accept.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.seen.lock().clone()
    }

    /// Waits until the connections so far satisfy `enough`, and returns them.
    pub fn wait_until(&self, what: &str, enough: impl Fn(&[Accepted]) -> bool) -> Result<Vec<Accepted>> {
        let deadline = Instant::now() + WAIT_MAX;
        let mut accepted = self.seen.lock();
        while !enough(&accepted) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: not within {WAIT_MAX:?}; the server saw {accepted:?}");
            }
            let waited = self.seen.changed.wait_timeout(accepted, left.min(Duration::from_secs(1)));
            accepted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(accepted.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the accept, which then fails; there is no other way to end it.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

impl Seen {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Accepted>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Accepted>)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The queue of connections that wait to be accepted: the kernel's default bound (net.core.somaxconn).
const BACKLOG: i32 = 4096;

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, behaviour: &Behaviour, seen: &Arc<Seen>) {
    // The peer's address as it was at the accept: one that has reset the connection since has none.
    while let Ok((stream, peer)) = listener.accept() {
        let Ok(local) = stream.local_addr() else { continue };
        let mut index = 0;
        seen.change(|accepted| {
            index = accepted.len();
            accepted.push(Accepted {
                peer: canonical(peer),
                local: canonical(local),
                received: Vec::new(),
                end: None,
            });
        });
        let (behaviour, seen) = (behaviour.clone(), Arc::clone(seen));
        thread::spawn(move || {
            let mut received = Vec::new();
            let end = End::of(serve(stream, &behaviour, &mut received));
            seen.change(|accepted| {
                accepted[index].received = received;
                accepted[index].end = Some(end);
            });
        });
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl End {
    fn of(served: io::Result<()>) -> Self {
        match served.map_err(|error| error.kind()) {
            Ok(()) => Self::Closed,
            Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Self::Reset,
            Err(other) => Self::Broken(other),
        }
    }
}

fn serve(mut stream: TcpStream, behaviour: &Behaviour, received: &mut Vec<u8>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match behaviour {
        Behaviour::Echo => echo(stream),
        Behaviour::ServerFirst { greeting } => {
            stream.write_all(greeting)?;
            echo(stream)
        }
        Behaviour::Sink(pattern) => {
            let verdict = pattern.check(&mut stream);
            match verdict {
                Ok(tally) => writeln!(stream, "{}", tally.bytes),
                Err(wrong) => writeln!(stream, "{wrong:#}"),
            }
        }
        Behaviour::Source(pattern, len) => {
            pattern.write(&mut stream, *len)?;
            finish(&mut stream)
        }
        Behaviour::HalfClose { says } => {
            stream.write_all(says)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(received).map(drop)
        }
        Behaviour::Reset => {
            stream.read_exact(&mut [0])?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
        Behaviour::Hold => io::copy(&mut stream, &mut io::sink()).map(drop),
        Behaviour::WhoAmI => {
            writeln!(stream, "{}", canonical(stream.peer_addr()?))?;
            finish(&mut stream)
        }
        Behaviour::Http { body } => http(stream, body),
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut from = stream.try_clone()?;
    io::copy(&mut from, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Closes the own direction and waits for the client's end, so that nothing unread turns the close into a reset.
fn finish(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    io::copy(stream, &mut io::sink()).map(drop)
}

fn http(stream: TcpStream, body: &[u8]) -> io::Result<()> {
    let mut to = stream.try_clone()?;
    let mut from = BufReader::new(stream);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = [head.as_bytes(), body].concat();
    let mut line = String::new();
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            to.write_all(&answer)?;
        }
    }
}
