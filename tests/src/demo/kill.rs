//! Step: a replica dies under load, first its process, then the whole pod.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};

use super::Stage;
use super::accounts::{Accounts, Kill, Since};
use super::shop::Shop;
use crate::apps::{Load, LoadReport, Shape, run_load};
use crate::mesh::Agent;

/// New connections a second; at least 200 are promised.
const RATE: u32 = 250;
/// How long.
const LENGTH: Duration = Duration::from_secs(10);
/// Connections that stay open beside them, what a kill may cut: so many from the start, and as many from when the
/// replica is back, which is chosen for them as it has none.
const LONG_LIVED: usize = 8;
/// When the second ones are opened: the replica's second ejection (of 2 s, from about 3 s on) is over by then.
const SECOND: Duration = Duration::from_millis(5800);
const REPLICA: &str = "payments-1";
/// How often the replica is killed: curl has one connection at a time, and loses no more than that.
const KILLS: usize = 2;

/// New connections at [`RATE`] from the frontend.
pub(super) fn new_connections(shop: &Shop, length: Duration) -> Result<Load> {
    Ok(Load {
        to: shop.vip("payments")?,
        shape: Shape::PerRequest,
        clients: 64,
        rate: Some(RATE),
        duration: length,
        // Above the connect phase's deadline, so that what the agent says is seen.
        give_up: Duration::from_secs(4),
    })
}

/// Loads from the frontend's namespace, each on a thread of its own and from its own instant on, while `meanwhile`
/// runs.
pub(super) fn under_load<T>(
    shop: &mut Shop,
    loads: &[(Duration, Load)],
    meanwhile: impl FnOnce(&mut Shop) -> Result<T>,
) -> Result<(Vec<LoadReport>, T)> {
    let netns = shop.pod("frontend")?.host.netns.clone();
    thread::scope(|scope| {
        let run = |(delay, load): &(Duration, Load)| {
            thread::sleep(*delay);
            netns.run(|| run_load(load))?
        };
        let running: Vec<_> = loads.iter().map(|load| scope.spawn(move || run(load))).collect();
        let done = meanwhile(shop);
        let reports = running
            .into_iter()
            .map(|load| load.join().map_err(|_| anyhow!("a load panicked"))?)
            .collect::<Result<Vec<_>>>();
        Ok((reports?, done?))
    })
}

/// What an agent has counted.
#[derive(Clone, Copy, Debug)]
struct Counts {
    retries: u64,
    ejections: u64,
}

impl Counts {
    fn read(shop: &Shop, agent: &Agent) -> Result<Self> {
        let node = shop.mesh.topology.node(agent.node())?;
        let page = node.netns.command("curl").args(["-sSf", "http://127.0.0.1:15020/metrics"]).ok()?;
        Ok(Self {
            retries: sum(&page, "adit_connect_retries_total"),
            ejections: sum(&page, "adit_ejections_total"),
        })
    }
}

/// The sum of a metric's series.
fn sum(page: &str, name: &str) -> u64 {
    let of = page.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    });
    of.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// What was done to the replica, and when.
struct Killed {
    process: Kill,
    pod: Kill,
}

