//! The admin API of an agent, over its unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::WAIT_MAX;

/// Asks for `path`; an answer other than 200 is an error that shows it.
pub fn text(socket: &Path, path: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(WAIT_MAX)).context("a socket's time bound")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\n\r\n").context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{path} was not answered"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no head")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {answer}");
    }
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return unchunk(body);
    }
    Ok(body.to_owned())
}

/// The same as a value.
pub fn json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let text = text(socket, path)?;
    serde_json::from_str(&text).with_context(|| format!("{path} answers {text}"))
}

/// Joins the chunks of a body (RFC 9112, 7.1).
fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (len, rest) = body.split_once("\r\n").context("a chunk without a length")?;
        let len = usize::from_str_radix(len.trim(), 16).context("a chunk's length")?;
        if len == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..len).context("a chunk that is cut")?);
        body = rest[len..].strip_prefix("\r\n").context("a chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap(), "abcde");
        assert!(unchunk("5\r\nabc\r\n").is_err());
    }
}
