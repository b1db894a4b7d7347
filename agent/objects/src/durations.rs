//! Durations in Gateway API's format (GEP-2257): one to four pairs of a number and a unit, like `1m30s` or `250ms`.

use std::time::Duration;

/// Reads a duration; `None` if it is not of the form `([0-9]{1,5}(h|m|s|ms)){1,4}`.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        let units = rest[digits..].bytes().take_while(u8::is_ascii_lowercase).count();
        total += match &rest[digits..digits + units] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[digits + units..];
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

/// Writes a duration so that [`parse`] reads it back; below a millisecond nothing is kept, above 99,999 hours neither.
pub fn format(span: Duration) -> String {
    let ms = span.as_millis().min(99_999 * 3_600_000 + 3_599_999);
    let parts = [(ms / 3_600_000, "h"), (ms / 60_000 % 60, "m"), (ms / 1000 % 60, "s"), (ms % 1000, "ms")];
    let text: String = parts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_proposal_are_read() {
        for (text, ms) in [
            ("0h", Some(0)),
            ("0s", Some(0)),
            ("0h0m0s", Some(0)),
            ("1h", Some(3_600_000)),
            ("30m", Some(1_800_000)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2h30m", Some(9_000_000)),
            ("150m", Some(9_000_000)),
            ("7230s", Some(7_230_000)),
            ("1h30m10s", Some(5_410_000)),
            ("10s30m1h", Some(5_410_000)),
            ("100ms200ms300ms", Some(600)),
            ("99999h0m0s1ms", Some(99_999 * 3_600_000 + 1)),
            ("", None),
            ("1", None),
            ("1m1", None),
            ("1h30m10s20ms50h", None),
            ("999999h", None),
            ("1.5h", None),
            ("-15m", None),
            ("1d", None),
            (" 1s", None),
        ] {
            assert_eq!(parse(text).map(|span| span.as_millis()), ms, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read_back(ms in 0_u64..100_000 * 3_600_000) {
            let span = Duration::from_millis(ms.min(99_999 * 3_600_000 + 3_599_999));
            prop_assert_eq!(parse(&format(span)), Some(span));
        }
    }
}
