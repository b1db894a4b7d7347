//! How configuration writes durations and sizes: `250ms`, `30s`, `5m`, `24h`; `64KiB`, `16MiB`.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const SIZE_UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

/// Reads a duration; the unit must be written.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Text(|text: &str| {
        parse_duration(text).ok_or("a duration such as 250ms, 30s, 5m or 24h")
    }))
}

/// The same for a field that may be left out; `null` is no duration.
pub fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// Reads a size in bytes; the unit must be written.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    deserializer.deserialize_str(Text(|text: &str| {
        parse(text, &SIZE_UNITS)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or("a size such as 64KiB or 16MiB")
    }))
}

/// A duration from its written form; none if it is not one.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATION_UNITS).map(Duration::from_millis)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    count.parse::<u64>().ok()?.checked_mul(factor)
}

struct Text<F>(F);

impl<T, F: Fn(&str) -> Result<T, &'static str>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number with its unit")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(|wanted| E::custom(format!("{text:?} is not {wanted}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_number_and_a_unit() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("24h"), Some(Duration::from_secs(86_400)));
        for text in
            ["", "5", "s", "-1s", "1.5s", "1 s", "1d", "99999999999999999999s", "18446744073709551615h"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_size_has_a_number_and_a_unit() {
        assert_eq!(parse("64KiB", &SIZE_UNITS), Some(65_536));
        assert_eq!(parse("7B", &SIZE_UNITS), Some(7));
        assert_eq!(parse("64KB", &SIZE_UNITS), None);
    }
}
