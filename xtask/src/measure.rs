//! `cargo xtask measure`: sizes of files and functions, and import cycles, of our tree as it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::repo;
use crate::source::{self, Crate, Module, largest_cycle};

/// A hand-written file outside tests should not be longer.
const FILE_LINES_MAX: usize = 500;
/// How many functions are listed.
const LONGEST: usize = 10;

/// Prints the tables.
pub fn print() -> Result<()> {
    let crates = source::crates(repo::root())?;
    print_crates(&crates);
    print_long_files(&crates);
    print_functions(&crates);
    Ok(())
}

fn print_crates(crates: &[Crate]) {
    println!(
        "{:<22} {:>5} {:>7} {:>7} {:>7}  {:<42} largest import cycle",
        "crate", "files", "code", "tests", "docs", "longest file"
    );
    let mut cyclic = Vec::new();
    for krate in crates {
        let lines: Vec<Lines> = krate.modules.iter().map(Lines::of).collect();
        let sum = |part: fn(&Lines) -> usize| lines.iter().map(part).sum::<usize>();
        let longest = krate.modules.iter().zip(&lines).max_by_key(|(_, lines)| lines.code);
        let longest = longest.map_or(String::new(), |(module, lines)| {
            format!("{} {}", module.file.path.display(), lines.code)
        });
        let cycle = largest_cycle(krate);
        println!(
            "{:<22} {:>5} {:>7} {:>7} {:>7}  {longest:<42} {}",
            format!("{} ({})", krate.package, krate.kind),
            krate.modules.len(),
            sum(|lines| lines.code),
            sum(|lines| lines.tests),
            sum(|lines| lines.comments),
            if cycle.is_empty() { "none".to_owned() } else { format!("{} modules", cycle.len()) },
        );
        if !cycle.is_empty() {
            cyclic.push((krate, cycle));
        }
    }
    for (krate, cycle) in cyclic {
        println!("\nimport cycle in {} ({}): {}", krate.package, krate.kind, cycle.join(", "));
    }
}

/// A file's lines by kind; blank lines are none.
struct Lines {
    code: usize,
    tests: usize,
    comments: usize,
}

impl Lines {
    fn of(module: &Module) -> Self {
        let text = &module.file.text;
        let count = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
        let all = count(&text.code);
        let shipped =
            if module.test_only || module.file.is_test() { 0 } else { count(&text.code_without_tests()) };
        Self { code: shipped, tests: all - shipped, comments: count(&text.comments) }
    }
}

/// Files over the limit by all their lines, as an editor counts them, without their tests.
fn print_long_files(crates: &[Crate]) {
    let mut long = BTreeMap::new();
    for module in crates.iter().flat_map(|krate| &krate.modules) {
        let of_tests = module.test_only || module.file.is_test() || module.file.path.starts_with("tests");
        if of_tests || module.file.is_generated() {
            continue;
        }
        let whole = module.file.text.whole.lines().count();
        let tests = Lines::of(module).tests;
        if whole - tests > FILE_LINES_MAX {
            long.insert(module.file.path.clone(), whole - tests);
        }
    }
    println!("\nhand-written files over {FILE_LINES_MAX} lines outside tests: {}", long.len());
    for (path, lines) in long {
        println!("  {lines:>5}  {}", path.display());
    }
}

fn print_functions(crates: &[Crate]) {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for module in crates.iter().flat_map(|krate| &krate.modules) {
        let fresh = seen.insert(module.file.path.clone());
        if !fresh || module.test_only || module.file.is_test() || module.file.is_generated() {
            continue;
        }
        for function in source::functions(&module.file.text.code_without_tests()) {
            found.push((function, &module.file.path));
        }
    }
    let lines: usize = found.iter().map(|(function, _)| function.lines).sum();
    println!("\n{} functions, {} lines on average; the longest:", found.len(), lines / found.len().max(1));
    found.sort_by_key(|(function, _)| std::cmp::Reverse(function.lines));
    for (function, path) in found.iter().take(LONGEST) {
        println!("  {:>5}  {}  {}:{}", function.lines, function.name, path.display(), function.line);
    }
}
