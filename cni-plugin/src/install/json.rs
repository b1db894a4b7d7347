//! Where in a list's text its plugins stand, so that one can be put in or taken out and every other byte stays.
//!
//! serde_json judges the text first; what is scanned here is known to be JSON.

use std::ops::Range;

use serde_json::{Map, Value};

/// A file that is one JSON object.
pub(crate) struct Text<'t> {
    pub(crate) bytes: &'t [u8],
    pub(crate) object: Map<String, Value>,
}

/// Why a text is none, and where.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) what: String,
}

impl<'t> Text<'t> {
    pub(crate) fn parse(bytes: &'t [u8]) -> Result<Self, Malformed> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self { bytes, object }),
            Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(Malformed { line: 1, column: 1, what: "not a JSON object".into() })
            }
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                let told = error.to_string();
                let at = format!(" at line {line} column {column}");
                Err(Malformed { line, column, what: told.strip_suffix(&at).unwrap_or(&told).to_owned() })
            }
        }
    }

    /// The list's plugins as values; none where there is no such array.
    pub(crate) fn plugins(&self) -> &[Value] {
        self.object.get("plugins").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The same with `entry` behind the last plugin, indented as that is. `None` where there is none to stand behind.
    pub(crate) fn with_last(&self, entry: &str) -> Option<Vec<u8>> {
        let spans = self.spans();
        let last = spans.last()?;
        let before = &self.bytes[..last.start];
        let white = before.len() - before.trim_ascii_end().len();
        let mut put_in = b",".to_vec();
        put_in.extend_from_slice(&self.bytes[last.start - white..last.start]);
        put_in.extend_from_slice(entry.as_bytes());
        Some(self.replaced(last.end..last.end, &put_in))
    }

    /// The same with `entry` instead of the plugin at `index`.
    pub(crate) fn with(&self, index: usize, entry: &str) -> Vec<u8> {
        match self.spans().get(index) {
            Some(span) => self.replaced(span.clone(), entry.as_bytes()),
            None => self.bytes.to_vec(),
        }
    }

    /// The same without the plugin at `index`: exactly what [`Text::with_last`] puts in goes out.
    pub(crate) fn without(&self, index: usize) -> Vec<u8> {
        let spans = self.spans();
        let Some(span) = spans.get(index) else {
            return self.bytes.to_vec();
        };
        let out = match (index.checked_sub(1).and_then(|before| spans.get(before)), spans.get(index + 1)) {
            (Some(before), _) => before.end..span.end,
            (None, Some(after)) => span.start..after.start,
            (None, None) => span.clone(),
        };
        self.replaced(out, b"")
    }

    fn replaced(&self, span: Range<usize>, by: &[u8]) -> Vec<u8> {
        [&self.bytes[..span.start], by, &self.bytes[span.end..]].concat()
    }

    /// Where the elements of `plugins` stand. Of two such keys the last counts, as for serde_json and for Go.
    fn spans(&self) -> Vec<Range<usize>> {
        let mut scan = Scan { bytes: self.bytes, at: 0 };
        let mut found = Vec::new();
        scan.members(|scan| {
            let key = scan.value();
            let is_plugins =
                serde_json::from_slice::<String>(&scan.bytes[key]).is_ok_and(|key| key == "plugins");
            scan.skip_white();
            scan.at += 1; // the colon
            if is_plugins {
                found.clear();
                scan.skip_white();
                match scan.bytes.get(scan.at) {
                    Some(b'[') => scan.members(|scan| found.push(scan.value())),
                    Some(_) | None => scan.skip(),
                }
            } else {
                scan.skip();
            }
        });
        found
    }
}

/// A place in a text that is JSON.
struct Scan<'t> {
    bytes: &'t [u8],
    at: usize,
}

