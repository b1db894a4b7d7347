//! The tree: no unfinished work without an issue, no file that nothing compiles, manifests that are Kubernetes objects.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::violation::Violation;
use crate::source::{self, File};

/// Words that announce unfinished work; allowed only with an issue's number: `WORD(#12)`.
const UNFINISHED: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];
/// Macros that stand for code that is not there.
const STUBS: [&str; 2] = ["todo!", "unimplemented!"];

/// Comments that promise work and name no issue, and code that is not there.
pub fn unfinished(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for path in source::files(root, Path::new(""), "rs")? {
        let file = File::read(root, &path)?;
        for (number, line) in file.text.comments.lines().enumerate() {
            for word in UNFINISHED.iter().filter(|word| promises(line, word)) {
                found.push(Violation::new(&path, number + 1, format!("{word} without an issue's number")));
            }
        }
        for (number, line) in file.text.code.lines().enumerate() {
            for stub in STUBS.iter().filter(|stub| line.contains(*stub)) {
                found.push(Violation::new(
                    &path,
                    number + 1,
                    format!("{stub} stands for code that is not there"),
                ));
            }
        }
    }
    Ok(found)
}

fn promises(comment: &str, word: &str) -> bool {
    comment.match_indices(word).any(|(at, _)| {
        let ident = |c: char| c.is_alphanumeric() || c == '_' || c == '`';
        let alone = !comment[..at].ends_with(ident) && !comment[at + word.len()..].starts_with(ident);
        alone && !comment[at + word.len()..].starts_with("(#")
    })
}

/// Rust files below a package that no module tree reaches.
pub fn orphans(root: &Path) -> Result<Vec<Violation>> {
    let mut reached = BTreeSet::new();
    for krate in source::crates(root)? {
        for module in &krate.modules {
            reached.insert(module.file.path.clone());
            reached.extend(included(&module.file));
        }
    }
    Ok(source::files(root, Path::new(""), "rs")?
        .into_iter()
        .filter(|path| !reached.contains(path))
        .map(|path| Violation::new(&path, 0, "no module declares it: nothing compiles it"))
        .collect())
}

/// The files that `include!("…")` brings in.
fn included(file: &File) -> Vec<PathBuf> {
    let folder = file.path.parent().unwrap_or_else(|| Path::new(""));
    file.text
        .whole
        .match_indices("include!(\"")
        .filter_map(|(at, word)| file.text.whole[at + word.len()..].split('"').next())
        .map(|name| folder.join(name))
        .collect()
}

/// Fenced blocks in doc comments that rustdoc would run: `cargo xtask test` runs none, so a broken one stays unseen.
pub fn doc_examples(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for path in source::files(root, Path::new(""), "rs")? {
        let file = File::read(root, &path)?;
        let mut inside = false;
        for (number, line) in file.text.comments.lines().enumerate() {
            let line = line.trim_start();
            let Some(doc) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
                continue;
            };
            let Some(language) = doc.trim_start().strip_prefix("```") else {
                continue;
            };
            if !inside && (language.is_empty() || language.starts_with("rust")) && !file.is_generated() {
                found.push(Violation::new(
                    &path,
                    number + 1,
                    "a doc example that nobody runs: write ```text, or a test",
                ));
            }
            inside = !inside;
        }
    }
    Ok(found)
}

/// Every document below manifests/ is a Kubernetes object by its look: indented by spaces, with apiVersion, kind and a
/// name. (That they are understood is a test beside the reader of YAML.)
pub fn manifests(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for path in source::files(root, Path::new("manifests"), "yaml")? {
        let text = fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(manifest(&path, &text));
    }
    Ok(found)
}

fn manifest(path: &Path, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut document: Vec<(usize, &str)> = Vec::new();
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    for (number, line) in lines.chain([(text.lines().count() + 1, "---")]) {
        if line != "---" {
            if line.trim_start_matches(' ').starts_with('\t') {
                found.push(Violation::new(path, number, "indented by a tab"));
            }
            if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
                document.push((number, line));
            }
            continue;
        }
        if let Some((first, _)) = document.first() {
            for field in ["apiVersion: ", "kind: "] {
                if !document.iter().any(|(_, line)| line.starts_with(field)) {
                    found.push(Violation::new(
                        path,
                        *first,
                        format!("this document has no {}", field.trim_end_matches(": ")),
                    ));
                }
            }
        }
        document.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_needs_an_issue() {
        assert!(promises("// TODO: later", "TODO"));
        assert!(!promises("// TODO(#12): later", "TODO"));
        assert!(!promises("// every `TODO` is looked at; MYTODO too", "TODO"));
    }

    #[test]
    fn a_manifest_names_what_it_is() {
        let good = "apiVersion: v1\nkind: Pod\n---\n# only a comment\n---\napiVersion: v1\nkind: Service\n";
        assert_eq!(manifest(Path::new("a.yaml"), good), []);
        let bad = "apiVersion: v1\n\tkind: Pod\n---\nkind: Pod\n";
        let lines: Vec<usize> = manifest(Path::new("a.yaml"), bad).into_iter().map(|v| v.line).collect();
        assert_eq!(lines, [2, 1, 4]);
    }
}
