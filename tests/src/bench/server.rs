//! The server in a pod: small requests on one thread, bulk on another ([`super::bulk`]).

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::bulk;
use super::{ANSWER, BULK, REQUEST, REQUESTS};

/// What the server prints once it listens.
pub const READY: &str = "serving";

/// As many connections may wait to be accepted as the kernel allows.
const BACKLOG: i32 = 4096;
/// The listener among the events.
const LISTENER: u64 = u64::MAX;

/// Serves until it is killed.
#[expect(clippy::print_stdout, reason = "its word that it listens is its output")]
pub fn run() -> Result<()> {
    let requests = listen(REQUESTS)?;
    let bulk_listener = listen(BULK)?;
    thread::spawn(move || bulk::serve(&bulk_listener));
    println!("{READY}");
    serve_requests(&requests)
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a listener")?;
    socket.set_reuse_address(true)?;
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(BACKLOG).with_context(|| format!("cannot listen on {port}"))?;
    Ok(socket.into())
}

/// An open connection and how much of its next request is there.
struct Conn {
    stream: TcpStream,
    got: usize,
}

fn serve_requests(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut conns, &mut free)?;
                continue;
            }
            let at = usize::try_from(event.data())?;
            let Some(conn) = &mut conns[at] else { continue };
            if !answer(conn) {
                // Its descriptor goes, and with it what the epoll knows of it.
                conns[at] = None;
                free.push(at);
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    epoll: &Epoll,
    conns: &mut Vec<Option<Conn>>,
    free: &mut Vec<usize>,
) -> Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("cannot accept"),
        };
        stream.set_nonblocking(true)?;
        let at = free.pop().unwrap_or_else(|| {
            conns.push(None);
            conns.len() - 1
        });
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
        conns[at] = Some(Conn { stream, got: 0 });
    }
}

/// Answers the requests that have come; false when the connection is over.
fn answer(conn: &mut Conn) -> bool {
    let mut scratch = [0; 4096];
    match conn.stream.read(&mut scratch) {
        Ok(0) => return false,
        Ok(len) => conn.got += len,
        Err(error) => return error.kind() == ErrorKind::WouldBlock,
    }
    while conn.got >= REQUEST.len() {
        conn.got -= REQUEST.len();
        // 200 B fit into the buffer of a client that reads its answers.
        if !matches!(conn.stream.write(ANSWER), Ok(len) if len == ANSWER.len()) {
            return false;
        }
    }
    true
}
