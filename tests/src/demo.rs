//! `cargo xtask demo`: the mesh's main job on real traffic, each step with the bytes or lines that prove it.
//!
//! A check, not a film: a step that does not show what it promises is an error, and the program exits 1. It drives the
//! built programs, the kernel's real redirects and real servers and clients, over the same harness as the tests; the
//! objects are those of `manifests/examples`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::sandbox::Sandbox;

mod accounts;
mod caller;
mod calls;
mod enrol;
mod examples;
mod keep;
mod kill;
mod policy;
mod rotate;
mod say;
mod shop;
mod wire;

use caller::Caller;
use calls::Calls;
use say::Say;
use shop::Shop;

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave everything running at the end, and say how to play with it.
    pub keep: bool,
    /// Show agents, rules, sockets and logs where a step fails.
    pub logs: bool,
}

/// Runs all steps; an error names the one that failed.
pub fn run(options: Options, sandbox: &Sandbox) -> Result<()> {
    let mut say = Say::new();
    let mut shop = None;
    let done = steps(options, sandbox, &mut say, &mut shop);
    if let (Err(error), true, Some(shop)) = (&done, options.logs, &shop) {
        shop.mesh.print_state(&format!("{error:#}"));
    }
    done.with_context(|| say.current())
}

/// What every step has at hand.
struct Stage<'s> {
    say: &'s mut Say,
    shop: &'s mut Shop,
    caller: Caller,
    calls: Calls,
}

fn steps(options: Options, sandbox: &Sandbox, say: &mut Say, slot: &mut Option<Shop>) -> Result<()> {
    say.step("Two nodes and a small shop, with CA and agents running, nobody enrolled")?;
    let shop = slot.insert(Shop::found(sandbox)?);
    shop.open()?;
    show_shop(say, shop, sandbox)?;

    let marker = marker()?;
    let caller = Caller::start(shop.pod("frontend")?, shop.vip("payments")?, &marker)?;
    let calls = Calls::new(shop, &marker)?;
    let mut stage = Stage { say, shop, caller, calls };
    calls::in_clear(&mut stage)?;
    enrol::enrol(&mut stage)?;
    calls::unreadable(&mut stage)?;
    enrol::telemetry(&mut stage)?;
    policy::refuse(&mut stage)?;
    let cut = kill::kill_a_replica(&mut stage)?;
    rotate::rotate(&mut stage)?;
    edges(&mut stage)?;

    let Stage { say, shop, mut caller, .. } = stage;
    let tally = caller.tally()?;
    say.line(format!(
        "\nthe one curl process (pid {}) made {} calls from the first step to here: {} answered, {} failed",
        caller.id(),
        tally.answered + tally.failed,
        tally.answered,
        tally.failed
    ))?;
    ensure!(tally.failed <= cut, "{} calls of curl's failed, and the kills explain {cut}", tally.failed);
    say.line(format!("every step showed what it promises; {:.1} s in all", say.elapsed().as_secs_f64()))?;
    if options.keep {
        keep::print_commands(say, shop, sandbox)?;
        // Ended by a signal, which ends the whole sandbox.
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
    Ok(())
}

fn show_shop(say: &Say, shop: &Shop, sandbox: &Sandbox) -> Result<()> {
    let user = if sandbox.is_real_root() { "as root" } else { "as an ordinary user, in a user namespace" };
    say.line(format!("everything is in namespaces of this run's own ({}), made {user}", sandbox.run()))?;
    for (name, pod) in &shop.pods {
        let server =
            shop.server_id(name).map_or_else(|_| "client only".into(), |id| format!("server pid {id}"));
        let spec = &pod.spec;
        say.line(format!(
            "{}  {:<20} {:<11} {:<9} {server}",
            spec.node,
            format!("{}/{name}", spec.namespace),
            pod.host.v4,
            spec.container["image"].as_str().unwrap_or("-"),
        ))?;
    }
    if !shop.has_orders {
        say.line("orders (PostgreSQL) is left out: it refuses to run as root, and here is no other user")?;
    }
    for name in ["frontend", "payments", "cart", "orders"] {
        if let Ok(vip) = shop.vip(name) {
            say.line(format!("service {name:<9} {vip}"))?;
        }
    }
    say.line("no cluster here: until enrolment a DNAT rule of the demo's own on each node plays kube-proxy")
}

/// Tells this run's calls from everything else on the wire: 32 characters that nobody else sends.
fn marker() -> Result<String> {
    let mut bytes = [0; 16];
    let mut random = fs::File::open(Path::new("/dev/urandom")).context("/dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("/dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn edges(stage: &mut Stage<'_>) -> Result<()> {
    stage.say.step("Every hop, from `adit edges`")?;
    let Stage { say, shop, .. } = stage;
    let table = shop.mesh.adit(&["edges", "-n", "shop"])?;
    for wanted in ["ns/shop/sa/frontend", "ns/shop/sa/payments", "mTLS TLSv1", "policy_denied"] {
        ensure!(table.contains(wanted), "`adit edges` says nothing of {wanted}:\n{table}");
    }
    say.line(table)
}
