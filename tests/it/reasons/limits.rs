//! Limits that refuse.

use std::io::Write;
use std::time::{Duration, Instant};

use adit_tests::WAIT_MAX;

use super::rogue::silent_server;
use super::*;

/// What each agent lets one pod have: fewer streams than one tunnel's, and enough of them to use up the least budget that
/// an agent takes, 16 MiB, with the 128 KiB that each may hold once half of the pod's share, half of that, is used.
const NEAR_MAX: usize = 90;
const FAR_MAX: usize = 100;
/// Streams that are filled one after the other: two of them hold a whole window of 4 MiB each, all of a pod's share.
const ALONE: usize = 3;

pub(super) static LIMITS: Scenario = Scenario {
    shows: &[Reason::AcceptLimit, Reason::MemoryLimit],
    agents: || {
        [
            json!({ "dataplane": { "connections-per-pod": NEAR_MAX } }),
            json!({ "dataplane": { "connections-per-pod": FAR_MAX, "buffer-budget": "1MiB", "workers": 1 } }),
        ]
    },
    ca: usual_ca,
    play: limits,
};

fn limits(mesh: &mut Mesh, stage: &Stage) -> Result<()> {
    let to = stage.api.at(HTTP);
    let cart = mesh.add_pod(PodSpec::new("n1", "shop", "cart"))?;
    mesh.wait_captured(&cart)?;
    mesh.settle()?;
    let open = (0..NEAR_MAX).map(|_| held(&stage.web, to)).collect::<Result<Vec<_>>>()?;
    let mark = Mark::now(mesh)?;
    refused(&stage.web, to)?;
    stage.line(mesh, &mark, Side::Out, Reason::AcceptLimit, None)?;
    // The server's agent counts its own: plaintext takes places, too.
    let more = (NEAR_MAX..FAR_MAX).map(|_| held(&stage.outsider, to)).collect::<Result<Vec<_>>>()?;
    refused(&stage.outsider, to)?;
    stage.line(mesh, &mark, Side::In, Reason::AcceptLimit, None)?;
    drop((open, more));
    let (near, mut first) = (mesh.agent("n1")?.process(), mark.0[0]);
    let closed = |line: &str| line.contains(r#""state":"closed","direction":"outbound""#);
    for _ in 0..NEAR_MAX {
        first = 1 + near.wait_for_line_after(first, "that there is room again", closed)?.0;
    }

    // An app that does not read, and clients that write until nobody takes any more. Few bytes are to be in kernels'
    // buffers.
    for pod in [&stage.web, &stage.api] {
        pod.host.netns.sysctl("net/ipv4/tcp_wmem", "4096 16384 65536")?;
        pod.host.netns.sysctl("net/ipv4/tcp_rmem", "4096 32768 65536")?;
    }
    let _silent = silent_server(&stage.api.host.netns, 7070)?;
    let mark = Mark::now(mesh)?;
    let mut writing = Vec::new();
    for number in 0..NEAR_MAX - 10 {
        let mut stream = connect(&stage.web.host.netns, stage.api.at(7070))?;
        if number < ALONE {
            stream.set_write_timeout(Some(Duration::from_millis(300)))?;
            while stream.write(&[0; 1 << 16]).is_ok_and(|written| written > 0) {}
        }
        stream.set_nonblocking(true)?;
        writing.push(stream);
    }
    // Another pod's tunnel brings windows of its own.
    for _ in 0..ALONE {
        let stream = connect(&cart.host.netns, stage.api.at(7070))?;
        stream.set_nonblocking(true)?;
        writing.push(stream);
    }
    let deadline = Instant::now() + WAIT_MAX;
    let far = mesh.agent("n2")?.process();
    while !far.log().iter().any(|line| line.contains(Reason::MemoryLimit.label())) {
        ensure!(Instant::now() < deadline, "the budget is not used up by {} stalled streams", writing.len());
        for stream in &mut writing {
            while stream.write(&[0; 1 << 16]).is_ok_and(|written| written > 0) {}
        }
        // One that is taken on just before the budget is used up has no answer, as the app is not read then.
        if let Ok(mut stream) = connect(&stage.web.host.netns, to) {
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            echoes(&mut stream);
        }
    }
    stage.lines(mesh, &mark, Reason::PeerAppUnreachable, Reason::MemoryLimit)?;
    Ok(())
}
