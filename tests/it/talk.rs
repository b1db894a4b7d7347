//! A word on a connection, there and back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use adit_tests::apps::{connect, read_exactly};
use adit_tests::mesh::Pod;
use anyhow::{Result, bail};

/// One word there and back.
pub(crate) fn echo(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word)?;
    assert_eq!(read_exactly(stream, word.len())?, word);
    Ok(())
}

/// Waits until a connection is cut: a reset and an end are the same to a client whose request is not answered.
pub(crate) fn wait_cut(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("it is not cut: {other:?}"),
    }
}

/// A new connection that carried a word there and back.
pub(crate) fn talk(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(&from.host.netns, to)?;
    echo(&mut stream, b"hello")?;
    Ok(stream)
}
