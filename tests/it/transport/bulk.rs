//! Many bytes, each of them checked.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use adit_tests::WAIT_MAX;
use adit_tests::apps::{Pattern, Tally, connect};
use anyhow::{Context, Result, anyhow};

use super::{Lane, PORT, Way, with_lanes_alone};

/// What the issue names.
const GIB: u64 = 1 << 30;
/// For the lanes that share all but their ends with one that carries a GiB.
const LESS: u64 = 128 << 20;

const TO_SERVER: Pattern = Pattern { seed: 11 };
const TO_CLIENT: Pattern = Pattern { seed: 12 };

/// Writes `len` bytes and reads the other side's to their end, at once.
fn both_ways(stream: &TcpStream, writes: Pattern, reads: Pattern, len: u64) -> Result<Tally> {
    thread::scope(|scope| {
        let writing = scope.spawn(|| -> Result<()> {
            writes.write(&mut &*stream, len)?;
            stream.shutdown(Shutdown::Write).context("shutdown")
        });
        let tally = reads.check(&mut &*stream);
        writing.join().map_err(|_| anyhow!("the writer panicked"))??;
        tally
    })
}

fn carry(lane: &Lane<'_>, len: u64) -> Result<()> {
    let any: SocketAddr = format!("[::]:{PORT}").parse()?;
    let listener = lane.server.netns.run(|| TcpListener::bind(any))??;
    let serving = thread::spawn(move || -> Result<Tally> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        stream.set_write_timeout(Some(WAIT_MAX))?;
        both_ways(&stream, TO_CLIENT, TO_SERVER, len)
    });
    let stream = connect(&lane.client.netns, lane.to)?;
    let at_client = both_ways(&stream, TO_SERVER, TO_CLIENT, len).context("at the client")?;
    let at_server = serving.join().map_err(|_| anyhow!("the server panicked"))?.context("at the server")?;
    let whole = Tally { bytes: len };
    assert_eq!((at_client, at_server), (whole, whole), "{lane:?}");
    Ok(())
}

#[test]
fn a_gibibyte_each_way_at_once_arrives_as_it_was_sent() -> Result<()> {
    with_lanes_alone(|mesh, places| {
        let first = mesh.agent("n2")?.process().next_line();
        for lane in places.lanes() {
            let len = if lane.way == Way::Tunnel { GIB } else { LESS };
            carry(&lane, len).with_context(|| format!("{lane:?}"))?;
        }
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the server's report", |flow| {
            flow.transport == "mtls" && flow.state == "closed"
        })?;
        assert_eq!((flow.bytes_to_server, flow.bytes_to_client), (GIB, GIB));
        Ok(())
    })
}
