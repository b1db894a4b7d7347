//! What the user does first: a label on a namespace, and off again. Under load, with the link between the nodes watched.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::bed::Bed;
use super::shop::{SHOP, Shop, nothing_failed};

/// As docs/operations.md says, with `kubectl` in it.
const CAPTURED_WITHIN: Duration = Duration::from_millis(500);

#[test]
fn running_pods_are_enrolled_and_leave_under_load_and_no_clear_byte_is_seen_in_between() -> Result<()> {
    let Some(bed) = Bed::bare()? else { return Ok(()) };
    let cluster = &bed.cluster;
    // Before Adit is there: its plugin has never heard of these.
    let shop = Shop::open(cluster)?;
    ensure!(shop.marked()? > 0, "the marker is read in clear without the mesh");
    cluster.install_mesh()?;
    let containers = shop.containers()?;

    let (lines, load) = (shop.start_lines(20)?, shop.start_load(20)?);
    let took = shop.label(true)?;
    println!("label to captured, both pods: {took:?}");
    ensure!(took <= CAPTURED_WITHIN, "{took:?}");
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    both_say_who(&shop)?;
    let took = shop.label(false)?;
    println!("label off to announced: {took:?}");
    ensure!(shop.marked()? > 0, "in clear again");
    println!("{}", nothing_failed(&lines, &load)?);
    ensure!(shop.containers()? == containers, "nothing was started again");
    Ok(())
}

/// The last call from the client to the server, as both nodes' agents report it.
fn both_say_who(shop: &Shop<'_>) -> Result<()> {
    let id = |account: &str| format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}");
    for (node, direction) in [("node1", "outbound"), ("node2", "inbound")] {
        shop.until_flow(node, "the last call, over mTLS and with both identities", |flow| {
            let said = (flow.source.identity.as_deref(), flow.destination.identity.as_deref());
            let is_both = said == (Some(&*id("client")), Some(&*id("server")));
            flow.direction == direction && flow.tls.is_some() && is_both
        })?;
    }
    Ok(())
}
