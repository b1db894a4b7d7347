//! `--keep`: how to look around in what was left running.

use anyhow::{Context, Result};

use super::say::Say;
use super::shop::{LEAF_LIFE_S, Shop};
use crate::process::program;
use crate::sandbox::Sandbox;

pub(super) fn print_commands(say: &Say, shop: &Shop, sandbox: &Sandbox) -> Result<()> {
    let outside = sandbox.run().trim_start_matches("adit");
    let user = if sandbox.is_real_root() { "" } else { " -U --preserve-credentials" };
    let enter = format!("nsenter -t {outside}{user} -m -n -i --pid=/proc/{outside}/ns/pid_for_children");
    let adit = program("adit")?;
    let adit = format!("{} --mesh {}", adit.display(), shop.mesh.directory().display());
    let netns = |pod: &str| -> Result<String> {
        Ok(format!("$E nsenter --net={}", shop.pod(pod)?.host.netns.path().display()))
    };
    let payments = shop.vip("payments")?;
    let cart = shop.vip("cart")?;
    let objects = shop.mesh.directory().join("objects");
    let node = shop.mesh.topology.node("n1").context("n1")?;
    say.line(format!("\nleft running; leaf certificates live {LEAF_LIFE_S} s here. In another terminal:"))?;
    for line in [
        format!("E='{enter}'"),
        format!("{} curl -s http://{payments}/          # the frontend pays", netns("frontend")?),
        format!("{} curl -s http://{payments}/          # the outsider is refused", netns("outsider")?),
        format!("{} redis-cli -h {} GET cart:7", netns("frontend")?, cart.ip()),
        format!("$E {adit} edges"),
        format!("$E {adit} flows --failed"),
        format!("$E ls {}         # the objects; change one and see", objects.display()),
        format!("$E rm {}/no-outsiders.yaml", objects.display()),
        format!("$E nsenter --net={} tcpdump -ni eth0 -A   # the node's link", node.netns.path().display()),
        format!("{} iptables-save                       # the redirects in a pod", netns("frontend")?),
    ] {
        say.line(format!("  {line}"))?;
    }
    say.line("Ctrl-C ends it all; nothing is left behind.")
}
