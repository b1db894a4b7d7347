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

/// Every `…_MAX` constant of what is shipped has a row in ARCHITECTURE.md with its value and file, and every row a
/// constant.
pub fn limits(root: &Path) -> Result<Vec<Violation>> {
    let text = read_or_empty(root, Path::new(ARCHITECTURE))?;
    let mut rows: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("| `") && line.contains("_MAX` "))
        .map(|(number, line)| (number + 1, line))
        .collect();
    let mut found = Vec::new();
    for krate in source::crates(root)? {
        if krate.kind == "test" || ["adit-tests", "xtask"].contains(&krate.package.as_str()) {
            continue;
        }
        for module in krate.modules.iter().filter(|module| !module.test_only && !module.file.is_generated()) {
            let path = &module.file.path;
            for (line, name, value) in constants(&module.file.text.code_without_tests()) {
                let wanted = format!("| `{name}` {value} | `{}` |", path.display());
                match rows.iter().position(|(_, row)| row.starts_with(&wanted)) {
                    Some(at) => drop(rows.remove(at)),
                    None => {
                        let what = format!("the limits table of {ARCHITECTURE} has no row `{wanted} …`");
                        found.push(Violation::new(path, line, what));
                    }
                }
            }
        }
    }
    found.extend(rows.into_iter().map(|(number, row)| {
        let what = format!("no constant has this name, value and file: {row}");
        Violation::new(Path::new(ARCHITECTURE), number, what)
    }));
    Ok(found)
}

/// The `…_MAX` constants of `code`: line, name, and value as the table shows it (durations by their number).
fn constants(code: &str) -> Vec<(usize, &str, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        if let Some(name) = constant(line).filter(|name| name.ends_with("_MAX")) {
            let value = code[at..].split_once('=').map_or("", |(_, value)| value).split(';').next();
            let value = value.unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ");
            let number = code[..at].lines().count() + 1;
            found.push((number, name, value.replace("Duration::from_secs", "")));
        }
        at += line.len();
    }
    found
}

/// The constant that `line` declares.
fn constant(line: &str) -> Option<&str> {
    let rest = line.trim_start();
    let rest = rest.strip_prefix("pub ").or_else(|| rest.strip_prefix("pub(crate) ")).unwrap_or(rest);
    let rest = rest.strip_prefix("pub(super) ").unwrap_or(rest);
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
    fn a_limit_is_read_with_its_value() {
        let code = "use x;\npub const A_MAX: usize =\n    64 *\n    1024;\nconst B: u8 = 1;\n\
                    pub(super) const C_MAX: Duration = Duration::from_secs(10);\n";
        assert_eq!(constants(code), [(2, "A_MAX", "64 * 1024".to_owned()), (6, "C_MAX", "(10)".to_owned())]);
    }

    #[test]
    fn labels_are_those_of_fn_label_only() {
        let source = "    pub const fn label(self) -> &'static str {\n            Self::Loop => \"loop\",\n    }\n  x => \"y\"";
        assert_eq!(labels(source), [(2, "loop".to_owned())]);
    }
}
