//! One module per command.

use clap::ValueEnum;

pub(crate) mod edges;
pub(crate) mod flows;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: what the agents' admin API says.
    Json,
}
