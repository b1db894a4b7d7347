//! The paths by which code names other modules of its crate: `use` trees and paths in expressions alike.

use super::lexer::{is_ident, line_of};

/// A path that begins with `crate`, `super` or `self`, or with the name of a crate of ours.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Import {
    /// Its segments, groups unfolded: `use crate::{a::b, c}` is two imports.
    pub path: Vec<String>,
    /// From 1.
    pub line: usize,
    /// Whether it stands in a `pub use`: a front door, no use of its own.
    pub reexport: bool,
}

/// All paths in `code` that begin with one of `starts`.
pub fn imports(code: &str, starts: &[&str]) -> Vec<Import> {
    let mut found = Vec::new();
    for start in starts {
        for (at, _) in code.match_indices(start) {
            let whole_word = !code[..at].ends_with(|c: char| is_ident(c) || c == ':' || c == '$');
            let rest = &code[at + start.len()..];
            if !whole_word || !rest.starts_with("::") {
                continue;
            }
            let line = line_of(code, at);
            let statement = code[..at].rfind([';', '}', ']']).map_or(code, |end| &code[end + 1..]);
            let statement = statement.trim_start();
            let reexport = statement.starts_with("pub use") || statement.starts_with("pub(crate) use");
            let mut paths = Vec::new();
            unfold(&rest[2..], &mut vec![(*start).to_owned()], &mut paths);
            found.extend(paths.into_iter().map(|path| Import { path, line, reexport }));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Unfolds the use tree at the begin of `rest` below `prefix`; returns how many bytes it took.
fn unfold(rest: &str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let blank = rest.len() - rest.trim_start().len();
    let text = &rest[blank..];
    if text.starts_with('{') {
        let mut at = blank + 1;
        while at < rest.len() {
            match rest.as_bytes()[at] {
                b'}' => return at + 1,
                b',' | b' ' | b'\n' => at += 1,
                _ => at += unfold(&rest[at..], prefix, paths).max(1),
            }
        }
        return rest.len();
    }
    let name: String = text.chars().take_while(|c| is_ident(*c)).collect();
    let mut at = blank + name.len();
    if name.is_empty() {
        paths.push(prefix.clone());
        return at + usize::from(text.starts_with('*'));
    }
    prefix.push(name);
    if let Some(after) = rest[at..].strip_prefix("::") {
        // A turbofish is no further segment.
        if after.starts_with('<') {
            paths.push(prefix.clone());
            at += 2;
        } else {
            at += 2 + unfold(after, prefix, paths);
        }
    } else {
        paths.push(prefix.clone());
        if let Some(alias) = rest[at..].strip_prefix(" as ") {
            at += 4 + alias.chars().take_while(|c| is_ident(*c)).count();
        }
    }
    prefix.pop();
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(code: &str) -> Vec<String> {
        imports(code, &["crate", "super"]).into_iter().map(|import| import.path.join("::")).collect()
    }

    #[test]
    fn groups_are_unfolded_and_expressions_count() {
        assert_eq!(
            paths("use crate::{a::{B, c::D as E}, f};\nfn g() { super::h::i(); crate::j::k::<u8>() }"),
            ["crate::a::B", "crate::a::c::D", "crate::f", "crate::j::k", "super::h::i"]
        );
    }

    #[test]
    fn a_front_door_is_told_from_a_use() {
        let found = imports("mod a;\npub use crate::a::B;\nuse crate::c::D;", &["crate"]);
        assert_eq!(found.iter().map(|import| import.reexport).collect::<Vec<_>>(), [true, false]);
    }
}
