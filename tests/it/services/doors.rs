//! Doors of a node that lead into captured pods: node ports and host ports, dialled from outside.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use adit_tests::mesh::PodSpec;
use anyhow::Result;
use serde_json::json;

use super::{PORT, ask, strict, with_shop};

/// What kube-proxy masquerades.
const NODE_PORT: u16 = 30080;
/// What a port mapping of the CNI plugins leads in with the client's own address.
const HOST_PORT: u16 = 8088;

#[test]
fn node_ports_and_host_ports_lead_into_a_captured_pod_as_before() -> Result<()> {
    with_shop(|mesh, shop| {
        let outside = mesh.topology.add_outside("outside")?;
        let mut spec = PodSpec::new("n2", "shop", "web-2");
        // A probe of the very port: what comes from the node's address is no probe for that.
        spec.container = json!({ "readinessProbe": { "tcpSocket": { "port": PORT } } });
        let pod = shop.serve(mesh, spec, PORT)?;
        mesh.settle()?;
        let node = mesh.topology.node("n2")?.clone();
        let own = |is_v4: bool| -> IpAddr {
            let number = node.number;
            if is_v4 {
                IpAddr::from([10, 71, number, 1])
            } else {
                Ipv6Addr::from([0xfd71, u16::from(number), 0, 0, 0, 0, 0, 1]).into()
            }
        };
        for (command, pod_at) in [("iptables", pod.at(PORT)), ("ip6tables", pod.at_v6(PORT))] {
            for rule in [
                format!("PREROUTING -p tcp --dport {NODE_PORT} -j DNAT --to-destination {pod_at}"),
                format!("PREROUTING -p tcp --dport {HOST_PORT} -j DNAT --to-destination {pod_at}"),
                format!(
                    "POSTROUTING -p tcp -m conntrack --ctstate DNAT --ctorigdstport {NODE_PORT} -j MASQUERADE"
                ),
            ] {
                let run = node.netns.command(command).args(["-w", "5", "-t", "nat", "-A"]);
                run.args(rule.split(' ')).ok()?;
            }
        }
        for pod_at in [pod.at(PORT), pod.at_v6(PORT)] {
            let node_at = own(pod_at.is_ipv4());
            for (port, seen) in [(NODE_PORT, node_at), (HOST_PORT, outside.ip_like(node_at))] {
                let first = mesh.agent("n2")?.process().next_line();
                let to = SocketAddr::new(node_at, port);
                assert_eq!(ask(&outside, to)?, "web-2", "{to}");
                let flow = mesh.agent("n2")?.wait_for_flow(first, "the pod's side", |flow| {
                    flow.direction == "inbound" && flow.destination.addr == pod_at.to_string()
                })?;
                let source: SocketAddr = flow.source.addr.parse()?;
                assert_eq!(
                    (&*flow.transport, &*flow.state, source.ip()),
                    ("plaintext", "closed", seen),
                    "{to}"
                );
            }
        }
        // STRICT holds there too: nobody proves who he is.
        strict(mesh)?;
        mesh.settle()?;
        for node_at in [own(true), own(false)] {
            for port in [NODE_PORT, HOST_PORT] {
                let to = SocketAddr::new(node_at, port);
                ask(&outside, to).expect_err("plaintext is refused");
            }
        }
        Ok(())
    })
}
