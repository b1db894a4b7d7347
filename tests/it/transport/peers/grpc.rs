//! A gRPC service over HTTP/2 in clear: many streams on one connection, messages both ways on each, trailers.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::thread;

use adit_tests::WAIT_MAX;
use adit_tests::topology::Host;
use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt, iter};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::with_lanes;
use super::by_both_families;

const PORT: u16 = 50051;
/// Streams at once on the client's one connection.
const STREAMS: usize = 20;
/// Messages of a stream, each longer than the one before.
const MESSAGES: usize = 10;
/// The longest message: more than HTTP/2's usual window of 64 KiB.
const LONGEST: usize = 200_000;

type Messages = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Answers each message with itself, and ends with a status that only trailers can carry.
#[derive(Clone)]
struct Echo;

impl StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        let last = Err(Status::out_of_range("that was all"));
        let messages: Messages = Box::pin(request.into_inner().chain(iter([last])));
        Box::pin(async { Ok(Response::new(messages)) })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec: ProstCodec<String, String> = ProstCodec::default();
        Box::pin(async { Ok(tonic::server::Grpc::new(codec).streaming(Self, request).await) })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

/// A running service; it ends when dropped.
struct Serving(#[expect(dead_code, reason = "its drop is what ends the service")] oneshot::Sender<()>);

fn serve(host: &Host) -> Result<Serving> {
    let any: SocketAddr = format!("[::]:{PORT}").parse()?;
    let listener = host.netns.run(|| TcpListener::bind(any))??;
    listener.set_nonblocking(true)?;
    let (end, ended) = oneshot::channel::<()>();
    thread::spawn(move || {
        block_on(async {
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?);
            let router = Server::builder().add_service(Echo);
            router.serve_with_incoming_shutdown(incoming, async { drop(ended.await) }).await?;
            Ok(())
        })
    });
    Ok(Serving(end))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// One stream of a connection: says its messages, hears each of them again, and the status at the end.
async fn converse(mut client: Grpc<tonic::transport::Channel>, number: usize) -> Result<()> {
    client.ready().await.context("not ready")?;
    let letter = char::from(b'a' + u8::try_from(number % 26)?);
    let messages: Vec<String> =
        (1..=MESSAGES).map(|nth| letter.to_string().repeat(LONGEST * nth / MESSAGES)).collect();
    let codec: ProstCodec<String, String> = ProstCodec::default();
    let path = PathAndQuery::from_static("/test.Echo/Talk");
    let answer = client.streaming(Request::new(iter(messages.clone())), path, codec).await?;
    let mut heard = answer.into_inner();
    for said in messages {
        ensure!(heard.message().await?.as_ref() == Some(&said), "stream {number}: another message");
    }
    match heard.message().await {
        Err(status) if status.code() == Code::OutOfRange && status.message() == "that was all" => Ok(()),
        other => Err(anyhow!("stream {number} ends with {other:?}")),
    }
}

async fn talk(to: SocketAddr) -> Result<()> {
    let channel = Endpoint::from_shared(format!("http://{to}"))?.connect().await.context("no connection")?;
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        streams.spawn(converse(Grpc::new(channel.clone()), number));
    }
    while let Some(done) = streams.join_next().await {
        done??;
    }
    Ok(())
}

#[test]
fn a_grpc_service_streams_both_ways_on_many_streams_and_its_trailers_arrive() -> Result<()> {
    with_lanes(|mesh, places| {
        let _serving = serve(&places.server.host)?;
        by_both_families(mesh, places, PORT, |client, vip| {
            let talk = async || {
                let talked = timeout(WAIT_MAX, talk(SocketAddr::new(vip, PORT))).await;
                talked.with_context(|| format!("not done within {WAIT_MAX:?}"))?
            };
            client.netns.run(|| block_on(talk()))?
        })
    })
}
