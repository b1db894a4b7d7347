//! What the user does first: a label on a namespace, and off again. Under load, with the link between the nodes watched.

use std::time::Duration;

use adit_tests::cluster::Families;
use anyhow::{Result, ensure};

use super::bed::Bed;
use super::shop::{SHOP, Shop, nothing_failed};

/// As docs/operations.md says.
const CAPTURED_WITHIN: Duration = Duration::from_millis(500);
/// How often the label is set, at most, until that was kept: two cores that also run the cluster stand still now and then,
/// and a mesh that is slower than that is so each time.
const TRIES: usize = 3;

/// Sets the label, under load, until both pods are captured in time; how long each time took.
fn label_in_time(shop: &Shop<'_>) -> Result<Vec<Duration>> {
    let mut took = vec![shop.label(true)?];
    while took.last().is_some_and(|last| *last > CAPTURED_WITHIN) && took.len() < TRIES {
        shop.label(false)?;
        took.push(shop.label(true)?);
    }
    Ok(took)
}

#[test]
fn running_pods_are_enrolled_and_leave_under_load_and_no_clear_byte_is_seen_in_between() -> Result<()> {
    let Some(bed) = Bed::bare(Families::V4)? else { return Ok(()) };
    let cluster = &bed.cluster;
    // Before Adit is there: its plugin has never heard of these.
    let shop = Shop::open(cluster)?;
    ensure!(shop.marked()? > 0, "the marker is read in clear without the mesh");
    cluster.install_mesh()?;
    let containers = shop.containers()?;

    let (lines, load) = (shop.start_lines(20)?, shop.start_load(20)?);
    let took = label_in_time(&shop)?;
    println!("label to captured, both pods: {took:?}");
    ensure!(took.iter().any(|took| *took <= CAPTURED_WITHIN), "{took:?}\n{}", cluster.mesh_words());
    until_in_clear(&shop, false)?;
    ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
    both_say_who(&shop, "10.244.")?;
    let took = shop.label(false)?;
    println!("label off to announced: {took:?}");
    until_in_clear(&shop, true)?;
    println!("{}", nothing_failed(&lines, &load)?);
    ensure!(shop.containers()? == containers, "nothing was started again");
    Ok(())
}

#[test]
fn calls_over_ipv6_are_captured_as_those_over_ipv4_are() -> Result<()> {
    let Some(bed) = Bed::bare(Families::Dual)? else { return Ok(()) };
    let v4 = Shop::open(&bed.cluster)?;
    let v6 = v4.over_ipv6()?;
    for shop in [&v4, &v6] {
        ensure!(shop.marked()? > 0, "the marker is read in clear without the mesh");
    }
    bed.cluster.install_mesh()?;
    v4.label(true)?;
    for (shop, pods) in [(&v4, "10.244."), (&v6, "[fd44:")] {
        until_in_clear(shop, false)?;
        ensure!(shop.marked()? == 0, "nothing is read of what goes between the nodes");
        both_say_who(shop, pods)?;
    }
    v4.label(false)?;
    [&v4, &v6].into_iter().try_for_each(|shop| until_in_clear(shop, true))
}

/// Waits until calls go so: the client's agent hears of a pod's annotation when everybody does, and makes its next snapshot
/// some 20 ms later.
fn until_in_clear(shop: &Shop<'_>, is_clear: bool) -> Result<()> {
    let what = if is_clear { "that calls are in clear" } else { "that calls are not in clear any more" };
    shop.cluster.until(what, || Ok(((shop.marked()? > 0) == is_clear).then_some(())))
}

/// The last call from the client to the server, at an address that begins like this, as both nodes' agents report it.
fn both_say_who(shop: &Shop<'_>, address: &str) -> Result<()> {
    let id = |account: &str| format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}");
    for (node, direction) in [("node1", "outbound"), ("node2", "inbound")] {
        shop.until_flow(node, "the last call, over mTLS and with both identities", |flow| {
            let said = (flow.source.identity.as_deref(), flow.destination.identity.as_deref());
            let is_both = said == (Some(&*id("client")), Some(&*id("server")));
            let is_there = flow.target.as_ref().is_some_and(|target| target.starts_with(address));
            flow.direction == direction && flow.tls.is_some() && is_both && is_there
        })?;
    }
    Ok(())
}
