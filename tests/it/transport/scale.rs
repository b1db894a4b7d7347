//! Many connections: at once, and for long.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use adit_tests::WAIT_MAX;
use adit_tests::mesh::{Mesh, Pod};
use adit_tests::process::Process;
use adit_tests::servers::nginx_with;
use adit_tests::topology::Host;
use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{PORT, with_lanes_alone};

/// What the issue names.
const IDLE: usize = 10_000;
/// What the issue names.
const AT_ONCE: usize = 1_000;

/// An nginx that answers each request with what was asked for: a process of its own, as the files of all clients and
/// all servers together are more than one process may open.
fn serve(host: &Host) -> Result<Process> {
    let location = "location / { default_type text/plain; return 200 \"$request_uri\\n\"; }";
    let listen = format!("listen {PORT} backlog=4096; listen [::]:{PORT} backlog=4096;");
    nginx_with(host, &format!("{listen} keepalive_timeout 1h; {location}"))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

/// Asks for a number and hears it again.
async fn ask(stream: &mut TcpStream, number: usize) -> Result<()> {
    let wanted = format!("\r\n\r\n/{number}\n");
    let mut heard = Vec::new();
    let asked = async {
        stream.write_all(format!("GET /{number} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await?;
        let has_body = |heard: &[u8]| {
            let head_end = heard.windows(4).position(|end| end == b"\r\n\r\n");
            head_end.is_some_and(|end| heard.len() > end + 4) && heard.ends_with(b"\n")
        };
        while !has_body(&heard) {
            ensure!(stream.read_buf(&mut heard).await? > 0, "cut after {} bytes", heard.len());
        }
        Ok(())
    };
    timeout(WAIT_MAX, asked).await.context("no answer")??;
    ensure!(heard.ends_with(wanted.as_bytes()), "another connection's answer: {heard:?}");
    Ok(())
}

async fn open(to: SocketAddr, number: usize) -> Result<TcpStream> {
    let mut stream = timeout(WAIT_MAX, TcpStream::connect(to)).await.context("no connection")??;
    ask(&mut stream, number).await?;
    Ok(stream)
}

/// Opens so many connections all at once, from inside the calling thread's namespace.
async fn open_at_once(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut opening = JoinSet::new();
    for number in 0..count {
        opening.spawn(open(to, number));
    }
    let mut streams = Vec::with_capacity(count);
    while let Some(opened) = opening.join_next().await {
        streams.push(opened?.with_context(|| format!("after {} good ones", streams.len()))?);
    }
    Ok(streams)
}

#[test]
fn a_thousand_connections_opened_at_once_are_all_carried() -> Result<()> {
    with_lanes_alone(|_, places| {
        for lane in places.lanes() {
            let _serving = serve(lane.server)?;
            let opened = lane.client.netns.run(|| block_on(open_at_once(lane.to, AT_ONCE)))?;
            assert_eq!(opened.with_context(|| format!("{lane:?}"))?.len(), AT_ONCE);
        }
        Ok(())
    })
}

/// How many connections the pod's agent says that it carries for it.
fn carried(mesh: &Mesh, pod: &Pod) -> Result<u64> {
    let status = mesh.agent_of(pod)?.status()?;
    let found = status.pods.iter().find(|status| status.uid == pod.uid).context("no such pod")?;
    Ok(found.connections)
}

/// Asks again until it is so.
fn wait_until_carried(mesh: &Mesh, pod: &Pod, wanted: u64) -> Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let carried = carried(mesh, pod)?;
        if carried == wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} carries {carried} connections, not {wanted}", pod.spec.name);
        }
        thread::yield_now();
    }
}

#[test]
fn ten_thousand_idle_connections_are_kept_and_each_still_carries_its_own_bytes() -> Result<()> {
    with_lanes_alone(|mesh, places| {
        let _serving = serve(&places.server.host)?;
        let to = places.server.at(PORT);
        let mesh = &*mesh;
        places.client.host.netns.run(|| {
            block_on(async {
                let mut streams = Vec::with_capacity(IDLE);
                // As many at once as a listener's queue takes.
                while streams.len() < IDLE {
                    streams.extend(open_at_once(to, AT_ONCE).await?);
                }
                for pod in [&places.client, &places.server] {
                    assert_eq!(carried(mesh, pod)?, IDLE as u64, "{}", pod.spec.name);
                }
                for (number, stream) in streams.iter_mut().enumerate() {
                    ask(stream, number).await.with_context(|| format!("connection {number}"))?;
                }
                Ok(())
            })
        })??;
        for pod in [&places.client, &places.server] {
            wait_until_carried(mesh, pod, 0)?;
        }
        Ok(())
    })
}
