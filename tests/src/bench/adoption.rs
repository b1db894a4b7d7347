//! How soon an agent that starts again serves the pods that are there.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::WAIT_MAX;
use crate::apps::{Behaviour, Server, connect, read_exactly};
use crate::mesh::{Enrolment, Mesh, Pod, PodSpec};
use crate::topology::Topology;

const NODE: &str = "n1";

/// Milliseconds from the start of an agent until it serves all of so many pods that a killed one has left, without the
/// CA; all in one namespace, of one account.
pub fn milliseconds(pods: u32) -> Result<f64> {
    let mut mesh = Mesh::new(Topology::exclusive()?, &[NODE])?;
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.start()?;
    let spec = |number| PodSpec::new(NODE, "shop", &format!("pod-{number}")).account("pod");
    let all = (0..pods).map(|number| mesh.add_pod(spec(number))).collect::<Result<Vec<_>>>()?;
    let [first, .., last] = &*all else { anyhow::bail!("fewer than two pods") };
    let _echo = Server::start(&last.host.netns, 8080, Behaviour::Echo)?;
    mesh.settle()?;
    mesh.topology.host("ca")?.netns.ip("link set eth0 down")?;
    mesh.take_agent(NODE)?.kill()?;
    let started = Instant::now();
    mesh.start_agent(NODE, &Value::Null)?;
    let served = until_served(&mesh, all.len(), started)?;
    ensure!(word(first, last.at(8080))? == *WORD, "a word comes back as another");
    Ok(served.as_secs_f64() * 1000.0)
}

/// Between two looks: the thread that answers is the one that adopts.
const BETWEEN: Duration = Duration::from_millis(5);

fn until_served(mesh: &Mesh, pods: usize, started: Instant) -> Result<Duration> {
    loop {
        let status = mesh.agent(NODE)?.status()?;
        let served = status.pods.iter().filter(|pod| pod.captured && pod.state == "live").count();
        if served == pods {
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < WAIT_MAX, "{served} of {pods} pods are served");
        std::thread::park_timeout(BETWEEN);
    }
}

const WORD: &[u8; 5] = b"hello";

/// What comes back of a word.
fn word(from: &Pod, to: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = connect(&from.host.netns, to)?;
    stream.write_all(WORD)?;
    read_exactly(&mut stream, WORD.len())
}
