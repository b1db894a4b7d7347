//! Plays kube-proxy on a node: service addresses become those of endpoints, by iptables, for pods that are not
//! enrolled. Captured connections never get here with a service's address.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Endpoints, ServiceSpec};
use crate::topology::{Host, Node};

/// Writes the rules of all services on `node` anew, for both families.
pub(super) fn program(node: &Node, services: &[(&ServiceSpec, Endpoints)]) -> Result<()> {
    let number = node.number;
    for (command, own, ip) in [
        (
            "iptables-restore",
            format!("10.71.{number}.0/24"),
            (|host: &Host| host.v4.into()) as fn(&Host) -> IpAddr,
        ),
        ("ip6tables-restore", format!("fd71:{number}::/64"), |host: &Host| host.v6.into()),
    ] {
        let is_v4 = command == "iptables-restore";
        let mut text = String::from("*nat\n:PROXY - [0:0]\n-F PREROUTING\n-F OUTPUT\n-F POSTROUTING\n");
        text.push_str("-A PREROUTING -j PROXY\n-A OUTPUT -j PROXY\n");
        // Between two pods of the node the answer would pass by on the bridge, untranslated: let it come back here.
        let _ = writeln!(text, "-A POSTROUTING -s {own} -d {own} -m conntrack --ctstate DNAT -j MASQUERADE");
        for (service, endpoints) in services {
            for vip in service.ips.iter().filter(|vip| vip.is_ipv4() == is_v4) {
                for port in &service.ports {
                    let targets: Vec<SocketAddr> =
                        endpoints.ready().map(|pod| SocketAddr::new(ip(&pod.host), port.target)).collect();
                    text.push_str(&rules(SocketAddr::new(*vip, port.port), &targets));
                }
            }
        }
        text.push_str("COMMIT\n");
        node.netns.command(command).args(["-w", "5", "--noflush"]).stdin(text).ok()?;
    }
    Ok(())
}

/// Each target with the same chance: the first of n with 1/n, the next of the rest with 1/(n-1), and so on.
fn rules(vip: SocketAddr, targets: &[SocketAddr]) -> String {
    let mut text = String::new();
    for (index, target) in targets.iter().enumerate() {
        let left = u32::try_from(targets.len() - index).unwrap_or(u32::MAX);
        let chance = if left == 1 {
            String::new()
        } else {
            format!(" -m statistic --mode random --probability {:.6}", 1.0 / f64::from(left))
        };
        let _ = writeln!(
            text,
            "-A PROXY -d {} -p tcp --dport {}{chance} -j DNAT --to-destination {target}",
            vip.ip(),
            vip.port()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_the_same_chance() {
        let targets = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].map(|target| target.parse().unwrap());
        let text = rules("10.96.0.1:80".parse().unwrap(), &targets);
        let chances: Vec<bool> = text
            .lines()
            .zip(["0.333333", "0.500000", "DNAT --to"])
            .map(|(line, chance)| line.contains(chance))
            .collect();
        assert_eq!(chances, [true; 3], "{text}");
        assert_eq!(text.matches("probability").count(), 2);
    }
}
