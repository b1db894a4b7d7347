//! The docs say what the code has: commands, limits, reasons; and their links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::violation::Violation;
use crate::source::{self, File};

const README: &str = "README.md";
const ARCHITECTURE: &str = "ARCHITECTURE.md";
const REASONS: &str = "proto/src/reason.rs";

/// The two commands that a newcomer needs stand in the README.
pub fn commands(root: &Path) -> Result<Vec<Violation>> {
    let text = read_or_empty(root, Path::new(README))?;
    Ok(["cargo xtask demo", "cargo xtask test"]
        .iter()
        .filter(|command| !text.contains(*command))
        .map(|command| Violation::new(Path::new(README), 0, format!("does not name `{command}`")))
        .collect())
}

/// Every `…_MAX` constant of what is shipped stands in ARCHITECTURE.md by name.
pub fn limits(root: &Path) -> Result<Vec<Violation>> {
    let text = read_or_empty(root, Path::new(ARCHITECTURE))?;
    let mut found = Vec::new();
    for krate in source::crates(root)? {
        if krate.kind == "test" || ["adit-tests", "xtask"].contains(&krate.package.as_str()) {
            continue;
        }
        for module in krate.modules.iter().filter(|module| !module.test_only && !module.file.is_generated()) {
            let code = module.file.text.code_without_tests();
            for (number, line) in code.lines().enumerate() {
                let Some(name) = constant(line).filter(|name| name.ends_with("_MAX")) else {
                    continue;
                };
                if !text.contains(name) {
                    let what = format!("{name} is not in the limits table of {ARCHITECTURE}");
                    found.push(Violation::new(&module.file.path, number + 1, what));
                }
            }
        }
    }
    Ok(found)
}

/// The constant that `line` declares.
fn constant(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = rest.strip_prefix("pub ").or_else(|| rest.strip_prefix("pub(crate) ")).unwrap_or(rest);
    Some(rest.strip_prefix("const ")?.split(':').next()?.trim())
}

/// Every reason's word stands in the docs.
pub fn reasons(root: &Path) -> Result<Vec<Violation>> {
    let file = File::read(root, Path::new(REASONS))?;
    let mut text = String::new();
    for path in pages(root)? {
        text.push_str(&read_or_empty(root, &path)?);
    }
    let labels = labels(&file.text.whole);
    if labels.is_empty() {
        return Ok(vec![Violation::new(&file.path, 0, "no reason's word was found by `fn label`")]);
    }
    Ok(labels
        .into_iter()
        .filter(|(_, label)| !text.contains(&format!("`{label}`")))
        .map(|(line, label)| {
            Violation::new(&file.path, line, format!("reason `{label}` is in no page of the docs"))
        })
        .collect())
}

/// The words in the body of `fn label`, with their lines.
fn labels(source: &str) -> Vec<(usize, String)> {
    source
        .lines()
        .enumerate()
        .skip_while(|(_, line)| !line.contains("fn label("))
        .take_while(|(_, line)| *line != "    }")
        .filter_map(|(number, line)| {
            let label = line.split_once("=> \"")?.1.split('"').next()?;
            Some((number + 1, label.to_owned()))
        })
        .collect()
}

/// Every relative link in a page of ours leads to a file that is there.
pub fn links(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for page in pages(root)? {
        let text = read_or_empty(root, &page)?;
        let folder = page.parent().unwrap_or_else(|| Path::new(""));
        for (number, link) in targets(&text) {
            let file = link.split('#').next().unwrap_or("");
            let elsewhere = link.contains("://") || link.starts_with("mailto:") || file.is_empty();
            if !elsewhere && !root.join(folder).join(file).exists() {
                found.push(Violation::new(&page, number, format!("link to {link}, which is not there")));
            }
        }
    }
    Ok(found)
}

/// The targets of `[text](target)` outside fenced blocks, with their lines.
fn targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let mut rest = line;
        while let Some((_, after)) = rest.split_once("](") {
            let target = after.split([')', ' ']).next().unwrap_or("");
            found.push((number + 1, target));
            rest = after;
        }
    }
    found
}

/// Every Markdown page of ours.
fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    source::files(root, Path::new(""), "md")
}

fn read_or_empty(root: &Path, path: &Path) -> Result<String> {
    if !root.join(path).exists() {
        return Ok(String::new());
    }
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_fences() {
        let text = "see [a](docs/a.md) and [b](https://x/y#z)\n```\n[c](d)\n```\n";
        assert_eq!(targets(text), [(1, "docs/a.md"), (1, "https://x/y#z")]);
    }

    #[test]
    fn a_constant_is_read_with_any_visibility() {
        assert_eq!(constant("    pub(crate) const QUEUE_LEN_MAX: usize = 8;"), Some("QUEUE_LEN_MAX"));
        assert_eq!(constant("let x_MAX: u8 = 1;"), None);
    }

    #[test]
    fn labels_are_those_of_fn_label_only() {
        let source = "    pub const fn label(self) -> &'static str {\n            Self::Loop => \"loop\",\n    }\n  x => \"y\"";
        assert_eq!(labels(source), [(2, "loop".to_owned())]);
    }
}
