//! On a real Kubernetes cluster. `cargo xtask test --part cluster` runs these alone.

use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::process::Output;
use adit_tests::{has_real_root, slot};
use anyhow::Result;

mod agents;
mod bed;
mod ca;
mod callers;
mod crds;
mod crowd;
mod enrol;
mod fence;
mod follow;
mod garbage;
mod install;
mod kept;
mod leave;
mod machine;
mod manifests;
mod neighbours;
mod outages;
mod policies;
mod shop;
mod workloads;

/// Runs kubectl with arguments and a standard input.
type Kubectl<'a> = &'a dyn Fn(&[&str], &str) -> Result<Output>;

/// The manifests of this checkout.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

#[test]
fn the_api_server_takes_and_refuses_policies_and_an_agents_writes_as_the_tables_say() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let cluster = Cluster::start(Settings { nodes: 1, families: Families::V4 })?;
    let kubectl = |args: &[&str], stdin: &str| cluster.kubectl_command(args).stdin(stdin).output();
    crds::applied(&kubectl, MANIFESTS)?;
    println!("{} attempts with policies", crds::check(&kubectl)?);
    // The agents' Leases are there.
    cluster.kubectl(["create", "namespace", "adit-system"])?;
    fence::applied(&kubectl, MANIFESTS)?;
    println!("{} attempts of an agent", fence::check(&kubectl)?);
    Ok(())
}
