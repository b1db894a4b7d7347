//! No module of the crates that matter most imports, by whatever way, a module that imports it.

use std::path::Path;

use anyhow::Result;

use super::violation::Violation;
use crate::source::{self, largest_cycle};

/// Where a cycle is an error; elsewhere `cargo xtask measure` shows it.
const PACKAGES: [&str; 3] = ["adit-core", "adit-objects", "adit-agent"];

/// Checks the libraries of [`PACKAGES`].
pub fn check(top: &Path) -> Result<Vec<Violation>> {
    let crates = source::crates(top)?;
    let named = |package: &str| crates.iter().find(|krate| krate.package == package && krate.kind == "lib");
    Ok(PACKAGES
        .into_iter()
        .filter_map(|package| {
            let Some(krate) = named(package) else {
                return Some(Violation::new(top, 0, format!("there is no library of {package}")));
            };
            let cycle = largest_cycle(krate);
            let first = krate.modules.iter().find(|module| cycle.first() == Some(&module.path.join("::")))?;
            let what = format!("import cycle in {package}: {}", cycle.join(", "));
            Some(Violation::new(&first.file.path, 0, what))
        })
        .collect())
}
