//! What a connection is to its two ends, with the mesh in between: every way that a captured connection can take, by
//! both families, with the kernel's own redirects.

use std::net::SocketAddr;

use adit_tests::apps::{Behaviour, Server};
use adit_tests::mesh::{Enrolment, Mesh, Pod, PodSpec, with_mesh, with_mesh_alone};
use adit_tests::topology::Host;
use anyhow::Result;

mod bulk;
mod ends;
mod peers;
mod reach;
mod scale;

/// The port of every server here.
const PORT: u16 = 8080;

/// The pods and hosts that the lanes join.
struct Places {
    /// Captured, on n1.
    client: Pod,
    /// Captured, on n2.
    server: Pod,
    /// Not in the mesh, on n1.
    stranger: Pod,
    /// Not in the mesh, on n2.
    bare: Pod,
    /// Outside the cluster.
    outside: Host,
}

/// How a connection that crosses the mesh's border, or does not, is carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// From a captured pod to a captured pod.
    Tunnel,
    /// From a pod that is not in the mesh to a captured one.
    PlaintextIn,
    /// From a captured pod to one that is not in the mesh.
    PlaintextOut,
    /// From a captured pod to a host outside the cluster.
    Passthrough,
}

/// One way, by one family.
#[derive(Clone, Copy, Debug)]
struct Lane<'p> {
    way: Way,
    client: &'p Host,
    server: &'p Host,
    /// The server.
    to: SocketAddr,
}

impl Lane<'_> {
    /// As the agents report it.
    const fn transport(&self) -> &'static str {
        match self.way {
            Way::Tunnel => "mtls",
            Way::PlaintextIn | Way::PlaintextOut => "plaintext",
            Way::Passthrough => "passthrough",
        }
    }

    /// The nodes whose agents carry it.
    const fn agents(&self) -> &'static [&'static str] {
        match self.way {
            Way::Tunnel => &["n1", "n2"],
            Way::PlaintextIn => &["n2"],
            Way::PlaintextOut | Way::Passthrough => &["n1"],
        }
    }
}

impl Places {
    fn make(mesh: &mut Mesh) -> Result<Self> {
        mesh.namespace("plain", Enrolment::Unsaid)?;
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start()?;
        let places = Self {
            client: mesh.add_pod(PodSpec::new("n1", "shop", "client"))?,
            server: mesh.add_pod(PodSpec::new("n2", "shop", "server"))?,
            stranger: mesh.add_pod(PodSpec::new("n1", "plain", "stranger"))?,
            bare: mesh.add_pod(PodSpec::new("n2", "plain", "bare"))?,
            outside: mesh.topology.add_outside("outside")?,
        };
        mesh.wait_captured(&places.client)?;
        mesh.wait_captured(&places.server)?;
        mesh.settle()?;
        Ok(places)
    }

    /// Every way by both families, to this port.
    fn lanes_to(&self, port: u16) -> Vec<Lane<'_>> {
        let (client, server) = (&self.client.host, &self.server.host);
        let ways = [
            (Way::Tunnel, client, server),
            (Way::PlaintextIn, &self.stranger.host, server),
            (Way::PlaintextOut, client, &self.bare.host),
            (Way::Passthrough, client, &self.outside),
        ];
        let by_families = ways.map(|(way, client, server)| {
            server.ips().map(|ip| Lane { way, client, server, to: SocketAddr::new(ip, port) })
        });
        by_families.concat()
    }

    fn lanes(&self) -> Vec<Lane<'_>> {
        self.lanes_to(PORT)
    }

    /// A server of this behaviour on every host that a lane ends at.
    fn serve(&self, behaviour: &Behaviour) -> Result<Servers> {
        let start =
            |host: &Host| Ok((host.name.clone(), Server::start(&host.netns, PORT, behaviour.clone())?));
        let hosts = [&self.server.host, &self.bare.host, &self.outside];
        hosts.into_iter().map(start).collect::<Result<_>>().map(Servers)
    }
}

/// The servers at the lanes' ends.
struct Servers(Vec<(String, Server)>);

impl Servers {
    fn at(&self, lane: &Lane<'_>) -> &Server {
        let found = self.0.iter().find(|(name, _)| *name == lane.server.name);
        &found.expect("every lane ends at a host with a server").1
    }
}

/// Runs `test` over a mesh with all lanes.
fn with_lanes(test: impl FnOnce(&mut Mesh, &Places) -> Result<()>) -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let places = Places::make(mesh)?;
        test(mesh, &places)
    })
}

/// The same while no other test runs.
fn with_lanes_alone(test: impl FnOnce(&mut Mesh, &Places) -> Result<()>) -> Result<()> {
    with_mesh_alone(&["n1", "n2"], |mesh| {
        let places = Places::make(mesh)?;
        test(mesh, &places)
    })
}
