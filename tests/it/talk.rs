//! A word on a connection, there and back.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use adit_tests::apps::{connect, read_exactly};
use adit_tests::mesh::Pod;
use anyhow::Result;

/// One word there and back.
pub(crate) fn echo(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word)?;
    assert_eq!(read_exactly(stream, word.len())?, word);
    Ok(())
}

/// A new connection that carried a word there and back.
pub(crate) fn talk(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(&from.host.netns, to)?;
    echo(&mut stream, b"hello")?;
    Ok(stream)
}
