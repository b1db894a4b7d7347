//! Step: certificates are renewed under load.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Stage;
use super::accounts::{Accounts, Since};
use super::kill::{new_connections, under_load};
use super::shop::{LEAF_LIFE_S, Shop};

/// A certificate is renewed at half of its life ± 10 %: within so long, each is renewed at least once.
const LENGTH: Duration = Duration::from_millis(LEAF_LIFE_S * 600 + 400);

/// The certificates in use on both ends: identity and serial.
fn serials(shop: &Shop) -> Result<BTreeMap<String, String>> {
    let mut serials = BTreeMap::new();
    for (node, pod) in [("n1", "frontend"), ("n2", "payments-2")] {
        let identity = shop.pod(pod)?.identity();
        let status = shop.mesh.agent(node)?.status()?;
        let own = status.certificates.into_iter().find(|held| held.identity == identity);
        let serial = own.and_then(|held| held.serial).with_context(|| format!("{node} has no {identity}"))?;
        serials.insert(identity, serial);
    }
    Ok(serials)
}

pub(super) fn rotate(stage: &mut Stage<'_>) -> Result<()> {
    stage.say.step("Certificates are renewed under load")?;
    let (shop, say) = (&mut *stage.shop, &*stage.say);
    let since = Since::now(shop.mesh.agent("n1")?, shop.mesh.agent("n2")?);
    let before = serials(shop)?;
    let load = new_connections(shop, LENGTH)?;
    let started = Instant::now();
    let (reports, ()) = under_load(shop, &[(Duration::ZERO, load)], |_| Ok(()))?;
    let took = started.elapsed();
    let [report] = &reports[..] else { bail!("one load has one report") };
    let after = serials(shop)?;
    let accounts = Accounts::take(shop.mesh.agent("n1")?, shop.mesh.agent("n2")?, since)?;
    let (handshakes, shown) = (accounts.handshakes(), accounts.client_certificates());
    say.line(format!(
        "leaf certificates live {LEAF_LIFE_S} s here (24 h by default) and are renewed at half of it, +- 10 %"
    ))?;
    for (identity, serial) in &before {
        let now = after.get(identity).context("both ends have a certificate")?;
        say.line(format!("{identity}: {}.. -> {}..", head(serial), head(now)))?;
        ensure!(serial != now, "{identity} was not renewed within {took:.1?}");
    }
    say.line(format!(
        "meanwhile {:.0} new connections/s for {:.1} s: {} answered, {} of {} failed; {handshakes} \
         handshakes; payments saw {} certificates of the frontend's",
        report.rate(),
        took.as_secs_f64(),
        report.ok,
        report.failures(),
        report.ok + report.failures(),
        shown
    ))?;
    ensure!(report.failures() == 0, "{:?}", report.failed);
    let lost = accounts.lost();
    ensure!(lost.is_empty(), "{} connections were lost, the first: {}", lost.len(), lost[0]);
    ensure!(shown > 1, "payments saw one certificate only: none was renewed in use");
    Ok(())
}

/// Enough of a serial to tell it from another.
fn head(serial: &str) -> &str {
    serial.get(..12).unwrap_or(serial)
}
