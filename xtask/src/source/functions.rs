//! Functions and their lengths.

use super::lexer::{closing_brace, line_of, words_after};

/// A function as found by its `fn` and its braces.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// The functions with a body in `code` (as `Text` holds it).
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, name) in words_after(code, "fn") {
        let Some(open) = code[at..].find(['{', ';']).map(|offset| at + offset) else {
            continue;
        };
        // `[u8; 4]` in a signature has a semicolon too: look on while inside brackets.
        let open = if code.as_bytes()[open] == b';' { body_after_arrays(code, at) } else { Some(open) };
        let Some(end) = open.and_then(|open| closing_brace(code, open)) else {
            continue;
        };
        let line = line_of(code, at);
        found.push(Function { name, line, lines: line_of(code, end) - line + 1 });
    }
    found
}

/// The `{` of the body of the function at `at`, where its signature holds `;` only within brackets.
fn body_after_arrays(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, byte) in code[at..].bytes().enumerate() {
        match byte {
            b'[' | b'(' => depth += 1,
            b']' | b')' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(at + offset),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let code = "trait T { fn a(&self); }\nfn b(x: [u8; 4]) {\n  if x { }\n}\nfn c() {}\n";
        let found: Vec<(String, usize, usize)> =
            functions(code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("b".to_owned(), 2, 3), ("c".to_owned(), 5, 1)]);
    }
}
