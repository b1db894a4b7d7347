//! The rows: which load, and what must be reached.

use super::client::Load;
use super::measure::Measured;
use super::mesh::Congestion;

/// One load, its figures, and what they must reach.
#[derive(Clone, Debug)]
pub struct Row {
    /// What `--only` takes.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// What is done.
    pub job: Job,
    /// Its figures, in the order in which a measurement gives them.
    pub figures: Vec<Figure>,
}

/// What is done for a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Job {
    /// A load, on both paths.
    Load(Load, Congestion),
    /// So many idle connections, in fresh agents.
    Idle(u32),
    /// So many pods known to a fresh agent, against none.
    Workloads(u32),
    /// So many pods of a killed agent's, taken over by its successor.
    Adoption(u32),
}

/// One figure of a row.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its unit.
    pub unit: &'static str,
    /// What is judged.
    pub judged: Judged,
    /// What it must reach; none is only shown.
    pub bound: Option<Bound>,
}

/// What of a figure is judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Judged {
    /// By the mesh as a part of the plain path's.
    Ratio,
    /// By the mesh less the plain path's.
    Excess,
    /// The mesh's own.
    Alone,
}

/// What must be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// A figure of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// By the plain path, where there is one.
    pub plain: Option<f64>,
    /// By the mesh.
    pub mesh: f64,
}

