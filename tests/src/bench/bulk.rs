//! Bulk, by one thread a side however many streams there are, as an event-driven server and its client do it.
//!
//! A thread a stream would have the two cores change threads all the time, and with them what the caches hold: then the
//! scheduler is measured. Every byte is counted at both ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::client::{Report, STUCK};

/// One read or write.
const BLOCK_LEN: usize = 256 * 1024;
/// The client's first bytes: which way, and for how many milliseconds the server shall send.
const HEAD_LEN: usize = 9;
/// The client sends until it shuts down. Whoever took the bytes answers with how many there were, 8 bytes, big endian.
const TO_SERVER: u8 = 1;
/// The server sends for as long as it was told.
const TO_CLIENT: u8 = 2;
/// The listener among the events.
const LISTENER: u64 = u64::MAX;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// From the client.
    ToServer,
    /// From the server.
    ToClient,
}

/// One stream, at either end.
struct Stream {
    socket: TcpStream,
    doing: Doing,
}

/// What an end does with its stream.
enum Doing {
    /// Reads the head: the server, of a new one.
    Heading([u8; HEAD_LEN], usize),
    /// Sends until then.
    Sending { until: Instant, sent: u64 },
    /// Reads until the other end has no more, then tells it how much came.
    Taking { got: u64 },
    /// Reads what the other end says it got.
    Hearing { sent: u64, said: [u8; 8], len: usize },
    /// Has carried so many bytes.
    Done(u64),
}

/// The client: carries bytes on so many streams for so long.
pub(super) fn run(server: SocketAddr, way: Way, count: usize, duration: Duration) -> Result<Report> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut head = vec![if way == Way::ToServer { TO_SERVER } else { TO_CLIENT }];
    head.extend(u64::try_from(duration.as_millis())?.to_be_bytes());
    let mut streams = Vec::new();
    for at in 0..count {
        let mut socket = TcpStream::connect(server).context("cannot connect")?;
        socket.write_all(&head)?;
        socket.set_nonblocking(true)?;
        let doing = match way {
            Way::ToServer => Doing::Sending { until: Instant::now() + duration, sent: 0 },
            Way::ToClient => Doing::Taking { got: 0 },
        };
        epoll.add(&socket, EpollEvent::new(doing.waits_for(), at as u64))?;
        streams.push(Stream { socket, doing });
    }
    let started = Instant::now();
    let mut block = vec![0x5a; BLOCK_LEN];
    let mut running = count;
    while running > 0 {
        let ready = ready(&epoll, EpollTimeout::try_from(STUCK).context("a time that an epoll can wait")?)?;
        ensure!(!ready.is_empty(), "nothing was carried for {STUCK:?}");
        for at in ready {
            let stream = &mut streams[usize::try_from(at)?];
            stream.turn(&mut block, &epoll, at)?;
            if matches!(stream.doing, Doing::Done(_)) {
                running -= 1;
            }
        }
    }
    let done =
        streams.iter().map(|stream| if let Doing::Done(bytes) = stream.doing { bytes } else { 0 }).sum();
    Ok(Report { done, seconds: started.elapsed().as_secs_f64(), ..Report::default() })
}

/// The server: does what heads say until the process is killed.
pub(super) fn serve(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut streams: Vec<Option<Stream>> = Vec::new();
    let mut block = vec![0xa5; BLOCK_LEN];
    loop {
        for at in ready(&epoll, EpollTimeout::NONE)? {
            if at == LISTENER {
                while let Some(socket) = accept(listener)? {
                    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64))?;
                    streams.push(Some(Stream { socket, doing: Doing::Heading([0; HEAD_LEN], 0) }));
                }
                continue;
            }
            let place = &mut streams[usize::try_from(at)?];
            let Some(stream) = place else { continue };
            // A stream that breaks is the client's to report.
            if stream.turn(&mut block, &epoll, at).is_err() || matches!(stream.doing, Doing::Done(_)) {
                *place = None;
            }
        }
    }
}

fn ready(epoll: &Epoll, timeout: EpollTimeout) -> Result<Vec<u64>> {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        match epoll.wait(&mut events, timeout) {
            Ok(count) => return Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn accept(listener: &TcpListener) -> Result<Option<TcpStream>> {
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true)?;
                return Ok(Some(socket));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error).context("cannot accept"),
        }
    }
}

impl Doing {
    fn waits_for(&self) -> EpollFlags {
        match self {
            Self::Sending { .. } => EpollFlags::EPOLLOUT,
            Self::Heading(..) | Self::Taking { .. } | Self::Hearing { .. } => EpollFlags::EPOLLIN,
            Self::Done(_) => EpollFlags::empty(),
        }
    }
}

impl Stream {
    /// Reads or writes once, so that every stream gets its turn.
    fn turn(&mut self, block: &mut [u8], epoll: &Epoll, token: u64) -> Result<()> {
        let before = self.doing.waits_for();
        match self.step(block) {
            Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::Interrupted => {
            }
            result => result.context("a stream broke")?,
        }
        let after = self.doing.waits_for();
        if matches!(self.doing, Doing::Done(_)) {
            // It would go on to say that the other end has hung up.
            epoll.delete(&self.socket)?;
        } else if after != before {
            epoll.modify(&self.socket, &mut EpollEvent::new(after, token))?;
        }
        Ok(())
    }

    fn step(&mut self, block: &mut [u8]) -> std::io::Result<()> {
        match &mut self.doing {
            Doing::Heading(head, len) => {
                *len += some(self.socket.read(&mut head[*len..])?)?;
                if let ([way, millis @ ..], HEAD_LEN) = (*head, *len) {
                    self.doing = if way == TO_SERVER {
                        Doing::Taking { got: 0 }
                    } else {
                        let duration = Duration::from_millis(u64::from_be_bytes(millis));
                        Doing::Sending { until: Instant::now() + duration, sent: 0 }
                    };
                }
            }
            Doing::Sending { until, sent } if Instant::now() < *until => {
                *sent += self.socket.write(block)? as u64;
            }
            Doing::Sending { sent, .. } => {
                self.socket.shutdown(Shutdown::Write)?;
                self.doing = Doing::Hearing { sent: *sent, said: [0; 8], len: 0 };
            }
            Doing::Taking { got } => match self.socket.read(block)? {
                0 => {
                    // 8 bytes fit into an empty buffer.
                    self.socket.write_all(&got.to_be_bytes())?;
                    self.doing = Doing::Done(*got);
                }
                len => *got += len as u64,
            },
            Doing::Hearing { sent, said, len } => {
                *len += some(self.socket.read(&mut said[*len..])?)?;
                if *len == said.len() {
                    let (sent, got) = (*sent, u64::from_be_bytes(*said));
                    if sent != got {
                        return Err(std::io::Error::other(format!("{sent} B were sent, {got} B arrived")));
                    }
                    self.doing = Doing::Done(sent);
                }
            }
            Doing::Done(_) => {}
        }
        Ok(())
    }
}

/// Bytes that had to come.
fn some(len: usize) -> std::io::Result<usize> {
    if len == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(len) }
}
