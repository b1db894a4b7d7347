//! Client sockets in a pod's namespace, bounded in time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::WAIT_MAX;
use crate::netns::Netns;

/// Connects from `netns` to `to`. Reads and writes on the stream fail after [`WAIT_MAX`] without progress.
pub fn connect(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    connect_from(netns, None, to)
}

/// The same from a given address of the namespace.
pub fn connect_from(netns: &Netns, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let dial = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(from) = from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        socket.connect_timeout(&to.into(), WAIT_MAX)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        socket.set_write_timeout(Some(WAIT_MAX))?;
        Ok(socket.into())
    };
    netns.run(dial).map_err(io::Error::other)?
}

/// Reads to the peer's end.
pub fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("after {} bytes", bytes.len()))?;
    Ok(bytes)
}

/// Reads exactly so many bytes.
pub fn read_exactly(stream: &mut TcpStream, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).with_context(|| format!("{len} bytes did not come"))?;
    Ok(bytes)
}

/// Connects, says a byte, and expects to be reset; anything else is an error that says what came instead.
///
/// It is chance which of the three meets the reset: an agent has accepted before it knows where to go, and on a busy
/// machine a client that is told of its connection may find it reset already.
pub fn expect_reset(netns: &Netns, to: SocketAddr) -> Result<()> {
    let talked = connect(netns, to).and_then(|mut stream| {
        stream.write_all(b"?")?;
        stream.read(&mut [0])
    });
    match talked {
        Err(error) if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()) => Ok(()),
        other => bail!("{to}: not reset but {other:?}"),
    }
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}
