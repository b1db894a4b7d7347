//! A gRPC health service that says SERVING (grpc.health.v1.Health): what a kubelet's gRPC probe asks.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::{TcpListener, TcpStream};

/// A message that is not compressed, 2 bytes long: field 1, `status`, is 1, `SERVING`.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];

/// Answers every call on every connection of a listener.
pub async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            if let Err(error) = answer(stream).await {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn answer(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await.context("no HTTP/2")?;
    while let Some(call) = connection.accept().await {
        let (_, mut respond) = call.context("the connection ended")?;
        let head = Response::builder().header("content-type", "application/grpc").body(())?;
        let mut body = respond.send_response(head, false).context("cannot answer")?;
        body.send_data(Bytes::from_static(SERVING), false).context("cannot answer")?;
        let end = HeaderMap::from_iter([("grpc-status".parse()?, HeaderValue::from_static("0"))]);
        body.send_trailers(end).context("cannot answer")?;
    }
    Ok(())
}
