//! Code, comments and strings of a Rust file, told apart byte by byte. Lines and offsets stay as they were.

/// A file's text in two layers of equal length; what belongs to the other layer is blank.
#[derive(Clone, Debug)]
pub struct Text {
    /// Code without comments and without the insides of strings.
    pub code: String,
    /// Comments only, doc comments too.
    pub comments: String,
    /// All of it.
    pub whole: String,
}

impl Text {
    /// Splits `whole`.
    pub fn split(whole: &str) -> Self {
        let mut code = Vec::with_capacity(whole.len());
        let mut comments = Vec::with_capacity(whole.len());
        let bytes = whole.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let (kind, end) = token(bytes, at);
            for &byte in &bytes[at..end] {
                let blank = if byte == b'\n' { b'\n' } else { b' ' };
                code.push(if kind == Kind::Code { byte } else { blank });
                comments.push(if kind == Kind::Comment { byte } else { blank });
            }
            at = end;
        }
        let text =
            |bytes: Vec<u8>| String::from_utf8(bytes).expect("whole tokens of UTF-8 were kept or blanked");
        Self { code: text(code), comments: text(comments), whole: whole.to_owned() }
    }

    /// The code with what stands under `#[cfg(test)]` blanked too.
    pub fn code_without_tests(&self) -> String {
        let mut code = self.code.clone();
        while let Some(at) = code.find("#[cfg(test)]") {
            let rest = &code[at..];
            let open = rest.find(['{', ';']).map_or(code.len() - 1, |offset| at + offset);
            let end = if code.as_bytes().get(open) == Some(&b'{') {
                closing_brace(&code, open).unwrap_or(code.len() - 1)
            } else {
                open
            };
            let blanked: String =
                code[at..=end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            code = format!("{}{blanked}{}", &code[..at], &code[end + 1..]);
        }
        code
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Code,
    Comment,
    String,
}

/// The token that begins at `at`, as far as it matters here, and where it ends.
fn token(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = &bytes[at..];
    let after_ident = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => (Kind::Comment, at + until(rest, b'\n')),
        [b'/', b'*', ..] => (Kind::Comment, at + block_comment(rest)),
        [b'"', ..] => (Kind::String, at + quoted(rest, b'"')),
        [b'r', b'"' | b'#', ..] if !after_ident => match raw_string(rest) {
            Some(len) => (Kind::String, at + len),
            None => (Kind::Code, at + 1),
        },
        [b'b', b'r', b'"' | b'#', ..] if !after_ident => match raw_string(&rest[1..]) {
            Some(len) => (Kind::String, at + 1 + len),
            None => (Kind::Code, at + 1),
        },
        [b'\'', b'\\', ..] => (Kind::String, at + quoted(rest, b'\'')),
        // A character, not a lifetime: something and a closing quote right after it.
        [b'\'', first, ..] if rest.get(1 + utf8_len(*first)) == Some(&b'\'') => {
            (Kind::String, at + utf8_len(*first) + 2)
        }
        [first, ..] => (Kind::Code, at + utf8_len(*first)),
        [] => (Kind::Code, at),
    }
}

fn utf8_len(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

fn until(bytes: &[u8], end: u8) -> usize {
    bytes.iter().position(|byte| *byte == end).unwrap_or(bytes.len())
}

fn block_comment(bytes: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return at + 2,
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    bytes.len()
}

fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of the raw string that begins here; `None` where it is a raw identifier.
fn raw_string(bytes: &[u8]) -> Option<usize> {
    let hashes = bytes[1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let inside = 2 + hashes;
    let found = bytes[inside..].windows(end.len()).position(|window| window == end);
    Some(found.map_or(bytes.len(), |offset| inside + offset + end.len()))
}

/// Where the brace that opens at `open` is closed.
pub(super) fn closing_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, byte) in code[open..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(open + offset),
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The line of byte `at`, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Each place of the word `keyword` with the identifier that follows it.
pub(super) fn words_after(code: &str, keyword: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(keyword) {
        let before = code[..at].chars().next_back();
        let rest = &code[at + keyword.len()..];
        if before.is_some_and(is_ident) || !rest.starts_with([' ', '\n']) {
            continue;
        }
        let name: String =
            rest.trim_start().trim_start_matches("r#").chars().take_while(|c| is_ident(*c)).collect();
        if !name.is_empty() {
            found.push((at, name));
        }
    }
    found
}

/// Whether `c` may stand in an identifier.
pub(super) fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = Text::split(
            "let a = \"// b\"; // c \"d\"\nlet e = '\"'; /* f /* g */ h */ let i: &'a str = r#\"j\"k\"#;",
        );
        let code: String = text.code.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(code, "let a = ; let e = ; let i: &'a str = ;");
        assert!(text.comments.contains("c \"d\"") && text.comments.contains("h */"));
        assert_eq!(text.code.len(), text.whole.len());
    }

    #[test]
    fn what_is_under_cfg_test_is_not_shipped() {
        let text = Text::split("fn a() {}\n#[cfg(test)]\nmod tests {\n  use crate::x;\n}\nfn b() {}\n");
        let code = text.code_without_tests();
        assert!(!code.contains("crate::x") && code.contains("fn a") && code.contains("fn b"));
        assert_eq!(line_of(&code, code.find("fn b").unwrap()), 6);
    }
}