/// Returns how many of curl's calls the kills may have cut: those that the replica carried when it was killed, and the
/// loads do not miss. Where its network was cut, curl notices late, and maybe in a later step.
pub(super) fn kill_a_replica(stage: &mut Stage<'_>) -> Result<usize> {
    stage.say.step("A payments replica dies under load: first its process, then the whole pod")?;
    let (shop, say) = (&mut *stage.shop, &*stage.say);
    let endpoint = shop.pod(REPLICA)?.at(8080).to_string();
    let since = Since::now(shop.mesh.agent("n1")?, shop.mesh.agent("n2")?);
    let before = Counts::read(shop, shop.mesh.agent("n1")?)?;
    let fresh = new_connections(shop, LENGTH)?;
    let kept = Load { shape: Shape::KeepAlive, clients: LONG_LIVED, rate: Some(80), ..fresh.clone() };
    let later = Load { duration: LENGTH - SECOND, ..kept.clone() };
    say.line(format!(
        "the frontend opens {RATE} connections/s for {} s; {LONG_LIVED} stay open from the start, {LONG_LIVED} more from \
         {:.1} s",
        LENGTH.as_secs(),
        SECOND.as_secs_f64()
    ))?;
    let loads = [(Duration::ZERO, fresh), (Duration::ZERO, kept), (SECOND, later)];
    let (reports, killed) = under_load(shop, &loads, |shop| script(shop, &|line| say.line(line)))?;
    let [fresh, kept @ ..] = &reports[..] else { anyhow::bail!("every load has a report") };
    let kept_failures: u64 = kept.iter().map(LoadReport::failures).sum();
    let agent = shop.mesh.agent("n1")?;
    let accounts = Accounts::take(agent, shop.mesh.agent("n2")?, since)?;
    let after = Counts::read(shop, agent)?;

    let (by_process, by_pod) =
        (accounts.carried_at(&killed.process, &endpoint)?, accounts.carried_at(&killed.pod, &endpoint)?);
    say.line(format!(
        "new connections: {} answered, {} failed, {:.0}/s; p50 {} us, p99 {} us, slowest {} us",
        fresh.ok,
        fresh.failures(),
        fresh.rate(),
        fresh.p50_us,
        fresh.p99_us,
        fresh.max_us
    ))?;
    say.line(format!(
        "by the agent's reports: {} connections, {} attempts, {} retries, {} ejections; failed attempts: {}",
        accounts.len(),
        accounts.attempts(),
        after.retries - before.retries,
        after.ejections - before.ejections,
        shown(&accounts.failures_retried()),
    ))?;
    let lost = accounts.lost();
    say.line(format!("failed though their CONNECT had not been answered: {}", lost.len()))?;
    say.line(format!(
        "counted apart, already carried by that replica at the instant of the kill: {by_process} (process), {by_pod} \
         (pod); requests of the open connections that were cut so: {}",
        kept_failures
    ))?;
    ensure!(lost.is_empty(), "{} connections were lost, the first: {}", lost.len(), lost[0]);
    let unexplained = accounts.unexplained(&[(killed.process, &endpoint), (killed.pod, &endpoint)])?;
    ensure!(
        unexplained.is_empty(),
        "{} carried connections were cut, and no kill explains it, the first: {}",
        unexplained.len(),
        unexplained[0]
    );
    let seen_by_apps = usize::try_from(fresh.failures() + kept_failures)?;
    ensure!(
        seen_by_apps <= by_process + by_pod,
        "the clients saw {seen_by_apps} failures, of which {} are explained: {reports:?}",
        by_process + by_pod
    );
    ensure!(fresh.rate() >= 200.0, "only {:.0} new connections a second", fresh.rate());
    ensure!(by_process > 0, "no connection was carried by the replica when its process was killed");
    ensure!(by_pod > 0, "no connection was carried by the replica when its pod was killed");
    Ok((by_process + by_pod - seen_by_apps).min(KILLS))
}

fn shown(counts: &std::collections::BTreeMap<String, usize>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(why, count)| format!("{count} {why}")).collect::<Vec<_>>().join(", ")
}

/// What happens to the replica while the load runs, at fixed times of it.
fn script(shop: &mut Shop, say: &dyn Fn(&str) -> Result<()>) -> Result<Killed> {
    let started = Instant::now();
    let at = |seconds: f64| {
        let due = started + Duration::from_secs_f64(seconds);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    };
    let timed = |what: &mut dyn FnMut() -> Result<()>| -> Result<Kill> {
        let begun = SystemTime::now();
        what()?;
        Ok(Kill { begun, done: SystemTime::now() })
    };
    at(2.0);
    let id = shop.server_id(REPLICA)?;
    let process = timed(&mut || shop.kill_server(REPLICA))?;
    say(&format!("2.0 s: SIGKILL to nginx in {REPLICA} (pid {id})"))?;
    at(4.0);
    shop.restart_server(REPLICA)?;
    say(&format!("4.0 s: started again, as the kubelet does (pid {})", shop.server_id(REPLICA)?))?;
    at(6.5);
    let pod = timed(&mut || shop.kill_pod(REPLICA))?;
    say("6.5 s: the whole pod: its link cut, so that it cannot say goodbye, and everything in it killed")?;
    at(7.5);
    let template = shop.remove_pod(REPLICA).context("cannot remove the dead pod")?;
    say("7.5 s: the cluster has noticed: endpoint, sandbox and object removed")?;
    at(8.3);
    let fresh = shop.replace_pod(template)?;
    say(&format!("8.3 s: a new {REPLICA} at {}, in the mesh from its first packet", fresh.host.v4))?;
    Ok(Killed { process, pod })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_series_are_summed_and_its_namesakes_are_not() {
        let page = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_created 9\nb 1\n";
        assert_eq!((sum(page, "a_total"), sum(page, "b"), sum(page, "c")), (5, 1, 0));
    }
}
