//! The table, on the screen and in docs/performance.md.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::rows::{Bound, Figure, Judged, Row, Value};

/// A row with what was measured, a round after the other.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) row: Row,
    pub(super) rounds: Vec<Vec<Value>>,
}

/// One figure over all rounds.
struct Summed {
    plain: Option<f64>,
    mesh: f64,
    judged: f64,
    least: f64,
    most: f64,
}

impl Outcome {
    /// Whether every figure reaches its bound.
    pub(super) fn is_reached(&self) -> bool {
        self.row.figures.iter().enumerate().all(|(at, figure)| {
            figure.bound.is_none_or(|bound| bound.is_reached(self.summed(at, figure).judged))
        })
    }

    fn summed(&self, at: usize, figure: &Figure) -> Summed {
        let values: Vec<Value> = self.rounds.iter().map(|round| round[at]).collect();
        let judged: Vec<f64> = values.iter().map(|value| figure.judge(*value)).collect();
        let plain: Vec<f64> = values.iter().filter_map(|value| value.plain).collect();
        Summed {
            plain: (!plain.is_empty()).then(|| median(plain)),
            mesh: median(values.iter().map(|value| value.mesh).collect()),
            least: judged.iter().copied().fold(f64::INFINITY, f64::min),
            most: judged.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            judged: median(judged),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

const HEAD: [&str; 8] = ["row", "load", "figure", "plain", "mesh", "compared", "least–most", "to reach"];

/// The table in Markdown, its columns aligned.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut lines: Vec<[String; 8]> = vec![HEAD.map(str::to_owned)];
    for outcome in outcomes {
        for (at, figure) in outcome.row.figures.iter().enumerate() {
            lines.push(line(outcome, at, figure));
        }
    }
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(widths) {
            text.push_str(&format!("| {cell:<width$} "));
        }
        text.push_str("|\n");
        if number == 0 {
            text.extend(widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))));
            text.push_str("|\n");
        }
    }
    text
}

fn line(outcome: &Outcome, at: usize, figure: &Figure) -> [String; 8] {
    let Summed { plain, mesh, judged, least, most } = outcome.summed(at, figure);
    let (sign, compared) = match figure.judged {
        Judged::Ratio => ("× plain", number(judged)),
        Judged::Excess => ("more", number(judged)),
        Judged::Alone => ("", number(judged)),
    };
    let reach = match figure.bound {
        None => "–".to_owned(),
        Some(bound) => {
            let word = if bound.is_reached(judged) { "reached" } else { "MISSED" };
            match bound {
                Bound::AtLeast(bound) => format!("≥ {bound}: {word}"),
                Bound::AtMost(bound) => format!("≤ {bound}: {word}"),
            }
        }
    };
    let first = |text: &str| if at == 0 { text.to_owned() } else { String::new() };
    [
        first(outcome.row.name),
        first(outcome.row.what),
        figure.unit.to_owned(),
        plain.map_or_else(|| "–".to_owned(), number),
        number(mesh),
        format!("{compared} {sign}").trim().to_owned(),
        format!("{}–{}", number(least), number(most)),
        reach,
    ]
}

/// Three significant digits or so, as people read them.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

const BEGIN: &str = "<!-- begin: written by `cargo xtask bench` -->";
const END: &str = "<!-- end: written by `cargo xtask bench` -->";

/// Puts `measured` into the page between its marks; what people wrote around them stays.
pub(super) fn write(page: &Path, measured: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let new = replaced(&old, measured).with_context(|| format!("{} has not both marks", page.display()))?;
    fs::write(page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn replaced(old: &str, measured: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{measured}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows;

    fn outcome(ratios: &[f64]) -> Outcome {
        let row = rows::all().swap_remove(0);
        let value = |mesh| Value { plain: Some(1.0), mesh };
        let rounds = ratios.iter().map(|ratio| vec![value(*ratio), value(1.0)]).collect();
        Outcome { row, rounds }
    }

    #[test]
    fn the_median_over_the_rounds_is_judged() {
        assert!(outcome(&[0.1, 0.46, 0.9]).is_reached());
        assert!(!outcome(&[0.1, 0.45, 0.9]).is_reached());
        let table = table(&[outcome(&[0.1, 0.45, 0.9])]);
        assert!(
            table.contains("0.45 × plain") && table.contains("0.10–0.90") && table.contains("≥ 0.46: MISSED"),
            "{table}"
        );
        assert!(table.contains("≤ 1.05: reached"), "{table}");
    }

    #[test]
    fn what_people_wrote_around_the_figures_stays() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replaced(&page, "new").unwrap(), format!("a\n{BEGIN}\n\nnew\n{END}\nb\n"));
        assert!(replaced("no marks", "new").is_none());
    }
}
