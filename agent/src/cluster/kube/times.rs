//! Instants as Kubernetes writes them.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

const SECONDS: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MICROS: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// `Time`: to the second.
pub(super) fn seconds(wall: SystemTime) -> String {
    OffsetDateTime::from(wall).format(SECONDS).unwrap_or_else(|_| EPOCH.into())
}

/// `MicroTime`: with six digits, neither more nor fewer.
pub(super) fn micros(wall: SystemTime) -> String {
    let written = OffsetDateTime::from(wall).format(MICROS);
    written.unwrap_or_else(|_| EPOCH.replace('Z', ".000000Z"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_instant_is_written_to_the_second_or_with_six_digits() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_050_000);
        assert_eq!(seconds(wall), "2023-11-14T22:13:20Z");
        assert_eq!(micros(wall), "2023-11-14T22:13:20.050000Z");
    }
}