impl Scan<'_> {
    fn skip_white(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Goes through an object or array, which begins here; `each` reads one member.
    fn members(&mut self, mut each: impl FnMut(&mut Self)) {
        self.skip_white();
        self.at += 1;
        loop {
            self.skip_white();
            match self.bytes.get(self.at) {
                Some(b'}' | b']') | None => {
                    self.at += 1;
                    return;
                }
                Some(b',') => self.at += 1,
                Some(_) => each(self),
            }
        }
    }

    fn skip(&mut self) {
        let _ = self.value();
    }

    /// Skips one value, and returns where it stands.
    fn value(&mut self) -> Range<usize> {
        self.skip_white();
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' if depth == 0 => break,
                _ if depth == 0 && byte.is_ascii_whitespace() => break,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                break;
            }
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.at += 1;
                    return;
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, with_last: &str) {
        let put_in = Text::parse(text.as_bytes()).unwrap().with_last("{\"type\":\"x\"}").unwrap();
        assert_eq!(String::from_utf8_lossy(&put_in), with_last);
        let after = Text::parse(&put_in).unwrap();
        assert_eq!(String::from_utf8_lossy(&after.without(after.plugins().len() - 1)), text);
    }

    #[test]
    fn what_is_put_in_is_indented_as_its_neighbour_and_goes_out_without_a_trace() {
        check(r#"{"plugins":[{"a":1}]}"#, r#"{"plugins":[{"a":1},{"type":"x"}]}"#);
        check(
            "{\n \"plugins\": [\n  {\"a\": [1, {}]} ,\n  { }\n ]\n}\n",
            "{\n \"plugins\": [\n  {\"a\": [1, {}]} ,\n  { },\n  {\"type\":\"x\"}\n ]\n}\n",
        );
        check("{\"plugins\":\t[ 1 ] }", "{\"plugins\":\t[ 1, {\"type\":\"x\"} ] }");
    }

    #[test]
    fn braces_commas_and_quotes_in_strings_are_text() {
        check(
            r#"{"a":"]},\"\\","plugins":["}\"],"]}"#,
            r#"{"a":"]},\"\\","plugins":["}\"],",{"type":"x"}]}"#,
        );
    }

    #[test]
    fn of_two_keys_the_last_counts_however_it_is_written() {
        check(r#"{"plugins":[1],"pl\u0075gins":[2]}"#, r#"{"plugins":[1],"pl\u0075gins":[2,{"type":"x"}]}"#);
        check(
            r#"{"a":{"plugins":[3]},"plugins":[2],"b":{"plugins":[3]}}"#,
            r#"{"a":{"plugins":[3]},"plugins":[2,{"type":"x"}],"b":{"plugins":[3]}}"#,
        );
    }

    #[test]
    fn there_is_nothing_to_stand_behind_in_an_empty_or_missing_array() {
        for text in [
            r#"{"plugins":[]}"#,
            r#"{"plugins":[ ]}"#,
            r#"{"plugins":{"a":[1]}}"#,
            r#"{"plugins":"[1]"}"#,
            "{}",
        ] {
            assert_eq!(Text::parse(text.as_bytes()).unwrap().with_last("0"), None, "{text}");
        }
    }

    #[test]
    fn any_element_can_be_taken_out_or_changed() {
        let text = Text::parse(br#"{"plugins":[ 1, 2 , [3] ]}"#).unwrap();
        let out = [0, 1, 2, 3].map(|index| String::from_utf8(text.without(index)).unwrap());
        assert_eq!(
            out,
            [
                r#"{"plugins":[ 2 , [3] ]}"#,
                r#"{"plugins":[ 1 , [3] ]}"#,
                r#"{"plugins":[ 1, 2 ]}"#,
                r#"{"plugins":[ 1, 2 , [3] ]}"#
            ]
        );
        assert_eq!(text.with(1, "{}"), br#"{"plugins":[ 1, {} , [3] ]}"#);
        assert_eq!(Text::parse(br#"{"plugins":[ 1 ]}"#).unwrap().without(0), br#"{"plugins":[  ]}"#);
    }

    #[test]
    fn what_is_no_object_is_told_with_its_place() {
        let told = |text: &str| Text::parse(text.as_bytes()).err().unwrap();
        let at = told("{\n  \"a\": 1\n  \"b\"}");
        assert_eq!((at.line, at.column, at.what.as_str()), (3, 3, "expected `,` or `}`"));
        assert_eq!(told("[]").what, "not a JSON object");
        assert_eq!((told("").line, told("").what.as_str()), (1, "EOF while parsing a value"));
    }
}
