//! A whole run: rounds of every row, a second look at what was missed, the table, the verdict.
#![expect(clippy::print_stdout, reason = "the table is its output")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::measure::measure;
use super::mesh::{Bench, Congestion};
use super::page::{self, Outcome};
use super::rows::{self, Job, Row, Value};
use super::{adoption, facts, memory};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Exit with 1 when a row is missed.
    pub check: bool,
    /// Only rows of these names, or that begin so; empty is all.
    pub only: Vec<String>,
    /// Rounds of each row.
    pub rounds: u32,
    /// How long one load runs on one path.
    pub duration: Duration,
    /// A look in a minute, not a measurement: no second look, nothing written.
    pub quick: bool,
}

/// Rounds of a row that was missed; their median counts.
const ROUNDS_AGAIN: u32 = 9;

/// Measures, prints, writes the page if it was the whole.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    let rows = selected(&wanted.only)?;
    let whole = wanted.only.is_empty() && !wanted.quick;
    println!("{}; the host's congestion control is {}", facts::machine()?, facts::congestion()?);
    let mut outcomes = all_rounds(&rows, wanted.rounds, wanted.duration)?;
    let missed: Vec<Row> =
        outcomes.iter().filter(|outcome| !outcome.is_reached()).map(|outcome| outcome.row.clone()).collect();
    let again: Vec<&str> = missed.iter().map(|row| row.name).collect();
    if !missed.is_empty() && !wanted.quick && wanted.rounds < ROUNDS_AGAIN {
        println!(
            "\n{}\nmissed, and measured again with {ROUNDS_AGAIN} rounds: {}",
            page::table(&outcomes),
            again.join(", ")
        );
        for better in all_rounds(&missed, ROUNDS_AGAIN, wanted.duration)? {
            let place = outcomes.iter_mut().find(|outcome| outcome.row.name == better.row.name);
            *place.expect("only rows that were measured are measured again") = better;
        }
    }
    let table = page::table(&outcomes);
    println!("\n{table}");
    if whole {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        page::write(&file, &measured(wanted, &again, &table)?)?;
    }
    let reached = outcomes.iter().all(Outcome::is_reached);
    Ok(if wanted.check && !reached { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn selected(only: &[String]) -> Result<Vec<Row>> {
    let mut rows = rows::all();
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    if let Some(unknown) = only.iter().find(|only| !names.iter().any(|name| name.starts_with(only.as_str())))
    {
        bail!("no row {unknown}; there are {}", names.join(", "));
    }
    rows.retain(|row| only.is_empty() || only.iter().any(|only| row.name.starts_with(only.as_str())));
    Ok(rows)
}

/// What the page says of a run.
fn measured(wanted: &Wanted, again: &[&str], table: &str) -> Result<String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let again = if again.is_empty() {
        String::new()
    } else {
        format!(" Missed at first and measured again with {ROUNDS_AGAIN}: {}.", again.join(", "))
    };
    let (rounds, seconds) = (wanted.rounds, wanted.duration.as_secs_f64());
    let command = format!("cargo xtask bench {}", args.join(" "));
    Ok(format!(
        "Made by `{}` on {}; the host's congestion control is {}. Medians of {rounds} rounds of {seconds} s.{again}\n\n{table}",
        command.trim(),
        facts::machine()?,
        facts::congestion()?,
    ))
}

/// All rounds of these rows: those that share a mesh together, round after round.
fn all_rounds(rows: &[Row], rounds: u32, duration: Duration) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> =
        rows.iter().map(|row| Outcome { row: row.clone(), rounds: Vec::new() }).collect();
    for congestion in [Congestion::Host, Congestion::Reno] {
        let on_this =
            |outcome: &&mut Outcome| matches!(outcome.row.job, Job::Load(_, of) if of == congestion);
        let mut loads: Vec<&mut Outcome> = outcomes.iter_mut().filter(on_this).collect();
        if loads.is_empty() {
            continue;
        }
        let bench = Bench::start(congestion)?;
        for round in 0..rounds {
            for outcome in &mut loads {
                let Job::Load(load, _) = outcome.row.job else { continue };
                let values = pair_of(&bench, load, round, duration)?;
                note(outcome, values);
            }
        }
    }
    for _ in 0..rounds {
        for outcome in &mut outcomes {
            let own = |mesh| Value { plain: None, mesh };
            match outcome.row.job {
                Job::Load(..) => {}
                Job::Idle(connections) => note(outcome, memory::idle(connections)?.map(own).to_vec()),
                Job::Workloads(pods) => note(outcome, vec![own(memory::workloads(pods)?)]),
                Job::Adoption(pods) => note(outcome, vec![own(adoption::milliseconds(pods)?)]),
            }
        }
    }
    Ok(outcomes)
}

fn note(outcome: &mut Outcome, values: Vec<Value>) {
    let shown: Vec<String> = outcome
        .row
        .figures
        .iter()
        .zip(&values)
        .map(|(figure, value)| match value.plain {
            Some(plain) => format!("{:.2} (plain {plain:.2}) {}", value.mesh, figure.unit),
            None => format!("{:.2} {}", value.mesh, figure.unit),
        })
        .collect();
    println!("{:<18} {}", outcome.row.name, shown.join(", "));
    outcome.rounds.push(values);
}

/// Both paths, one right after the other; who is first changes each round.
fn pair_of(bench: &Bench, load: super::client::Load, round: u32, duration: Duration) -> Result<Vec<Value>> {
    use super::mesh::Path::{Mesh, Plain};
    let measure = |path| measure(bench, path, load, duration);
    let (plain, mesh) = if round.is_multiple_of(2) {
        let plain = measure(Plain)?;
        (plain, measure(Mesh)?)
    } else {
        let mesh = measure(Mesh)?;
        (measure(Plain)?, mesh)
    };
    Ok(rows::values(load, &plain, &mesh))
}
