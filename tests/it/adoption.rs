//! A node full of pods, and an agent that comes back to them.

use std::time::{Duration, Instant};

use adit_tests::WAIT_MAX;
use adit_tests::apps::{Behaviour, Server};
use adit_tests::mesh::{Enrolment, Mesh, PodSpec, with_mesh_alone};
use anyhow::{Result, ensure};
use serde_json::Value;

use crate::talk::talk;

/// As many as a node has by the kubelet's default, less those of the system.
const PODS: usize = 100;
/// Restarts; the fastest counts.
const TRIES: usize = 3;
/// What adoption may take, from the agent's start to the last pod being served.
const ADOPTED_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_hundred_pods_are_adopted_within_a_second_without_the_ca() -> Result<()> {
    with_mesh_alone(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let mut pods = Vec::new();
        for number in 0..PODS {
            pods.push(mesh.add_pod(PodSpec::new("n1", "shop", &format!("pod-{number}")).account("pod"))?);
        }
        let [first, .., last] = &*pods else { anyhow::bail!("{PODS} pods") };
        let _echo = Server::start(&last.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        mesh.topology.host("ca")?.netns.ip("link set eth0 down")?;
        // What else the machine does can only make it longer.
        let mut fastest = Duration::MAX;
        for _ in 0..TRIES {
            let (ready, served) = adoption(mesh)?;
            println!("{PODS} pods: ready after {ready:?}, all served after {served:?}");
            fastest = fastest.min(ready.max(served));
        }
        talk(first, last.at(8080))?;
        ensure!(fastest <= ADOPTED_WITHIN, "at best {fastest:?}");
        Ok(())
    })
}

/// Kills the agent and starts it again: how long it takes to be ready, and to serve every pod.
fn adoption(mesh: &mut Mesh) -> Result<(Duration, Duration)> {
    mesh.take_agent("n1")?.kill()?;
    let started = Instant::now();
    mesh.start_agent("n1", &Value::Null)?;
    let ready = started.elapsed();
    loop {
        let status = mesh.agent("n1")?.status()?;
        let served = status.pods.iter().filter(|pod| pod.captured && pod.state == "live").count();
        if served == PODS {
            return Ok((ready, started.elapsed()));
        }
        ensure!(started.elapsed() < WAIT_MAX, "{served} of {PODS} pods are served");
        std::thread::yield_now();
    }
}