impl Bound {
    /// Whether `value` reaches it.
    pub fn is_reached(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Figure {
    /// What is judged of one round.
    pub fn judge(&self, value: Value) -> f64 {
        match (self.judged, value.plain) {
            (Judged::Ratio, Some(plain)) => value.mesh / plain,
            (Judged::Excess, Some(plain)) => value.mesh - plain,
            (Judged::Ratio | Judged::Excess, None) | (Judged::Alone, _) => value.mesh,
        }
    }
}

/// Every row, in the order of the table.
pub fn all() -> Vec<Row> {
    use Bound::{AtLeast, AtMost};
    use Congestion::{Host, Reno};
    let load = |name, what, load, congestion, bounds: &[Option<Bound>]| Row {
        name,
        what,
        job: Job::Load(load, congestion),
        figures: figures_of(load, bounds),
    };
    let bulk_host = [Some(AtLeast(0.46)), Some(AtMost(1.05))];
    let bulk_reno = [Some(AtLeast(0.34)), Some(AtMost(0.78))];
    let bulk8_reno = [Some(AtLeast(0.33)), Some(AtMost(0.78))];
    let requests = [Some(AtLeast(0.50)), Some(AtMost(25.0))];
    let rate = [Some(AtMost(120.0)), Some(AtMost(260.0)), None];
    let connections = [Some(AtLeast(0.32)), Some(AtMost(145.0))];
    let (up, down) = ("one bulk stream to the server", "one bulk stream to the client");
    let eight = "eight bulk streams to the server";
    let keep_alive = "64 keep-alive connections, small requests";
    let paced = "32 keep-alive connections, 2,000 requests/s";
    let fresh = "a new connection per request, 16 at a time";
    let alone = |name, what, job, units: &[&'static str], bound| Row {
        name,
        what,
        job,
        figures: units
            .iter()
            .map(|unit| Figure { unit, judged: Judged::Alone, bound: Some(AtMost(bound)) })
            .collect(),
    };
    vec![
        load("up-host", up, Load::ToServer(1), Host, &bulk_host),
        load("down-host", down, Load::ToClient(1), Host, &bulk_host),
        load("up8-host", eight, Load::ToServer(8), Host, &[None, None]),
        load("requests-host", keep_alive, Load::KeepAlive(64), Host, &requests),
        load("rate-host", paced, Load::Rate(32, 2000), Host, &rate),
        load("connections-host", fresh, Load::PerRequest(16), Host, &connections),
        load("up-reno", up, Load::ToServer(1), Reno, &bulk_reno),
        load("down-reno", down, Load::ToClient(1), Reno, &bulk_reno),
        load("up8-reno", eight, Load::ToServer(8), Reno, &bulk8_reno),
        load("requests-reno", keep_alive, Load::KeepAlive(64), Reno, &requests),
        load("rate-reno", paced, Load::Rate(32, 2000), Reno, &rate),
        load("connections-reno", fresh, Load::PerRequest(16), Reno, &connections),
        alone(
            "idle",
            "5,000 idle connections in fresh agents",
            Job::Idle(5000),
            &["KiB each, client's agent", "KiB each, server's agent"],
            4.0,
        ),
        alone("workloads", "20,000 workloads known", Job::Workloads(20_000), &["MiB more than none"], 25.0),
        alone(
            "adoption",
            "100 pods of an agent that was killed",
            Job::Adoption(100),
            &["ms until served"],
            1000.0,
        ),
    ]
}

fn figures_of(load: Load, bounds: &[Option<Bound>]) -> Vec<Figure> {
    let units: &[(&'static str, Judged)] = match load {
        Load::ToServer(_) | Load::ToClient(_) => {
            &[("Gb/s", Judged::Ratio), ("agent CPU s/GB", Judged::Alone)]
        }
        Load::KeepAlive(_) => &[("requests/s", Judged::Ratio), ("agent CPU µs/request", Judged::Alone)],
        Load::Rate(..) => {
            &[("p50 µs", Judged::Excess), ("p99 µs", Judged::Excess), ("agent CPU µs/request", Judged::Alone)]
        }
        Load::PerRequest(_) => {
            &[("connections/s", Judged::Ratio), ("agent CPU µs/connection", Judged::Alone)]
        }
        Load::Idle(_) => &[],
    };
    let figure =
        |(&(unit, judged), &bound): (&(&'static str, Judged), &Option<Bound>)| Figure { unit, judged, bound };
    units.iter().zip(bounds).map(figure).collect()
}

/// The figures of one round of a load, in the order of its row's.
pub fn values(load: Load, plain: &Measured, mesh: &Measured) -> Vec<Value> {
    let both = |of: fn(&Measured) -> f64| Value { plain: Some(of(plain)), mesh: of(mesh) };
    let own = |value| Value { plain: None, mesh: value };
    let us_each = own(mesh.cpu_each() * 1e6);
    match load {
        Load::ToServer(_) | Load::ToClient(_) => {
            vec![both(|measured| measured.rate() * 8e-9), own(mesh.cpu_each() * 1e9)]
        }
        Load::KeepAlive(_) | Load::PerRequest(_) => vec![both(Measured::rate), us_each],
        Load::Rate(..) => {
            vec![both(|measured| measured.report.p50_us), both(|measured| measured.report.p99_us), us_each]
        }
        Load::Idle(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::client::Report;

    #[test]
    fn every_row_has_a_name_of_its_own_and_figures() {
        let mut names: Vec<_> = all().iter().map(|row| row.name).collect();
        assert!(all().iter().all(|row| !row.figures.is_empty()));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_ratio_is_of_the_same_round_and_a_bound_may_be_met_exactly() {
        let measured = |done, agents_cpu| Measured {
            report: Report { done, seconds: 2.0, p50_us: 10.0, p99_us: 20.0 },
            agents_cpu,
        };
        let (plain, mesh) = (measured(8_000_000_000, 0.0), measured(4_000_000_000, 3.0));
        let values = values(Load::ToServer(1), &plain, &mesh);
        assert_eq!(values[0], Value { plain: Some(32.0), mesh: 16.0 });
        assert_eq!(values[1].mesh, 0.75);
        let row = &all()[0];
        assert_eq!(row.figures[0].judge(values[0]), 0.5);
        assert!(Bound::AtLeast(0.5).is_reached(0.5) && !Bound::AtMost(0.4).is_reached(0.5));
    }
}
