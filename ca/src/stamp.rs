//! Instants as they stand in files: whole seconds, written as RFC 3339 in UTC.
//!
//! Knows no clock: the caller brings the instant.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time with a resolution of one second, between the years 1970 and 9999.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Stamp(u64);

impl Stamp {
    /// The last second that X.509's GeneralizedTime and RFC 3339 can name: 9999-12-31T23:59:59Z.
    const LAST: u64 = 253_402_300_799;

    /// The second that `at` lies in; what lies outside of 1970–9999 becomes the nearest end.
    pub fn of(at: SystemTime) -> Self {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self(seconds.min(Self::LAST))
    }

    /// This instant as the standard library's type.
    pub fn system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }

    /// This instant as rcgen's type.
    pub(crate) fn offset(self) -> OffsetDateTime {
        OffsetDateTime::from(self.system())
    }

    /// `span` later, in whole seconds, at most the end of the year 9999.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()).min(Self::LAST))
    }

    /// `span` earlier, in whole seconds, at least the beginning of 1970.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_secs()))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.offset().format(&Rfc3339).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        Ok(Self::of(at.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_written_as_rfc_3339_and_read_back() {
        let stamp = Stamp::of(UNIX_EPOCH + Duration::from_millis(1_700_000_000_999));
        let text = serde_json::to_string(&stamp).unwrap();
        assert_eq!(text, "\"2023-11-14T22:13:20Z\"");
        assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap(), stamp);
        assert!(serde_json::from_str::<Stamp>("\"yesterday\"").is_err());
    }

    #[test]
    fn arithmetic_stays_inside_what_a_certificate_can_say() {
        let end = Stamp::of(UNIX_EPOCH).plus(Duration::MAX);
        assert_eq!(end.to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Stamp::of(UNIX_EPOCH).minus(Duration::MAX).to_string(), "1970-01-01T00:00:00Z");
    }
}
